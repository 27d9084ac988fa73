//! The `filters` of list requests: `{"status":["running"],"label":["a=b"]}`, each key with alternatives.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};

/// What Go takes for true and false.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// Reads both forms clients send: lists of values, and (older) maps of value to `true`.
    ///
    /// # Errors
    /// Anything else, and a key that is not in `known`.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self> {
        let filters = Self::parse_any(text)?;
        match filters.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(Error::invalid(format!("invalid filter '{key}'"))),
            None => Ok(filters),
        }
    }

    /// The same with any key: some requests ignore what they do not know.
    pub fn parse_any(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let invalid = || Error::invalid("invalid filter");
        let value: BTreeMap<String, serde_json::Value> = serde_json::from_str(text).map_err(|_| invalid())?;
        let mut filters = BTreeMap::new();
        for (key, values) in value {
            let values: BTreeSet<String> = match values {
                serde_json::Value::Array(list) => {
                    list.into_iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(invalid)).collect::<Result<_>>()?
                }
                serde_json::Value::Object(map) => {
                    map.into_iter().filter(|(_, on)| on.as_bool() == Some(true)).map(|(value, _)| value).collect()
                }
                _ => return Err(invalid()),
            };
            filters.insert(key, values);
        }
        Ok(Self(filters))
    }

    pub fn get(&self, key: &str) -> Option<&BTreeSet<String>> {
        self.0.get(key).filter(|values| !values.is_empty())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `matches` holds for one of the key's values, or the key is not filtered by.
    pub fn any(&self, key: &str, matches: impl Fn(&str) -> bool) -> bool {
        self.get(key).is_none_or(|values| values.iter().any(|value| matches(value)))
    }

    /// Whether all `label` values hold: `key` or `key=value`.
    pub fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        };
        self.get("label").is_none_or(|wanted| wanted.iter().all(holds))
            && self.get("label!").is_none_or(|unwanted| !unwanted.iter().any(holds))
    }

    /// A filter that is `true` or `false`.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(values) = self.get(key) else { return Ok(None) };
        let flags: Option<BTreeSet<bool>> = values.iter().map(|value| parse_bool(value)).collect();
        match flags {
            Some(flags) if flags.len() == 1 => Ok(flags.first().copied()),
            _ => Err(Error::invalid(format!("invalid filter '{key}={:?}'", values.iter().collect::<Vec<_>>()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_unknown_keys_refused() {
        for text in [r#"{"status":["running"]}"#, r#"{"status":{"running":true,"exited":false}}"#] {
            let filters = Filters::parse(text, &["status"]).unwrap();
            assert!(filters.any("status", |value| value == "running") && !filters.any("status", |value| value == "exited"), "{text}");
        }
        assert_eq!(Filters::parse(r#"{"foo":["x"]}"#, &["status"]).unwrap_err().to_string(), "invalid filter 'foo'");
        for text in ["[]", "x", r#"{"a":5}"#, r#"{"a":[5]}"#] {
            assert!(Filters::parse(text, &["a"]).is_err(), "{text}");
        }
    }

    #[test]
    fn labels_must_all_hold() {
        let labels = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())].into();
        let holds = |text: &str| Filters::parse(text, &["label"]).unwrap().labels(&labels);
        assert!(holds(r#"{"label":["a","a=1"]}"#) && holds("{}"));
        assert!(!holds(r#"{"label":["a","c"]}"#) && !holds(r#"{"label":["a=2"]}"#));
    }
}
