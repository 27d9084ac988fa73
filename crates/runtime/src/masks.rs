//! Masked and read-only paths of the configuration, and safe writes to procfs.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use whelk_sys::in_root;
use whelk_sys::mount::{MountAttr, set_attr};

use crate::error::{Error, Result, os, os_at};
use crate::mount_options::RDONLY;
use crate::mounts::{attach_at, clone_of};

/// Opens a path that is to be covered, or returns `None` if it does not exist. Symbolic links on
/// the way are refused: they would let the container choose what is covered.
fn open(root: &OwnedFd, path: &str) -> Result<Option<OwnedFd>> {
    match in_root::open_no_links(root, path, OFlags::PATH) {
        Ok(target) => Ok(Some(target)),
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(os_at("open path to mask", path)(error)),
    }
}

/// Mounts the null device over files and one empty, read-only tmpfs over directories.
pub(crate) fn mask(root: &OwnedFd, paths: &[String], null: &OwnedFd) -> Result<()> {
    let mut empty = None;
    for path in paths {
        let Some(target) = open(root, path)? else {
            continue;
        };
        let stat = rustix::fs::fstat(&target).map_err(os_at("stat", path))?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            let cover = match &empty {
                None => empty
                    .insert(empty_directory()?)
                    .try_clone()
                    .map_err(os("duplicate descriptor"))?,
                Some(first) => clone_of(first, false).map_err(os_at("mask", path))?,
            };
            attach_at(&cover, &target).map_err(os_at("mask", path))?;
        } else {
            let cover = clone_of(null, false).map_err(os_at("mask", path))?;
            attach_at(&cover, &target).map_err(os_at("mask", path))?;
        }
    }
    Ok(())
}

fn empty_directory() -> Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(os("open tmpfs"))?;
    fsconfig_set_string(context.as_fd(), "nr_inodes", "2").map_err(os("configure tmpfs"))?;
    fsconfig_create(context.as_fd()).map_err(os("create tmpfs"))?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
    .map_err(os("mount tmpfs"))
}

/// Makes paths read-only by bind-mounting them over themselves. Paths that do not exist are
/// skipped.
pub(crate) fn read_only(root: &OwnedFd, paths: &[String]) -> Result<()> {
    for path in paths {
        let Some(target) = open(root, path)? else {
            continue;
        };
        let cover = clone_of(&target, true).map_err(os_at("protect", path))?;
        set_attr(
            cover.as_fd(),
            MountAttr {
                set: RDONLY,
                ..MountAttr::default()
            },
            true,
        )
        .map_err(os_at("protect", path))?;
        attach_at(&cover, &target).map_err(os_at("protect", path))?;
    }
    Ok(())
}

/// Writes a value to a file below the procfs directory `proc`. The path is resolved without
/// following symbolic links or crossing mounts, and the file must be on procfs, so that a container
/// cannot redirect the write.
pub(crate) fn write_proc(proc: &OwnedFd, path: &str, value: &str) -> Result<()> {
    const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;
    let file = in_root::open_same_mount(proc, path, OFlags::WRONLY)
        .map_err(os_at("open procfs file", path))?;
    let magic = rustix::fs::fstatfs(&file)
        .map_err(os_at("statfs procfs file", path))?
        .f_type;
    if magic != PROC_SUPER_MAGIC {
        return Err(Error::invalid(format!("{path} is not on procfs")));
    }
    rustix::io::write(&file, value.as_bytes())
        .map(drop)
        .map_err(os_at("write procfs file", path))
}
