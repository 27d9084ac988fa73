//! Values of expressions, with the conversions of HCL's type system.

use std::collections::BTreeMap;

use serde_json::Value as Json;

/// A value. Sets are lists that are sorted, tuples are lists, and maps are objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Value {
    #[default]
    Null,
    Bool(bool),
    Number(f64),
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

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Value {
    #[allow(clippy::cast_precision_loss, reason = "lengths are far below 2^53")]
    fn from(number: usize) -> Self {
        Self::Number(number as f64)
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
            Self::Number(number) => Ok(number_text(*number)),
            Self::Bool(value) => Ok(value.to_string()),
            Self::Null => Err("argument must not be null".into()),
            other => Err(format!("string required, but have {}", other.kind())),
        }
    }

    /// Converts to a number.
    ///
    /// # Errors
    /// Returns what is required.
    pub fn number(&self) -> Result<f64, String> {
        let required = || "a number is required".to_owned();
        match self {
            Self::Number(number) => Ok(*number),
            Self::String(text) => {
                let is_plain = text
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
                let number: Option<f64> = text.parse().ok();
                number
                    .filter(|number| is_plain && number.is_finite())
                    .ok_or_else(required)
            }
            Self::Null => Err("argument must not be null".into()),
            _ => Err("number required".into()),
        }
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
            Self::Number(number) => number_json(*number),
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

impl From<Json> for Value {
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(number) => Self::Number(number.as_f64().unwrap_or(0.0)),
            Json::String(text) => Self::String(text),
            Json::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            Json::Object(members) => Self::Object(
                members
                    .into_iter()
                    .map(|(key, value)| (key, Self::from(value)))
                    .collect(),
            ),
        }
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
        (Value::Number(one), Value::Number(other)) => one.total_cmp(other),
        (Value::String(one), Value::String(other)) => one.cmp(other),
        (one, other) => one.json().to_string().cmp(&other.json().to_string()),
    });
    items.dedup();
    Value::List(items)
}

/// Returns a number's text, without an exponent.
pub(crate) fn number_text(number: f64) -> String {
    /// Digits that a double keeps of any decimal number.
    const DIGITS: usize = 14;
    if number.fract() == 0.0 && number.abs() < 1e15 {
        return format!("{}", number + 0.0);
    }
    // 0.1 + 0.2 is 0.3: HCL's numbers are decimal for users.
    let rounded: f64 = format!("{number:.DIGITS$e}").parse().unwrap_or(number);
    format!("{rounded}")
}

fn number_json(number: f64) -> Json {
    let text = number_text(number);
    let integer = text.parse::<i64>().ok().map(Json::from);
    integer.unwrap_or_else(|| text.parse::<f64>().map_or(Json::Null, Json::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_users_write_them() {
        for (number, expected) in [
            (1.0, "1"),
            (-0.0, "0"),
            (1.5, "1.5"),
            (0.1 + 0.2, "0.3"),
            (1e20, "100000000000000000000"),
            (1e-7, "0.0000001"),
        ] {
            assert_eq!(number_text(number), expected);
        }
        assert_eq!(Value::Number(3.0).json().to_string(), "3");
        assert_eq!(Value::Number(0.25).json().to_string(), "0.25");
    }

    #[test]
    fn values_are_converted_to_types() {
        let list = Value::List(vec!["2".into(), 1.0.into(), "2".into()]);
        let convert = |to: Type| list.clone().convert(&to);
        let number = || Box::new(Type::Number);
        assert_eq!(
            convert(Type::Set(number())),
            Ok(Value::List(vec![1.0.into(), 2.0.into()]))
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
    }
}
