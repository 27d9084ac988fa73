//! JSON objects whose keys match a struct's fields whatever their case, as Go reads them: clients rely on it
//! (`detachKeys`, `hostConfig`), and a setting that is silently lost is worse than an error.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde_json::{Error, Map, Value};

/// Reads a value, folding the case of keys.
pub(crate) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(Folding(value))
}

/// The part of an object under a key, taken out, whatever the key's case.
pub(crate) fn take(map: &mut Map<String, Value>, key: &str) -> Option<Value> {
    let found = map.keys().find(|known| *known == key).or_else(|| map.keys().find(|known| known.eq_ignore_ascii_case(key))).cloned()?;
    map.remove(&found)
}

struct Folding(Value);

impl IntoDeserializer<'_, Error> for Folding {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

fn visit_map<'de, V: Visitor<'de>>(map: Map<String, Value>, visitor: V) -> Result<V::Value, Error> {
    visitor.visit_map(MapDeserializer::new(map.into_iter().map(|(key, value)| (key, Folding(value)))))
}

impl<'de> Deserializer<'de> for Folding {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) => visit_map(map, visitor),
            Value::Array(list) => visitor.visit_seq(SeqDeserializer::new(list.into_iter().map(Folding))),
            value => value.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        let Value::Object(map) = self.0 else { return self.deserialize_any(visitor) };
        let mut folded = Map::new();
        let (exact, others): (Vec<_>, Vec<_>) = map.into_iter().partition(|(key, _)| fields.contains(&key.as_str()));
        folded.extend(exact);
        for (key, value) in others {
            let key = fields.iter().find(|field| field.eq_ignore_ascii_case(&key)).map_or(key, |field| (*field).to_owned());
            folded.entry(key).or_insert(value);
        }
        visit_map(folded, visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Outer {
        detach_keys: String,
        inner: Option<Vec<Inner>>,
        labels: std::collections::BTreeMap<String, String>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Inner {
        number: u64,
    }

    #[test]
    fn keys_match_whatever_their_case() {
        let read =
            from_value::<Outer>(json!({"detachKeys": "a", "INNER": [{"nuMber": 7, "other": null}], "labels": {"Key": "v", "key": "w"}}))
                .unwrap();
        assert_eq!(read.detach_keys, "a");
        assert_eq!(read.inner, Some(vec![Inner { number: 7 }]));
        // Only names of fields are folded; data stays as it is.
        assert_eq!(read.labels.len(), 2);
        assert_eq!(from_value::<Outer>(json!({"DetachKeys": "exact", "detachkeys": "other"})).unwrap().detach_keys, "exact");
        assert!(from_value::<Inner>(json!({"number": "x"})).is_err());
    }
}
