//! Values with Go types: JSON interpreted as the type that Docker's client decodes it into.

use serde_json::{Map, Value};

use super::types::{Shape, shape_of};

/// A value of a Go type. Fields that the JSON lacks have the type's zero value, as in Go.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Typed {
    pub ty: &'static str,
    pub json: Value,
}

/// The type `any`, whose values have a dynamic type.
pub(super) const ANY: &str = "interface {}";

/// The kind of a value, with the types of its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No value, or a nil interface.
    Nothing,
    Bool,
    Int,
    Uint,
    Float,
    Text,
    Pointer(&'static str),
    List(&'static str),
    Map(&'static str),
    Struct(&'static [(&'static str, &'static str)]),
    /// A row of a table: its fields are methods that return strings.
    Row,
}

impl Typed {
    pub(crate) fn new(ty: &'static str, json: Value) -> Self {
        if ty == ANY {
            Self::any(json)
        } else {
            Self { ty, json }
        }
    }

    pub(super) fn literal(ty: &'static str, json: impl Into<Value>) -> Self {
        Self {
            ty,
            json: json.into(),
        }
    }

    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::literal("string", text.into())
    }

    pub(super) fn missing() -> Self {
        Self {
            ty: "",
            json: Value::Null,
        }
    }

    /// Creates a value from untyped JSON, with the types that Go's decoder chooses.
    pub(crate) fn any(json: Value) -> Self {
        let ty = match &json {
            Value::Null => "",
            Value::Bool(_) => "bool",
            Value::Number(_) => "json.Number",
            Value::String(_) => "string",
            Value::Array(_) => "[]interface {}",
            Value::Object(_) => "map[string]interface {}",
        };
        Self { ty, json }
    }

    pub(super) fn kind(&self) -> Kind {
        match shape_of(self.ty) {
            Shape::Nothing => Kind::Nothing,
            Shape::Bool => Kind::Bool,
            Shape::Int => Kind::Int,
            Shape::Uint => Kind::Uint,
            Shape::Float => Kind::Float,
            Shape::Text => Kind::Text,
            Shape::Pointer(to) => Kind::Pointer(to),
            Shape::List(of) => Kind::List(of),
            Shape::Map(of) => Kind::Map(of),
            Shape::Struct(fields) => Kind::Struct(fields),
            Shape::Row => Kind::Row,
        }
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.kind() == Kind::Nothing
    }

    /// Returns whether the value is a nil pointer, list or map, or no value.
    pub(super) fn is_nil(&self) -> bool {
        match self.kind() {
            Kind::Nothing => true,
            Kind::Pointer(_) | Kind::List(_) | Kind::Map(_) => self.json.is_null(),
            _ => false,
        }
    }

    /// Dereferences pointers; a nil pointer is returned unchanged.
    pub(super) fn indirect(&self) -> Self {
        match self.kind() {
            Kind::Pointer(to) if !self.json.is_null() => {
                Self::new(to, self.json.clone()).indirect()
            }
            _ => self.clone(),
        }
    }

    pub(super) fn list(&self) -> &[Value] {
        self.json.as_array().map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn map(&self) -> Option<&Map<String, Value>> {
        self.json.as_object()
    }

    /// Returns a map's entries, sorted by key.
    pub(super) fn entries(&self) -> Vec<(&String, &Value)> {
        let mut entries: Vec<_> = self.map().into_iter().flatten().collect();
        entries.sort_by_key(|(key, _)| *key);
        entries
    }

    /// Returns the text of a string value.
    pub(super) fn as_text(&self) -> Option<String> {
        (self.kind() == Kind::Text).then(|| match &self.json {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        })
    }

    pub(super) fn as_int(&self) -> i64 {
        self.json.as_i64().unwrap_or(0)
    }

    pub(super) fn as_float(&self) -> f64 {
        self.json.as_f64().unwrap_or(0.0)
    }

    pub(super) fn as_bool(&self) -> bool {
        self.json.as_bool().unwrap_or(false)
    }

    /// Returns a struct's field, which may be in an embedded struct.
    pub(super) fn field(&self, name: &str) -> Option<Self> {
        let Kind::Struct(fields) = self.kind() else {
            return None;
        };
        let found = fields.iter().find(|(known, _)| *known == name);
        if let Some((known, ty)) = found {
            return Some(self.member(known, ty));
        }
        let embedded = fields.iter().filter(|(_, ty)| ty.starts_with('+'));
        embedded
            .map(|(known, ty)| self.member(known, ty).indirect())
            .find_map(|part| part.field(name))
    }

    /// Returns a field that the struct is known to have. Embedded structs share the JSON of the
    /// outer one.
    pub(super) fn member(&self, name: &str, ty: &'static str) -> Self {
        if let Some(ty) = ty.strip_prefix('+') {
            return Self::new(ty, self.json.clone());
        }
        let name = if name == "AuxAddress" {
            "AuxiliaryAddresses"
        } else {
            name
        };
        let found = self.map().and_then(|map| {
            map.get(name).or_else(|| {
                map.iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value)
            })
        });
        Self::new(ty, found.cloned().unwrap_or(Value::Null))
    }

    /// Returns the truth value as Go's templates define it.
    pub(super) fn truth(&self) -> bool {
        match self.kind() {
            Kind::Nothing => false,
            Kind::Bool => self.as_bool(),
            Kind::Int | Kind::Uint | Kind::Float => self.as_float() != 0.0,
            Kind::Text => self.as_text().is_some_and(|text| !text.is_empty()),
            Kind::Pointer(_) => !self.json.is_null(),
            Kind::List(_) => !self.list().is_empty(),
            Kind::Map(_) => self.map().is_some_and(|map| !map.is_empty()),
            Kind::Struct(_) | Kind::Row => true,
        }
    }

    /// Converts to JSON as Go does: maps sorted by key, null scalars as zero values.
    pub(super) fn to_json(&self) -> Value {
        match self.kind() {
            Kind::Row => self
                .entries()
                .into_iter()
                .map(|(key, value)| (key.clone(), cell(value)))
                .collect(),
            Kind::Map(of) if !self.json.is_null() => self
                .entries()
                .into_iter()
                .map(|(key, value)| (key.clone(), Self::new(of, value.clone()).to_json()))
                .collect(),
            Kind::List(of) if !self.json.is_null() => self
                .list()
                .iter()
                .map(|value| Self::new(of, value.clone()).to_json())
                .collect(),
            Kind::Pointer(_) if !self.json.is_null() => self.indirect().to_json(),
            Kind::Text | Kind::Bool | Kind::Int | Kind::Uint | Kind::Float
                if self.json.is_null() =>
            {
                match self.kind() {
                    Kind::Text => Value::from(""),
                    Kind::Bool => Value::Bool(false),
                    _ => Value::from(0),
                }
            }
            _ => self.json.clone(),
        }
    }
}

/// Returns the text of a table cell. Labels are stored as a map and shown as a sorted list.
pub(super) fn cell(value: &Value) -> Value {
    let Value::Object(labels) = value else {
        return value.clone();
    };
    let mut list: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    list.sort();
    Value::from(list.join(","))
}
