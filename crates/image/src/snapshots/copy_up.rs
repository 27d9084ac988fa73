//! Copies an image's content at a path into a new volume.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use whelk_sys::{copy, fs, in_root};

use super::mounts::failed;
use crate::error::{Result, io};

/// Copies the content of the directory `path` in `layers` (topmost first) into the directory
/// `target` if that is empty, together with the directory's owner, mode and times. Returns whether
/// it was copied. With `lasting`, the content is flushed to disk before this returns.
///
/// If `replaced` is the path of `target`, the content is copied to a staging directory that is then
/// renamed over `target`, so that it appears completely or not at all even if the engine is
/// killed; nobody may have `target` in use. Otherwise the content is copied in place.
///
/// # Errors
/// Returns an error if mounting the layers or copying fails. A `path` that does not exist in the
/// image or is not a directory is no error; nothing is copied.
pub fn copy_up(
    layers: &[PathBuf],
    path: &str,
    target: impl AsFd,
    replaced: Option<&Path>,
    lasting: bool,
) -> Result<bool> {
    let step = |step: &'static str| move |error: rustix::io::Errno| io(step)(error.into());
    let layers = super::distinct(layers.iter().cloned());
    if layers.is_empty() || !copy::is_empty(&target).map_err(step("read the volume"))? {
        return Ok(false);
    }
    let root = whelk_sys::overlay::read_only(&layers).map_err(failed(&layers))?;
    // If the image has no directory there, there is nothing to copy. Links are resolved inside the
    // image's root.
    let Ok(source) = in_root::open(
        &root,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY,
        Mode::empty(),
    ) else {
        return Ok(false);
    };
    let fill = |target: BorrowedFd<'_>| {
        copy::tree(&source, target, copy::Source::Layers).map_err(step("copy"))?;
        copy::directory_attributes(&source, target).map_err(step("copy attributes"))?;
        if lasting {
            copy::sync(target).map_err(step("sync"))
        } else {
            Ok(())
        }
    };
    let Some(replaced) = replaced else {
        return fill(target.as_fd()).map(|()| true);
    };
    let staging = replaced.with_extension("new");
    fs::remove_tree(&staging)?;
    fs::create_dir(&staging, 0o700)?;
    fill(fs::open(&staging)?.as_fd())?;
    // rename(2) replaces a directory only if it is empty.
    fs::rename(&staging, replaced)?;
    Ok(true)
}
