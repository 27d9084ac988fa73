//! The container's root file system, which is mounted only in its own mount namespace, never on the
//! host.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags as Propagation, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    mount_change, move_mount, open_tree, unmount,
};
use serde::{Deserialize, Serialize};
use whelk_sys::mount::{MountAttr, set_attr};
use whelk_sys::overlay::{self, Writable};

use crate::error::{Error, Result, os, os_at};
use crate::mount_options::RDONLY;

/// Source of the container's root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rootfs {
    /// An existing directory.
    Directory(PathBuf),
    /// Read-only layers below a writable one.
    Overlay(Overlay),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Read-only layers, the topmost first.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Whether to mount with overlayfs's `volatile` option, which omits all syncs to the upper
    /// layer: for layers that are not read again.
    pub volatile: bool,
}

/// Mounts and attaches the root. Returns a descriptor of its top directory, relative to which all
/// later paths are resolved.
///
/// `scratch` is an empty directory to attach an overlay to. Since this happens in a private mount
/// namespace, all containers may share it.
///
/// # Errors
/// Returns the error of the mount, or that of its attachment.
pub fn attach(rootfs: &Rootfs, scratch: &Path) -> Result<OwnedFd> {
    // Slave: unmounts on the host propagate here, and nothing mounted here propagates to the host.
    mount_change("/", Propagation::DOWNSTREAM | Propagation::REC)
        .map_err(os("make the mount namespace a slave"))?;
    let (tree, attach_point) = match rootfs {
        Rootfs::Directory(path) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            (
                open_tree(CWD, path, flags).map_err(os_at("open root file system", path))?,
                path.as_path(),
            )
        }
        Rootfs::Overlay(Overlay {
            lower,
            upper,
            work,
            volatile,
        }) => {
            let writable = Some(Writable {
                upper,
                work,
                volatile: *volatile,
            });
            match overlay::mount(lower, writable) {
                Ok(tree) => (tree, scratch),
                Err(Errno::INVAL | Errno::NOSYS) => {
                    return overlay::mount_at(scratch, lower, writable)
                        .map_err(os_at("mount overlay on", upper));
                }
                Err(error) => return Err(os_at("mount overlay on", upper)(error)),
            }
        }
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree.as_fd(), "", CWD, attach_point, flags)
        .map_err(os_at("attach root file system at", attach_point))?;
    Ok(tree)
}

/// Makes `root` the root of the mount namespace and detaches the host's root.
pub(crate) fn pivot(root: impl AsFd) -> Result<()> {
    rustix::process::fchdir(root).map_err(os("enter root file system"))?;
    // pivot_root(".", ".") stacks the old root on top of the new one, so "." then detaches the old
    // one (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").map_err(os("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(os("detach the host's root"))?;
    rustix::process::chdir("/").map_err(os("chdir to the new root"))
}

/// Sets the propagation of the new root and, as the last step, makes it read-only.
pub(crate) fn finish(propagation: &str, readonly: bool) -> Result<()> {
    let flags = match propagation {
        "" | "private" => Propagation::PRIVATE,
        "rprivate" => Propagation::PRIVATE | Propagation::REC,
        "shared" => Propagation::SHARED,
        "rshared" => Propagation::SHARED | Propagation::REC,
        "slave" => Propagation::DOWNSTREAM,
        "rslave" => Propagation::DOWNSTREAM | Propagation::REC,
        "unbindable" => Propagation::UNBINDABLE,
        "runbindable" => Propagation::UNBINDABLE | Propagation::REC,
        other => {
            return Err(Error::invalid(format!(
                "unknown rootfsPropagation {other:?}"
            )));
        }
    };
    mount_change("/", flags).map_err(os("set propagation of the root"))?;
    if readonly {
        let root = rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(os("open /"))?;
        set_attr(
            root.as_fd(),
            MountAttr {
                set: RDONLY,
                ..MountAttr::default()
            },
            false,
        )
        .map_err(os("make the root read-only"))?;
    }
    Ok(())
}
