//! Volumes that may take only so much of the disk (`-o size=`), by project quotas.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, openat};
use whelk_sys::{fs, quota};

use crate::error::{Error, Result};

/// The first project that is tried: far above those that people give by hand.
const FIRST: u32 = 1 << 20;

/// Held from when a project was found that nobody has until it has a limit.
static CHOOSING: Mutex<()> = Mutex::new(());

/// Lets the files in `directory`, which is empty, take no more than `limit` bytes.
///
/// # Errors
/// The file system has no project quotas.
pub(super) fn limit(directory: &Path, limit: u64) -> Result<()> {
    let directory = open(directory)?;
    let unsupported = |_| Error::invalid("quota size requested but no quota support");
    let _choosing = CHOOSING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut project = FIRST;
    while quota::get(&directory, project).map_err(unsupported)? != quota::Quota::default() {
        project += 1;
    }
    // In this order: a directory that goes away takes its project's limit along.
    quota::set_project(&directory, project).map_err(unsupported)?;
    quota::set_limit(&directory, project, limit).map_err(unsupported)
}

/// Lifts the limit of a directory that goes away, if it has one. Blocks that its files still have
/// keep others from its project.
pub(super) fn lift(directory: &Path) {
    let Ok(opened) = open(directory) else { return };
    // Without project quotas there is no limit either.
    let Ok(project) = quota::project_of(&opened) else {
        return;
    };
    if project >= FIRST
        && let Err(error) = quota::set_limit(&opened, project, 0)
    {
        tracing::warn!("lift the quota of {}: {error}", directory.display());
    }
}

fn open(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, directory, flags, Mode::empty()).map_err(fs::at("open", directory))?)
}
