//! Walks over file trees by descriptor. No symbolic link is followed.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;
use whelk_dockerfile::ignore::{Matched, Matcher};

use crate::error::{Error, Result};

/// Maximum depth of directories; each level costs stack and a descriptor.
pub(crate) const MAX_DEPTH: usize = 512;

/// Returns the names in a directory, sorted.
pub(crate) fn names(directory: impl AsFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(open_below(directory, OsStr::new("."))?)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Opens a directory by its name in another one.
pub(crate) fn open_below(directory: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

/// Returns what is there, or `None`.
pub(crate) fn stat(directory: impl AsFd, name: &OsStr) -> rustix::io::Result<Option<Stat>> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_dir()
}

/// Returns whether a file of a layer hides what layers below have of its name.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Returns whether a directory of a layer hides all that layers below have in it.
pub(crate) fn is_opaque(directory: impl AsFd) -> bool {
    let mut value = [0_u8; 1];
    let mark = rustix::fs::fgetxattr(directory, "trusted.overlay.opaque", &mut value[..]);
    // overlayfs hides what is below for this value alone.
    mark == Ok(1) && value == *b"y"
}

/// Joins a path and a name in it.
pub(crate) fn join(path: &str, name: &OsStr) -> String {
    let name = String::from_utf8_lossy(name.as_bytes());
    if path.is_empty() {
        name.into_owned()
    } else {
        format!("{path}/{name}")
    }
}

/// Which of the files below a directory are meant.
#[derive(Debug)]
pub(crate) struct Filter {
    include: Option<Matcher>,
    exclude: Matcher,
}

/// What patterns say of a directory, for what is in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    include: Matched,
    exclude: Matched,
}

impl Filter {
    /// # Errors
    /// Returns an error for a malformed pattern.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let matcher = |patterns: &[String]| Matcher::new(patterns.iter().map(String::as_str));
        Ok(Self {
            include: (!include.is_empty())
                .then(|| matcher(include))
                .transpose()?,
            exclude: matcher(exclude)?,
        })
    }

    pub fn is_all(&self) -> bool {
        self.include.is_none() && self.exclude.is_empty()
    }

    /// Returns whether a path is meant, whether something below it may be, and what its directory's content inherits.
    pub fn takes(&self, path: &str, parent: &Verdict) -> (bool, bool, Verdict) {
        let (excluded, exclude) = self.exclude.excludes_in(path, &parent.exclude);
        let (included, include) = match &self.include {
            None => (true, Matched::default()),
            Some(matcher) => matcher.excludes_in(path, &parent.include),
        };
        let may_have = self.include.is_some() || !excluded || self.exclude.has_exceptions();
        (
            included && !excluded,
            may_have,
            Verdict { include, exclude },
        )
    }
}

/// Removes what patterns exclude below a directory.
pub(crate) fn remove_excluded(root: &OwnedFd, patterns: &[String]) -> Result<()> {
    let matcher = Matcher::new(patterns.iter().map(String::as_str))?;
    if matcher.is_empty() {
        return Ok(());
    }
    remove_below(root, "", &matcher, &Matched::default(), 0).map(drop)
}

/// Returns whether the directory is empty then.
fn remove_below(
    directory: &OwnedFd,
    path: &str,
    matcher: &Matcher,
    parent: &Matched,
    depth: usize,
) -> Result<bool> {
    let failed = |error: Errno| Error::os(format!("read /{path} of the context"), error);
    if depth > MAX_DEPTH {
        return Err(failed(Errno::LOOP));
    }
    let mut is_empty = true;
    for name in names(directory).map_err(failed)? {
        let below = join(path, &name);
        let (excluded, matched) = matcher.excludes_in(&below, parent);
        let Some(stat) = stat(directory, &name).map_err(failed)? else {
            continue;
        };
        let mut is_gone = false;
        if is_directory(&stat) {
            if !excluded || matcher.has_exceptions() {
                let inner = open_below(directory, &name).map_err(failed)?;
                let left = !remove_below(&inner, &below, matcher, &matched, depth + 1)?;
                if excluded && !left {
                    remove(directory, &name).map_err(failed)?;
                    is_gone = true;
                }
            } else {
                remove(directory, &name).map_err(failed)?;
                is_gone = true;
            }
        } else if excluded {
            rustix::fs::unlinkat(directory, &name, AtFlags::empty()).map_err(failed)?;
            is_gone = true;
        }
        is_empty &= is_gone;
    }
    Ok(is_empty)
}

/// Removes a file, or a directory with its content. It need not exist.
pub(crate) fn remove(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    remove_at(parent, name, 0)
}

fn remove_at(parent: &OwnedFd, name: &OsStr, depth: usize) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        Err(Errno::NOENT) => return Ok(()),
        result => return result,
    }
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    let directory = open_below(parent, name)?;
    for name in names(&directory)? {
        remove_at(&directory, &name, depth + 1)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}
