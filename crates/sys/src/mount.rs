//! `mount_setattr(2)`: attributes, propagation and id mapping of mounts; and a check of the root
//! directory of the mount namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use linux_raw_sys::general as raw;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, open, statx};

use crate::process::{CloneFlags, setns, unshare};
use crate::{check, descriptor_number};

/// A change of mount attributes: `MOUNT_ATTR_*` bits and, for propagation, one of `MS_PRIVATE`,
/// `MS_SHARED`, `MS_SLAVE` and `MS_UNBINDABLE`.
#[derive(Clone, Copy, Default, Debug)]
pub struct MountAttr<'fd> {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    /// The user namespace whose id mapping to apply to the mount (`MOUNT_ATTR_IDMAP`).
    pub user_namespace: Option<BorrowedFd<'fd>>,
}

/// Changes the attributes of the mount that `mount` (an `O_PATH` descriptor or a detached tree)
/// refers to; with `recursive` also of all mounts below it.
pub fn set_attr(mount: BorrowedFd<'_>, attr: MountAttr<'_>, recursive: bool) -> io::Result<()> {
    let mut args = raw::mount_attr {
        attr_set: attr.set,
        attr_clr: attr.clear,
        propagation: attr.propagation,
        userns_fd: 0,
    };
    if let Some(namespace) = attr.user_namespace {
        args.attr_set |= u64::from(raw::MOUNT_ATTR_IDMAP);
        args.userns_fd = u64::from(descriptor_number(namespace));
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static C string and `args` is a mount_attr of the given size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const args,
            size_of_val(&args),
        )
    })
    .map(drop)
}

/// Checks that the caller's root directory is the root of its mount namespace. After chroot(2) it
/// is not, and containers must not be created then: pivot_root(2) leaves the root of the namespace
/// in place, and a process that joins the container with setns(2) gets it as its root.
///
/// # Errors
/// Returns an error if it is another directory, or if they cannot be compared.
pub fn check_root_directory() -> io::Result<()> {
    let identity = || -> io::Result<_> {
        let found = statx(
            CWD,
            "/",
            AtFlags::empty(),
            StatxFlags::INO | StatxFlags::MNT_ID,
        )?;
        Ok((
            found.stx_dev_major,
            found.stx_dev_minor,
            found.stx_ino,
            found.stx_mnt_id,
        ))
    };
    let own = identity()?;
    let namespace = open(
        "/proc/self/ns/mnt",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // On a new thread. setns(2) fails in a thread that shares its root directory with others;
    // unsharing the mount namespace unshares that too.
    let joined = crate::on_new_thread(|| {
        unshare(CloneFlags::NEWNS)?;
        setns(namespace.as_fd(), CloneFlags::NEWNS)?;
        identity()
    })?;
    if own == joined {
        return Ok(());
    }
    Err(io::Error::other(
        "the root directory is not the root of its mount namespace: inside a chroot, containers could reach files outside of it; \
         use pivot_root instead of chroot (unshare --mount, mount --bind, pivot_root)",
    ))
}
