//! The `pause` and `resume` commands.

use std::path::Path;

use whelk_runtime::{Error, Result};

use crate::state::{StateFile, Status, directory};

/// Pauses or resumes a container by its freezer cgroup.
pub(super) fn freeze(root: &Path, id: &str, frozen: bool) -> Result<()> {
    let state = StateFile::load(root, id)?;
    let status = state.status(&directory(root, id)?)?;
    let is_allowed = if frozen {
        matches!(status, Status::Running | Status::Created)
    } else {
        status == Status::Paused
    };
    if !is_allowed {
        return Err(Error::State(format!(
            "cannot {} a container that is {}",
            if frozen { "pause" } else { "resume" },
            status.as_str()
        )));
    }
    state.cgroup()?.freeze(frozen)
}
