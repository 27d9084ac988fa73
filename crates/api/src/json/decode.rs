//! Decodes JSON values to structs with the semantics of Go's `encoding/json`: field names are
//! case-insensitive, the last of several members for a field wins, `null` leaves a field at its
//! default, and errors name the path and the Go type.

use std::borrow::Cow;
use std::fmt;
use std::rc::Rc;

use serde::de::{
    self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};

use super::go_types;
use super::parse::{Array, Object, Value};

/// Decodes a whole body; `go_type` is the Go name of its struct in Docker.
pub(crate) fn decode<T: de::DeserializeOwned>(
    value: Value<'_>,
    go_type: &'static str,
) -> Result<T, Error> {
    T::deserialize(Decoder {
        value,
        place: None,
        go_type: Some(go_type),
    })
}

/// Decodes the member `key` of a body.
pub(crate) fn decode_field<T: de::DeserializeOwned>(
    (key, value): (String, Value<'_>),
    go_type: &'static str,
) -> Result<T, Error> {
    let place = Some(Rc::new(ValuePath {
        parent: None,
        label: Label::Key(key),
    }));
    T::deserialize(Decoder {
        value,
        place,
        go_type: Some(go_type),
    })
}

/// A value that does not match its type, with Go's error text.
#[derive(Debug)]
pub(crate) struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self(text.to_string())
    }

    /// Types with their own `Deserialize` implementation do not know their path. In Go, errors of
    /// types with their own `UnmarshalJSON` do not have it either.
    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let kind = match found {
            Unexpected::Bool(_) => "bool",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "number",
            Unexpected::Str(_) => "string",
            Unexpected::Seq => "array",
            Unexpected::Map => "object",
            _ => "null",
        };
        Self(format!(
            "json: cannot unmarshal {kind} into Go value of type {expected}"
        ))
    }
}

/// The path of a value in its body, as a list towards the root, since paths are needed for errors
/// only.
struct ValuePath {
    parent: Option<Rc<Self>>,
    label: Label,
}

enum Label {
    Key(String),
    Index(usize),
}

/// Formats a path as `.HostConfig.Devices.0`, with keys escaped as in JSON Pointer (RFC 6901).
fn path(place: Option<&Rc<ValuePath>>) -> String {
    let mut labels = Vec::new();
    let mut next = place;
    while let Some(place) = next {
        labels.push(match &place.label {
            Label::Key(key) => key.replace('~', "~0").replace('/', "~1"),
            Label::Index(index) => index.to_string(),
        });
        next = place.parent.as_ref();
    }
    labels
        .iter()
        .rev()
        .map(|label| format!(".{label}"))
        .collect()
}

struct Decoder<'a> {
    value: Value<'a>,
    place: Option<Rc<ValuePath>>,
    go_type: Option<&'static str>,
}

impl<'a> Decoder<'a> {
    /// Returns the error for a value of the wrong type. `default` is the Go type if no other is
    /// known.
    fn mismatch(&self, default: &'static str) -> Error {
        let kind = match &self.value {
            Value::Null => "null".into(),
            Value::Bool(_) => "bool".into(),
            // If a number is expected, a number out of range or of the wrong form is quoted.
            Value::Number(text)
                if matches!(
                    default,
                    "int64" | "int" | "uint64" | "uint32" | "uint16" | "uint8"
                ) =>
            {
                Cow::Owned(format!("number {text}"))
            }
            Value::Number(_) => "number".into(),
            Value::String(_) => "string".into(),
            Value::Array(_) => "array".into(),
            Value::Object(_) => "object".into(),
        };
        let go_type = self.go_type.unwrap_or(default);
        let path = path(self.place.as_ref());
        let place = match path.rsplit('.').next().unwrap_or_default() {
            "" => "Go value".to_owned(),
            last if last.bytes().all(|byte| byte.is_ascii_digit()) => path,
            _ => format!("Go struct field {path}"),
        };
        Error(format!(
            "json: cannot unmarshal {kind} into {place} of type {go_type}"
        ))
    }

    fn member(&self, key: String, value: Value<'a>, go_type: Option<&'static str>) -> Self {
        let place = ValuePath {
            parent: self.place.clone(),
            label: Label::Key(key),
        };
        Self {
            value,
            place: Some(Rc::new(place)),
            go_type,
        }
    }

    fn element(&self, index: usize, value: Value<'a>, go_type: Option<&'static str>) -> Self {
        let place = ValuePath {
            parent: self.place.clone(),
            label: Label::Index(index),
        };
        Self {
            value,
            place: Some(Rc::new(place)),
            go_type,
        }
    }

    /// Returns the elements of an array; none for `null`.
    fn elements(&self) -> Result<Box<dyn Iterator<Item = Value<'a>> + 'a>, Error> {
        match self.value {
            Value::Array(array) => Ok(Box::new(Array::elements(array))),
            Value::Null => Ok(Box::new(std::iter::empty())),
            _ => Err(self.mismatch("[]string")),
        }
    }

    /// Returns the members of an object; none for `null`. `default` is the Go type, as in
    /// [`Self::mismatch`].
    fn members(
        &self,
        default: &'static str,
    ) -> Result<Box<dyn Iterator<Item = (String, Value<'a>)> + 'a>, Error> {
        match self.value {
            Value::Object(object) => Ok(Box::new(Object::members(object))),
            Value::Null => Ok(Box::new(std::iter::empty())),
            _ => Err(self.mismatch(default)),
        }
    }

    fn visit_elements<'de, V: Visitor<'de>>(
        self,
        elements: impl Iterator<Item = Value<'a>>,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let go_type = self.go_type.and_then(go_types::of_element);
        visitor.visit_seq(Elements {
            parent: self,
            go_type,
            rest: elements.enumerate(),
        })
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty => $go:literal),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match &self.value {
                Value::Null => visitor.$visit(<$type>::default()),
                Value::Number(text) => match text.parse() {
                    Ok(number) => visitor.$visit(number),
                    Err(_) => Err(self.mismatch($go)),
                },
                _ => Err(self.mismatch($go)),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Decoder<'_> {
    type Error = Error;

    numbers! {
        deserialize_i8 visit_i8 i8 => "int8", deserialize_i16 visit_i16 i16 => "int16", deserialize_i32 visit_i32 i32 => "int",
        deserialize_i64 visit_i64 i64 => "int64", deserialize_u8 visit_u8 u8 => "uint8", deserialize_u16 visit_u16 u16 => "uint16",
        deserialize_u32 visit_u32 u32 => "uint32", deserialize_u64 visit_u64 u64 => "uint64",
        deserialize_f32 visit_f32 f32 => "float32", deserialize_f64 visit_f64 f64 => "float64",
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(text) => {
                if let Ok(number) = text.parse() {
                    visitor.visit_u64(number)
                } else if let Ok(number) = text.parse() {
                    visitor.visit_i64(number)
                } else {
                    visitor.visit_f64(text.parse().unwrap_or_default())
                }
            }
            Value::String(text) => visitor.visit_string(text.decode()),
            Value::Array(_) => self.deserialize_seq(visitor),
            Value::Object(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_bool(false),
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(self.mismatch("bool")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_string(String::new()),
            Value::String(text) => visitor.visit_string(text.decode()),
            _ => Err(self.mismatch("string")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_string(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value == Value::Null {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let elements = self.elements()?;
        self.visit_elements(elements, visitor)
    }

    /// As in Go, missing array elements are zero and excess elements are ignored.
    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let elements = self
            .elements()?
            .chain(std::iter::repeat(Value::Null))
            .take(length);
        self.visit_elements(elements, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let go_type = self.go_type.and_then(go_types::of_element);
        let members = self
            .members("map[string]string")?
            .map(|(key, value)| Member {
                name: key.clone(),
                key,
                value,
                go_type,
            });
        visitor.visit_map(Members {
            parent: self,
            rest: members,
            next: None,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        structure: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut list: Vec<Member<'_>> = Vec::new();
        // The index in the list of each field. The last member for a field wins; null leaves the
        // field unchanged.
        let mut places = vec![None; fields.len()];
        let mut has_unknown = false;
        for (key, value) in self.members(structure)? {
            let exact = fields.iter().position(|field| *field == key);
            let field = exact.or_else(|| {
                fields
                    .iter()
                    .position(|field| field.eq_ignore_ascii_case(&key))
            });
            let name = field.map_or_else(|| key.clone(), |field| fields[field].to_owned());
            let go_type = go_types::of_field(structure, &name);
            match field {
                Some(field) if value != Value::Null => {
                    let member = Member {
                        name,
                        key,
                        value,
                        go_type,
                    };
                    if let Some(place) = places[field] {
                        list[place] = member;
                    } else {
                        places[field] = Some(list.len());
                        list.push(member);
                    }
                }
                // One unknown member suffices for `deny_unknown_fields`; others are only needed if
                // their type is to be checked.
                None if go_type.is_some() || !has_unknown => {
                    has_unknown = true;
                    list.push(Member {
                        name,
                        key,
                        value,
                        go_type,
                    });
                }
                _ => {}
            }
        }
        visitor.visit_map(Members {
            parent: self,
            rest: list.into_iter(),
            next: None,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value {
            Value::String(text) => visitor.visit_enum(text.decode().into_deserializer()),
            _ => Err(self.mismatch("string")),
        }
    }

    /// An ignored field whose Go type is known must be null, an array for a slice, or an object
    /// (`struct {}`); values of unknown fields are not checked.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match (&self.value, self.go_type) {
            (Value::Null, _) | (_, None) => visitor.visit_unit(),
            (Value::Array(_), Some(go_type)) if go_type.starts_with('[') => visitor.visit_unit(),
            (Value::Object(_), Some(go_type)) if !go_type.starts_with('[') => visitor.visit_unit(),
            (_, Some(go_type)) => Err(self.mismatch(go_type)),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple_struct identifier
    }
}

struct Member<'a> {
    /// The field's name, or the key itself in a map.
    name: String,
    key: String,
    value: Value<'a>,
    go_type: Option<&'static str>,
}

struct Members<'a, I> {
    parent: Decoder<'a>,
    rest: I,
    next: Option<Member<'a>>,
}

impl<'a, 'de, I: Iterator<Item = Member<'a>>> MapAccess<'de> for Members<'a, I> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some(mut member) = self.rest.next() else {
            return Ok(None);
        };
        let name = std::mem::take(&mut member.name);
        self.next = Some(member);
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(Member {
            key,
            value,
            go_type,
            ..
        }) = self.next.take()
        else {
            return Err(de::Error::custom("a value without a key"));
        };
        seed.deserialize(self.parent.member(key, value, go_type))
    }
}

struct Elements<'a, I> {
    parent: Decoder<'a>,
    go_type: Option<&'static str>,
    rest: std::iter::Enumerate<I>,
}

impl<'a, 'de, I: Iterator<Item = Value<'a>>> SeqAccess<'de> for Elements<'a, I> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some((index, value)) = self.rest.next() else {
            return Ok(None);
        };
        seed.deserialize(self.parent.element(index, value, self.go_type))
            .map(Some)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use whelk_api_types::{ContainerConfig, HostConfig};

    use super::*;
    use crate::json::parse;

    fn value(text: &str) -> Value<'_> {
        parse(text.as_bytes()).map_or(Value::Null, |(value, _)| value)
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Outer {
        detach_keys: String,
        inner: Option<Vec<Inner>>,
        labels: std::collections::BTreeMap<String, String>,
        size: [u16; 2],
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Inner {
        number: u64,
    }

    fn outer(text: &str) -> Outer {
        decode(value(text), "x.Outer").unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_last_member_of_a_field_wins_and_null_is_ignored() {
        assert_eq!(
            outer(r#"{"DetachKeys":"a","detachkeys":"b"}"#).detach_keys,
            "b"
        );
        assert_eq!(
            outer(r#"{"DetachKeys":"a","DetachKeys":null}"#).detach_keys,
            "a"
        );
    }

    #[test]
    fn unknown_members_take_linear_time() {
        let members: Vec<String> = (0..200_000)
            .map(|number| format!("\"x{number}\":1"))
            .collect();
        let begin = std::time::Instant::now();
        assert_eq!(
            outer(&format!("{{{},\"DetachKeys\":\"a\"}}", members.join(","))).detach_keys,
            "a"
        );
        // Comparing each member with each other would take minutes.
        assert!(begin.elapsed().as_secs() < 10, "{:?}", begin.elapsed());
    }

    #[test]
    fn keys_are_case_insensitive_and_the_last_one_wins() {
        let read = outer(
            r#"{"detachKeys": "a", "INNER": [{"nuMber": 7, "other": null}], "labels": {"Key": "v", "key": "w"}}"#,
        );
        assert_eq!(
            (read.detach_keys.as_str(), read.inner),
            ("a", Some(vec![Inner { number: 7 }]))
        );
        // Only field names are case-insensitive; keys of maps are not.
        assert_eq!(read.labels.len(), 2);
        assert_eq!(
            outer(r#"{"DetachKeys": "exact", "detachkeys": "other"}"#).detach_keys,
            "other"
        );
    }

    #[test]
    fn null_gives_the_zero_value() {
        assert_eq!(outer("null"), Outer::default());
        assert_eq!(
            outer(r#"{"DetachKeys":null,"Inner":null,"Labels":null,"Size":null}"#),
            Outer::default()
        );
        let read = outer(r#"{"Inner":[null],"Labels":{"a":null},"Size":[null,5,6]}"#);
        assert_eq!(
            (read.inner, read.labels["a"].as_str(), read.size),
            (Some(vec![Inner::default()]), "", [0, 5])
        );
    }

    #[test]
    fn type_errors_have_gos_texts() {
        let check = |text: &str, expected: &str| {
            let error = decode::<ContainerConfig>(value(text), "container.CreateRequest")
                .map(drop)
                .unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("json: cannot unmarshal {expected}"),
                "{text}"
            );
        };
        check("[]", "array into Go value of type container.CreateRequest");
        check(
            r#"{"Image":5}"#,
            "number into Go struct field .Image of type string",
        );
        check(
            r#"{"Image":"x","IMAGE":5}"#,
            "number into Go struct field .IMAGE of type string",
        );
        check(
            r#"{"Env":{"a":"b"}}"#,
            "object into Go struct field .Env of type []string",
        );
        check(r#"{"Env":[5]}"#, "number into .Env.0 of type string");
        check(r#"{"Cmd":5}"#, "number into Go value of type string");
        check(r#"{"Cmd":[5]}"#, "array into Go value of type string");
        check(r#"{"Cmd":{}}"#, "object into Go value of type string");
        check(
            r#"{"Tty":"x"}"#,
            "string into Go struct field .Tty of type bool",
        );
        check(
            r#"{"Labels":{"a/b":5}}"#,
            "number into Go struct field .Labels.a~1b of type string",
        );
        check(
            r#"{"ExposedPorts":[]}"#,
            "array into Go struct field .ExposedPorts of type nat.PortSet",
        );
        check(
            r#"{"ExposedPorts":{"80":5}}"#,
            "number into .ExposedPorts.80 of type struct {}",
        );
        check(
            r#"{"StopTimeout":"5"}"#,
            "string into Go struct field .StopTimeout of type int",
        );
        let check = |text: &str, expected: &str| {
            let error = decode_field::<HostConfig>(
                ("HostConfig".into(), value(text)),
                "container.HostConfig",
            )
            .map(drop)
            .unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("json: cannot unmarshal {expected}"),
                "{text}"
            );
        };
        check(
            "5",
            "number into Go struct field .HostConfig of type container.HostConfig",
        );
        check(
            r#"{"Memory":1.5}"#,
            "number 1.5 into Go struct field .HostConfig.Memory of type int64",
        );
        check(
            r#"{"BlkioWeight":70000}"#,
            "number 70000 into Go struct field .HostConfig.BlkioWeight of type uint16",
        );
        check(
            r#"{"NetworkMode":5}"#,
            "number into Go struct field .HostConfig.NetworkMode of type container.NetworkMode",
        );
        check(
            r#"{"RestartPolicy":{"Name":5}}"#,
            "number into Go struct field .HostConfig.RestartPolicy.Name of type container.RestartPolicyMode",
        );
        check(
            r#"{"Devices":["x"]}"#,
            "string into .HostConfig.Devices.0 of type container.DeviceMapping",
        );
        check(
            r#"{"Devices":[{"PathOnHost":5}]}"#,
            "number into Go struct field .HostConfig.Devices.0.PathOnHost of type string",
        );
        check(
            r#"{"PortBindings":{"80/tcp":5}}"#,
            "number into Go struct field .HostConfig.PortBindings.80~1tcp of type []nat.PortBinding",
        );
        check(
            r#"{"ConsoleSize":[1,"x"]}"#,
            "string into .HostConfig.ConsoleSize.1 of type uint",
        );
        check(r#"{"CapAdd":5}"#, "number into Go value of type string");
    }

    #[test]
    fn ignored_settings_of_an_update_have_their_types() {
        use whelk_api_types::UpdateConfig;
        let update = |text: &str| {
            let update = decode::<UpdateConfig>(value(text), "container.UpdateConfig");
            update
                .map(|update| update.memory)
                .map_err(|error| error.to_string())
        };
        let text = r#"{"Devices": [{"PathOnHost": "/a"}], "Ulimits": [], "DeviceRequests": null, "NetworkMode": "x", "Memory": 5}"#;
        assert_eq!(update(text), Ok(5));
        assert_eq!(
            update(r#"{"Devices": {}}"#),
            Err("json: cannot unmarshal object into Go struct field .Devices of type []container.DeviceMapping".into())
        );
    }
}
