//! Lists what a container's writable layer changes, as Docker's `diff` does.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, getxattr, openat, statat};
use rustix::io::Errno;
use whelk_sys::fs;

use super::mounts::failed;
use crate::error::{Error, Result, io};

/// Maximum depth of directories: each level costs two descriptors.
const MAX_DEPTH: usize = 1024;

/// How a path differs from the layers below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Modified,
    Added,
    Deleted,
}

/// A changed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Absolute, in the container.
    pub path: PathBuf,
    pub kind: ChangeKind,
}

/// Returns the changes of the layer `upper` above the layers `lower` (topmost first). A directory is
/// listed before its content, which is sorted, with deletions at the end; one that was itself not changed
/// is listed as modified if something below it is. Files that change meanwhile may or may not be listed.
pub fn diff(upper: &Path, lower: &[PathBuf]) -> Result<Vec<Change>> {
    let layers = super::distinct(lower.iter().cloned());
    let below = if layers.is_empty() {
        None
    } else {
        let failed = failed(&layers);
        let root = whelk_sys::overlay::read_only(&layers).map_err(&failed)?;
        Some(open(&root, OsStr::new(".")).map_err(failed)?)
    };
    let top = fs::open(upper)?.into();
    let mut diff = Diff {
        changes: Vec::new(),
        layers: std::iter::once(upper.to_owned()).chain(layers).collect(),
        merged: None,
    };
    diff.tree(top, below, PathBuf::from("/"))?;
    Ok(diff.changes)
}

struct Diff {
    changes: Vec<Change>,
    /// All layers, the topmost first.
    layers: Vec<PathBuf>,
    /// All layers mounted, when they were needed.
    merged: Option<OwnedFd>,
}

/// A directory whose content is being listed.
struct Level {
    upper: OwnedFd,
    /// The directory of the same name below.
    lower: Option<OwnedFd>,
    path: PathBuf,
    names: std::vec::IntoIter<OsString>,
    deleted: BTreeSet<OsString>,
    /// Whether the directory itself is in the list, and if not, where it is to be inserted if something
    /// below it has changed.
    is_listed: bool,
    at: usize,
}

impl Diff {
    /// Lists the changes in the directory `upper`, which is in the list itself.
    fn tree(&mut self, upper: OwnedFd, lower: Option<OwnedFd>, path: PathBuf) -> Result<()> {
        let mut levels = vec![self.level(upper, lower, path, true)?];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.names.next() {
                if let Some(below) = self.entry(level, &name)? {
                    levels.push(below);
                }
                if let Some(deep) = levels.get(MAX_DEPTH) {
                    return Err(unreadable(&deep.path)(Errno::LOOP));
                }
                continue;
            }
            let Some(level) = levels.pop() else { break };
            for name in level.deleted {
                self.push(level.path.join(name), ChangeKind::Deleted);
            }
            if !level.is_listed && self.changes.len() > level.at {
                let (path, kind) = (level.path, ChangeKind::Modified);
                self.changes.insert(level.at, Change { path, kind });
            }
        }
        Ok(())
    }

    fn level(
        &self,
        upper: OwnedFd,
        lower: Option<OwnedFd>,
        path: PathBuf,
        is_listed: bool,
    ) -> Result<Level> {
        let names = names(&upper).map_err(unreadable(&path))?;
        let mut deleted = BTreeSet::new();
        if let Some(lower) = &lower
            && has_mark(&upper, "trusted.overlay.opaque")
        {
            deleted.extend(self::names(lower).map_err(unreadable(&path))?);
        }
        Ok(Level {
            upper,
            lower,
            path,
            names: names.into_iter(),
            deleted,
            is_listed,
            at: self.changes.len(),
        })
    }

    /// Lists the change of an entry. Returns a directory whose content is to be listed next.
    fn entry(&mut self, level: &mut Level, name: &OsStr) -> Result<Option<Level>> {
        let failed = unreadable(&level.path);
        let Some(stat) = stat_at(&level.upper, name).map_err(&failed)? else {
            return Ok(None);
        };
        let before = match &level.lower {
            Some(lower) => stat_at(lower, name).map_err(&failed)?,
            None => None,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            if before.is_some() {
                level.deleted.insert(name.to_owned());
            }
            return Ok(None);
        }
        level.deleted.remove(name);
        let path = level.path.join(name);
        let at = self.changes.len();
        let before = level.lower.as_ref().zip(before.as_ref());
        match before {
            None => self.push(path.clone(), ChangeKind::Added),
            Some((lower, before)) if differs(&stat, before, &level.upper, lower, name) => {
                self.push(path.clone(), ChangeKind::Modified);
            }
            Some(_) => {}
        }
        let is_listed = self.changes.len() > at;
        if !kind.is_dir() {
            return Ok(None);
        }
        let Ok(directory) = open(&level.upper, name) else {
            return Ok(None);
        };
        if before.is_none() && has_mark(&directory, "trusted.overlay.redirect") {
            return self.renamed(path);
        }
        let below = before.and_then(|(lower, _)| open(lower, name).ok());
        let mut next = self.level(directory, below, path, is_listed)?;
        next.at = at;
        Ok(Some(next))
    }

    /// Returns a directory that was renamed, of which everything is to be listed: overlayfs keeps its
    /// content in the layers below.
    fn renamed(&mut self, path: PathBuf) -> Result<Option<Level>> {
        let merged = match self.merged.take() {
            Some(merged) => merged,
            None => whelk_sys::overlay::read_only(&self.layers).map_err(failed(&self.layers))?,
        };
        let relative = path.strip_prefix("/").unwrap_or(&path);
        let opened = open(&merged, relative.as_os_str());
        self.merged = Some(merged);
        match opened {
            Ok(directory) => self.level(directory, None, path, true).map(Some),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(unreadable(&path)(error)),
        }
    }

    fn push(&mut self, path: PathBuf, kind: ChangeKind) {
        self.changes.push(Change { path, kind });
    }
}

fn open(parent: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Returns the names in a directory, sorted.
fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn stat_at(directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<Stat>> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns a function that makes the error of reading the directory `path`.
fn unreadable(path: &Path) -> impl Fn(Errno) -> Error {
    let operation = format!("read {}", path.display());
    move |error| io(operation.clone())(error.into())
}

fn has_mark(directory: &OwnedFd, mark: &str) -> bool {
    match fgetxattr(directory, mark, &mut [0u8; 8][..]) {
        Ok(length) => length > 0,
        Err(error) => error == Errno::RANGE,
    }
}

/// Returns whether Docker takes a file for changed: times and sizes of directories do not count.
fn differs(one: &Stat, other: &Stat, upper: &OwnedFd, lower: &OwnedFd, name: &OsStr) -> bool {
    let owner = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    if owner(one) != owner(other) {
        return true;
    }
    let kind = FileType::from_raw_mode(one.st_mode);
    if kind.is_dir() {
        return false;
    }
    // A time without a fraction may have been through an archive.
    let (fraction, before) = (one.st_mtime_nsec, other.st_mtime_nsec);
    let same_fraction = fraction == before || fraction == 0 || before == 0;
    if one.st_size != other.st_size || one.st_mtime != other.st_mtime || !same_fraction {
        return true;
    }
    kind.is_file() && capability(upper, name) != capability(lower, name)
}

fn capability(directory: &OwnedFd, name: &OsStr) -> Option<Vec<u8>> {
    // Not opened for reading: it may be a device by now.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = openat(directory, name, flags, Mode::empty()).ok()?;
    let mut value = [0u8; 64];
    let length = getxattr(
        fs::descriptor_path(&handle),
        "security.capability",
        &mut value[..],
    )
    .ok()?;
    Some(value[..length].to_vec())
}

/// A path as Go encodes it in JSON, which replaces what is not UTF-8.
impl Change {
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(self.path.as_os_str().as_bytes()).into_owned()
    }
}
