//! The engine's settings: a file with keys of Docker's daemon.json and of whelk's own, and flags with the
//! names that `dockerd` gives them.

mod builder;
mod containers;
mod file;
mod flags;
mod image_gc;
mod keys;
mod refused;
mod runtimes;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Map, Value};
use whelk_sys::fs;

pub(crate) use file::{File, LogFormat};
pub(crate) use flags::{Given, define};

const DEFAULT_FILE: &str = "/etc/whelk/daemon.json";
const MAX_FILE_SIZE: u64 = 1 << 20;

/// The keys that say which instance the file is for.
const PLACE: [&str; 3] = ["data-root", "exec-root", "instance"];

/// The keys whose values are applied while the engine runs.
const RELOADED: [&str; 26] = [
    "cgroup-parent",
    "debug",
    "default-cgroupns-mode",
    "default-ipc-mode",
    "default-runtime",
    "default-shm-size",
    "default-stop-timeout",
    "default-ulimits",
    // Has one value only.
    "exec-opts",
    "features",
    "init",
    "insecure-registries",
    "labels",
    "live-restore",
    "log-level",
    "max-concurrent-downloads",
    "max-concurrent-uploads",
    "max-download-attempts",
    "mirrors",
    "no-new-privileges",
    "proxies",
    "registry-mirrors",
    "runtimes",
    "seccomp-profile",
    "shutdown-timeout",
    "signature-policy",
];

/// Where the settings come from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// `None` for the default file, which need not exist.
    path: Option<PathBuf>,
    flags: Given,
    /// The directory that relative paths in the file are relative to.
    directory: PathBuf,
}

/// The settings of a file and of flags.
#[derive(Debug)]
pub(crate) struct Settings {
    pub file: File,
    members: Map<String, Value>,
}

impl Source {
    /// # Errors
    /// Returns an error if the working directory is unknown.
    pub(crate) fn new(path: Option<&Path>, flags: Given) -> anyhow::Result<Self> {
        let directory = std::env::current_dir().context("find the working directory")?;
        Ok(Self {
            path: path.map(|path| directory.join(path)),
            flags,
            directory,
        })
    }

    fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(DEFAULT_FILE))
    }

    /// Reads the file, and adds the flags.
    ///
    /// # Errors
    /// Returns an error that names the file and the key whose value is invalid.
    pub(crate) fn read(&self) -> anyhow::Result<Settings> {
        let file = || format!("configuration file {}", self.path().display());
        let mut members = self.members().with_context(file)?;
        let alone = parse(members.clone(), &self.directory).with_context(file)?;
        if self.flags.is_empty() {
            return Ok(Settings {
                file: alone,
                members,
            });
        }
        self.flags.merge(&mut members).with_context(file)?;
        let file = parse(members.clone(), &self.directory)?;
        Ok(Settings { file, members })
    }

    /// Reads which instance the settings are for; the others need not be valid. Flags take precedence.
    pub(crate) fn read_place(mut self) -> anyhow::Result<File> {
        let file = || format!("configuration file {}", self.path().display());
        let mut members = self.members().with_context(file)?;
        members.retain(|key, _| PLACE.contains(&key.as_str()));
        from_members(members.clone()).with_context(file)?;
        self.flags.retain(&PLACE);
        self.flags.override_members(&mut members);
        from_members(members)
    }

    fn members(&self) -> anyhow::Result<Map<String, Value>> {
        match fs::read_at_most(self.path(), MAX_FILE_SIZE) {
            Err(error) if error.is_not_found() && self.path.is_none() => Ok(Map::new()),
            content => members(&content?),
        }
    }
}

impl Settings {
    /// Returns the keys that have other values in `new`, and are only read when the engine starts.
    pub(crate) fn changed_keys(&self, new: &Self) -> Vec<String> {
        let keys = self.members.keys().chain(new.members.keys());
        let mut changed: Vec<String> = keys
            .filter(|key| !RELOADED.contains(&key.as_str()) && !refused::is_fixed(key))
            .filter(|key| self.members.get(*key) != new.members.get(*key))
            .cloned()
            .collect();
        changed.sort();
        changed.dedup();
        changed
    }
}

/// Returns the members of a file's JSON object, without those that are null.
fn members(content: &[u8]) -> anyhow::Result<Map<String, Value>> {
    // Editors of Windows begin a file with a byte order mark.
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let content = content.trim_ascii();
    if content.is_empty() {
        return Ok(Map::new());
    }
    if !content.starts_with(b"{") {
        bail!("expected a JSON object");
    }
    let mut members: Map<String, Value> = serde_json::from_slice(content)?;
    members.retain(|_, value| !value.is_null());
    keys::normalize(&mut members);
    Ok(members)
}

/// Returns the settings of a file's members. Relative paths are relative to `directory`.
fn parse(mut members: Map<String, Value>, directory: &Path) -> anyhow::Result<File> {
    let refused = refused::check(&mut members);
    let mut file = from_members(members)?;
    if !file.unknown.is_empty() {
        let unknown: Vec<&str> = file.unknown.keys().map(String::as_str).collect();
        let refused = refused.map_or_else(|error| format!("{error}; "), |()| String::new());
        bail!(
            "{refused}the following directives don't match any configuration option: {}",
            unknown.join(", ")
        );
    }
    refused?;
    file.resolve(directory);
    file.check()?;
    Ok(file)
}

/// Returns the settings of members that are all known.
///
/// # Errors
/// Returns an error that names the first key whose value is invalid.
fn from_members(members: Map<String, Value>) -> anyhow::Result<File> {
    for (key, value) in &members {
        file::check_member(key, value).with_context(|| match value {
            Value::String(text) if !file::may_be_secret(key, text) => format!("{key}: {text:?}"),
            Value::Array(_) if matches!(key.as_str(), "dns" | "host-gateway-ips") => {
                format!("{key}: {value}")
            }
            // A list or object may contain a password.
            _ => key.clone(),
        })?;
    }
    Ok(serde_json::from_value(members.into())?)
}
