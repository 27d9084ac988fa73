//! The `filters` parameter of list requests: `{"status":["running"],"label":["a=b"]}`. An object
//! matches a key if it matches one of its values (labels: all).

use std::collections::{BTreeMap, BTreeSet};

use whelk_text::time;

use crate::error::{Error, Result};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// Parses both forms that clients send: lists of values, and the older maps of value to `true`.
    ///
    /// # Errors
    /// Returns an error for any other JSON, and for a key that is not in `known`.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self> {
        let filters = Self::parse_any(text)?;
        match filters.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) if key.is_empty() => Err(Error::invalid("invalid filter")),
            Some(key) => Err(Error::invalid(format!("invalid filter '{key}'"))),
            None => Ok(filters),
        }
    }

    /// Like [`Filters::parse`], but accepts any key: some requests ignore unknown filters.
    pub fn parse_any(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let invalid = || Error::invalid("invalid filter");
        let value: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|_| invalid())?;
        let mut filters = BTreeMap::new();
        for (key, values) in value {
            let values: BTreeSet<String> = match values {
                serde_json::Value::Array(list) => list
                    .into_iter()
                    .map(|value| value.as_str().map(str::to_owned).ok_or_else(invalid))
                    .collect::<Result<_>>()?,
                serde_json::Value::Object(map) => map
                    .into_iter()
                    .filter(|(_, on)| on.as_bool() == Some(true))
                    .map(|(value, _)| value)
                    .collect(),
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

    /// Returns whether `value` matches one of the key's values as a regular expression, or the key
    /// has none. A value that is not a valid expression matches as a substring.
    pub fn any_pattern(&self, key: &str, value: &str) -> bool {
        self.any(key, |pattern| {
            value == pattern
                || regex_lite::Regex::new(pattern)
                    .map_or_else(|_| value.contains(pattern), |regex| regex.is_match(value))
        })
    }

    /// Returns whether `matches` holds for one of the key's values, or the key has none.
    pub fn any(&self, key: &str, matches: impl Fn(&str) -> bool) -> bool {
        self.get(key)
            .is_none_or(|values| values.iter().any(|value| matches(value)))
    }

    /// Returns whether the labels match all `label` filters and, as in Docker, not all of the `label!`
    /// filters. Each is `key` or `key=value`.
    pub fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        };
        self.get("label")
            .is_none_or(|wanted| wanted.iter().all(holds))
            && self
                .get("label!")
                .is_none_or(|unwanted| !unwanted.iter().all(holds))
    }

    /// Returns the `until` filter, in nanoseconds since the epoch: objects match if they were
    /// created before.
    ///
    /// # Errors
    /// Returns an error if the value is not a time, or if there are several.
    pub fn until(&self) -> Result<Option<i64>> {
        if self.get("until").is_some_and(|values| values.len() > 1) {
            return Err(Error::invalid("more than one until filter specified"));
        }
        self.earliest_until()
    }

    /// Returns the earliest time of the `until` filters, in nanoseconds since the epoch.
    ///
    /// # Errors
    /// Returns an error if a value is not a time.
    pub fn earliest_until(&self) -> Result<Option<i64>> {
        let parse = |text: &String| {
            time::parse(text, crate::events::now()).ok_or_else(|| {
                Error::invalid(format!(
                    "failed to parse value as time or duration: {text:?}"
                ))
            })
        };
        let times: Result<Vec<i64>> = self.get("until").into_iter().flatten().map(parse).collect();
        Ok(times?.into_iter().min())
    }

    /// Returns the value of a boolean filter, or `None` if it is not given. As in Docker, other values
    /// beside a boolean are ignored.
    ///
    /// # Errors
    /// Returns an error if no value is a boolean, or if both are given.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(values) = self.get(key) else {
            return Ok(None);
        };
        let any = |accepted: [&str; 2]| accepted.iter().any(|text| values.contains(*text));
        match (any(["1", "true"]), any(["0", "false"])) {
            (true, false) => Ok(Some(true)),
            (false, true) => Ok(Some(false)),
            _ => {
                let shown: Vec<&str> = values.iter().map(String::as_str).collect();
                Err(Error::invalid(format!(
                    "invalid filter '{key}=[{}]'",
                    shown.join(" ")
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_both_forms_and_rejects_unknown_keys() {
        for text in [
            r#"{"status":["running"]}"#,
            r#"{"status":{"running":true,"exited":false}}"#,
        ] {
            let filters = Filters::parse(text, &["status"]).unwrap();
            assert!(
                filters.any("status", |value| value == "running")
                    && !filters.any("status", |value| value == "exited"),
                "{text}"
            );
        }
        assert_eq!(
            Filters::parse(r#"{"foo":["x"]}"#, &["status"])
                .unwrap_err()
                .to_string(),
            "invalid filter 'foo'"
        );
        for text in ["[]", "x", r#"{"a":5}"#, r#"{"a":[5]}"#] {
            let error = Filters::parse(text, &["a"]).unwrap_err();
            assert_eq!(error.to_string(), "invalid filter", "{text}");
        }
    }

    #[test]
    fn lists_use_the_earliest_of_several_times() {
        let filters = |text: &str| Filters::parse(text, &["until"]).unwrap();
        let several = filters(r#"{"until":["3","2.5"]}"#);
        assert_eq!(several.earliest_until().unwrap(), Some(2_500_000_000));
        assert_eq!(
            several.until().unwrap_err().to_string(),
            "more than one until filter specified"
        );
        assert_eq!(
            filters(r#"{"until":["3"]}"#).until().unwrap(),
            Some(3_000_000_000)
        );
        assert_eq!(filters("{}").until().unwrap(), None);
        let wrong = filters(r#"{"until":["3","x"]}"#);
        assert_eq!(
            wrong.earliest_until().unwrap_err().to_string(),
            "failed to parse value as time or duration: \"x\""
        );
    }

    #[test]
    fn a_flag_needs_one_boolean() {
        let flag = |values: &str| {
            let filters = Filters::parse(&format!(r#"{{"dangling":[{values}]}}"#), &["dangling"]);
            filters
                .unwrap()
                .flag("dangling")
                .map_err(|error| error.to_string())
        };
        assert_eq!(flag(""), Ok(None));
        assert_eq!(flag(r#""1""#), Ok(Some(true)));
        // Docker's client adds a value of its own to that of the user.
        assert_eq!(flag(r#""maybe","true""#), Ok(Some(true)));
        assert_eq!(flag(r#""x","false""#), Ok(Some(false)));
        let refused = |text: &str| Err(format!("invalid filter 'dangling=[{text}]'"));
        assert_eq!(flag(r#""true","false""#), refused("false true"));
        assert_eq!(flag(r#""x""#), refused("x"));
    }

    #[test]
    fn labels_are_excluded_that_match_all_of_a_list() {
        let labels = [
            ("a".to_owned(), "1".to_owned()),
            ("b".to_owned(), String::new()),
        ]
        .into();
        let holds = |text: &str| Filters::parse(text, &["label!"]).unwrap().labels(&labels);
        assert!(!holds(r#"{"label!":["a"]}"#) && !holds(r#"{"label!":["a=1","b"]}"#));
        assert!(holds(r#"{"label!":["a=2"]}"#) && holds(r#"{"label!":["a","c"]}"#));
    }

    #[test]
    fn all_label_filters_must_match() {
        let labels = [
            ("a".to_owned(), "1".to_owned()),
            ("b".to_owned(), String::new()),
        ]
        .into();
        let holds = |text: &str| Filters::parse(text, &["label"]).unwrap().labels(&labels);
        assert!(holds(r#"{"label":["a","a=1"]}"#) && holds("{}"));
        assert!(!holds(r#"{"label":["a","c"]}"#) && !holds(r#"{"label":["a=2"]}"#));
    }
}
