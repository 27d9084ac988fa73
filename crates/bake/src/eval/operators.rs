//! Operators of expressions.

use hcl_edit::Span;
use hcl_edit::expr::{BinaryOp, BinaryOperator, Expression, UnaryOp, UnaryOperator};

use super::{Evaluated, Scope};
use crate::error::Problem;
use crate::number::Number;
use crate::value::Value;

impl Scope<'_> {
    pub(super) fn unary(self, operation: &UnaryOp) -> Evaluated {
        match operation.operator.value() {
            UnaryOperator::Neg => {
                let number = self.operand(&operation.expr)?;
                result(Number::Whole(0).minus(number))
            }
            UnaryOperator::Not => Ok(Value::Bool(!self.bool_operand(&operation.expr)?)),
        }
    }

    pub(super) fn binary(self, operation: &BinaryOp) -> Evaluated {
        let (one, other) = (&operation.lhs_expr, &operation.rhs_expr);
        let numbers = || Ok::<_, Problem>((self.operand(one)?, self.operand(other)?));
        let bools = || Ok::<_, Problem>((self.bool_operand(one)?, self.bool_operand(other)?));
        let operator = *operation.operator.value();
        let value = match operator {
            BinaryOperator::Eq => Value::Bool(self.value(one)? == self.value(other)?),
            BinaryOperator::NotEq => Value::Bool(self.value(one)? != self.value(other)?),
            BinaryOperator::And => {
                let (one, other) = bools()?;
                Value::Bool(one && other)
            }
            BinaryOperator::Or => {
                let (one, other) = bools()?;
                Value::Bool(one || other)
            }
            _ => {
                let (one, other) = numbers()?;
                match operator {
                    BinaryOperator::LessEq => Value::Bool(one <= other),
                    BinaryOperator::GreaterEq => Value::Bool(one >= other),
                    BinaryOperator::Less => Value::Bool(one < other),
                    BinaryOperator::Greater => Value::Bool(one > other),
                    BinaryOperator::Plus => result(one.plus(other))?,
                    BinaryOperator::Minus => result(one.minus(other))?,
                    BinaryOperator::Mul => result(one.times(other))?,
                    BinaryOperator::Div | BinaryOperator::Mod if other.is_zero() => {
                        let text = "Unsuitable value for right operand: a number other than 0 is required.";
                        let problem = Problem::new("Division by zero", text);
                        return Err(problem.at(self.file, self.shifted(operation.operator.span())));
                    }
                    BinaryOperator::Div => result(one.divided_by(other))?,
                    _ => result(one.modulo(other))?,
                }
            }
        };
        Ok(value)
    }

    fn operand(self, expression: &Expression) -> Result<Number, Problem> {
        let value = self.value(expression)?;
        value
            .number()
            .map_err(|cause| self.unsuitable(expression, &cause))
    }

    fn bool_operand(self, expression: &Expression) -> Result<bool, Problem> {
        let value = self.value(expression)?;
        value
            .truth()
            .map_err(|cause| self.unsuitable(expression, &cause))
    }

    fn unsuitable(self, expression: &Expression, cause: &str) -> Problem {
        let text = format!("Unsuitable value for operand: {cause}.");
        Problem::new("Invalid operand", text).at(self.file, self.place(expression))
    }
}

/// Returns the value of an operation, if its result is a number.
fn result(number: Option<Number>) -> Evaluated {
    let problem = || Problem::new("Operation failed", crate::functions::NO_NUMBER);
    number.map(Value::Number).ok_or_else(problem)
}
