//! Reads objects as a client does: tolerant of engines whose objects are not quite the ones here.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Unexpected, Visitor};
use serde_json::{Error, Map, Value};

/// Reads an object that an engine has sent.
///
/// As in Go, a field that is absent or `null` has the zero value: older engines lack fields, and
/// Docker sends `null` for empty lists and maps. A number out of its field's range is read as 0:
/// Docker sends -1 for a size that it does not know.
///
/// # Errors
/// Returns an error if a value has another type than its field, such as a list for a string.
pub fn read<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(Lenient(value))
}

struct Lenient(Value);

impl<'de> IntoDeserializer<'de, Error> for Lenient {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

fn seq<'de, V: Visitor<'de>>(
    elements: impl Iterator<Item = Value>,
    visitor: V,
) -> Result<V::Value, Error> {
    visitor.visit_seq(SeqDeserializer::new(elements.map(Lenient)))
}

fn map<'de, V: Visitor<'de>>(members: Map<String, Value>, visitor: V) -> Result<V::Value, Error> {
    let members = members
        .into_iter()
        .map(|(key, value)| (key, Lenient(value)));
    visitor.visit_map(MapDeserializer::new(members))
}

macro_rules! integers {
    ($($function:ident $visit:ident $number:ty,)*) => {
        $(fn $function<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let number = match &self.0 {
                Value::Null => 0,
                Value::Number(number) if number.is_i64() || number.is_u64() => {
                    let wide = number.as_i64().map(i128::from);
                    let wide = wide.or_else(|| number.as_u64().map(i128::from));
                    wide.and_then(|wide| <$number>::try_from(wide).ok()).unwrap_or(0)
                }
                _ => return self.deserialize_any(visitor),
            };
            visitor.$visit(number)
        })*
    };
}

impl<'de> Deserializer<'de> for Lenient {
    type Error = Error;

    integers! {
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(elements) => seq(elements.into_iter(), visitor),
            Value::Object(members) => map(members, visitor),
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_bool(false),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_f64(0.0),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_str(""),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => seq(std::iter::empty(), visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => seq(std::iter::repeat_n(Value::Null, length), visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => map(Map::new(), visitor),
            // Derived implementations take a list for a struct without the names of its fields.
            Value::Array(_) => Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple_struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        ContainerInspectResponse, ContainerSummary, Empty, ImageSummary, NetworkInspect,
        PortSummary, SystemDataUsageResponse, SystemInfo, SystemVersion, VolumeListResponse,
    };

    /// Replaces each member of an object by `null`, one after the other, at all depths, except in
    /// maps from names to values, and checks that the object can still be read.
    fn check_nulls<T: DeserializeOwned + serde::Serialize>(object: &T) {
        fn places(value: &Value, place: &str, found: &mut Vec<String>) {
            let members: Vec<(String, &Value)> = match value {
                Value::Object(members) => members
                    .iter()
                    .map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value))
                    .collect(),
                Value::Array(elements) => {
                    let elements = elements.iter().enumerate();
                    elements
                        .map(|(at, value)| (at.to_string(), value))
                        .collect()
                }
                _ => return,
            };
            for (key, value) in members {
                let place = format!("{place}/{key}");
                places(value, &place, found);
                found.push(place);
            }
        }
        let whole = serde_json::to_value(object).unwrap();
        let mut found = Vec::new();
        places(&whole, "", &mut found);
        assert!(!found.is_empty());
        for place in found {
            let mut value = whole.clone();
            *value.pointer_mut(&place).unwrap() = Value::Null;
            if let Err(error) = read::<T>(value) {
                panic!("null at {place}: {error}");
            }
        }
        read::<T>(Value::Null).unwrap();
        read::<T>(json!({"NoSuchField": [null]})).unwrap();
    }

    #[test]
    fn reads_null_in_place_of_any_field() {
        check_nulls(&read::<ContainerInspectResponse>(json!({
            "State": {"Status": "running"}, "Args": ["a"], "HostConfig": {"ConsoleSize": [1, 2], "CapAdd": "ALL", "Mounts": [{"Type": "bind", "BindOptions": {}}], "Ulimits": [{}]},
            "Config": {"Cmd": ["a"], "ExposedPorts": {"80/tcp": {}}, "Healthcheck": {"Test": ["NONE"]}},
            "NetworkSettings": {"Bridge": "", "Ports": {"80/tcp": [{"HostPort": "1"}], "81/tcp": null}, "Networks": {"a": {"IPAMConfig": {}}}}, "Mounts": [{}],
        })).unwrap());
        check_nulls(
            &read::<ContainerSummary>(json!({
                "Names": ["/a"], "Ports": [{"IP": "::", "PublicPort": 5}], "Mounts": [{}], "SizeRw": 5,
                "NetworkSettings": {"Networks": {"a": {}}}, "Labels": {"a": "b"},
            }))
            .unwrap(),
        );
        check_nulls(
            &read::<NetworkInspect>(json!({"IPAM": {"Config": [{}]}, "Containers": {"a": {}}}))
                .unwrap(),
        );
        check_nulls(
            &read::<VolumeListResponse>(json!({"Volumes": [{"UsageData": {}}], "Warnings": ["a"]}))
                .unwrap(),
        );
        check_nulls(&read::<SystemInfo>(json!({"DriverStatus": [["a", "b"]]})).unwrap());
        check_nulls(&read::<SystemVersion>(json!({"Components": [{}]})).unwrap());
        let usage = json!({"Images": [{}], "Containers": [], "Volumes": [], "BuildCache": [{}], "LayersSize": 5});
        check_nulls(&read::<SystemDataUsageResponse>(usage).unwrap());
    }

    #[test]
    fn reads_numbers_out_of_range_as_zero() {
        let summary = json!({"SizeRw": -1, "SizeRootFs": 7, "Ports": [{"PrivatePort": 70_000}]});
        let summary: ContainerSummary = read(summary).unwrap();
        assert_eq!((summary.size_rw, summary.size_root_fs), (Some(0), Some(7)));
        assert_eq!(summary.ports, [PortSummary::default()]);
        let image: ImageSummary = read(json!({"SharedSize": -1, "Size": -1})).unwrap();
        assert_eq!((image.shared_size, image.size), (-1, 0));
    }

    #[test]
    fn reads_an_address_that_is_empty_or_none() {
        for (address, expected) in [("", None), ("x", None), ("::1", "::1".parse().ok())] {
            let port: PortSummary = read(json!({"IP": address})).unwrap();
            assert_eq!(port.ip, expected, "{address}");
        }
    }

    #[test]
    fn refuses_values_of_another_type() {
        for (value, text) in [
            (
                json!({"Id": 5}),
                "invalid type: integer `5`, expected a string",
            ),
            (
                json!({"Created": "x"}),
                "invalid type: string \"x\", expected i64",
            ),
            (
                json!({"Created": 1.5}),
                "invalid type: floating point `1.5`, expected i64",
            ),
            (
                json!({"Names": {}}),
                "invalid type: map, expected a sequence",
            ),
            (json!([]), "expected struct ContainerSummary"),
        ] {
            let error = read::<ContainerSummary>(value).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn keeps_json_as_it_is() {
        let value = json!({"b": [null, 1, -1, 1.5, true, "x", {}], "a": null});
        let read_again: Value = read(value.clone()).unwrap();
        assert_eq!(read_again.to_string(), value.to_string());
        assert_eq!(read::<Empty>(value).unwrap(), Empty {});
    }
}
