//! Values of expressions, with the conversions of HCL's type system.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::number::{Number, REQUIRED};

/// A value. Sets are lists that are sorted, tuples are lists, and maps are objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Value {
    #[default]
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    List(Vec<Value>),
    Object(BTreeMap<String, Value>),
}

/// A type constraint of a variable.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Type {
    Any,
    Bool,
    Number,
    String,
    List(Box<Type>),
    Set(Box<Type>),
    Map(Box<Type>),
    Tuple(Vec<Type>),
    /// Attributes, and whether they may be left out.
    Object(BTreeMap<String, (Type, bool)>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<Number> for Value {
    fn from(number: Number) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(Number::Whole(number as i128))
    }
}

impl Value {
    /// Returns the name of its type in messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "dynamic",
            Self::Bool(_) => "bool",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::List(_) => "tuple",
            Self::Object(_) => "object",
        }
    }

    /// Converts to a string.
    ///
    /// # Errors
    /// Returns what is required.
    pub fn text(&self) -> Result<String, String> {
        match self {
            Self::String(text) => Ok(text.clone()),
            Self::Number(number) => Ok(number.text()),
            Self::Bool(value) => Ok(value.to_string()),
            Self::Null => Err("argument must not be null".into()),
            other => Err(format!("string required, but have {}", other.kind())),
        }
    }

    /// Converts to a number.
    ///
    /// # Errors
    /// Returns what is required.
    pub fn number(&self) -> Result<Number, String> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::String(text) => number_of(text),
            Self::Null => Err("argument must not be null".into()),
            _ => Err("number required".into()),
        }
    }

    /// Converts to a double.
    ///
    /// # Errors
    /// Returns what is required; also for a whole number of too many digits.
    pub fn double(&self) -> Result<f64, String> {
        let number = self.number()?;
        number.exact().ok_or_else(|| {
            let text = number.text();
            format!("{text} has more digits than are exact here: it is above 2^53")
        })
    }

    /// Converts to a bool.
    ///
    /// # Errors
    /// Returns what is required.
    pub fn truth(&self) -> Result<bool, String> {
        match self {
            Self::Bool(value) => Ok(*value),
            Self::String(text) => match text.as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err("a bool is required".into()),
            },
            Self::Null => Err("argument must not be null".into()),
            _ => Err("bool required".into()),
        }
    }

    /// Converts to a type.
    ///
    /// # Errors
    /// Returns what is required.
    pub fn convert(self, to: &Type) -> Result<Self, String> {
        if self == Self::Null {
            return Ok(self);
        }
        match (to, self) {
            (Type::Any, value) => Ok(value),
            (Type::Bool, value) => value.truth().map(Self::Bool),
            (Type::Number, value) => value.number().map(Self::Number),
            (Type::String, value) => value.text().map(Self::String),
            (Type::List(of), Self::List(items)) => {
                let items = items.into_iter().map(|item| item.convert(of));
                items.collect::<Result<_, _>>().map(Self::List)
            }
            (Type::Set(of), Self::List(items)) => {
                let items = items.into_iter().map(|item| item.convert(of));
                items.collect::<Result<_, _>>().map(set)
            }
            (Type::Map(of), Self::Object(members)) => {
                let members = members
                    .into_iter()
                    .map(|(key, value)| Ok((key, value.convert(of)?)));
                members.collect::<Result<_, String>>().map(Self::Object)
            }
            (Type::Tuple(types), Self::List(items)) if types.len() == items.len() => {
                let items = items.into_iter().zip(types);
                let items = items.map(|(item, of)| item.convert(of));
                items.collect::<Result<_, _>>().map(Self::List)
            }
            (Type::Object(types), Self::Object(mut members)) => {
                let mut found = BTreeMap::new();
                for (key, (of, is_optional)) in types {
                    let value = match members.remove(key) {
                        Some(value) => value.convert(of)?,
                        None if *is_optional => Self::Null,
                        None => return Err(format!("attribute {key:?} is required")),
                    };
                    found.insert(key.clone(), value);
                }
                Ok(Self::Object(found))
            }
            (to, _) => Err(format!("{} required", to.name())),
        }
    }

    /// Encodes as JSON.
    pub fn json(&self) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Number(number) => number.json(),
            Self::String(text) => Json::String(text.clone()),
            Self::List(items) => items.iter().map(Self::json).collect(),
            Self::Object(members) => {
                let members = members.iter();
                members
                    .map(|(key, value)| (key.clone(), value.json()))
                    .collect()
            }
        }
    }
}

impl TryFrom<Json> for Value {
    type Error = String;

    fn try_from(json: Json) -> Result<Self, String> {
        Ok(match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(number) => Self::Number(Number::try_from(&number)?),
            Json::String(text) => Self::String(text),
            Json::Array(items) => {
                let items = items.into_iter().map(Self::try_from);
                Self::List(items.collect::<Result<_, _>>()?)
            }
            Json::Object(members) => {
                let members = members.into_iter();
                let members = members.map(|(key, value)| Ok((key, Self::try_from(value)?)));
                Self::Object(members.collect::<Result<_, String>>()?)
            }
        })
    }
}

impl Type {
    /// Returns its name in messages and lists.
    pub fn name(&self) -> String {
        match self {
            Self::Any => "any type".into(),
            Self::Bool => "bool".into(),
            Self::Number => "number".into(),
            Self::String => "string".into(),
            Self::List(of) => format!("list of {}", of.name()),
            Self::Set(of) => format!("set of {}", of.name()),
            Self::Map(of) => format!("map of {}", of.name()),
            Self::Tuple(_) => "tuple".into(),
            Self::Object(_) => "object".into(),
        }
    }
}

/// Makes a set: sorted, each value once.
pub(crate) fn set(mut items: Vec<Value>) -> Value {
    items.sort_by(|one, other| match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one.partial_cmp(other).unwrap_or(Ordering::Equal)
        }
        (Value::String(one), Value::String(other)) => one.cmp(other),
        (one, other) => one.json().to_string().cmp(&other.json().to_string()),
    });
    items.dedup();
    Value::List(items)
}

/// Reads a number.
fn number_of(text: &str) -> Result<Number, String> {
    Number::read(text).map_err(|why| match why {
        REQUIRED => why.to_owned(),
        why => format!("{text}: {why}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_converted_to_types() {
        let list = Value::List(vec!["2".into(), 1_usize.into(), "2".into()]);
        let convert = |to: Type| list.clone().convert(&to);
        let number = || Box::new(Type::Number);
        assert_eq!(
            convert(Type::Set(number())),
            Ok(Value::List(vec![1_usize.into(), 2_usize.into()]))
        );
        assert_eq!(
            convert(Type::List(Box::new(Type::Bool))),
            Err("a bool is required".into())
        );
        assert_eq!(
            convert(Type::Map(number())),
            Err("map of number required".into())
        );
        assert_eq!(Value::Null.convert(&Type::String), Ok(Value::Null));
        let object = Type::Object([("a".to_owned(), (Type::String, false))].into());
        let given =
            Value::Object([("a".to_owned(), true.into()), ("b".to_owned(), Value::Null)].into());
        let expected = Value::Object([("a".to_owned(), "true".into())].into());
        assert_eq!(given.convert(&object), Ok(expected));
        assert!(Value::Object(BTreeMap::new()).convert(&object).is_err());
        assert_eq!(
            Value::from("1x").number(),
            Err("a number is required".into())
        );
        assert!(Value::from("inf").number().is_err());
        for (text, expected) in [
            ("18446744073709551615", Ok("18446744073709551615")),
            ("-9223372036854775808", Ok("-9223372036854775808")),
            ("1e3", Ok("1000")),
            ("2.50", Ok("2.5")),
            ("9007199254740993.0", Ok("9007199254740993")),
            ("123456789012345678.5", Err(())),
            ("18446744073709551616", Err(())),
            ("99999999999999999999999999999999999999999", Err(())),
        ] {
            let read = Value::from(text).number();
            let read = read.map(Number::text).map_err(drop);
            assert_eq!(read, expected.map(str::to_owned), "{text}");
        }
        let large = Value::from("9007199254740993");
        assert!(large.double().is_err() && large.number().is_ok());
        let json: Json = serde_json::from_str("[9007199254740993,-1.5]").unwrap();
        assert_eq!(
            Value::try_from(json).unwrap().json().to_string(),
            "[9007199254740993,-1.5]"
        );
    }
}
