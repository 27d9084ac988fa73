//! Size limits of volumes (`-o size=`) and of writable layers (`--storage-opt size=`), by project quotas.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use whelk_sys::sync::IgnorePoison as _;

use rustix::fs::{CWD, Mode, OFlags, openat};
use whelk_sys::{fs, quota};

use crate::error::{Error, Result};

/// The first project id of the engine's: far above those that administrators usually assign.
const FIRST: u32 = 1 << 20;

/// How many project ids there are. The last one of 32 bits is no valid one.
const COUNT: u64 = (u32::MAX - FIRST) as u64;

/// How many ids are tried.
const ATTEMPTS: u64 = 1000;

/// Held while an unused project id is searched and given a limit. Another engine on the same file system
/// searches among others, because a project's id is derived from the directory's inode number.
static CHOOSING: Mutex<()> = Mutex::new(());

/// Limits the disk usage of all files in `directories`, which must be empty and on the same file
/// system, to `limit` bytes together.
///
/// # Errors
/// Returns [`Refusal::Unsupported`] if the file system has no project quotas.
///
/// The limit is no security boundary: root in a container may change the project of its files
/// (`FS_IOC_FSSETXATTR`), unless it is in a user namespace.
pub(crate) fn limit(directories: &[&Path], limit: u64) -> std::result::Result<(), Refusal> {
    let opened: Vec<OwnedFd> = directories
        .iter()
        .map(|directory| open(directory).map_err(Refusal::Other))
        .collect::<std::result::Result<_, _>>()?;
    let Some(first) = opened.first() else {
        return Ok(());
    };
    let unsupported = |_| Refusal::Unsupported;
    let _choosing = CHOOSING.lock().ignore_poison();
    let project = unused(first)?;
    // The project before the limit: deleting the directory also removes the limit of its project.
    for directory in &opened {
        quota::set_project(directory, project).map_err(unsupported)?;
    }
    quota::set_limit(first, project, limit).map_err(unsupported)
}

/// Returns an unused project id, to begin with the one that stands for the directory's inode number.
fn unused(directory: &OwnedFd) -> std::result::Result<u32, Refusal> {
    let step = |error: std::io::Error| Refusal::Other(Error::internal(format!("quota: {error}")));
    let found = rustix::fs::fstat(directory).map_err(|error| step(error.into()))?;
    for candidate in candidates(found.st_ino) {
        let quota = quota::get(directory.as_fd(), candidate).map_err(|_| Refusal::Unsupported)?;
        if quota == quota::Quota::default() {
            return Ok(candidate);
        }
    }
    Err(Refusal::Other(Error::internal(
        "quota: no project id is unused".to_owned(),
    )))
}

/// Returns the project ids for a directory with this inode number.
fn candidates(inode: u64) -> impl Iterator<Item = u32> {
    (0..ATTEMPTS).filter_map(move |attempt| {
        let offset = u32::try_from(inode.wrapping_add(attempt) % COUNT).ok()?;
        Some(FIRST + offset)
    })
}

/// Why a directory cannot be limited.
pub(crate) enum Refusal {
    Unsupported,
    Other(Error),
}

/// Removes the limit of a directory that is to be deleted, if it has one. While its files have
/// blocks, their project id is not reused.
pub(crate) fn remove_limit(directory: &Path) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_ids_are_those_of_the_engine() {
        for inode in [0, 1, COUNT - 1, COUNT, u64::from(u32::MAX), u64::MAX] {
            let found: Vec<u32> = candidates(inode).collect();
            assert_eq!(found.len(), 1000, "{inode}");
            assert!(
                found.iter().all(|id| (FIRST..u32::MAX).contains(id)),
                "{inode}"
            );
        }
        assert_eq!(candidates(7).next(), Some(FIRST + 7));
        assert_ne!(candidates(7).next(), candidates(8).next());
    }
}
