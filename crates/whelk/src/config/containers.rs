//! The keys with settings of containers that do not give their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use whelk_engine::instance::ContainerDefaults;
use whelk_engine::model::{CgroupnsMode, IpcMode, Ulimit};
use whelk_sys::fs;
use whelk_text::size;

const MAX_PROFILE: u64 = 1 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct ContainerSettings {
    #[serde(deserialize_with = "shm_size")]
    default_shm_size: Option<i64>,
    #[serde(deserialize_with = "ipc_mode")]
    default_ipc_mode: Option<IpcMode>,
    #[serde(deserialize_with = "cgroupns_mode")]
    default_cgroupns_mode: CgroupnsMode,
    cgroup_parent: String,
    init: bool,
    default_stop_timeout: Option<i64>,
    default_ulimits: BTreeMap<String, Limit>,
    no_new_privileges: bool,
    seccomp_profile: Option<PathBuf>,
    #[serde(deserialize_with = "exec_opts")]
    #[allow(dead_code, reason = "only one value of the only option is accepted")]
    exec_opts: (),
}

/// As Docker's clients write it, or with small letters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Limit {
    #[serde(default, alias = "name")]
    name: String,
    #[serde(alias = "soft")]
    soft: i64,
    #[serde(alias = "hard")]
    hard: i64,
}

impl ContainerSettings {
    pub(super) fn resolve(&mut self, directory: &Path) {
        if let Some(path) = &mut self.seccomp_profile
            && !is_word(path)
        {
            *path = directory.join(&*path);
        }
    }

    /// Returns the settings, with the seccomp profile's content.
    ///
    /// # Errors
    /// Returns an error that names the key.
    pub(super) fn defaults(&self) -> anyhow::Result<ContainerDefaults> {
        let known = ContainerDefaults::default();
        let defaults = ContainerDefaults {
            shm_size: self.default_shm_size.unwrap_or(known.shm_size),
            ipc_mode: self.default_ipc_mode.clone().unwrap_or(known.ipc_mode),
            cgroupns_mode: self.default_cgroupns_mode,
            cgroup_parent: self.cgroup_parent.clone(),
            init: self.init,
            stop_timeout: self.default_stop_timeout.unwrap_or(known.stop_timeout),
            ulimits: self.ulimits().context("default-ulimits")?,
            no_new_privileges: self.no_new_privileges,
            seccomp: self.seccomp().context("seccomp-profile")?,
        };
        defaults
            .check()
            .map_err(|error| anyhow!("default-ulimits: {error}"))?;
        defaults
            .check_seccomp()
            .map_err(|error| anyhow!("seccomp-profile: {error}"))?;
        Ok(defaults)
    }

    fn ulimits(&self) -> anyhow::Result<Vec<Ulimit>> {
        let limits = self.default_ulimits.iter().map(|(key, limit)| {
            if !limit.name.is_empty() && limit.name != *key {
                bail!("{key}: has the name {:?}", limit.name);
            }
            Ok(Ulimit {
                name: key.clone(),
                soft: limit.soft,
                hard: limit.hard,
            })
        });
        limits.collect()
    }

    fn seccomp(&self) -> anyhow::Result<String> {
        let Some(path) = &self.seccomp_profile else {
            return Ok(String::new());
        };
        match path.to_str() {
            Some("" | "builtin") => Ok(String::new()),
            Some("unconfined") => Ok("unconfined".into()),
            _ => Ok(String::from_utf8(fs::read_at_most(path, MAX_PROFILE)?)?),
        }
    }
}

/// Whether a seccomp profile is named by a word instead of a file.
fn is_word(profile: &Path) -> bool {
    matches!(profile.to_str(), Some("" | "builtin" | "unconfined"))
}

fn shm_size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    let text = String::deserialize(from)?;
    let size = size::parse_binary(&text).map_err(D::Error::custom)?;
    Ok((size > 0).then_some(size))
}

fn ipc_mode<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpcMode>, D::Error> {
    const HINT: &str = "use \"shareable\" or \"private\"";
    let text = String::deserialize(from)?;
    match text.parse() {
        Ok(IpcMode::Default) => Ok(None),
        Ok(mode @ (IpcMode::Private | IpcMode::Shareable)) => Ok(Some(mode)),
        Ok(_) => Err(D::Error::custom(format!(
            "IPC mode \"{text}\" is not supported as default value; {HINT}"
        ))),
        Err(_) => Err(D::Error::custom(format!(
            "default IPC mode setting ({text}) is invalid; {HINT}"
        ))),
    }
}

fn cgroupns_mode<'de, D: Deserializer<'de>>(from: D) -> Result<CgroupnsMode, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!(
            "invalid default cgroup namespace ({text}): use \"host\" or \"private\""
        ))
    })
}

/// Checks `exec-opts`. The only option that Docker has on Linux is the cgroup driver.
fn exec_opts<'de, D: Deserializer<'de>>(from: D) -> Result<(), D::Error> {
    for option in Vec::<String>::deserialize(from)? {
        let pair = option.split_once('=');
        let pair = pair.map(|(name, value)| (name.trim().to_lowercase(), value.trim()));
        let why = match pair.as_ref().map(|(name, value)| (name.as_str(), *value)) {
            Some(("native.cgroupdriver", "cgroupfs")) => continue,
            None | Some(("", _) | (_, "")) => "must be formatted 'opt=value'".to_owned(),
            Some(("native.cgroupdriver", _)) => {
                "not supported: the engine writes to the cgroup file system itself (cgroupfs)"
                    .to_owned()
            }
            Some((name, _)) => format!("unknown option: '{name}'"),
        };
        return Err(D::Error::custom(format!(
            "invalid exec-opt ({option}): {why}"
        )));
    }
    Ok(())
}
