//! Overlay mounts through the new mount API: made detached, attached by whoever needs them at a place.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};

/// The writable part of an overlay.
#[derive(Clone, Copy, Debug)]
pub struct Writable<'a> {
    pub upper: &'a Path,
    pub work: &'a Path,
    /// Let the kernel drop unwritten changes at unmount.
    pub volatile: bool,
}

/// Mounts layers (the topmost first), attached nowhere.
///
/// # Errors
/// `EINVAL` on kernels before 6.5 when the layers' names do not fit one option.
pub fn mount(lower: &[PathBuf], writable: Option<Writable<'_>>) -> Result<OwnedFd, Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "overlay")?;
    // Held until the mount is made: on old kernels layers are named by descriptor.
    let _held = set_lower(context.as_fd(), lower)?;
    if let Some(Writable { upper, work, volatile }) = writable {
        fsconfig_set_string(context.as_fd(), "upperdir", upper)?;
        fsconfig_set_string(context.as_fd(), "workdir", work)?;
        if volatile {
            fsconfig_set_flag(context.as_fd(), "volatile")?;
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// One `lowerdir+` for each layer (Linux 6.5), so depth is not limited by an option's length; before that all in one,
/// by the shortest names there are.
fn set_lower(context: impl AsFd, lower: &[PathBuf]) -> Result<Vec<OwnedFd>, Errno> {
    let mut layers = lower.iter();
    if let Some(first) = layers.next() {
        match fsconfig_set_string(context.as_fd(), "lowerdir+", first) {
            Ok(()) => {
                for layer in layers {
                    fsconfig_set_string(context.as_fd(), "lowerdir+", layer)?;
                }
                return Ok(Vec::new());
            }
            Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    let mut held = Vec::new();
    for layer in lower {
        held.push(rustix::fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
    }
    let names: Vec<String> = held.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect();
    fsconfig_set_string(context.as_fd(), "lowerdir", names.join(":"))?;
    Ok(held)
}

/// Layers merged, to be read only. A single one needs no overlay, and overlay would not take it.
pub fn read_only(lower: &[PathBuf]) -> Result<OwnedFd, Errno> {
    match lower {
        [single] => rustix::fs::open(single, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()),
        _ => mount(lower, None),
    }
}
