//! Arguments of several commands: filters, labels, `key=value` options, and flags that are not supported.

use serde_json::Value;

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
    let mut map = serde_json::Map::new();
    for filter in given.iter().filter(|filter| !filter.is_empty()) {
        let Some((key, value)) = filter.split_once('=') else {
            return Err(Failure::with_code(
                USAGE,
                format!(
                    "invalid argument {filter:?} for {flag:?} flag: bad format of filter (expected name=value)"
                ),
            ));
        };
        map.entry(key.trim().to_lowercase())
            .or_insert_with(|| Value::Array(Vec::new()))
            .as_array_mut()
            .map(|list| list.push(Value::from(value.trim())))
            .unwrap_or_default();
    }
    Ok(if map.is_empty() {
        String::new()
    } else {
        Value::Object(map).to_string()
    })
}

/// Parses `key=value` options. A key without a value gets an empty value, as in Docker; the engine
/// rejects those that need one.
pub(crate) fn key_values(given: &[String]) -> serde_json::Map<String, Value> {
    given
        .iter()
        .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
        .map(|(key, value)| (key.to_owned(), Value::from(value)))
        .collect()
}

/// Parses `key=value` labels given by `flag`. A key without a value gets an empty value.
///
/// # Errors
/// Returns an error if a key is empty or contains white space.
pub(crate) fn labels_of(given: &[String], flag: &str) -> Outcome<serde_json::Map<String, Value>> {
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
                key => Ok((key.to_owned(), Value::from(value))),
            }
        })
        .collect()
}
