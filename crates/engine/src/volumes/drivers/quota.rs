//! Size limits of volumes (`-o size=`), by project quotas.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;
use whelk_sys::sync::IgnorePoison as _;

use rustix::fs::{CWD, Mode, OFlags, openat};
use whelk_sys::{fs, quota};

use crate::error::{Error, Result};

/// The first project id to try: far above those that administrators usually assign.
const FIRST: u32 = 1 << 20;

/// Held while an unused project id is searched and given a limit.
static CHOOSING: Mutex<()> = Mutex::new(());

/// Limits the disk usage of the files in `directory`, which must be empty, to `limit` bytes.
///
/// # Errors
/// Returns an error if the file system has no project quotas.
pub(super) fn limit(directory: &Path, limit: u64) -> Result<()> {
    let directory = open(directory)?;
    let unsupported = |_| Error::invalid("quota size requested but no quota support");
    let _choosing = CHOOSING.lock().ignore_poison();
    let mut project = FIRST;
    while quota::get(&directory, project).map_err(unsupported)? != quota::Quota::default() {
        project += 1;
    }
    // The project before the limit: deleting the directory also removes the limit of its project.
    quota::set_project(&directory, project).map_err(unsupported)?;
    quota::set_limit(&directory, project, limit).map_err(unsupported)
}

/// Removes the limit of a directory that is to be deleted, if it has one. While its files have
/// blocks, their project id is not reused.
pub(super) fn remove_limit(directory: &Path) {
    let Ok(opened) = open(directory) else { return };
    // Without project quotas there is no limit.
    let Ok(project) = quota::project_of(&opened) else {
        return;
    };
    if project >= FIRST
        && let Err(error) = quota::set_limit(&opened, project, 0)
    {
        tracing::warn!("remove the quota of {}: {error}", directory.display());
    }
}

fn open(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, directory, flags, Mode::empty()).map_err(fs::at("open", directory))?)
}
