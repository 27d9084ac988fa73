//! Values with Go types: JSON interpreted as the type that a Go program decodes it into.

use serde_json::{Map, Value};

use crate::types::{ANY, Fields, Kind, PREDECLARED, Types, cell};

/// A value of a Go type. Fields that the JSON lacks have the type's zero value, as in Go.
#[derive(Clone, Debug)]
pub struct Typed {
    /// The type's name in `types`.
    pub ty: &'static str,
    pub json: Value,
    types: &'static Types,
}

impl Typed {
    /// Creates a value of the type `ty` of `types`.
    pub fn new(types: &'static Types, ty: &'static str, json: Value) -> Self {
        if ty == ANY {
            Self::any(json)
        } else {
            Self { ty, json, types }
        }
    }

    /// Creates a value of another type of the same program, such as a part of this one.
    pub fn part(&self, ty: &'static str, json: impl Into<Value>) -> Self {
        Self::new(self.types, ty, json.into())
    }

    /// Creates a value of a predeclared type.
    pub fn literal(ty: &'static str, json: impl Into<Value>) -> Self {
        Self {
            ty,
            json: json.into(),
            types: &PREDECLARED,
        }
    }

    /// Creates a value of type `string`.
    pub fn text(text: impl Into<String>) -> Self {
        Self::literal("string", text.into())
    }

    pub(crate) fn missing() -> Self {
        Self::literal("", Value::Null)
    }

    /// Creates a value from untyped JSON, with the types that Go's decoder chooses.
    pub fn any(json: Value) -> Self {
        let ty = match &json {
            Value::Null => "",
            Value::Bool(_) => "bool",
            Value::Number(_) => "json.Number",
            Value::String(_) => "string",
            Value::Array(_) => "[]interface {}",
            Value::Object(_) => "map[string]interface {}",
        };
        Self::literal(ty, json)
    }

    /// Returns the kind of the value's type.
    pub fn kind(&self) -> Kind {
        self.types.kind_of(self.ty)
    }

    pub(crate) fn types(&self) -> &'static Types {
        self.types
    }

    pub(crate) fn is_nothing(&self) -> bool {
        self.kind() == Kind::Nothing
    }

    /// Returns whether the value is a nil pointer, list or map, or no value.
    pub(crate) fn is_nil(&self) -> bool {
        match self.kind() {
            Kind::Nothing => true,
            Kind::Pointer(_) | Kind::List(_) | Kind::Map(..) => self.json.is_null(),
            _ => false,
        }
    }

    /// Dereferences pointers; a nil pointer is returned unchanged.
    pub(crate) fn indirect(&self) -> Self {
        match self.kind() {
            Kind::Pointer(to) if !self.json.is_null() => {
                self.part(to, self.json.clone()).indirect()
            }
            _ => self.clone(),
        }
    }

    pub(crate) fn list(&self) -> &[Value] {
        self.json.as_array().map(Vec::as_slice).unwrap_or_default()
    }

    pub(crate) fn map(&self) -> Option<&Map<String, Value>> {
        self.json.as_object()
    }

    /// Returns a map's entries, sorted by key.
    pub(crate) fn entries(&self) -> Vec<(&String, &Value)> {
        let mut entries: Vec<_> = self.map().into_iter().flatten().collect();
        entries.sort_by_key(|(key, _)| *key);
        entries
    }

    /// Returns the text of a string value.
    pub fn as_text(&self) -> Option<String> {
        (self.kind() == Kind::Text).then(|| match &self.json {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        })
    }

    /// Returns the number, or 0.
    pub fn as_int(&self) -> i64 {
        self.json.as_i64().unwrap_or(0)
    }

    pub(crate) fn as_float(&self) -> f64 {
        self.json.as_f64().unwrap_or(0.0)
    }

    pub(crate) fn as_bool(&self) -> bool {
        self.json.as_bool().unwrap_or(false)
    }

    /// Returns a struct's field, which may be in an embedded struct.
    pub fn field(&self, name: &str) -> Option<Self> {
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
    pub(crate) fn member(&self, name: &str, ty: &'static str) -> Self {
        if let Some(ty) = ty.strip_prefix('+') {
            return self.part(ty, self.json.clone());
        }
        let name = self.types.json_name(name);
        let found = self.map().and_then(|map| {
            map.get(name).or_else(|| {
                map.iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value)
            })
        });
        self.part(ty, found.cloned().unwrap_or(Value::Null))
    }

    /// Returns the truth value as Go's templates define it.
    pub(crate) fn truth(&self) -> bool {
        match self.kind() {
            Kind::Nothing => false,
            Kind::Bool => self.as_bool(),
            Kind::Int | Kind::Uint | Kind::Float => self.as_float() != 0.0,
            Kind::Text => self.as_text().is_some_and(|text| !text.is_empty()),
            Kind::Pointer(_) => !self.json.is_null(),
            Kind::List(_) => !self.list().is_empty(),
            Kind::Map(..) => self.map().is_some_and(|map| !map.is_empty()),
            Kind::Struct(_) | Kind::Row => true,
        }
    }

    /// Converts the value of a struct's JSON key as the type of its field. `null` and values of unknown
    /// fields stay as they are.
    fn encoded(&self, fields: Fields, key: &str, value: &Value) -> Value {
        match self.types.of_key(fields, key) {
            Some(ty) if !value.is_null() => self.part(ty, value.clone()).to_json(),
            _ => value.clone(),
        }
    }

    /// Converts to JSON as Go does: maps sorted by key, null scalars as zero values.
    pub(crate) fn to_json(&self) -> Value {
        match self.kind() {
            Kind::Row => self
                .entries()
                .into_iter()
                .map(|(key, value)| (key.clone(), cell(value)))
                .collect(),
            Kind::Map(_, of) if !self.json.is_null() => self
                .entries()
                .into_iter()
                .map(|(key, value)| (key.clone(), self.part(of, value.clone()).to_json()))
                .collect(),
            Kind::List(of) if !self.json.is_null() => self
                .list()
                .iter()
                .map(|value| self.part(of, value.clone()).to_json())
                .collect(),
            Kind::Pointer(_) if !self.json.is_null() => self.indirect().to_json(),
            Kind::Struct(fields) => match self.map() {
                Some(map) => map
                    .iter()
                    .map(|(key, value)| (key.clone(), self.encoded(fields, key, value)))
                    .collect(),
                None => self.json.clone(),
            },
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
