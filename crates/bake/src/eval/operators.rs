//! Operators of expressions.

use hcl_edit::Span;
use hcl_edit::expr::{BinaryOp, BinaryOperator, Expression, UnaryOp, UnaryOperator};

use super::{Evaluated, Scope, span};
use crate::error::Problem;
use crate::value::Value;

impl Scope<'_> {
    pub(super) fn unary(self, operation: &UnaryOp) -> Evaluated {
        match operation.operator.value() {
            UnaryOperator::Neg => Ok(Value::Number(-self.operand(&operation.expr)?)),
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
                    BinaryOperator::Plus => Value::Number(one + other),
                    BinaryOperator::Minus => Value::Number(one - other),
                    BinaryOperator::Mul => Value::Number(one * other),
                    BinaryOperator::Div | BinaryOperator::Mod if other == 0.0 => {
                        let text = "Unsuitable value for right operand: a number other than 0 is required.";
                        let problem = Problem::new("Division by zero", text);
                        return Err(problem.at(self.file, operation.operator.span()));
                    }
                    BinaryOperator::Div => Value::Number(one / other),
                    _ => Value::Number(one % other),
                }
            }
        };
        match value {
            Value::Number(number) if !number.is_finite() => Err(Problem::new(
                "Operation failed",
                "The result is no finite number.",
            )),
            value => Ok(value),
        }
    }

    fn operand(self, expression: &Expression) -> Result<f64, Problem> {
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
        Problem::new("Invalid operand", text).at(self.file, span(expression))
    }
}
