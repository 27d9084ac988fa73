//! `mount_setattr(2)`: attributes, propagation and id mapping of a mount or a whole tree of them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use linux_raw_sys::general as raw;

use crate::check;

/// What to change on a mount. Bits are `MOUNT_ATTR_*` and, for propagation, one of `MS_PRIVATE` and its siblings.
#[derive(Clone, Copy, Default, Debug)]
pub struct MountAttr<'fd> {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    /// The user namespace whose id mapping the mount shall show (`MOUNT_ATTR_IDMAP`).
    pub user_namespace: Option<BorrowedFd<'fd>>,
}

/// Changes the mount that `mount` (an `O_PATH` descriptor or a detached tree) refers to; with `recursive` also all
/// mounts below it.
pub fn set_attr(mount: BorrowedFd<'_>, attr: MountAttr<'_>, recursive: bool) -> io::Result<()> {
    let mut args = raw::mount_attr { attr_set: attr.set, attr_clr: attr.clear, propagation: attr.propagation, userns_fd: 0 };
    if let Some(namespace) = attr.user_namespace {
        args.attr_set |= u64::from(raw::MOUNT_ATTR_IDMAP);
        args.userns_fd = namespace.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static C string and `args` is a mount_attr of the size given.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &raw const args, size_of_val(&args)) })
        .map(drop)
}
