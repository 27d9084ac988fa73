//! The files of a directory in the order in which a sender tells of them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use whelk_sys::{fs, in_root, xattr};

use super::entry::go_mode;
use super::{Error, Result};
use crate::pb::files::Stat;

/// A directory whose files are told.
struct Level {
    path: String,
    directory: OwnedFd,
    /// Sorted.
    names: std::vec::IntoIter<String>,
}

/// Calls `each` for everything below a directory that nobody changes, each directory before what is in it. Sockets are left out.
///
/// # Errors
/// Returns an error that names the file, also if its name is not UTF-8, and the error of `each`.
pub(super) fn walk(root: &OwnedFd, mut each: impl FnMut(Stat) -> Result<()>) -> Result<()> {
    // The first path of each file with several, by device and inode.
    let mut links: HashMap<(u64, u64), String> = HashMap::new();
    let mut levels = vec![Level::open(root, "")?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            levels.pop();
            continue;
        };
        let path = match level.path.as_str() {
            "" => name.clone(),
            parent => format!("{parent}/{name}"),
        };
        let Some(mut stat) = stat(&level.directory, &name, &path)? else {
            continue;
        };
        let is_directory = stat.kind == FileType::Directory;
        if !is_directory && stat.has_links {
            match links.get(&stat.identity) {
                Some(first) if stat.kind == FileType::RegularFile => {
                    stat.stat.linkname.clone_from(first);
                    stat.stat.size = 0;
                }
                Some(_) => {}
                None => drop(links.insert(stat.identity, path.clone())),
            }
        }
        each(stat.stat)?;
        if is_directory {
            levels.push(Level::open(root, &path)?);
        }
    }
    Ok(())
}

impl Level {
    fn open(root: &OwnedFd, path: &str) -> Result<Self> {
        let step = |error: Errno| Error::io("read the directory", path)(error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match path {
            "" => openat(root, ".", flags, Mode::empty()).map_err(step)?,
            path => in_root::open_no_links(root, path, flags)
                .map_err(Error::io("open the directory", path))?,
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).map_err(step)? {
            let entry = entry.map_err(step)?;
            match entry.file_name().to_bytes() {
                b"." | b".." => {}
                name => match std::str::from_utf8(name) {
                    Ok(name) => names.push(name.to_owned()),
                    Err(_) => {
                        let name = format!("{path}/{}", String::from_utf8_lossy(name));
                        return Err(Error::Unsendable(name));
                    }
                },
            }
        }
        names.sort();
        Ok(Self {
            path: path.to_owned(),
            directory,
            names: names.into_iter(),
        })
    }
}

struct Found {
    stat: Stat,
    kind: FileType,
    /// Device and inode.
    identity: (u64, u64),
    /// Whether the file has several names.
    has_links: bool,
}

fn stat(directory: &OwnedFd, name: &str, path: &str) -> Result<Option<Found>> {
    const SECOND: i64 = 1_000_000_000;
    let step = |error: Errno| Error::io("stat", path)(error);
    let found = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(step)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    if matches!(kind, FileType::Socket | FileType::Unknown) {
        return Ok(None);
    }
    let mut stat = Stat {
        path: path.to_owned(),
        mode: go_mode(kind, found.st_mode),
        uid: found.st_uid,
        gid: found.st_gid,
        mod_time: found
            .st_mtime
            .saturating_mul(SECOND)
            .saturating_add(i64::try_from(found.st_mtime_nsec).unwrap_or(0)),
        ..Stat::default()
    };
    match kind {
        FileType::Directory | FileType::RegularFile => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let handle = openat(directory, name, flags, Mode::empty()).map_err(step)?;
            let file = fs::reopen(&handle).map_err(step)?;
            stat.xattrs = xattrs(&file);
        }
        FileType::Symlink => {
            let target = readlinkat(directory, name, Vec::new()).map_err(step)?;
            stat.linkname = match target.into_string() {
                Ok(target) => target,
                Err(_) => return Err(Error::Unsendable(format!("{path} (where it leads)"))),
            };
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            stat.devmajor = rustix::fs::major(found.st_rdev).into();
            stat.devminor = rustix::fs::minor(found.st_rdev).into();
        }
        _ => {}
    }
    if kind != FileType::Directory {
        stat.size = found.st_size;
    }
    Ok(Some(Found {
        stat,
        kind,
        identity: (found.st_dev, found.st_ino),
        has_links: found.st_nlink > 1,
    }))
}

/// Returns the extended attributes; without those of overlayfs, which are not the file's.
fn xattrs(file: &OwnedFd) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    let (mut list, mut buffer) = (Vec::new(), Vec::new());
    let names = xattr::names(file, &mut list);
    for name in names.into_iter().flatten() {
        if let Ok(text) = std::str::from_utf8(name)
            && !name.starts_with(xattr::OVERLAY)
            && let Ok(Some(value)) = xattr::value(file, name, &mut buffer)
        {
            found.insert(text.to_owned(), value.to_vec());
        }
    }
    found
}
