//! Type constraints: `list(string)`, `object({a = number})`.

use std::collections::BTreeMap;

use hcl_edit::expr::{Expression, ObjectKey};

use crate::error::Problem;
use crate::value::Type;

/// Reads a type constraint. In JSON it is a text.
///
/// # Errors
/// Returns a problem for what is no type.
pub(crate) fn constraint(expression: &Expression) -> Result<Type, Problem> {
    let invalid = |text: String| Err(Problem::new("Invalid type specification", text));
    match expression {
        Expression::String(text) => {
            let parsed: Result<Expression, _> = text.value().parse();
            match parsed {
                Ok(Expression::String(_)) | Err(_) => {
                    invalid(format!("{:?} is no type.", text.value()))
                }
                Ok(parsed) => constraint(&parsed),
            }
        }
        Expression::Variable(name) => match name.as_str() {
            "any" => Ok(Type::Any),
            "bool" => Ok(Type::Bool),
            "number" => Ok(Type::Number),
            "string" => Ok(Type::String),
            name @ ("list" | "set" | "map") => invalid(format!(
                "The {name} type constructor requires one argument specifying the element type."
            )),
            name => invalid(format!("The keyword {name:?} is not a valid type specification.")),
        },
        Expression::FuncCall(call) => {
            let name = call.name.name.as_str();
            let arguments: Vec<&Expression> = call.args.iter().collect();
            match (name, arguments.as_slice()) {
                ("list", [of]) => Ok(Type::List(Box::new(constraint(of)?))),
                ("set", [of]) => Ok(Type::Set(Box::new(constraint(of)?))),
                ("map", [of]) => Ok(Type::Map(Box::new(constraint(of)?))),
                ("tuple", [Expression::Array(types)]) => {
                    let types = types.iter().map(constraint);
                    types.collect::<Result<_, _>>().map(Type::Tuple)
                }
                ("object", [Expression::Object(object)]) => {
                    let mut attributes = BTreeMap::new();
                    for (key, value) in object {
                        let name = match key {
                            ObjectKey::Ident(name) => name.as_str(),
                            ObjectKey::Expression(Expression::Variable(name)) => name.as_str(),
                            ObjectKey::Expression(Expression::String(name)) => name.value(),
                            ObjectKey::Expression(_) => {
                                return invalid("Object constructor map keys must be attribute names.".into());
                            }
                        };
                        attributes.insert(name.to_owned(), attribute(value.expr())?);
                    }
                    Ok(Type::Object(attributes))
                }
                _ => invalid(format!("{name:?} is not a valid type constructor.")),
            }
        }
        _ => invalid("A type specification is either a primitive type keyword (bool, number, string) or a complex type constructor call, like list(string).".into()),
    }
}

/// Reads the type of an object's attribute, which may be optional.
fn attribute(expression: &Expression) -> Result<(Type, bool), Problem> {
    if let Expression::FuncCall(call) = expression
        && call.name.name.as_str() == "optional"
    {
        return match call.args.iter().collect::<Vec<_>>().as_slice() {
            [of] => Ok((constraint(of)?, true)),
            _ => Err(Problem::new(
                "Invalid type specification",
                "optional() has one argument here: the type.",
            )),
        };
    }
    Ok((constraint(expression)?, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read() {
        let read =
            |text: &str| constraint(&text.parse().unwrap()).map_err(|problem| problem.detail);
        let string = || Box::new(Type::String);
        assert_eq!(read("list(string)"), Ok(Type::List(string())));
        assert_eq!(read("\"map(string)\""), Ok(Type::Map(string())));
        let object = [
            ("a".to_owned(), (Type::Number, false)),
            ("b".to_owned(), (Type::Bool, true)),
        ];
        assert_eq!(
            read("object({a = number, b = optional(bool)})"),
            Ok(Type::Object(object.into()))
        );
        assert_eq!(
            read("strin"),
            Err("The keyword \"strin\" is not a valid type specification.".into())
        );
        assert!(read("list").unwrap_err().contains("requires one argument"));
        assert!(
            read("1").is_err() && read("list(1, 2)").is_err() && read("\"\\\"x\\\"\"").is_err()
        );
    }
}
