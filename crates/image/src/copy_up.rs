//! What an image has at a path, copied to where a volume's content will be.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use whelk_sys::{copy, fs, in_root};

use crate::error::{Result, io};

/// Copies what `layers` (the topmost first) have in the directory `path` into the directory
/// `target`, if that is empty. It also gets the owner, the mode and the times of the image's
/// directory. Returns whether that was done. With `lasting` the content is on disk then.
///
/// With `replaced`, the path of `target`, the content appears as a whole or not at all, whatever
/// happens meanwhile; then nobody may be using the directory, for another takes its place.
/// Otherwise it grows in place.
pub fn copy_up(
    layers: &[PathBuf],
    path: &str,
    target: impl AsFd,
    replaced: Option<&Path>,
    lasting: bool,
) -> Result<bool> {
    let step = |step: &'static str| move |error: rustix::io::Errno| io(step)(error.into());
    let layers = crate::store::distinct(layers.iter().cloned());
    if layers.is_empty() || !copy::is_empty(&target).map_err(step("look into the volume"))? {
        return Ok(false);
    }
    let root = whelk_sys::overlay::read_only(&layers).map_err(step("mount the image's layers"))?;
    // No directory there, no content. Links lead around inside the image only.
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
            rustix::fs::syncfs(target).map_err(step("sync"))
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
    // Takes the place of an empty directory only.
    fs::rename(&staging, replaced)?;
    Ok(true)
}
