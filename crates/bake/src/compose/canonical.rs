//! The long forms of what services say in several ways, so that they can be merged.

use serde_json::{Map, Value};

use super::Object;
use crate::error::{Error, Result};

/// Parts of a file that targets are made of.
const PARTS: [&str; 3] = ["include", "secrets", "services"];

/// Parts of a service that targets are made of.
const SERVICE_PARTS: [&str; 5] = ["build", "env_file", "environment", "extends", "image"];

/// The attributes of `build` in Compose's schema.
const KNOWN: [&str; 25] = [
    "additional_contexts",
    "args",
    "cache_from",
    "cache_to",
    "context",
    "dockerfile",
    "dockerfile_inline",
    "entitlements",
    "extra_hosts",
    "isolation",
    "labels",
    "network",
    "no_cache",
    "platforms",
    "privileged",
    "provenance",
    "pull",
    "sbom",
    "secrets",
    "shm_size",
    "ssh",
    "tags",
    "target",
    "ulimits",
    "x-bake",
];

/// Brings a document into its long forms, without what is of no interest for targets.
pub(super) fn document(members: &mut Object) -> Result<()> {
    members.retain(|key, value| PARTS.contains(&key.as_str()) && !value.is_null());
    for key in ["services", "secrets"] {
        if members.get(key).is_some_and(|value| !value.is_object()) {
            return Err(Error::new(format!("{key} must be a mapping")));
        }
    }
    if let Some(Value::Object(services)) = members.get_mut("services") {
        for (name, service) in services {
            self::service(name, service)?;
        }
    }
    Ok(())
}

fn service(name: &str, service: &mut Value) -> Result<()> {
    let service = match service {
        Value::Object(service) => service,
        Value::Null => return Ok(()),
        _ => return Err(Error::new(format!("services.{name} must be a mapping"))),
    };
    service.retain(|key, _| SERVICE_PARTS.contains(&key.as_str()));
    if let Some(environment) = service.get_mut("environment") {
        *environment = pairs(environment).ok_or_else(|| {
            Error::new(format!(
                "services.{name}.environment must be a mapping or a list"
            ))
        })?;
    }
    if let Some(files) = service.get_mut("env_file") {
        *files = env_files(files).ok_or_else(|| {
            Error::new(format!(
                "services.{name}.env_file must be a string or a list"
            ))
        })?;
    }
    match service.get_mut("build") {
        None => Ok(()),
        Some(build) => self::build(name, build),
    }
}

/// Returns the long form of a value; `None` if it has another type.
type Form = fn(&Value) -> Option<Value>;

fn build(name: &str, build: &mut Value) -> Result<()> {
    if let Value::String(context) = build {
        let context = std::mem::take(context);
        *build = object([("context".to_owned(), context.into())]);
    }
    let build = match build {
        Value::Object(build) => build,
        other => {
            let kind = match other {
                Value::Null => "<nil>",
                Value::Bool(_) => "bool",
                Value::Number(number) if number.is_f64() => "float64",
                Value::Number(_) => "int",
                _ => "[]interface {}",
            };
            return Err(Error::new(format!(
                "services.{name}.build: invalid type {kind} for build"
            )));
        }
    };
    let is_known = |key: &&String| KNOWN.contains(&key.as_str()) || key.starts_with("x-");
    if let Some(unknown) = build.keys().find(|key| !is_known(key)) {
        return Err(Error::new(format!(
            "services.{name}.build additional properties '{unknown}' not allowed"
        )));
    }
    let forms: [(&str, Form); 4] = [
        ("additional_contexts", pairs),
        ("args", pairs),
        ("labels", pairs),
        ("extra_hosts", hosts),
    ];
    for (key, form) in forms {
        if let Some(value) = build.get_mut(key) {
            *value = form(value).ok_or_else(|| {
                Error::new(format!("services.{name}.build.{key} must be a mapping"))
            })?;
        }
    }
    if let Some(agents) = build.get_mut("ssh") {
        *agents = self::agents(name, agents)?;
    }
    Ok(())
}

fn object(members: impl IntoIterator<Item = (String, Value)>) -> Value {
    Value::Object(members.into_iter().collect())
}

/// Returns a list `KEY=VALUE` as a mapping, in which later ones replace earlier ones.
pub(super) fn pairs(value: &Value) -> Option<Value> {
    let pair = |item: &Value| {
        let text = scalar(item)?;
        Some(match text.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.into()),
            None => (text, Value::Null),
        })
    };
    match value {
        Value::Null | Value::Object(_) => Some(value.clone()),
        Value::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(pair).collect();
            items.map(object)
        }
        _ => None,
    }
}

/// Returns hosts as a mapping to lists of their addresses.
fn hosts(value: &Value) -> Option<Value> {
    let mut found: Map<String, Value> = Map::new();
    let mut add = |host: &str, address: &str| {
        let address = address
            .strip_prefix('[')
            .map_or(address, |inner| inner.strip_suffix(']').unwrap_or(address));
        let known = found
            .entry(host)
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(known) = known
            && !known.iter().any(|own| own == address)
        {
            known.push(address.into());
        }
    };
    match value {
        Value::Null => return Some(Value::Null),
        Value::Array(items) => {
            for item in items {
                let text = scalar(item)?;
                let pair = text.split_once('=').or_else(|| text.split_once(':'));
                let (host, addresses) = pair?;
                addresses.split(',').for_each(|address| add(host, address));
            }
        }
        Value::Object(members) => {
            for (host, value) in members {
                match value {
                    Value::Array(addresses) => {
                        for address in addresses {
                            add(host, &scalar(address)?);
                        }
                    }
                    Value::Null => add(host, ""),
                    address => add(host, &scalar(address)?),
                }
            }
        }
        _ => return None,
    }
    Some(Value::Object(found))
}

/// Returns ssh agents and keys as a mapping of their ids to paths.
fn agents(name: &str, value: &Value) -> Result<Value> {
    let items = match value {
        Value::Null | Value::Object(_) => return Ok(value.clone()),
        Value::String(_) => std::slice::from_ref(value),
        Value::Array(items) => items,
        _ => {
            return Err(Error::new(format!(
                "services.{name}.build.ssh must be a list or a mapping"
            )));
        }
    };
    let agent = |item: &Value| {
        let text = scalar(item).unwrap_or_default();
        match text.split_once('=') {
            Some((id, path)) => Ok((id.to_owned(), path.into())),
            None if text == "default" => Ok((text, Value::Null)),
            None => Err(Error::new(format!("invalid ssh key {text:?}"))),
        }
    };
    let agents = items.iter().map(agent).collect::<Result<Vec<_>>>()?;
    Ok(object(agents))
}

/// Returns `env_file` as a list of mappings.
fn env_files(value: &Value) -> Option<Value> {
    let file = |item: &Value| match item {
        Value::String(path) => Some(object([("path".to_owned(), path.as_str().into())])),
        Value::Object(_) => Some(item.clone()),
        _ => None,
    };
    match value {
        Value::Null => Some(Value::Null),
        Value::Array(items) => {
            let items: Option<Vec<Value>> = items.iter().map(file).collect();
            items.map(Value::Array)
        }
        single => Some(Value::Array(vec![file(single)?])),
    }
}

/// Returns the text of a value that is neither a list nor a mapping.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(match number.as_f64() {
            Some(double) if number.is_f64() => double_text(double),
            _ => number.to_string(),
        }),
        _ => None,
    }
}

/// Returns the text of a number as Go writes it: with an exponent, if it is below -4 or above 5.
fn double_text(number: f64) -> String {
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.parse::<i32>() {
        Ok(-4..=5) | Err(_) => number.to_string(),
        Ok(exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn short_forms_become_long_ones() {
        let mut given = json!({
            "x-a": 1,
            "services": {"a": {
                "ports": [1],
                "env_file": ["a", {"path": "b"}],
                "environment": ["A=1", "B", "A=2"],
                "build": {
                    "ssh": ["default", "k=~/k"],
                    "extra_hosts": ["h:1", "h=[::1],1"],
                    "labels": {"l": 1},
                },
            }, "b": {"build": "dir"}, "c": null},
        });
        document(given.as_object_mut().unwrap()).unwrap();
        let expected = json!({"services": {
            "a": {
                "env_file": [{"path": "a"}, {"path": "b"}],
                "environment": {"A": "2", "B": null},
                "build": {
                    "ssh": {"default": null, "k": "~/k"},
                    "extra_hosts": {"h": ["1", "::1"]},
                    "labels": {"l": 1},
                },
            },
            "b": {"build": {"context": "dir"}},
            "c": null,
        }});
        assert_eq!(given, expected);
    }

    #[test]
    fn numbers_are_written_as_go_writes_them() {
        for (number, expected) in [
            (json!(1000.0), "1000"),
            (json!(0.5), "0.5"),
            (json!(-0.0), "-0"),
            (json!(0.00001), "1e-05"),
            (json!(12_345_678.9), "1.23456789e+07"),
            (json!(1e21), "1e+21"),
            (json!(12_345_678), "12345678"),
        ] {
            assert_eq!(scalar(&number).as_deref(), Some(expected));
        }
    }

    #[test]
    fn wrong_forms_are_errors() {
        for (mut given, expected) in [
            (json!({"services": []}), "services must be a mapping"),
            (
                json!({"services": {"a": 1}}),
                "services.a must be a mapping",
            ),
            (
                json!({"services": {"a": {"build": null}}}),
                "services.a.build: invalid type <nil> for build",
            ),
            (
                json!({"services": {"a": {"build": {"foo": 1}}}}),
                "services.a.build additional properties 'foo' not allowed",
            ),
            (
                json!({"services": {"a": {"build": {"ssh": ["k"]}}}}),
                "invalid ssh key \"k\"",
            ),
            (
                json!({"services": {"a": {"build": {"args": "x"}}}}),
                "services.a.build.args must be a mapping",
            ),
        ] {
            let failed = document(given.as_object_mut().unwrap()).unwrap_err();
            assert_eq!(failed.text, expected);
        }
    }
}
