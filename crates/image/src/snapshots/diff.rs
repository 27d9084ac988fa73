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
use crate::error::{Result, io};

/// Maximum depth of directories; each level costs stack and descriptors.
const MAX_DEPTH: usize = 512;

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
    diff.directory(&top, below.as_ref(), Path::new("/"), 0)?;
    Ok(diff.changes)
}

struct Diff {
    changes: Vec<Change>,
    /// All layers, the topmost first.
    layers: Vec<PathBuf>,
    /// All layers mounted, when they were needed.
    merged: Option<OwnedFd>,
}

impl Diff {
    /// Lists the changes in the directory `upper`; `lower` is the directory of the same name below.
    fn directory(
        &mut self,
        upper: &OwnedFd,
        lower: Option<&OwnedFd>,
        path: &Path,
        depth: usize,
    ) -> Result<()> {
        let failed = |error: Errno| io(format!("read {}", path.display()))(error.into());
        if depth > MAX_DEPTH {
            return Err(failed(Errno::LOOP));
        }
        let names = names(upper).map_err(failed)?;
        let mut deleted = BTreeSet::new();
        if let Some(lower) = lower
            && has_mark(upper, "trusted.overlay.opaque")
        {
            deleted.extend(self::names(lower).map_err(failed)?);
        }
        for name in names {
            let Some(stat) = stat_at(upper, &name).map_err(failed)? else {
                continue;
            };
            let before = match lower {
                Some(lower) => stat_at(lower, &name).map_err(failed)?,
                None => None,
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
                if before.is_some() {
                    deleted.insert(name);
                }
                continue;
            }
            deleted.remove(&name);
            self.entry(upper, &stat, lower.zip(before.as_ref()), path, &name, depth)?;
        }
        for name in deleted {
            self.push(path.join(name), ChangeKind::Deleted);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        upper: &OwnedFd,
        stat: &Stat,
        before: Option<(&OwnedFd, &Stat)>,
        parent: &Path,
        name: &OsStr,
        depth: usize,
    ) -> Result<()> {
        let path = parent.join(name);
        let at = self.changes.len();
        let is_listed = match before {
            None => {
                self.push(path.clone(), ChangeKind::Added);
                true
            }
            Some((lower, before)) if differs(stat, before, upper, lower, name) => {
                self.push(path.clone(), ChangeKind::Modified);
                true
            }
            Some(_) => false,
        };
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(());
        }
        let Ok(directory) = open(upper, name) else {
            return Ok(());
        };
        if before.is_none() && has_mark(&directory, "trusted.overlay.redirect") {
            return self.renamed(&path);
        }
        let below = before.and_then(|(lower, _)| open(lower, name).ok());
        self.directory(&directory, below.as_ref(), &path, depth + 1)?;
        if !is_listed && self.changes.len() > at {
            let kind = ChangeKind::Modified;
            self.changes.insert(at, Change { path, kind });
        }
        Ok(())
    }

    /// Lists everything in a directory that was renamed: overlayfs keeps its content in the layers below.
    fn renamed(&mut self, path: &Path) -> Result<()> {
        let failed = |error: Errno| io(format!("read {}", path.display()))(error.into());
        let merged = match self.merged.take() {
            Some(merged) => merged,
            None => whelk_sys::overlay::read_only(&self.layers)
                .map_err(super::mounts::failed(&self.layers))?,
        };
        let relative = path.strip_prefix("/").unwrap_or(path);
        let opened = open(&merged, relative.as_os_str());
        self.merged = Some(merged);
        match opened {
            Ok(directory) => self.directory(&directory, None, path, 0),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(failed(error)),
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

fn has_mark(directory: &OwnedFd, mark: &str) -> bool {
    fgetxattr(directory, mark, &mut [0u8; 4096][..]).is_ok_and(|length| length > 0)
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
