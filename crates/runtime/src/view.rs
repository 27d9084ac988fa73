//! A view of a container's files from outside: its root with its volumes, without the file systems that
//! only its processes have.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode};
use rustix::mount::{
    MountPropagationFlags as Propagation, MoveMountFlags, UnmountFlags, mount_change, move_mount,
    unmount,
};
use whelk_sys::in_root;
use whelk_sys::mount::{MountAttr, set_attr};
use whelk_sys::process::{CloneFlags, unshare};

use crate::error::{Error, Result, os, os_at};
use crate::mount_options::RDONLY;
use crate::mounts::{Context, KeyMounts, clone_of};
use crate::rootfs::{self, Overlay, Rootfs};
use crate::spec::Mount;

/// The root of a view.
#[derive(Debug)]
pub enum ViewRoot {
    /// The layers of a container that does not run. Nobody else may have them mounted.
    Overlay(Overlay),
    /// A detached clone of a running container's root mount.
    Clone(OwnedFd),
}

/// A mount of a view.
#[derive(Debug)]
pub struct ViewMount {
    pub mount: Mount,
    /// The detached mount to use for a bind, instead of a new one.
    pub tree: Option<OwnedFd>,
}

/// Mounts a container's root and volumes, and returns a descriptor of its top directory. The mounts belong
/// to no mount namespace, and last until the descriptor is closed. With `read_only` nothing can be written
/// outside of the volumes. Before that the directory `made` is created, as the start creates the working
/// directory; an error, as of a file in its place, is left to the start.
///
/// Paths are to be resolved relative to the descriptor ([`whelk_sys::in_root`]). `scratch` is an empty
/// directory, as for [`rootfs::attach`].
pub fn view(
    root: ViewRoot,
    mounts: Vec<ViewMount>,
    read_only: bool,
    made: Option<&str>,
    scratch: &Path,
) -> Result<OwnedFd> {
    // A mount can be attached only in a mount namespace; the clone does not depend on it.
    let make = move || {
        unshare(CloneFlags::NEWNS).map_err(os("create a mount namespace"))?;
        let root = match root {
            ViewRoot::Overlay(overlay) => rootfs::attach(&Rootfs::Overlay(overlay), scratch)?,
            ViewRoot::Clone(root) => {
                mount_change("/", Propagation::DOWNSTREAM | Propagation::REC)
                    .map_err(os("make the mount namespace a slave"))?;
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                move_mount(root.as_fd(), "", CWD, scratch, flags)
                    .map_err(os_at("attach root file system at", scratch))?;
                root
            }
        };
        let copy = complete(&root, mounts, read_only, made);
        // Now, also after an error, and not some time after the thread's end: the layers may be mounted
        // again soon.
        drop(root);
        unmount(scratch, UnmountFlags::DETACH).map_err(os_at("unmount", scratch))?;
        copy
    };
    std::thread::scope(|scope| scope.spawn(make).join())
        .unwrap_or_else(|_| Err(Error::Os("the thread that mounts has panicked".into())))
}

/// Mounts what belongs to a view on its root, and returns a clone of all.
fn complete(
    root: &OwnedFd,
    mounts: Vec<ViewMount>,
    read_only: bool,
    made: Option<&str>,
) -> Result<OwnedFd> {
    let context = Context {
        root,
        mount_label: "",
        user_namespace: None,
    };
    let mut keys = KeyMounts::default();
    for ViewMount { mount, tree } in mounts {
        context.mount(&mount, tree, &mut keys)?;
    }
    if let Some(directory) = made {
        let _ = in_root::create_dir_all(root, directory, Mode::from_raw_mode(0o755));
    }
    if read_only {
        let attr = MountAttr {
            set: RDONLY,
            ..MountAttr::default()
        };
        set_attr(root.as_fd(), attr, false).map_err(os("make the root read-only"))?;
    }
    clone_of(root, true).map_err(os("clone the mounts"))
}
