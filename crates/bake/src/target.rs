//! Targets and groups: their attributes, and how several definitions of one are merged.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::once;

use serde::{Serialize, Serializer};

use crate::entries::{Attestation, Cache, Listed, Output, Secret, Ssh};
use crate::value::Value;

/// Texts by their names; one without a value is left out of a build.
pub type Texts = BTreeMap<String, Option<String>>;

/// Several targets with one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Group {
    #[serde(skip)]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    pub targets: Vec<String>,
}

/// What is built, in the order in which `--print` shows it. A list that is not set differs from an empty one when definitions
/// are merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Target {
    #[serde(skip)]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inherits: Vec<String>,
    #[serde(skip_serializing_if = "is_nothing", serialize_with = "escaped_list")]
    pub annotations: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_nothing")]
    pub attest: Option<Vec<Attestation>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "escaped_text"
    )]
    pub dockerfile_inline: Option<String>,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        serialize_with = "escaped_texts"
    )]
    pub args: Texts,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        serialize_with = "escaped_texts"
    )]
    pub labels: Texts,
    #[serde(skip_serializing_if = "is_nothing")]
    pub tags: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_nothing")]
    pub cache_from: Option<Vec<Cache>>,
    #[serde(skip_serializing_if = "is_nothing")]
    pub cache_to: Option<Vec<Cache>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(rename = "secret", skip_serializing_if = "is_nothing")]
    pub secrets: Option<Vec<Secret>>,
    #[serde(skip_serializing_if = "is_nothing")]
    pub ssh: Option<Vec<Ssh>>,
    #[serde(skip_serializing_if = "is_nothing")]
    pub platforms: Option<Vec<String>>,
    #[serde(rename = "output", skip_serializing_if = "is_nothing")]
    pub outputs: Option<Vec<Output>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_cache: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(skip_serializing_if = "is_nothing")]
    pub no_cache_filter: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<String>,
    #[serde(skip_serializing_if = "is_nothing")]
    pub ulimits: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    #[serde(skip_serializing_if = "is_nothing")]
    pub entitlements: Option<Vec<String>>,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        serialize_with = "escaped_texts"
    )]
    pub extra_hosts: Texts,
    /// Whether its context is a directory beside definitions on a server.
    #[serde(skip)]
    pub is_remote: bool,
    /// Whether it uses the ssh agent for repositories, without having said so.
    #[serde(skip)]
    pub has_git_ssh: bool,
}

fn is_nothing<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

/// Escapes what would be a template in a definition.
fn escaped(text: &str) -> String {
    text.replace("${", "$${").replace("%{", "%%{")
}

#[allow(clippy::ref_option, reason = "serde calls it")]
fn escaped_text<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    text.as_deref().map(escaped).serialize(to)
}

#[allow(clippy::ref_option, reason = "serde calls it")]
fn escaped_list<S: Serializer>(list: &Option<Vec<String>>, to: S) -> Result<S::Ok, S::Error> {
    let list = list.iter().flatten().map(|text| escaped(text));
    list.collect::<Vec<_>>().serialize(to)
}

fn escaped_texts<S: Serializer>(texts: &Texts, to: S) -> Result<S::Ok, S::Error> {
    let texts = texts.iter();
    let texts = texts.map(|(key, text)| (key, text.as_deref().map(escaped)));
    texts.collect::<BTreeMap<_, _>>().serialize(to)
}

/// Attributes of targets that are lists, maps, and neither.
const LISTS: [&str; 14] = [
    "annotations",
    "attest",
    "cache-from",
    "cache-to",
    "entitlements",
    "inherits",
    "no-cache-filter",
    "output",
    "platforms",
    "secret",
    "ssh",
    "tags",
    "targets",
    "ulimits",
];
const MAPS: [&str; 4] = ["args", "contexts", "extra-hosts", "labels"];
const OTHERS: [&str; 12] = [
    "call",
    "context",
    "description",
    "dockerfile",
    "dockerfile-inline",
    "matrix",
    "name",
    "network",
    "no-cache",
    "pull",
    "shm-size",
    "target",
];

/// Bytes that a text needs beside its own.
const TEXT: usize = 64;

/// Returns about how many bytes of memory a text needs.
pub(crate) fn size_of(text: &str) -> usize {
    text.len() + TEXT
}

/// Whether targets or groups have such an attribute.
pub(crate) fn is_attribute(key: &str) -> bool {
    LISTS.contains(&key) || MAPS.contains(&key) || OTHERS.contains(&key)
}

/// Returns the value of an attribute that is not set.
pub(crate) fn unset(key: &str) -> Value {
    match key {
        key if LISTS.contains(&key) => Value::List(Vec::new()),
        key if MAPS.contains(&key) => Value::Object(BTreeMap::new()),
        _ => Value::Null,
    }
}

type Read<T> = Result<T, String>;

pub(crate) fn list_of_texts(value: &Value) -> Read<Vec<String>> {
    let Value::List(items) = value else {
        return Err("list of string required".into());
    };
    let items = items.iter().map(Value::text);
    items
        .collect::<Read<_>>()
        .map_err(|cause| format!("incorrect list element type: {cause}"))
}

fn texts(value: &Value) -> Read<Texts> {
    let Value::Object(members) = value else {
        return Err("map of string required".into());
    };
    let member = |(key, value): (&String, &Value)| match value {
        Value::Null => Ok((key.clone(), None)),
        value => Ok((key.clone(), Some(value.text()?))),
    };
    members.iter().map(member).collect()
}

fn entries<E: Listed>(value: &Value) -> Read<Vec<E>> {
    let Value::List(items) = value else {
        return Err(format!(
            "list of map of string required, but have {}",
            value.kind()
        ));
    };
    let lists = items
        .iter()
        .map(|item| E::of_value(item).map_err(|error| error.text));
    Ok(lists.collect::<Read<Vec<_>>>()?.concat())
}

impl Target {
    /// Sets an attribute. Returns whether there is one of this name.
    ///
    /// # Errors
    /// Returns which type is required.
    pub(crate) fn set(&mut self, key: &str, value: &Value) -> Read<bool> {
        if !is_attribute(key) || key == "targets" {
            return Ok(false);
        }
        if *value == Value::Null {
            return Ok(true);
        }
        match key {
            "description" => self.description = value.text()?,
            "inherits" => self.inherits = list_of_texts(value)?,
            "annotations" => self.annotations = Some(list_of_texts(value)?),
            "attest" => self.attest = Some(entries(value)?),
            "context" => self.context = Some(value.text()?),
            "contexts" => {
                let texts = texts(value)?.into_iter();
                let texts = texts.map(|(key, text)| (key, text.unwrap_or_default()));
                self.contexts = texts.collect();
            }
            "dockerfile" => self.dockerfile = Some(value.text()?),
            "dockerfile-inline" => self.dockerfile_inline = Some(value.text()?),
            "args" => self.args = texts(value)?,
            "labels" => self.labels = texts(value)?,
            "tags" => self.tags = Some(list_of_texts(value)?),
            "cache-from" => self.cache_from = Some(entries(value)?),
            "cache-to" => self.cache_to = Some(entries(value)?),
            "target" => self.target = Some(value.text()?),
            "secret" => self.secrets = Some(entries(value)?),
            "ssh" => self.ssh = Some(entries(value)?),
            "platforms" => self.platforms = Some(list_of_texts(value)?),
            "output" => self.outputs = Some(entries(value)?),
            "pull" => self.pull = Some(value.truth()?),
            "no-cache" => self.no_cache = Some(value.truth()?),
            "network" => self.network = Some(value.text()?),
            "no-cache-filter" => self.no_cache_filter = Some(list_of_texts(value)?),
            "shm-size" => self.shm_size = Some(value.text()?),
            "ulimits" => self.ulimits = Some(list_of_texts(value)?),
            "call" => self.call = Some(value.text()?),
            "entitlements" => self.entitlements = Some(list_of_texts(value)?),
            "extra-hosts" => self.extra_hosts = texts(value)?,
            // `name` and `matrix` have made it what it is.
            _ => {}
        }
        Ok(true)
    }

    /// Adds another definition, whose values replace those of this one or are added to them.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (own, other) in [
            (&mut self.context, &other.context),
            (&mut self.dockerfile, &other.dockerfile),
            (&mut self.dockerfile_inline, &other.dockerfile_inline),
            (&mut self.target, &other.target),
            (&mut self.call, &other.call),
            (&mut self.network, &other.network),
            (&mut self.shm_size, &other.shm_size),
        ] {
            replace(own, other);
        }
        replace(&mut self.tags, &other.tags);
        replace(&mut self.platforms, &other.platforms);
        replace(&mut self.cache_to, &other.cache_to);
        replace(&mut self.outputs, &other.outputs);
        replace(&mut self.pull, &other.pull);
        replace(&mut self.no_cache, &other.no_cache);
        for (own, other) in [
            (&mut self.args, &other.args),
            (&mut self.labels, &other.labels),
            (&mut self.extra_hosts, &other.extra_hosts),
        ] {
            let set = other.iter().filter(|(_, text)| text.is_some());
            own.extend(set.map(|(key, text)| (key.clone(), text.clone())));
        }
        self.contexts.extend(other.contexts.clone());
        for (own, other) in [
            (&mut self.annotations, &other.annotations),
            (&mut self.no_cache_filter, &other.no_cache_filter),
            (&mut self.ulimits, &other.ulimits),
            (&mut self.entitlements, &other.entitlements),
        ] {
            append(own, other);
        }
        merge_entries(&mut self.attest, &other.attest);
        merge_entries(&mut self.secrets, &other.secrets);
        merge_entries(&mut self.ssh, &other.ssh);
        merge_entries(&mut self.cache_from, &other.cache_from);
        if !other.description.is_empty() {
            self.description.clone_from(&other.description);
        }
        self.inherits.extend(other.inherits.clone());
    }

    /// Returns about how many bytes of memory it needs.
    pub(crate) fn size(&self) -> usize {
        let own = [&self.name, &self.description].into_iter();
        let texts = [
            &self.context,
            &self.dockerfile,
            &self.dockerfile_inline,
            &self.target,
            &self.call,
            &self.network,
            &self.shm_size,
        ];
        let lists = [
            &self.annotations,
            &self.tags,
            &self.platforms,
            &self.no_cache_filter,
            &self.ulimits,
            &self.entitlements,
        ];
        let lists = lists.into_iter().flatten().flatten();
        let maps = [&self.args, &self.labels, &self.extra_hosts];
        let maps = maps.into_iter().flatten();
        let maps = maps.flat_map(|(name, text)| once(name).chain(text));
        let contexts = self.contexts.iter();
        let contexts = contexts.flat_map(|(name, context)| [name, context]);
        let caches = [&self.cache_from, &self.cache_to].into_iter();
        let caches = caches.flatten().flatten().map(|cache| &cache.0);
        let outputs = self.outputs.iter().flatten().map(|output| &output.0);
        let attestations = self.attest.iter().flatten().map(|own| &own.0);
        let entries = caches.chain(outputs).chain(attestations);
        let entries = entries.flat_map(|entry| &entry.0);
        let entries = entries.flat_map(|(key, value)| [key, value]);
        let secrets = self.secrets.iter().flatten();
        let secrets = secrets.flat_map(|secret| [&secret.id, &secret.file, &secret.env]);
        let agents = self.ssh.iter().flatten();
        let agents = agents.flat_map(|agent| once(&agent.id).chain(&agent.paths));
        own.chain(&self.inherits)
            .chain(texts.into_iter().flatten())
            .chain(lists)
            .chain(maps)
            .chain(contexts)
            .chain(entries)
            .chain(secrets)
            .chain(agents)
            .map(|text| size_of(text))
            .fold(0, usize::saturating_add)
    }

    /// Removes duplicates and empty values.
    pub(crate) fn normalize(&mut self) {
        normalize(&mut self.attest);
        normalize(&mut self.secrets);
        normalize(&mut self.ssh);
        normalize(&mut self.cache_from);
        normalize(&mut self.cache_to);
        normalize(&mut self.outputs);
        if self.network.as_deref() == Some("host") {
            append(
                &mut self.entitlements,
                &Some(vec!["network.host".to_owned()]),
            );
        }
        let lists = [
            &mut self.annotations,
            &mut self.tags,
            &mut self.platforms,
            &mut self.no_cache_filter,
            &mut self.ulimits,
            &mut self.entitlements,
        ];
        for list in lists.into_iter().flatten() {
            *list = unique(list);
        }
        self.contexts.retain(|_, context| !context.is_empty());
    }
}

fn replace<T: Clone>(own: &mut Option<T>, other: &Option<T>) {
    if other.is_some() {
        own.clone_from(other);
    }
}

fn append<T: Clone>(own: &mut Option<Vec<T>>, other: &Option<Vec<T>>) {
    if let Some(other) = other {
        own.get_or_insert_default().extend(other.iter().cloned());
    }
}

pub(crate) fn merge_entries<E: Listed>(own: &mut Option<Vec<E>>, other: &Option<Vec<E>>) {
    append(own, other);
    normalize(own);
}

fn normalize<E: Listed>(list: &mut Option<Vec<E>>) {
    if let Some(entries) = list {
        *entries = E::normalized(std::mem::take(entries));
    }
}

/// Returns each text once, without empty ones.
pub(crate) fn unique(list: &[String]) -> Vec<String> {
    let mut known = BTreeSet::new();
    let texts = list.iter().filter(|text| !text.is_empty());
    let texts = texts.filter(|text| known.insert(text.as_str()));
    texts.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::Entry;

    #[test]
    fn templates_are_escaped() {
        let target = Target {
            args: [("A".to_owned(), Some("${B}".to_owned()))].into(),
            dockerfile_inline: Some("%{x}".into()),
            ..Target::default()
        };
        let text = serde_json::to_string(&target).unwrap();
        assert_eq!(
            text,
            r#"{"dockerfile-inline":"%%{x}","args":{"A":"$${B}"}}"#
        );
    }

    #[test]
    fn all_texts_count() {
        let large = || "x".repeat(1000);
        let entry = || Entry([("type".to_owned(), large())].into());
        let texts = |key: &str| -> Texts { [(key.to_owned(), Some(large()))].into() };
        let mut target = Target {
            name: large(),
            args: texts("a"),
            labels: texts("b"),
            extra_hosts: texts("c"),
            contexts: [(large(), large())].into(),
            inherits: vec![large()],
            attest: Some(vec![Attestation(entry())]),
            cache_from: Some(vec![Cache(entry())]),
            cache_to: Some(vec![Cache(entry())]),
            outputs: Some(vec![Output(entry())]),
            secrets: Some(vec![Secret {
                file: large(),
                ..Secret::default()
            }]),
            ssh: Some(vec![Ssh {
                paths: vec![large()],
                ..Ssh::default()
            }]),
            ..Target::default()
        };
        for key in OTHERS {
            // Those have made it what it is, or are no texts.
            if !matches!(key, "matrix" | "name" | "no-cache" | "pull") {
                assert_eq!(target.set(key, &large().into()), Ok(true), "{key}");
            }
        }
        for key in [
            "annotations",
            "entitlements",
            "no-cache-filter",
            "platforms",
            "tags",
            "ulimits",
        ] {
            let list = Value::List(vec![large().into()]);
            assert_eq!(target.set(key, &list), Ok(true), "{key}");
        }
        // 13 above, and 8 and 6 in the loops; beside them are 4 times `type`, 3 names of a letter and 3 empty texts.
        assert_eq!(target.size(), 27 * 1000 + 4 * 4 + 3 + 37 * TEXT);
        assert_eq!(Target::default().size(), 2 * TEXT);
    }

    #[test]
    fn lists_keep_each_text_once() {
        let list = ["b", "", "a", "b", "c", "a"].map(str::to_owned);
        assert_eq!(unique(&list), ["b", "a", "c"]);
    }

    #[test]
    fn definitions_are_merged() {
        let mut one = Target::default();
        let mut other = Target::default();
        for (target, key, value) in [
            (&mut one, "tags", Value::List(vec!["a".into()])),
            (&mut other, "tags", Value::List(Vec::new())),
        ] {
            assert_eq!(target.set(key, &value), Ok(true));
        }
        one.merge(&other);
        assert_eq!(one.tags, Some(Vec::new()));
        assert_eq!(one.set("nothing", &Value::Null), Ok(false));
        assert_eq!(
            one.set("pull", &"x".into()),
            Err("a bool is required".into())
        );
        assert_eq!(
            one.set("args", &"x".into()),
            Err("map of string required".into())
        );
    }
}
