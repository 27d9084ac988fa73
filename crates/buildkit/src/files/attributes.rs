//! Attributes of files and directories.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use whelk_sys::{in_root, xattr};

use super::{Entry, Error, Result};

/// Opens a directory by its path, without following links.
pub(super) fn open_directory(root: &OwnedFd, path: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    in_root::open_no_links(root, path, flags).map_err(Error::io("open", path))
}

pub(super) fn times(entry: &Entry) -> Timestamps {
    const SECOND: i64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: entry.mtime.div_euclid(SECOND),
        tv_nsec: entry.mtime.rem_euclid(SECOND),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Sets the attributes of a file or a directory.
pub(super) fn set_attributes(file: impl AsFd, entry: &Entry) -> Result<()> {
    let path = &entry.path;
    // What a user without rights receives is the user's.
    if rustix::process::geteuid().is_root() {
        let root = (Some(Uid::ROOT), Some(Gid::ROOT));
        rustix::fs::fchown(&file, root.0, root.1).map_err(Error::io("set the owner of", path))?;
    }
    remove_others(&file, entry)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))
        .map_err(Error::io("set the mode of", path))?;
    for (name, value) in &entry.xattrs {
        let set = rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty());
        match set {
            // As BuildKit: what this file system does not take is left out.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {}
            Err(error) => return Err(Error::io("set an attribute of", path)(error)),
        }
    }
    rustix::fs::futimens(&file, &times(entry)).map_err(Error::io("set the time of", path))
}

/// Removes the attributes of those that clients send which a directory has from before.
fn remove_others(file: impl AsFd, entry: &Entry) -> Result<()> {
    if !entry.is_directory() {
        return Ok(());
    }
    let mut list = Vec::new();
    let names = xattr::names(&file, &mut list);
    for name in names.map_err(Error::io("list the attributes of", &entry.path))? {
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        if Entry::keeps(name) && !entry.xattrs.contains_key(name) {
            let removed = rustix::fs::fremovexattr(&file, name);
            removed.map_err(Error::io("remove an attribute of", &entry.path))?;
        }
    }
    Ok(())
}
