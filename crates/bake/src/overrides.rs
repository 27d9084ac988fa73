//! Overrides of `--set TARGET.KEY[.NAME][+]=VALUE`.

use std::collections::BTreeMap;

use crate::Definitions;
use crate::entries::{self, Attestation, Cache, Output, Secret, Ssh};
use crate::error::{Error, Result};
use crate::target::{Target, merge_entries};

/// What a user has named in overrides, and so allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    pub read: Vec<String>,
    pub written: Vec<String>,
    pub network_host: bool,
    pub insecure: bool,
}

/// The overrides of one key of a target.
#[derive(Clone, Debug, Default)]
pub(crate) struct Override {
    value: String,
    values: Vec<String>,
    is_added: bool,
}

/// Overrides by target and key.
#[derive(Debug, Default)]
pub(crate) struct Overrides(pub BTreeMap<String, BTreeMap<String, Override>>);

/// Keys whose values are lists.
const LISTS: [&str; 13] = [
    "annotations",
    "attest",
    "cache-from",
    "cache-to",
    "entitlements",
    "network",
    "no-cache-filter",
    "output",
    "platform",
    "secrets",
    "ssh",
    "tags",
    "ulimits",
];

impl Overrides {
    /// Reads overrides. `variable` is asked for the value of an argument without one.
    pub fn new(
        definitions: &Definitions,
        given: &[String],
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let mut all = Self::default();
        for text in given {
            let (key, value) = match text.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (text.as_str(), None),
            };
            let (key, is_added) = match key.strip_suffix('+') {
                Some(key) => (key, true),
                None => (key, false),
            };
            let parts: Vec<&str> = key.splitn(3, '.').collect();
            let (pattern, kind, name) = match parts.as_slice() {
                [pattern, kind] => (*pattern, *kind, None),
                [pattern, kind, name] => (*pattern, *kind, Some(*name)),
                _ => {
                    return Err(Error::new(format!(
                        "invalid override key {key}, expected target.name"
                    )));
                }
            };
            if value.is_none() && kind != "args" {
                return Err(Error::new(format!(
                    "invalid override {text}, expected target.name=value"
                )));
            }
            if matches!(kind, "args" | "contexts") && name.is_none() {
                return Err(Error::new(format!(
                    "invalid key {key}, {kind} requires name"
                )));
            }
            let value = match (value, name) {
                (Some(value), _) => value.to_owned(),
                (None, name) => match variable(name.unwrap_or_default()) {
                    Some(value) => value,
                    None => continue,
                },
            };
            let key = key.split_once('.').map_or("", |(_, key)| key);
            for target in definitions.overridden(pattern)? {
                let own = all.0.entry(target).or_default();
                let own = own.entry(key.to_owned()).or_default();
                own.value.clone_from(&value);
                if LISTS.contains(&kind) {
                    own.is_added = is_added;
                    own.values.push(value.clone());
                }
            }
        }
        Ok(all)
    }
}

impl Override {
    /// Changes one attribute of a target.
    pub fn apply(&self, key: &str, target: &mut Target, granted: &mut Granted) -> Result<()> {
        let (kind, name) = key.split_once('.').unwrap_or((key, ""));
        let value = || Some(self.value.clone());
        let texts = |own: &mut Option<Vec<String>>| {
            let own = own.get_or_insert_default();
            if !self.is_added {
                own.clear();
            }
            own.extend(self.values.clone());
        };
        let named = |own: &mut crate::target::Texts| match name {
            "" if kind == "extra-hosts" => Err(Error::new(
                "invalid format for extra-hosts, expecting extra-hosts.<hostname>=<ip>",
            )),
            "" => Err(Error::new(format!(
                "invalid format for {kind}, expecting {kind}.<name>=<value>"
            ))),
            name => {
                own.insert(name.to_owned(), value());
                Ok(())
            }
        };
        match kind {
            "context" => target.context = value(),
            "dockerfile" => target.dockerfile = value(),
            "target" => target.target = value(),
            "call" => target.call = value(),
            "shm-size" => target.shm_size = value(),
            "network" => target.network = value(),
            "args" => named(&mut target.args)?,
            "labels" => named(&mut target.labels)?,
            "extra-hosts" => named(&mut target.extra_hosts)?,
            "contexts" => drop(target.contexts.insert(name.to_owned(), self.value.clone())),
            "tags" => texts(&mut target.tags),
            "platform" => texts(&mut target.platforms),
            "no-cache-filter" => texts(&mut target.no_cache_filter),
            "ulimits" => texts(&mut target.ulimits),
            "annotations" => {
                let own = target.annotations.get_or_insert_default();
                own.extend(self.values.clone());
            }
            "entitlements" => {
                let own = target.entitlements.get_or_insert_default();
                own.extend(self.values.clone());
                let has = |right: &str| self.values.iter().any(|value| value == right);
                granted.network_host |= has("network.host");
                granted.insecure |= has("security.insecure");
            }
            "pull" => target.pull = Some(self.bool(kind)?),
            "no-cache" => target.no_cache = Some(self.bool(kind)?),
            "push" => push(target.outputs.get_or_insert_default(), self.bool(kind)?),
            "load" => load(target.outputs.get_or_insert_default(), self.bool(kind)?),
            _ => return self.apply_entries(kind, target, granted),
        }
        Ok(())
    }

    fn bool(&self, kind: &str) -> Result<bool> {
        whelk_text::parse_bool(&self.value).ok_or_else(|| {
            let value = &self.value;
            Error::new(format!("invalid value {value} for boolean key {kind}"))
        })
    }

    /// Returns the entries that a target has then.
    fn entries<E: entries::Listed>(&self, own: &mut Option<Vec<E>>) -> Result<()> {
        let given = Some(entries::parse::<E>(&self.values)?);
        if !self.is_added {
            *own = None;
        }
        merge_entries(own, &given);
        Ok(())
    }

    fn apply_entries(&self, kind: &str, target: &mut Target, granted: &mut Granted) -> Result<()> {
        let local = |caches: &Option<Vec<Cache>>, key: &str| {
            let caches = caches
                .iter()
                .flatten()
                .filter(|cache| cache.0.kind() == "local");
            caches
                .filter_map(|cache| cache.0.0.get(key).cloned())
                .collect::<Vec<_>>()
        };
        match kind {
            "cache-from" => {
                self.entries::<Cache>(&mut target.cache_from)?;
                granted.read.extend(local(&target.cache_from, "src"));
            }
            "cache-to" => {
                self.entries::<Cache>(&mut target.cache_to)?;
                granted.written.extend(local(&target.cache_to, "dest"));
            }
            "secrets" => {
                self.entries::<Secret>(&mut target.secrets)?;
                let files = target
                    .secrets
                    .iter()
                    .flatten()
                    .map(|secret| secret.file.clone());
                granted.read.extend(files.filter(|file| !file.is_empty()));
            }
            "ssh" => {
                self.entries::<Ssh>(&mut target.ssh)?;
                let paths = target
                    .ssh
                    .iter()
                    .flatten()
                    .flat_map(|ssh| ssh.paths.clone());
                granted.read.extend(paths);
            }
            "output" => {
                self.entries::<Output>(&mut target.outputs)?;
                let outputs = target.outputs.iter().flatten();
                let paths = outputs.filter_map(|output| output.destination().map(str::to_owned));
                granted.written.extend(paths);
            }
            "attest" => {
                let given = Some(entries::parse::<Attestation>(&self.values)?);
                merge_entries(&mut target.attest, &given);
            }
            other => return Err(Error::new(format!("unknown key: {other}"))),
        }
        Ok(())
    }
}

/// Sets whether outputs are pushed.
fn push(outputs: &mut Vec<Output>, push: bool) {
    let set = |output: &mut Output, value: &str| {
        output.0.0.insert("push".to_owned(), value.to_owned());
    };
    if !push {
        outputs.retain(|output| output.0.kind() != "registry");
        for output in outputs
            .iter_mut()
            .filter(|output| output.0.kind() == "image")
        {
            set(output, "false");
        }
        return;
    }
    let is_loaded = outputs.iter().all(|output| output.0.kind() == "docker");
    for output in outputs
        .iter_mut()
        .filter(|output| output.0.kind() == "image")
    {
        set(output, "true");
    }
    if is_loaded {
        outputs.push(Output::of(&[("type", "image"), ("push", "true")]));
    }
}

/// Adds an output to the engine, if there are only images.
fn load(outputs: &mut Vec<Output>, load: bool) {
    let is_there = |output: &Output| match output.0.kind() {
        "docker" => output.destination().is_none(),
        "image" | "registry" | "oci" => false,
        _ => true,
    };
    if load && !outputs.iter().any(is_there) {
        outputs.push(Output::of(&[("type", "docker")]));
    }
}
