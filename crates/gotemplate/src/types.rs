//! The Go types of values: predeclared types, and the named types that a program defines.

use serde_json::Value;

use crate::Typed;

/// The named Go types of a program, which determine what templates print.
///
/// A type is referred to by its name as `%T` prints it: a predeclared type (`int64`, `string`,
/// `interface {}`, `time.Time`, `time.Duration`, `json.Number`), a composite of others (`*T`, `[]T`,
/// `[2]T`, `map[K]T`), or one of these named types. A pointer to an unknown type is a [row](Kind::Row).
#[derive(Debug)]
pub struct Types {
    /// Named types, with their underlying types.
    pub aliases: &'static [(&'static str, &'static str)],
    /// Structs. A field whose type begins with `+` is an embedded struct: its fields are also fields of
    /// the outer one, and are encoded into the outer one's JSON object.
    pub structs: &'static [(&'static str, Fields)],
    /// Fields whose JSON key is not their name in some letter case, with that key.
    pub json_names: &'static [(&'static str, &'static str)],
    /// Calls a method of a value.
    pub method: Method,
    /// Returns what the method `String` of a value's type returns, if it has one.
    pub string: fn(&Typed) -> Option<String>,
}

/// Calls the method with this name, with arguments. Returns `None` if the value's type has no such
/// method, or the text of an error.
pub type Method = fn(&Typed, &str, &[Typed], Mode) -> Option<Result<Typed, String>>;

/// The names and types of a struct's fields, in the order of its definition.
pub type Fields = &'static [(&'static str, &'static str)];

/// How a template is executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Values,
    /// On the headings of a table: functions return them unchanged.
    Headings,
    /// On untyped JSON: missing fields are errors.
    Raw,
    /// As `Values`; the function `json` indents.
    Indented,
}

/// The kind of a type, with the types of its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No value, or a nil interface.
    Nothing,
    Bool,
    Int,
    Uint,
    Float,
    Text,
    Pointer(&'static str),
    List(&'static str),
    /// A map with the types of its keys and values. Keys are strings or named string types.
    Map(&'static str, &'static str),
    Struct(Fields),
    /// A row of a table: its fields are methods that return strings. An object in its JSON is shown as a
    /// sorted list `key=value,…`.
    Row,
}

/// The type `any`, whose values have a dynamic type.
pub(crate) const ANY: &str = "interface {}";

/// Predeclared types only.
pub(crate) static PREDECLARED: Types = Types {
    aliases: &[],
    structs: &[],
    json_names: &[],
    method: |_, _, _, _| None,
    string: |_| None,
};

impl Types {
    /// Returns the kind of a type.
    pub fn kind_of(&self, ty: &'static str) -> Kind {
        match ty {
            "" | ANY => return Kind::Nothing,
            "bool" => return Kind::Bool,
            "int" | "int64" | "time.Duration" => return Kind::Int,
            "uint" | "uint16" | "uint64" => return Kind::Uint,
            "float64" => return Kind::Float,
            "string" | "json.Number" | "time.Time" => return Kind::Text,
            "struct {}" => return Kind::Struct(&[]),
            _ => {}
        }
        if let Some(to) = ty.strip_prefix('*') {
            return if self.kind_of(to) == Kind::Nothing {
                Kind::Row
            } else {
                Kind::Pointer(to)
            };
        }
        if let Some(of) = ty.strip_prefix("[]").or_else(|| ty.strip_prefix("[2]")) {
            return Kind::List(of);
        }
        if let Some((key, of)) = ty
            .strip_prefix("map[")
            .and_then(|rest| rest.split_once(']'))
        {
            return Kind::Map(key, of);
        }
        match self.aliases.iter().find(|(name, _)| *name == ty) {
            Some((_, of)) => self.kind_of(of),
            None => self
                .structs
                .iter()
                .find(|(name, _)| *name == ty)
                .map_or(Kind::Nothing, |(_, fields)| Kind::Struct(fields)),
        }
    }

    /// Returns the type of the field with this JSON key, which may be in an embedded struct.
    pub(crate) fn of_key(&self, fields: Fields, key: &str) -> Option<&'static str> {
        let own = fields.iter().find(|(name, ty)| {
            !ty.starts_with('+') && self.json_name(name).eq_ignore_ascii_case(key)
        });
        if let Some((_, ty)) = own {
            return Some(ty);
        }
        let embedded = fields.iter().filter_map(|(_, ty)| ty.strip_prefix('+'));
        embedded
            .filter_map(|ty| match self.kind_of(ty.trim_start_matches('*')) {
                Kind::Struct(fields) => Some(fields),
                _ => None,
            })
            .find_map(|fields| self.of_key(fields, key))
    }

    /// Returns the JSON key of a field.
    pub(crate) fn json_name<'n>(&self, field: &'n str) -> &'n str {
        self.json_names
            .iter()
            .find(|(name, _)| *name == field)
            .map_or(field, |(_, json)| json)
    }
}

/// Returns the text of a table cell. Labels are stored as a map and shown as a sorted list.
pub(crate) fn cell(value: &Value) -> Value {
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
