//! Reads an entry's owner, mode, times and extended attributes from its headers and applies them to
//! a file.

use std::ffi::OsStr;
use std::io;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, fstat,
    openat, utimensat,
};
use rustix::io::Errno;
use tar::{Entry, EntryType, Header};

use super::apply::Purpose;
use super::pax;
use crate::error::{Error, Result, io};

const XATTR: &str = "SCHILY.xattr.";

/// The metadata of an entry, in the kernel's types.
pub(super) struct Metadata {
    pub(super) mode: u32,
    /// User and group; `None` leaves those of the process that unpacks.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mtime: Timespec,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl Metadata {
    pub(super) fn of(
        entry: &Entry<'_, impl Read>,
        extensions: &[(String, Vec<u8>)],
        purpose: Purpose,
    ) -> Result<Self> {
        let header = entry.header();
        // chown(2) takes `(uid_t) -1` as "do not change".
        let valid = |id: u64| {
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| Error::invalid(format!("owner {id} is out of range")))
        };
        let fields = header.as_old();
        let id = |field: &[u8], read: io::Result<u64>| {
            or_zero(field, read).map_err(io("owner")).and_then(valid)
        };
        let (mode, uid, gid) = (
            or_zero(&fields.mode, header.mode()).map_err(io("mode"))?,
            id(&fields.uid, header.uid())?,
            id(&fields.gid, header.gid())?,
        );
        let mut mtime = Timespec {
            tv_sec: seconds(header),
            tv_nsec: 0,
        };
        let mut xattrs = Vec::new();
        for (key, value) in extensions {
            if let Some(name) = key.strip_prefix(XATTR) {
                // Overlayfs' own attributes would let a layer redirect names into other layers.
                let is_mark =
                    name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.");
                if is_mark && purpose == Purpose::Layer {
                    return Err(Error::invalid(format!(
                        "extended attribute {name} is not allowed in a layer"
                    )));
                }
                xattrs.push((name.to_owned(), value.clone()));
            } else if key == "mtime"
                && let Some(time) = std::str::from_utf8(value).ok().and_then(pax::parse_time)
            {
                mtime = time;
            }
        }
        Ok(Self {
            mode,
            owner: Some((uid, gid)),
            mtime,
            xattrs,
        })
    }
}

/// Returns what was read from a numeric field of a header. An empty field is 0, as in Go's tar package: client
/// libraries leave the fields empty that their callers do not set.
pub(super) fn or_zero<T: Default>(field: &[u8], read: io::Result<T>) -> io::Result<T> {
    match read {
        Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(T::default()),
        read => read,
    }
}

/// Returns the time in a header. Times before 1970 are negative numbers of base 256, as GNU tar writes them.
fn seconds(header: &Header) -> i64 {
    let is_negative = header.as_old().mtime[0] & 0xc0 == 0xc0;
    let seconds = header.mtime().unwrap_or(0);
    let signed = i64::from_ne_bytes(seconds.to_ne_bytes());
    if is_negative == (signed < 0) {
        signed
    } else {
        0
    }
}

pub(super) fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: mtime,
        last_modification: mtime,
    }
}

/// Applies owner, mode, extended attributes and times, in this order: chown(2) clears set-id bits
/// and file capabilities. `created` is the state of a file that was just created: what is as it should
/// be is not set again, because each change is a transaction of the file system.
pub(super) fn apply_metadata(
    fd: BorrowedFd<'_>,
    created: Option<&Stat>,
    metadata: &Metadata,
) -> Result<()> {
    let fail = |what: &'static str| move |error: Errno| io(what)(error.into());
    let mode = metadata.mode & 0o7777;
    let is_owned = |stat: &Stat| {
        metadata
            .owner
            .is_none_or(|owner| owner == (stat.st_uid, stat.st_gid))
    };
    if let Some((uid, gid)) = metadata.owner
        && !created.is_some_and(is_owned)
    {
        rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(fail("chown"))?;
    }
    if !created.is_some_and(|stat| is_owned(stat) && stat.st_mode & 0o7777 == mode) {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).map_err(fail("chmod"))?;
    }
    for (name, value) in &metadata.xattrs {
        match rustix::fs::fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
            // File systems differ in which attributes they support; the image must still load.
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(error) => {
                let what = format!("set extended attribute {}", name.escape_debug());
                return Err(io(what)(error.into()));
            }
        }
    }
    rustix::fs::futimens(fd, &times(metadata.mtime)).map_err(fail("set times"))
}

/// Applies metadata to entries that cannot be opened: symbolic links, devices, FIFOs. What has the name
/// meanwhile is left as it is if it is of another kind.
pub(super) fn apply_metadata_at(
    parent: &OwnedFd,
    name: &OsStr,
    kind: EntryType,
    metadata: &Metadata,
) -> Result<()> {
    let fail = |what: &'static str| move |error: Errno| io(what)(error.into());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entry = match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        result => result.map_err(fail("open"))?,
    };
    let stat = fstat(&entry).map_err(fail("stat"))?;
    let expected = match kind {
        EntryType::Symlink => FileType::Symlink,
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    if FileType::from_raw_mode(stat.st_mode) != expected {
        return Ok(());
    }
    if let Some((uid, gid)) = metadata.owner {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(&entry, c"", uid, gid, AtFlags::EMPTY_PATH).map_err(fail("chown"))?;
    }
    if kind != EntryType::Symlink {
        // fchmod(2) refuses descriptors without access. This link leads to the open file, whatever its
        // name is now.
        let mode = Mode::from_raw_mode(metadata.mode & 0o7777);
        let link = format!("/proc/self/fd/{}", entry.as_raw_fd());
        rustix::fs::chmod(link, mode).map_err(fail("chmod"))?;
    }
    // The times of a link that has taken the name are harmless.
    utimensat(
        parent,
        name,
        &times(metadata.mtime),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(fail("set times"))
}
