//! `build` of a service.

use std::cell::RefCell;

use serde_json::Value;

use super::Object;
use super::canonical::{pairs, scalar};
use crate::entries::{self, Attestation, Cache, Output, Secret, Ssh};
use crate::error::{Error, Result};
use crate::target::{Target, Texts, merge_entries, unique};

/// Reads attributes of `build`.
struct Build<'a> {
    name: &'a str,
    members: &'a Object,
    /// Warnings of values that are accepted in a form that Compose discourages.
    warnings: RefCell<Vec<String>>,
}

impl Build<'_> {
    fn wrong(&self, key: &str, required: &str) -> Error {
        Error::new(format!(
            "services.{}.build.{key} must be a {required}",
            self.name
        ))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.members.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<String>> {
        let value = self.get(key);
        let text = value.map(|value| scalar(value).ok_or_else(|| self.wrong(key, "string")));
        Ok(text.transpose()?.filter(|text| !text.is_empty()))
    }

    /// Reads a boolean; also the words of YAML 1.1, with a warning.
    fn is_set(&self, key: &str) -> Result<Option<bool>> {
        let wrong = || self.wrong(key, "boolean or string");
        let text = match self.get(key) {
            None => return Ok(None),
            Some(Value::Bool(value)) => return Ok(value.then_some(true)),
            Some(Value::String(text)) => text,
            Some(_) => return Err(wrong()),
        };
        let (value, plain) = match text.to_lowercase().as_str() {
            "" => return Ok(None),
            "true" | "y" | "yes" | "on" => (true, "true"),
            "false" | "n" | "no" | "off" => (false, "false"),
            _ => return Err(Error::new(format!("invalid boolean: {text}"))),
        };
        if !text.eq_ignore_ascii_case(plain) {
            self.warnings.borrow_mut().push(format!(
                "{text:?} for boolean is not supported by YAML 1.2, please use `{plain}`"
            ));
        }
        Ok(value.then_some(true))
    }

    fn list(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let wrong = || self.wrong(key, "array");
        let items = value.as_array().ok_or_else(wrong)?.iter();
        let items = items.map(|item| scalar(item).ok_or_else(wrong));
        items.collect::<Result<_>>().map(Some)
    }

    fn texts(&self, key: &str) -> Result<Texts> {
        let Some(value) = self.get(key) else {
            return Ok(Texts::new());
        };
        let members = value.as_object();
        let members = members.ok_or_else(|| self.wrong(key, "mapping"))?.iter();
        let member = |(name, value): (&String, &Value)| match (scalar(value), value) {
            (None, Value::Null) => Ok((name.clone(), None)),
            (None, _) => {
                let required = "boolean, null, number or string";
                Err(self.wrong(&format!("{key}.{name}"), required))
            }
            (text, _) => Ok((name.clone(), text)),
        };
        members.map(member).collect()
    }
}

/// Returns a service's target; `None` if it is not built. `variable` is asked for arguments without values.
pub(super) fn target(
    name: &str,
    service: &Object,
    secrets: &Object,
    variable: &dyn Fn(&str) -> Option<String>,
    warnings: &mut Vec<String>,
) -> Result<Option<Target>> {
    let Some(Value::Object(members)) = service.get("build") else {
        return Ok(None);
    };
    let build = Build {
        name,
        members,
        warnings: RefCell::default(),
    };
    if build.text("dockerfile")?.is_some() && build.text("dockerfile_inline")?.is_some() {
        return Err(Error::new(format!(
            "service {name:?} declares mutualy exclusive dockerfile and dockerfile_inline: invalid compose project"
        )));
    }
    let own_name = name.replace('.', "_");
    crate::names::check_name(&own_name).map_err(|problem| {
        Error::new(format!(
            "invalid service name {own_name:?}: {}",
            problem.detail
        ))
    })?;
    let args = build.texts("args")?.into_iter();
    let args = args.filter_map(|(name, value)| {
        let value = value.or_else(|| variable(&name))?;
        Some((name, Some(value)))
    });
    let contexts = build.texts("additional_contexts")?.into_iter();
    let contexts = contexts.map(|(name, context)| (name, context_of(context.unwrap_or_default())));
    let labels = build.texts("labels")?.into_iter();
    let labels = labels.map(|(name, value)| (name, Some(value.unwrap_or_default())));
    let caches = |key: &str| -> Result<Option<Vec<Cache>>> {
        build
            .list(key)?
            .map(|texts| entries::parse(&texts))
            .transpose()
    };
    let mut target = Target {
        name: own_name,
        context: build.text("context")?,
        contexts: contexts.collect(),
        dockerfile: build.text("dockerfile")?,
        dockerfile_inline: build.text("dockerfile_inline")?,
        tags: build.list("tags")?,
        labels: labels.collect(),
        args: args.collect(),
        cache_from: caches("cache_from")?,
        cache_to: caches("cache_to")?,
        network: build.text("network")?,
        platforms: build.list("platforms")?,
        ssh: ssh(&build)?,
        secrets: build_secrets(&build, secrets)?,
        shm_size: shm_size(&build)?,
        ulimits: ulimits(&build)?,
        extra_hosts: hosts(&build)?,
        attest: attestations(&build)?,
        no_cache: build.is_set("no_cache")?,
        pull: build.is_set("pull")?,
        target: build.text("target")?,
        ..Target::default()
    };
    extension(&build, &mut target)?;
    if target.tags.as_ref().is_none_or(Vec::is_empty) {
        let image = service.get("image").and_then(scalar);
        if let Some(image) = image.filter(|image| !image.is_empty()) {
            target.tags = Some(vec![image]);
        }
    }
    for warning in build.warnings.into_inner() {
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    Ok(Some(target))
}

/// Returns a context, in which services are targets.
fn context_of(text: String) -> String {
    match text.split_once(':') {
        Some(("service" | "target", name)) => format!("target:{}", name.replace('.', "_")),
        _ => text,
    }
}

fn hosts(build: &Build<'_>) -> Result<Texts> {
    let wrong = || build.wrong("extra_hosts", "mapping");
    let Some(value) = build.get("extra_hosts") else {
        return Ok(Texts::new());
    };
    let host = |(host, addresses): (&String, &Value)| {
        let addresses = addresses.as_array().ok_or_else(wrong)?.iter();
        let addresses: Vec<String> = addresses.filter_map(scalar).collect();
        Ok((host.clone(), Some(addresses.join(","))))
    };
    let members = value.as_object().ok_or_else(wrong)?.iter();
    members.map(host).collect()
}

fn shm_size(build: &Build<'_>) -> Result<Option<String>> {
    let Some(text) = build.text("shm_size")? else {
        return Ok(None);
    };
    let bytes = whelk_text::size::parse_binary(&text);
    let bytes = bytes.ok().and_then(|bytes| u64::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| build.wrong("shm_size", "size"))?;
    Ok((bytes > 0).then(|| whelk_text::size::binary(bytes)))
}

fn ulimits(build: &Build<'_>) -> Result<Option<Vec<String>>> {
    let Some(value) = build.get("ulimits") else {
        return Ok(None);
    };
    let wrong = || build.wrong("ulimits", "mapping of limits");
    let members = value.as_object().ok_or_else(wrong)?.iter();
    let limit = |(name, value): (&String, &Value)| {
        let number = |value: &Value| scalar(value)?.parse::<i64>().ok();
        let (soft, hard) = match value {
            Value::Object(limit) => (
                limit.get("soft").and_then(number),
                limit.get("hard").and_then(number),
            ),
            single => (number(single), number(single)),
        };
        let (soft, hard) = soft.zip(hard).ok_or_else(wrong)?;
        Ok(format!("{name}={soft}:{hard}"))
    };
    let mut limits = members.map(limit).collect::<Result<Vec<_>>>()?;
    limits.sort();
    Ok(Some(limits))
}

fn ssh(build: &Build<'_>) -> Result<Option<Vec<Ssh>>> {
    if build.get("ssh").is_none() {
        return Ok(None);
    }
    let agents = build.texts("ssh")?.into_iter();
    let agents = agents.map(|(id, path)| Ssh {
        id,
        paths: path.filter(|path| !path.is_empty()).into_iter().collect(),
    });
    Ok(Some(agents.collect()))
}

fn build_secrets(build: &Build<'_>, all: &Object) -> Result<Option<Vec<Secret>>> {
    let Some(value) = build.get("secrets") else {
        return Ok(None);
    };
    let wrong = || build.wrong("secrets", "list");
    let items = value.as_array().ok_or_else(wrong)?.iter();
    let secret = |item: &Value| {
        let id = match item {
            Value::Object(members) => members.get("source").and_then(scalar),
            item => scalar(item),
        };
        let id = id.ok_or_else(wrong)?;
        let text = |key: &str| {
            let found = all.get(&id).and_then(|secret| scalar(secret.get(key)?));
            found.unwrap_or_default()
        };
        if is_external(all.get(&id)) {
            return Err(Error::new(format!(
                "failed to parse compose file: unsupported external secret {id}"
            )));
        }
        Ok(Secret {
            file: text("file"),
            env: text("environment"),
            id,
        })
    };
    items.map(secret).collect::<Result<_>>().map(Some)
}

/// Returns whether a secret is external: kept by the platform, and in none of the files. `external` is `true`, or in the former
/// form a mapping with the secret's name.
pub(super) fn is_external(secret: Option<&Value>) -> bool {
    let external = secret.and_then(|secret| secret.get("external"));
    external.is_some_and(|external| external.is_object() || external == "true" || *external == true)
}

fn attestations(build: &Build<'_>) -> Result<Option<Vec<Attestation>>> {
    let mut texts = Vec::new();
    for kind in ["sbom", "provenance"] {
        if let Some(text) = build.text(kind)? {
            texts.push(crate::attestation(kind, &text));
        }
    }
    match texts.is_empty() {
        true => Ok(None),
        false => entries::parse(&texts).map(Some),
    }
}

/// Reads `x-bake`.
fn extension(build: &Build<'_>, target: &mut Target) -> Result<()> {
    let Some(members) = build.get("x-bake") else {
        return Ok(());
    };
    let wrong = || build.wrong("x-bake", "mapping");
    let members = members.as_object().ok_or_else(wrong)?;
    let list = |key: &str, value: &Value| {
        let wrong = || build.wrong(&format!("x-bake.{key}"), "string or array");
        match value {
            Value::String(text) => Ok(text.split_whitespace().map(str::to_owned).collect()),
            Value::Array(items) => {
                let items = items.iter().map(|item| scalar(item).ok_or_else(wrong));
                items.collect::<Result<Vec<String>>>()
            }
            _ => Err(wrong()),
        }
    };
    let add = |own: &mut Option<Vec<String>>, key: &str, value: &Value| {
        let mut all = own.take().unwrap_or_default();
        all.extend(list(key, value)?);
        *own = Some(unique(&all));
        Ok::<_, Error>(())
    };
    let truth = |key: &str, value: &Value| {
        let value = scalar(value).and_then(|text| whelk_text::parse_bool(&text));
        value.ok_or_else(|| build.wrong(&format!("x-bake.{key}"), "boolean"))
    };
    for (key, value) in members.iter().filter(|(_, value)| !value.is_null()) {
        match key.as_str() {
            "tags" => add(&mut target.tags, key, value)?,
            "platforms" => add(&mut target.platforms, key, value)?,
            "no-cache-filter" => add(&mut target.no_cache_filter, key, value)?,
            "cache-from" => merge_entries(
                &mut target.cache_from,
                &Some(entries::parse(&list(key, value)?)?),
            ),
            "cache-to" => merge_entries(
                &mut target.cache_to,
                &Some(entries::parse(&list(key, value)?)?),
            ),
            "secret" => merge_entries(
                &mut target.secrets,
                &Some(entries::parse(&list(key, value)?)?),
            ),
            "ssh" => {
                merge_entries(&mut target.ssh, &Some(entries::parse(&list(key, value)?)?));
                let agents = target.ssh.iter_mut();
                agents.for_each(|agents| agents.sort_by(|one, other| one.id.cmp(&other.id)));
            }
            "output" => {
                let outputs: Vec<Output> = entries::parse(&list(key, value)?)?;
                merge_entries(&mut target.outputs, &Some(outputs));
            }
            "pull" => target.pull = Some(truth(key, value)?),
            "no-cache" => target.no_cache = Some(truth(key, value)?),
            "contexts" => {
                let Some(Value::Object(contexts)) = pairs(value) else {
                    return Err(wrong());
                };
                for (name, context) in contexts {
                    let context = context_of(scalar(&context).ok_or_else(wrong)?);
                    target.contexts.entry(name).or_insert(context);
                }
            }
            // As Docker's bake, which does not read others.
            _ => {}
        }
    }
    Ok(())
}
