//! Evaluates expressions of HCL.

mod operators;
mod template;

use std::collections::BTreeMap;
use std::ops::Range;

use hcl_edit::expr::{
    Conditional, Expression, ForExpr, FuncCall, Object, ObjectKey, Traversal, TraversalOperator,
};
use hcl_edit::{Formatted, Span};

use crate::error::Problem;
use crate::functions;
use crate::names::Names;
use crate::number::{Number, REQUIRED, TOO_LARGE};
use crate::place;
use crate::value::Value;

type Evaluated = Result<Value, Problem>;

/// Where an expression is evaluated: the file that it is in, and names that hold only there.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub names: &'a Names<'a>,
    pub file: usize,
    pub own: &'a BTreeMap<String, Value>,
    /// Start and end of the string, in bytes of the file, that the expression was parsed from: places in it are relative to the start. Only
    /// in JSON files.
    pub within: Option<(usize, usize)>,
    /// How deep expressions are in others, through variables and functions.
    pub depth: usize,
}

/// The maximum depth of expressions in others.
const MAX_DEPTH: usize = 300;

/// The maximum number of attributes and indices behind a value: those behind a splat are followed for each item.
const MAX_OPERATORS: usize = 50;

/// The maximum number of values that all expressions together may have.
pub(crate) const MAX_STEPS: usize = 5_000_000;

/// Returns the place of an expression. That of a text is inside the quotes, except in JSON.
pub(crate) fn span(expression: &Expression) -> Option<Range<usize>> {
    let Some(span) = expression.span() else {
        return place::noted(expression);
    };
    Some(match expression {
        Expression::String(_) | Expression::StringTemplate(_) if span.len() > 2 => {
            span.start + 1..span.end - 1
        }
        Expression::Array(_) | Expression::Object(_) if span.len() > 1 => {
            span.start..span.start + 1
        }
        _ => span,
    })
}

impl<'a> Scope<'a> {
    /// Returns a value of an expression.
    ///
    /// # Errors
    /// Returns the problem with the place of the innermost expression.
    pub fn value(self, expression: &Expression) -> Evaluated {
        let place = || self.place(expression);
        let limit =
            |text: &str| Err(Problem::new("Expression too complex", text).at(self.file, place()));
        if self.depth > MAX_DEPTH {
            return limit("expressions are nested too deeply");
        }
        if !self.names.step() {
            return limit("evaluating it takes too long");
        }
        let scope = Self {
            depth: self.depth + 1,
            ..self
        };
        let value = match expression {
            Expression::Null(_) => Ok(Value::Null),
            Expression::Bool(value) => Ok(Value::Bool(*value.value())),
            Expression::Number(number) => scope.number(number),
            Expression::String(text) => {
                let text = text.value();
                let paid = scope.names.pay_for(text);
                paid.map(|()| Value::String(text.clone()))
            }
            Expression::Array(items) => {
                let items = items.iter().map(|item| scope.value(item));
                items.collect::<Result<_, _>>().map(Value::List)
            }
            Expression::Object(object) => scope.object(object),
            Expression::StringTemplate(template) => {
                scope.inside(expression).template(template.iter())
            }
            Expression::HeredocTemplate(heredoc) => scope.template(heredoc.template.iter()),
            Expression::Parenthesis(inner) => scope.value(inner.inner()),
            Expression::Variable(name) => scope.variable(name.as_str()),
            Expression::Conditional(conditional) => scope.conditional(conditional),
            Expression::FuncCall(call) => scope.call(call),
            Expression::Traversal(traversal) => scope.traversal(traversal),
            Expression::UnaryOp(operation) => scope.unary(operation),
            Expression::BinaryOp(operation) => scope.binary(operation),
            Expression::ForExpr(all) => scope.for_each(all),
        };
        value.map_err(|problem| problem.at(self.file, place()))
    }

    /// Returns the place of an expression in the file.
    fn place(self, expression: &Expression) -> Option<Range<usize>> {
        self.shifted(span(expression))
    }

    /// Returns the place in the file of what has been parsed. A text with escapes is longer in the file: then it is one before it.
    fn shifted(self, span: Option<Range<usize>>) -> Option<Range<usize>> {
        let (Some((start, end)), Some(span)) = (self.within, span.clone()) else {
            return span;
        };
        let shift = |offset: usize| start.saturating_add(offset).min(end);
        Some(shift(span.start)..shift(span.end))
    }

    /// Returns the scope of the parts of a text.
    fn inside(self, text: &Expression) -> Self {
        match place::noted(text) {
            Some(span) => Self {
                within: Some((span.start + 1, span.end.saturating_sub(1))),
                ..self
            },
            None => self,
        }
    }

    /// Returns the scope with more names.
    fn with(self, own: &'a BTreeMap<String, Value>) -> Self {
        Self { own, ..self }
    }

    /// Returns the value of a number that is written.
    fn number(self, number: &Formatted<hcl_edit::Number>) -> Evaluated {
        // Its digits are read each time.
        self.names
            .pay_for(number.as_repr().map_or("", |text| &**text))?;
        literal(number)
    }

    fn variable(self, name: &str) -> Evaluated {
        self.names.pay_for(name)?;
        if let Some(value) = self.own.get(name) {
            return self.names.copy(value);
        }
        let found = self.names.variable(name, self.depth)?;
        found.ok_or_else(|| {
            let text = format!("There is no variable named {name:?}.");
            Problem::new("Unknown variable", text)
        })
    }

    fn object(self, object: &Object) -> Evaluated {
        self.names.pay(functions::OBJECT)?;
        let mut members = BTreeMap::new();
        for (key, value) in object {
            let key = match key {
                ObjectKey::Ident(name) => {
                    self.names.pay_for(name.as_str())?;
                    name.as_str().to_owned()
                }
                ObjectKey::Expression(expression) => {
                    self.value(expression)?.text().map_err(|cause| {
                        let text = format!("Can't use this value as a key: {cause}.");
                        Problem::new("Incorrect key type", text)
                            .at(self.file, self.place(expression))
                    })?
                }
            };
            members.insert(key, self.value(value.expr())?);
        }
        Ok(Value::Object(members))
    }

    fn conditional(self, conditional: &Conditional) -> Evaluated {
        let condition = &conditional.cond_expr;
        let holds = self.condition(condition)?;
        self.value(match holds {
            true => &conditional.true_expr,
            false => &conditional.false_expr,
        })
    }

    /// Returns whether a condition holds.
    fn condition(self, condition: &Expression) -> Result<bool, Problem> {
        let at = |problem: Problem| problem.at(self.file, self.place(condition));
        let value = self.value(condition)?;
        if value == Value::Null {
            let text = "The condition value is null. Conditions must either be true or false.";
            return Err(at(Problem::new("Null condition", text)));
        }
        value.truth().map_err(|_| {
            let text = "The condition expression must be of type bool.";
            at(Problem::new("Incorrect condition type", text))
        })
    }

    fn call(self, call: &FuncCall) -> Evaluated {
        let name = call.name.name.as_str();
        self.names.pay_for(name)?;
        let at_name = |problem: Problem| problem.at(self.file, self.shifted(call.name.name.span()));
        if call.name.is_namespaced() {
            let text = format!("There is no function namespace for {name:?}.");
            return Err(at_name(Problem::new("Call to unknown function", text)));
        }
        // These evaluate their arguments themselves.
        match name {
            "try" => return self.first_that_works(call),
            "can" => return self.can(call),
            "convert" => return self.converted(call),
            _ => {}
        }
        let mut arguments = Vec::with_capacity(call.args.len());
        for argument in call.args.iter() {
            arguments.push(self.value(argument)?);
        }
        if call.args.expand_final() {
            match arguments.pop() {
                Some(Value::List(items)) => arguments.extend(items),
                _ => {
                    let text = "The expanding argument (indicated by ...) must be of a tuple, list, or set type.";
                    return Err(Problem::new("Invalid expanding argument value", text));
                }
            }
        }
        if !self.names.spend(functions::cost(name, &arguments)) {
            return Err(Problem::new(
                "Expression too complex",
                "its arguments are too large",
            ));
        }
        let (environment, turn) = (self.names.environment(), self.names.spent());
        if let Some(result) = functions::call(environment, turn, name, &arguments) {
            let result = result.map_err(|cause| {
                let text = format!("Call to function {name:?} failed: {cause}.");
                Problem::new("Error in function call", text)
            })?;
            self.names.pay(functions::weight(&result))?;
            return Ok(result);
        }
        if let Some(result) = self.names.call(name, &arguments, self.depth)? {
            return Ok(result);
        }
        let text = match functions::is_refused(name) {
            true => format!("The function {name:?} is not available in this version of whelk."),
            false => format!("There is no function named {name:?}.{}", self.hint(name)?),
        };
        Err(at_name(Problem::new("Call to unknown function", text)))
    }

    /// Returns the hint for a misspelled function, which is compared with all others.
    fn hint(self, name: &str) -> Result<String, Problem> {
        let names = functions::NAMES.iter().copied();
        let names: Vec<&str> = names.chain(self.names.function_names()).collect();
        // Long names are similar to none.
        self.names
            .pay(names.len() * (1 + name.len().min(128) / 4))?;
        let similar = whelk_dockerfile::similar(name, names, true);
        Ok(similar.map_or_else(String::new, |name| format!(" Did you mean {name:?}?")))
    }

    fn first_that_works(self, call: &FuncCall) -> Evaluated {
        let mut last = None;
        for argument in call.args.iter() {
            match self.value(argument) {
                Ok(value) => return Ok(value),
                Err(problem) => last = Some(problem),
            }
        }
        let cause = last.map_or("at least one argument is required".into(), |last| {
            format!("no expression succeeded: {}: {}", last.summary, last.detail)
        });
        let text = format!("Call to function \"try\" failed: {cause}.");
        Err(Problem::new("Error in function call", text))
    }

    fn can(self, call: &FuncCall) -> Evaluated {
        match call.args.iter().collect::<Vec<_>>().as_slice() {
            [argument] => Ok(Value::Bool(self.value(argument).is_ok())),
            _ => {
                let text = "Function \"can\" expects exactly 1 argument.";
                Err(Problem::new("Error in function call", text))
            }
        }
    }

    fn converted(self, call: &FuncCall) -> Evaluated {
        let arguments: Vec<&Expression> = call.args.iter().collect();
        let [value, constraint] = arguments.as_slice() else {
            let text = "Function \"convert\" expects exactly 2 arguments.";
            return Err(Problem::new("Error in function call", text));
        };
        let to = crate::types::constraint(constraint)
            .map_err(|problem| problem.at(self.file, self.place(constraint)))?;
        self.value(value)?.convert(&to).map_err(|cause| {
            let text = format!("Call to function \"convert\" failed: {cause}.");
            Problem::new("Error in function call", text)
        })
    }

    fn traversal(self, traversal: &Traversal) -> Evaluated {
        let mut operators = traversal.operators.as_slice();
        // `target.NAME.KEY`, which is evaluated alone.
        if let Expression::Variable(root) = &traversal.expr
            && matches!(root.as_str(), "target" | "group")
            && !self.own.contains_key(root.as_str())
            && let [first, second, ..] = operators
            && let TraversalOperator::GetAttr(block) = first.value()
            && let TraversalOperator::GetAttr(key) = second.value()
        {
            operators = &operators[2..];
            let value =
                self.names
                    .attribute(root.as_str(), block.as_str(), key.as_str(), self.depth)?;
            return self.follow(value, operators);
        }
        let value = self.value(&traversal.expr)?;
        self.follow(value, operators)
    }

    fn follow(
        self,
        mut value: Value,
        operators: &[hcl_edit::Decorated<TraversalOperator>],
    ) -> Evaluated {
        if operators.len() > MAX_OPERATORS {
            let text = format!("there are more than {MAX_OPERATORS} attributes and indices");
            return Err(Problem::new("Expression too complex", text));
        }
        for (number, operator) in operators.iter().enumerate() {
            if !self.names.step() {
                let text = "evaluating it takes too long";
                return Err(Problem::new("Expression too complex", text));
            }
            let rest = &operators[number + 1..];
            let at = |problem: Problem| problem.at(self.file, self.shifted(operator.span()));
            value = match operator.value() {
                TraversalOperator::GetAttr(name) => member(&value, name.as_str()).map_err(at)?,
                TraversalOperator::Index(key) => {
                    let key = self.value(key)?;
                    index(&value, &key).map_err(at)?
                }
                TraversalOperator::LegacyIndex(key) => {
                    let key = usize::try_from(*key.value()).unwrap_or(usize::MAX);
                    index(&value, &Value::from(key)).map_err(at)?
                }
                // What follows is done with each of the items; of `.*`, only attributes.
                TraversalOperator::AttrSplat(_) => {
                    let is_attribute = |operator: &&hcl_edit::Decorated<TraversalOperator>| {
                        matches!(operator.value(), TraversalOperator::GetAttr(_))
                    };
                    let count = rest.iter().take_while(is_attribute).count();
                    let (own, rest) = rest.split_at(count);
                    return self.follow(self.splat(value, own)?, rest);
                }
                TraversalOperator::FullSplat(_) => return self.splat(value, rest),
            };
        }
        Ok(value)
    }

    fn splat(
        self,
        value: Value,
        operators: &[hcl_edit::Decorated<TraversalOperator>],
    ) -> Evaluated {
        let items = match value {
            Value::List(items) => items,
            Value::Null => Vec::new(),
            other => vec![other],
        };
        let items = items.into_iter().map(|item| self.follow(item, operators));
        items.collect::<Result<_, _>>().map(Value::List)
    }

    fn for_each(self, all: &ForExpr) -> Evaluated {
        let collection = self.value(&all.intro.collection_expr)?;
        let entries = entries(collection)
            .map_err(|problem| problem.at(self.file, self.place(&all.intro.collection_expr)))?;
        let mut own = self.names.copy_all(self.own)?;
        let (mut list, mut members) = (Vec::new(), BTreeMap::new());
        for (key, value) in entries {
            if let Some(name) = &all.intro.key_var {
                self.names.pay_for(name.as_str())?;
                own.insert(name.as_str().to_owned(), key);
            }
            self.names.pay_for(all.intro.value_var.as_str())?;
            own.insert(all.intro.value_var.as_str().to_owned(), value);
            let scope = self.with(&own);
            if let Some(condition) = &all.cond
                && !scope.condition(&condition.expr)?
            {
                continue;
            }
            let Some(key) = &all.key_expr else {
                list.push(scope.value(&all.value_expr)?);
                continue;
            };
            let at = |problem: Problem| problem.at(self.file, self.place(key));
            let name = scope.value(key)?.text().map_err(|cause| {
                let text = format!("The key expression produced an invalid result: {cause}.");
                at(Problem::new("Invalid object key", text))
            })?;
            let value = scope.value(&all.value_expr)?;
            match members.entry(name) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let value = match all.grouping {
                        true => Value::List(vec![value]),
                        false => value,
                    };
                    entry.insert(value);
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => match entry.get_mut() {
                    Value::List(items) if all.grouping => items.push(value),
                    _ => {
                        let text = format!(
                            "Two different items produced the key {:?} in this 'for' expression. If duplicates are expected, use the ellipsis (...) after the value expression to enable grouping by key.",
                            entry.key()
                        );
                        return Err(at(Problem::new("Duplicate object key", text)));
                    }
                },
            }
        }
        Ok(match all.key_expr {
            Some(_) => Value::Object(members),
            None => Value::List(list),
        })
    }
}

/// Returns the keys and values of a collection.
fn entries(collection: Value) -> Result<Vec<(Value, Value)>, Problem> {
    match collection {
        Value::List(items) => {
            let items = items.into_iter().enumerate();
            Ok(items
                .map(|(number, item)| (Value::from(number), item))
                .collect())
        }
        Value::Object(members) => {
            let members = members.into_iter();
            Ok(members
                .map(|(key, value)| (Value::String(key), value))
                .collect())
        }
        Value::Null => {
            let text = "A null value cannot be used as the collection in a 'for' expression.";
            Err(Problem::new("Iteration over null value", text))
        }
        _ => {
            let text = "Cannot iterate over this value: it is no list, map or object.";
            Err(Problem::new("Iteration over non-iterable value", text))
        }
    }
}

fn member(value: &Value, name: &str) -> Evaluated {
    match value {
        Value::Object(members) => members.get(name).cloned().ok_or_else(|| {
            let text = format!("This object does not have an attribute named {name:?}.");
            Problem::new("Unsupported attribute", text)
        }),
        Value::Null => {
            let text = "This value is null, so it does not have any attributes.";
            Err(Problem::new(
                "Attempt to get attribute from null value",
                text,
            ))
        }
        _ => {
            let text = "This value does not have any attributes.";
            Err(Problem::new("Unsupported attribute", text))
        }
    }
}

pub(crate) fn index(value: &Value, key: &Value) -> Evaluated {
    let invalid = |text: &str| Err(Problem::new("Invalid index", text));
    match value {
        Value::List(items) => {
            let Some(number) = key.double().ok().and_then(whole) else {
                return invalid(
                    "The given key does not identify an element in this collection value: a number is required.",
                );
            };
            items.get(number).cloned().ok_or_else(|| {
                let text = "The given key does not identify an element in this collection value.";
                Problem::new("Invalid index", text)
            })
        }
        Value::Object(members) => {
            let found = key.text().ok().and_then(|key| members.get(&key).cloned());
            match found {
                Some(value) => Ok(value),
                None => {
                    invalid("The given key does not identify an element in this collection value.")
                }
            }
        }
        Value::Null => {
            let text = "This value is null, so it does not have any indices.";
            Err(Problem::new("Attempt to index null value", text))
        }
        _ => invalid("This value does not have any indices."),
    }
}

/// Returns the value of a number that is written: of its digits, if they are known.
fn literal(number: &Formatted<hcl_edit::Number>) -> Evaluated {
    let is_digit = |char: char| char.is_ascii_digit() || "+-.eE".contains(char);
    let read = number.as_repr().map_or(Err(REQUIRED), |text| {
        let text = text.trim();
        // Blanks and comments may be behind the sign.
        let digits = text.rsplit(|char: char| !is_digit(char)).next();
        match digits {
            Some(digits) if digits.len() < text.len() && text.starts_with('-') => {
                Number::read(&format!("-{digits}"))
            }
            _ => Number::read(text),
        }
    });
    let value = match read {
        Err(REQUIRED) => parsed(*number.value()).ok_or(TOO_LARGE),
        read => read,
    };
    value
        .map(Value::Number)
        .map_err(|why| Problem::new("Invalid number", why))
}

/// Returns the value of a number that was parsed.
fn parsed(number: hcl_edit::Number) -> Option<Number> {
    let whole = number.as_i64().map(i128::from);
    let whole = whole.or_else(|| number.as_u64().map(i128::from));
    match whole {
        Some(whole) => Number::whole(whole),
        None => number.as_f64().and_then(Number::of),
    }
}

/// Returns a number that can be an index.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number is a whole one in the range"
)]
pub(crate) fn whole(number: f64) -> Option<usize> {
    let is_whole = number.fract() == 0.0 && (0.0..=1e15).contains(&number);
    is_whole.then_some(number as usize)
}
