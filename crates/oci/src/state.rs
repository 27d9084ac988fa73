//! The state file of a container, and the state of its first process.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use whelk_runtime::cgroup::Cgroup;
use whelk_runtime::spec::Spec;
use whelk_runtime::{Error, Result};
use whelk_sys::fs;

/// Content of `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StateFile {
    pub id: String,
    pub pid: i32,
    /// Start time of the process in clock ticks after boot (proc_pid_stat(5), field 22), to detect
    /// that a pid was reused.
    pub start_time: u64,
    pub bundle: PathBuf,
    /// Path of the cgroup below the root of the hierarchy.
    pub cgroup: String,
    /// Time of creation, RFC 3339.
    pub created: String,
}

/// Status of a container in the terms of the OCI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// Returns the directory of a container.
///
/// # Errors
/// Returns an error if the id is not a valid name for a directory.
pub(crate) fn directory(root: &Path, id: &str) -> Result<PathBuf> {
    let valid = whelk_sys::in_root::is_entry_name(id.as_ref())
        && id.len() <= 1024
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte));
    if valid {
        Ok(root.join(id))
    } else {
        Err(Error::invalid(format!(
            "invalid container ID {id:?}: use letters, digits, '_', '+', '-' and '.'"
        )))
    }
}

impl StateFile {
    /// Reads the state file of a container.
    ///
    /// # Errors
    /// Returns [`Error::State`] if the container does not exist.
    pub(crate) fn load(root: &Path, id: &str) -> Result<Self> {
        let bytes = match fs::read(directory(root, id)?.join("state.json")) {
            Err(error) if error.is_not_found() => {
                return Err(Error::State("container does not exist".into()));
            }
            bytes => bytes?,
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::Os(format!("state of container {id}: {error}")))
    }

    pub(crate) fn save(&self, directory: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|error| Error::Os(error.to_string()))?;
        Ok(fs::replace(directory.join("state.json"), bytes, 0o600)?)
    }

    /// Reads the configuration the container was created with.
    pub(crate) fn spec(&self, directory: &Path) -> Result<Spec> {
        let bytes = fs::read(directory.join("config.json"))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::invalid(format!("config.json: {error}")))
    }

    pub(crate) fn cgroup(&self) -> Result<Cgroup> {
        Cgroup::at(&self.cgroup)
    }

    /// Opens a pidfd of the container's first process. The start time is compared after opening, so
    /// it cannot be another process that got the same pid.
    ///
    /// # Errors
    /// Returns [`Error::State`] if the process has exited.
    pub(crate) fn open_process(&self) -> Result<OwnedFd> {
        let ended = || Error::State("container not running".into());
        let pid = Pid::from_raw(self.pid).ok_or_else(ended)?;
        let opened = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| match error {
            Errno::SRCH => ended(),
            error => Error::Os(format!("open process {pid}: {error}")),
        })?;
        if self.has_ended() {
            Err(ended())
        } else {
            Ok(opened)
        }
    }

    fn has_ended(&self) -> bool {
        process(self.pid)
            .is_none_or(|(state, start)| state == 'Z' || state == 'X' || start != self.start_time)
    }

    pub(crate) fn status(&self, directory: &Path) -> Result<Status> {
        if self.has_ended() {
            return Ok(Status::Stopped);
        }
        if fs::exists(directory.join("exec.fifo")) {
            return Ok(Status::Created);
        }
        Ok(if self.cgroup()?.is_frozen() {
            Status::Paused
        } else {
            Status::Running
        })
    }
}

/// Returns the state letter and the start time of a process. The name before them in the file may
/// contain any bytes.
pub(crate) fn process(pid: i32) -> Option<(char, u64)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some((
        fields.first()?.chars().next()?,
        fields.get(19)?.parse().ok()?,
    ))
}
