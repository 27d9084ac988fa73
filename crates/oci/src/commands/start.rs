//! The `start` command.

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use whelk_runtime::{Error, Result, hooks};
use whelk_sys::fs;

use super::describe;
use crate::state::{StateFile, Status, directory};

/// Starts the program of a created container.
pub(super) fn start(root: &Path, id: &str) -> Result<()> {
    let state = StateFile::load(root, id)?;
    let directory = directory(root, id)?;
    let status = state.status(&directory)?;
    if status != Status::Created {
        return Err(Error::State(format!(
            "cannot start a container that is {}",
            status.as_str()
        )));
    }
    let path = directory.join("exec.fifo");
    let step = |error: rustix::io::Errno| Error::Os(format!("start container {id}: {error}"));
    let fifo = rustix::fs::open(
        &path,
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(step)?;
    // If this process is killed from here on, the container runs and can be started once more,
    // which has no effect.
    rustix::io::write(&fifo, b"0").map_err(step)?;
    fs::remove_file(&path)?;
    let spec = state.spec(&directory)?;
    hooks::run(&spec.hooks.poststart, &describe(root, &state)?)
}
