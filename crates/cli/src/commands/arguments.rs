//! Arguments of several commands: filters, labels, `key=value` options, and flags that are not supported.

use std::collections::BTreeMap;

use crate::commands::USAGE;
use crate::{Failure, Outcome};

/// Rejects flags of Docker's CLI that this version does not support.
pub(crate) fn not_available(flags: &[(&str, bool)], what: &str) -> Outcome<()> {
    match flags.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Failure::new(format!(
            "{flag}: {what} not available in this version of whelk"
        ))),
        None => Ok(()),
    }
}

/// Encodes `key=value` filters of the flag `-f, --filter` as the API's JSON; empty if there are
/// none.
pub(crate) fn filters(given: &[String]) -> Outcome<String> {
    filters_of(given, "-f, --filter")
}

/// Encodes the filters of a command whose flag has no short form.
pub(crate) fn prune_filters(given: &[String]) -> Outcome<String> {
    filters_of(given, "--filter")
}

fn filters_of(given: &[String], flag: &str) -> Outcome<String> {
    let mut map: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for filter in given.iter().filter(|filter| !filter.is_empty()) {
        let Some((key, value)) = filter.split_once('=') else {
            return Err(Failure::with_code(
                USAGE,
                format!(
                    "invalid argument {filter:?} for {flag:?} flag: bad format of filter (expected name=value)"
                ),
            ));
        };
        let values = map.entry(key.trim().to_lowercase()).or_default();
        values.push(value.trim());
    }
    if map.is_empty() {
        return Ok(String::new());
    }
    serde_json::to_string(&map).map_err(|error| Failure::new(error.to_string()))
}

/// Returns the values of a flag; `None` if there are none.
pub(crate) fn given(values: Vec<String>) -> Option<Vec<String>> {
    Some(values).filter(|values| !values.is_empty())
}

/// Parses `key=value` options. A key without a value gets an empty value, as in Docker; the engine
/// rejects those that need one.
pub(crate) fn key_values(given: &[String]) -> BTreeMap<String, String> {
    given
        .iter()
        .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Parses `key=value` labels given by `flag`. A key without a value gets an empty value.
///
/// # Errors
/// Returns an error if a key is empty or contains white space.
pub(crate) fn labels_of(given: &[String], flag: &str) -> Outcome<BTreeMap<String, String>> {
    given
        .iter()
        .map(|entry| {
            let wrong = |text: String| {
                Err(Failure::with_code(
                    USAGE,
                    format!("invalid argument {entry:?} for \"{flag}\" flag: {text}"),
                ))
            };
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            match key.trim_start() {
                "" => wrong(format!("invalid label '{entry}': empty name")),
                key if key.contains(char::is_whitespace) => {
                    wrong(format!("label '{key}' contains whitespaces"))
                }
                key => Ok((key.to_owned(), value.to_owned())),
            }
        })
        .collect()
}
