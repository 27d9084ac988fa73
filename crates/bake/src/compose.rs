//! Reads Compose's files: services with `build` are targets, in the group `default`.

mod build;
mod interpolation;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::target::{Group, Target};
use crate::{Environment, File, dot_env};

pub(crate) use interpolation::interpolate;

/// The maximum number of services.
const MAX_SERVICES: usize = 10_000;

/// Whether a text without a telling name is a file of Compose.
pub(crate) fn looks_like(text: &str) -> bool {
    let parsed = whelk_yaml::parse_merged(text);
    parsed.is_ok_and(|value| value.get("services").is_some_and(Value::is_object))
}

/// Reads files, of which later ones add to earlier ones.
pub(crate) fn read(
    files: &[&File],
    environment: &Environment,
) -> Result<(Option<Group>, Vec<Target>)> {
    let mut variables = environment.variables.clone();
    let own = dot_env::parse(&environment.dot_env, &variables).map_err(Error::new)?;
    for (name, value) in own {
        variables.entry(name).or_insert(value);
    }
    let mut merged = Map::new();
    for file in files {
        let document = document(file, &variables)?;
        merge(&mut merged, document);
    }
    let Some(Value::Object(services)) = merged.remove("services") else {
        return match merged.is_empty() {
            true => Err(Error::new("empty compose file")),
            false => Ok((None, Vec::new())),
        };
    };
    if services.len() > MAX_SERVICES {
        return Err(Error::new(format!("more than {MAX_SERVICES} services")));
    }
    let secrets = match merged.remove("secrets") {
        Some(Value::Object(secrets)) => secrets,
        _ => Map::new(),
    };
    let mut group = Group {
        name: "default".into(),
        ..Group::default()
    };
    let mut targets = Vec::new();
    let mut services: Vec<(String, Value)> = services.into_iter().collect();
    services.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (name, service) in services {
        let service = match service {
            Value::Object(service) => service,
            Value::Null => Map::new(),
            _ => {
                return Err(Error::new(format!("services.{name} must be a mapping")));
            }
        };
        let is_null = |key: &str| service.get(key).is_none_or(Value::is_null);
        if ["build", "image", "extends", "provider"]
            .into_iter()
            .all(is_null)
        {
            return Err(Error::new(format!(
                "service {name:?} has neither an image nor a build context specified: invalid compose project"
            )));
        }
        if service.contains_key("extends") {
            return Err(Error::new(format!(
                "services.{name}.extends: not available in this version of whelk"
            )));
        }
        let Some(own) = build::target(&name, &service, &secrets, &variables)? else {
            continue;
        };
        group.targets.push(own.name.clone());
        targets.push(own);
    }
    Ok((Some(group), targets))
}

/// Reads one file, with its variables replaced.
fn document(file: &File, variables: &BTreeMap<String, String>) -> Result<Map<String, Value>> {
    let failed = |text: String| Error::new(format!("failed to parse {}: {text}", file.name));
    let parsed =
        whelk_yaml::parse_merged(&file.content).map_err(|text| failed(format!("yaml: {text}")))?;
    let Value::Object(mut members) = parsed else {
        return Err(failed("top-level object must be a mapping".into()));
    };
    if members.contains_key("include") {
        return Err(failed(
            "include: not available in this version of whelk".into(),
        ));
    }
    members.retain(|key, _| matches!(key.as_str(), "services" | "secrets"));
    for (key, value) in &mut members {
        replace(value, key, variables)?;
    }
    if let Some(Value::Object(services)) = members.get_mut("services") {
        for (name, service) in services {
            build::normalize(name, service)?;
        }
    }
    Ok(members)
}

/// Replaces variables in all texts.
fn replace(value: &mut Value, path: &str, variables: &BTreeMap<String, String>) -> Result<()> {
    match value {
        Value::String(text) => {
            let known = |name: &str| variables.get(name).cloned();
            let replaced = interpolate(text, &known).map_err(|cause| {
                Error::new(format!("error while interpolating {path}: {cause}"))
            })?;
            *text = replaced;
            Ok(())
        }
        Value::Array(items) => {
            let mut items = items.iter_mut().enumerate();
            items.try_for_each(|(number, item)| {
                replace(item, &format!("{path}.[{number}]"), variables)
            })
        }
        Value::Object(members) => {
            let parts = ["build", "image", "environment", "extends"];
            // Others are of no interest, and may have variables that are not set.
            let is_service = path.matches('.').count() == 1 && path.starts_with("services.");
            for (key, value) in members {
                if !is_service || parts.contains(&key.as_str()) {
                    replace(value, &format!("{path}.{key}"), variables)?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Adds a document to another one: mappings are merged, lists are appended, and other values replaced.
fn merge(into: &mut Map<String, Value>, other: Map<String, Value>) {
    for (key, value) in other {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(own)), Value::Object(value)) => merge(own, value),
            (Some(Value::Array(own)), Value::Array(value)) => {
                for item in value {
                    if !own.contains(&item) {
                        own.push(item);
                    }
                }
            }
            (_, Value::Null) => {
                into.entry(key).or_insert(Value::Null);
            }
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_checked() {
        for (content, expected) in [
            (
                "services:\n  a:\n  build: .\n",
                "service \"a\" has neither an image nor a build context",
            ),
            ("services:\n  a: text\n", "services.a must be a mapping"),
            (
                "services:\n  a: {command: x}\n",
                "service \"a\" has neither",
            ),
            ("services:\n  a: {image: x}\n  b: {build: .}\n", ""),
        ] {
            let file = File {
                name: "compose.yaml".into(),
                content: content.into(),
            };
            let found = match read(&[&file], &Environment::default()) {
                Ok((_, targets)) => {
                    assert_eq!(targets.len(), 1, "{content}");
                    String::new()
                }
                Err(error) => error.to_string(),
            };
            assert!(
                found.contains(expected) && found.is_empty() == expected.is_empty(),
                "{found}"
            );
        }
    }
}
