//! Plans a container's mounts: bind mounts, volumes, images and tmpfs, from `-v`, `--mount` and
//! `--tmpfs`.

mod binds;
mod idmap;
mod mount_config;
mod propagation;
mod tmpfs;

use std::collections::HashSet;
use std::path::Path;

use crate::error::{Error, Result};
use crate::model::HostConfig;
use crate::model::volume::{CreateVolume, VolumeDriverName};

pub(crate) use crate::model::mount::{ImageUse, MountPlan, Source, VolumeUse};
pub(crate) use idmap::map_owner;
pub(crate) use propagation::{check_propagation, mount_points};

use binds::parse_bind;
use mount_config::parse_mount;
use tmpfs::tmpfs;

impl MountPlan {
    /// Plans an anonymous volume, as `-v /path` and an image's `VOLUME` request it.
    pub fn anonymous(target: &str, driver: &str) -> Result<Self> {
        let make = CreateVolume {
            driver: VolumeDriverName::given(driver),
            ..CreateVolume::default()
        };
        Ok(volume(
            VolumeUse {
                copy: true,
                make,
                ..VolumeUse::default()
            },
            check_target(target)?,
            false,
            "",
        ))
    }
}

/// What planning depends on besides the settings.
#[derive(Clone, Copy)]
struct PlanContext<'a> {
    /// The engine's own directory.
    data_root: &'a Path,
    /// Whether a mount that cannot be made on this host is an error.
    is_checked: bool,
}

/// Returns all mounts of the settings in a request. `data_root` is the engine's own directory.
///
/// # Errors
/// Returns an error if a specification is invalid, if a target is used twice, or if a mount cannot
/// be made on this host.
pub fn plan(host: &HostConfig, data_root: &Path) -> Result<Vec<MountPlan>> {
    let is_checked = true;
    plan_in(
        host,
        PlanContext {
            data_root,
            is_checked,
        },
    )
}

/// Like [`plan`], for settings that an earlier engine has accepted: what is missing on the host now
/// may be there at the container's next start, which reports it otherwise.
pub(crate) fn plan_recorded(host: &HostConfig, data_root: &Path) -> Result<Vec<MountPlan>> {
    let is_checked = false;
    plan_in(
        host,
        PlanContext {
            data_root,
            is_checked,
        },
    )
}

fn plan_in(host: &HostConfig, context: PlanContext<'_>) -> Result<Vec<MountPlan>> {
    let mut plans = Vec::new();
    for bind in host.binds.iter().flatten() {
        plans.push(parse_bind(bind, &host.volume_driver, context)?);
    }
    for mount in host.mounts.iter().flatten() {
        plans.push(parse_mount(mount, context)?);
    }
    for (target, options) in &host.tmpfs {
        plans.push(tmpfs(target, options)?);
    }
    let mut targets = HashSet::new();
    if let Some(twice) = plans
        .iter()
        .find(|plan| !targets.insert(plan.target.as_str()))
    {
        return Err(Error::invalid(format!(
            "Duplicate mount point: {}",
            twice.target
        )));
    }
    Ok(plans)
}

/// Sorts mounts so that parents come before their children.
pub fn sort(plans: &mut [MountPlan]) {
    plans.sort_by_key(|plan| depth(&plan.target));
}

/// Returns the number of components of a clean absolute path.
pub(crate) fn depth(target: &str) -> usize {
    target.matches('/').count()
}

/// Parses a `--volumes-from` value: a container's name and, if given, whether the mounts are
/// read-only.
pub fn parse_volumes_from(text: &str) -> Result<(&str, Option<bool>)> {
    let Some((name, mode)) = text.split_once(':') else {
        return Ok((text, None));
    };
    let mut read_only = None;
    for word in mode.split(',') {
        match word {
            "ro" | "rw" if read_only.is_none() => read_only = Some(word == "ro"),
            "z" | "Z" => check_relabel(word)?,
            _ => return Err(Error::invalid(format!("invalid mode: {mode}"))),
        }
    }
    Ok((name, read_only))
}

/// The options `z` and `Z` relabel files for SELinux. They have no effect where SELinux is not
/// enabled, and are rejected where it is.
fn check_relabel(word: &str) -> Result<()> {
    if whelk_sys::fs::exists(crate::security::SELINUX) {
        return Err(Error::Unsupported(format!(
            "mount option {word}: SELinux relabelling is not available in this version of whelk"
        )));
    }
    Ok(())
}

/// Returns an absolute path without `.`, `..` and duplicate slashes.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn check_target(target: &str) -> Result<String> {
    if !target.starts_with('/') {
        return Err(Error::invalid(format!(
            "invalid mount path: '{target}' mount path must be absolute"
        )));
    }
    match clean(target).as_str() {
        "/" => Err(Error::invalid(
            "invalid specification: destination can't be '/'",
        )),
        target => Ok(target.to_owned()),
    }
}

fn volume(volume: VolumeUse, target: String, read_only: bool, mode: &str) -> MountPlan {
    let mut options: Vec<String> = vec!["rbind".into(), "rprivate".into()];
    if read_only {
        options.extend(["ro", "rro"].map(str::to_owned));
    }
    options.extend(subdirectory(&volume.subpath));
    MountPlan {
        source: Source::Volume(volume),
        target,
        options,
        read_only,
        mode: mode.to_owned(),
        propagation: String::new(),
    }
}

fn subdirectory(path: &str) -> Option<String> {
    (!path.is_empty()).then(|| format!("X-mount.subdir={path}"))
}

#[allow(
    clippy::fn_params_excessive_bools,
    reason = "the options of one mount, each named where it is given"
)]
fn bind(
    source: Source,
    target: String,
    read_only: bool,
    propagation: &str,
    recursive: bool,
    recursive_read_only: bool,
    mode: &str,
) -> MountPlan {
    let mut options = vec![
        if recursive { "rbind" } else { "bind" }.to_owned(),
        propagation.to_owned(),
    ];
    if read_only {
        options.push("ro".into());
        if recursive_read_only && recursive {
            options.push("rro".into());
        }
    }
    MountPlan {
        source,
        target,
        options,
        read_only,
        mode: mode.to_owned(),
        propagation: propagation.to_owned(),
    }
}

/// The context that tests plan mounts in.
#[cfg(test)]
fn context() -> PlanContext<'static> {
    PlanContext {
        data_root: Path::new("/data/root"),
        is_checked: true,
    }
}
