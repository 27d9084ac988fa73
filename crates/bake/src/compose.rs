//! Reads Compose's files: services with `build` are targets, in the group `default`.

mod build;
mod canonical;
mod interpolation;
mod load;
mod merge;
mod place;
mod relative;
mod variables;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::target::{Group, Target};
use crate::{Environment, File, ReadFile, dot_env};
use canonical::scalar;
pub(crate) use interpolation::{Variable, interpolate, references};
use load::Loader;
pub(crate) use variables::Variables;

type Object = Map<String, Value>;

/// The maximum number of services.
const MAX_SERVICES: usize = 10_000;

/// Whether a text without a telling name is a file of Compose.
pub(crate) fn looks_like(text: &str) -> bool {
    let parsed = whelk_yaml::parse_documents(text);
    parsed.is_ok_and(|documents| {
        let mut values = documents.iter().map(|document| &document.value);
        values.any(|value| value.get("services").is_some_and(Value::is_object))
    })
}

/// The targets that Compose files define, and the group of all of them.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub group: Option<Group>,
    pub targets: Vec<Target>,
    /// Warnings for the user, such as of variables that are not set.
    pub warnings: Vec<String>,
}

/// Reads files, of which later ones add to earlier ones. `more` reads those that they name.
pub(crate) fn read(
    files: &[&File],
    environment: &Environment,
    more: &ReadFile<'_>,
) -> Result<Read> {
    let mut loader = Loader::new(more, &environment.home);
    let around = Variables::new(environment.variables.clone());
    let mut own = BTreeMap::new();
    let budget = &mut loader.values;
    dot_env::parse(".env", &environment.dot_env, &around, &mut own, budget).map_err(Error::new)?;
    own.extend(environment.variables.clone());
    let mut variables = Variables::new(own);
    let mut model = loader.load(files, &mut variables)?;
    let unset = loader.interpolation.unset.iter();
    let unset = unset
        .map(|name| format!("The {name:?} variable is not set. Defaulting to a blank string."));
    let mut read = Read {
        warnings: unset.collect(),
        ..Read::default()
    };
    if model.is_empty() {
        return Err(Error::new("empty compose file"));
    }
    let services = members(model.shift_remove("services"));
    let secrets = members(model.shift_remove("secrets"));
    if services.is_empty() {
        return Ok(read);
    }
    if services.len() > MAX_SERVICES {
        return Err(Error::new(format!("more than {MAX_SERVICES} services")));
    }
    check(&services, &secrets)
        .map_err(|cause| Error::new(format!("failed to parse compose file: {cause}")))?;
    let mut group = Group {
        name: "default".into(),
        ..Group::default()
    };
    let mut services: Vec<(String, Object)> = services
        .into_iter()
        .map(|(name, service)| (name, members(Some(service))))
        .collect();
    services.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (name, service) in services {
        if !service.contains_key("build") {
            continue;
        }
        let own = variables_of(&service, &variables, &mut loader)?;
        let variable = |name: &str| own.get(name).or_else(|| variables.get(name)).cloned();
        let warnings = &mut read.warnings;
        if let Some(target) = build::target(&name, &service, &secrets, &variable, warnings)? {
            group.targets.push(target.name.clone());
            read.targets.push(target);
        }
    }
    read.group = Some(group);
    Ok(read)
}

fn members(value: Option<Value>) -> Object {
    match value {
        Some(Value::Object(members)) => members,
        _ => Object::new(),
    }
}

/// Checks what services are made of.
fn check(services: &Object, secrets: &Object) -> std::result::Result<(), String> {
    const INVALID: &str = "invalid compose project";
    for (name, service) in services {
        let build = service.get("build");
        let image = service.get("image").and_then(scalar).unwrap_or_default();
        let Some(build) = build else {
            match image.is_empty() {
                true => {
                    return Err(format!(
                        "service {name:?} has neither an image nor a build context specified: {INVALID}"
                    ));
                }
                false => continue,
            }
        };
        let contexts = build.get("additional_contexts").and_then(Value::as_object);
        for (context, value) in contexts.into_iter().flatten() {
            let Some(other) = value
                .as_str()
                .and_then(|text| text.strip_prefix("service:"))
            else {
                continue;
            };
            let kind = match services.get(other) {
                None => "unknown",
                Some(other) if other.get("build").is_none() => "non-buildable",
                Some(_) => continue,
            };
            return Err(format!(
                "service {name:?} declares {kind} service {other:?} as additional contexts {context}"
            ));
        }
        let used = build.get("secrets").and_then(Value::as_array);
        for secret in used.into_iter().flatten() {
            let source = secret.get("source").unwrap_or(secret);
            let source = scalar(source).unwrap_or_default();
            if !secrets.contains_key(&source) {
                return Err(format!(
                    "service {name:?} refers to undefined build secret {source}: {INVALID}"
                ));
            }
        }
    }
    for (name, secret) in secrets {
        let has = |key: &str| {
            let text = secret.get(key).and_then(scalar);
            text.is_some_and(|text| !text.is_empty())
        };
        if !build::is_external(Some(secret)) && !has("file") && !has("environment") {
            return Err(format!(
                "secret {name:?} must declare either `file` or `environment`: {INVALID}"
            ));
        }
    }
    Ok(())
}

/// Returns the variables of a service: those of its files, and its own.
fn variables_of(
    service: &Object,
    variables: &Variables<'_>,
    loader: &mut Loader<'_>,
) -> Result<BTreeMap<String, String>> {
    let own = service.get("environment").and_then(Value::as_object);
    let own: BTreeMap<&String, Option<String>> = own
        .into_iter()
        .flatten()
        .map(|(name, value)| (name, scalar(value)))
        .collect();
    let known = own.iter().filter_map(|(name, value)| {
        let value = variables.get(name).or(value.as_ref())?;
        Some(((*name).clone(), value.clone()))
    });
    let around = variables.with(known.collect());
    let mut found = BTreeMap::new();
    let files = service.get("env_file").and_then(Value::as_array);
    for file in files.into_iter().flatten() {
        let path = file.get("path").and_then(scalar);
        let path = path.ok_or_else(|| Error::new("env_file: path is required"))?;
        if let Some(format) = file.get("format").and_then(scalar) {
            return Err(Error::new(format!(
                "unsupported env_file format {format:?}"
            )));
        }
        let is_required = file.get("required").and_then(scalar);
        let is_required = is_required.is_none_or(|text| text != "false");
        match loader.env_file(&path)? {
            Some(content) => {
                let budget = &mut loader.values;
                dot_env::parse(&path, &content, &around, &mut found, budget).map_err(Error::new)?;
            }
            None if !is_required => {}
            None => return Err(Error::new(format!("env file {path} not found"))),
        }
    }
    for (name, value) in own {
        match value.or_else(|| variables.get(name).cloned()) {
            Some(value) => drop(found.insert(name.clone(), value)),
            None => drop(found.remove(name)),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_checked() {
        for (content, expected) in [
            (
                "services:\n  a:\n  build: .\n",
                "services.build must be a mapping",
            ),
            ("services:\n  a: text\n", "services.a must be a mapping"),
            (
                "services:\n  a:\n",
                "service \"a\" has neither an image nor a build context",
            ),
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
            let found = match read(&[&file], &Environment::default(), &|_| Ok(None)) {
                Ok(read) => {
                    assert_eq!(read.targets.len(), 1, "{content}");
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
