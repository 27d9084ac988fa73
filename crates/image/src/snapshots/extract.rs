//! Unpacks an archive into a directory in use, by the rules of `docker cp`.
//!
//! Names are resolved inside that directory (see [`super::tree`]), and each entry is one call on a
//! name in an opened directory. So neither the archive nor a process that replaces directories by links
//! meanwhile leads outside.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use whelk_sys::fs;

use super::apply::{Purpose, add_all};
use super::directory::Directory;
use super::metadata::Metadata;
use super::tap::Tap;
use super::tree::{Tree, relative};
use crate::compression::decompress;
use crate::error::{Error, Result};

/// How an archive is unpacked by [`extract`].
#[derive(Clone, Debug, Default)]
pub struct Extraction<'a> {
    /// The directory's path, for texts of errors.
    pub shown: &'a str,
    /// Fail where a directory and another file have the same name, instead of replacing one by the
    /// other.
    pub keeps_kinds: bool,
    pub owner: Owner,
    /// Mount points, as paths from the root of the mounts that the directory is in. Nothing at or above
    /// one is replaced: the kernel prevents that only in the mount namespace that has the mount, and
    /// unmounts it elsewhere.
    pub mount_points: &'a [PathBuf],
    /// The first component of names, and what replaces it.
    pub renamed: Option<(Vec<u8>, Vec<u8>)>,
}

/// Whom the unpacked files belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Those who own them in the archive.
    #[default]
    Archived,
    /// This user and group.
    Fixed(u32, u32),
    /// The user of this process.
    Process,
}

/// Unpacks the plain or compressed archive `input` into `directory`.
///
/// # Errors
/// Returns an error with Docker's text if the archive is malformed, leads outside of the directory, or
/// contradicts the rules. What was unpacked until then remains.
pub fn extract(
    input: impl Read + Send,
    directory: OwnedFd,
    extraction: Extraction<'_>,
) -> Result<()> {
    let input = decompress(input)?;
    let mut files = Directory::of(Tree::of(directory), Purpose::Copy, extraction);
    match add_all(&mut files, input, &Tap::new(None)) {
        Ok(_) => Ok(()),
        Err(Error::Invalid(text)) => Err(Error::Invalid(in_dockers_words(text))),
        Err(error) => Err(error),
    }
}

/// Returns the text of Go's tar package for a parser's error.
fn in_dockers_words(text: String) -> String {
    if text.contains("unexpected EOF") || text.contains("the archive is truncated") {
        "unexpected EOF".into()
    } else if text.starts_with("read archive: ") && !text.contains("request body ended early") {
        "archive/tar: invalid tar header".into()
    } else {
        text
    }
}

impl Extraction<'_> {
    /// Returns the path of an entry below the directory.
    pub(super) fn path(&self, name: &[u8]) -> Result<PathBuf> {
        let escapes = || Error::invalid(format!("invalid entry name {}", quoted(name)));
        relative(OsStr::from_bytes(&self.rename(name))).map_err(|error| match error {
            Error::Invalid(text) if text.starts_with("path with") => escapes(),
            error => error,
        })
    }

    pub(super) fn link_target(&self, name: &[u8]) -> Result<PathBuf> {
        relative(OsStr::from_bytes(&self.rename(name)))
            .map_err(|_| Error::invalid(format!("invalid hardlink target {}", quoted(name))))
    }

    fn rename(&self, name: &[u8]) -> Vec<u8> {
        let Some((old, new)) = &self.renamed else {
            return name.to_vec();
        };
        let rest = match name.strip_prefix(old.as_slice()) {
            Some(rest) if old.is_empty() || rest.is_empty() || rest.starts_with(b"/") => rest,
            _ => return name.to_vec(),
        };
        let separator: &[u8] = if rest.is_empty() || rest.starts_with(b"/") {
            b""
        } else {
            b"/"
        };
        [new, separator, rest].concat()
    }

    pub(super) fn set_owner(&self, metadata: &mut Metadata) {
        match self.owner {
            Owner::Archived => {}
            Owner::Fixed(uid, gid) => metadata.owner = Some((uid, gid)),
            Owner::Process => metadata.owner = None,
        }
    }

    /// Returns whether replacing an entry of an open directory would unmount something.
    pub(super) fn unmounts(&self, parent: &OwnedFd, name: &OsStr) -> bool {
        let is_named = |point: &PathBuf| point.iter().any(|component| component == name);
        if !self.mount_points.iter().any(is_named) {
            return false;
        }
        // Without a path, the entry counts as one that has a mount.
        fs::path_of(parent).is_none_or(|parent| {
            let path = parent.join(name);
            self.mount_points
                .iter()
                .any(|point| point.starts_with(&path))
        })
    }

    /// Checks that an entry may replace what has its name.
    pub(super) fn check_replaced(
        &self,
        was_directory: bool,
        is_directory: bool,
        path: &Path,
    ) -> Result<()> {
        if !self.keeps_kinds || was_directory == is_directory {
            return Ok(());
        }
        let name = quoted(path.as_os_str().as_bytes());
        let shown = quoted(self.shown.as_bytes());
        Err(Error::invalid(if was_directory {
            format!("cannot overwrite directory {name} with non-directory {shown}")
        } else {
            format!("cannot overwrite non-directory {name} with directory {shown}")
        }))
    }
}

/// Returns a name from an archive in quotation marks, at most its first 256 bytes.
fn quoted(name: &[u8]) -> String {
    const SHOWN: usize = 256;
    format!(
        "{:?}",
        String::from_utf8_lossy(&name[..name.len().min(SHOWN)])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renames_first_components() {
        let check = |old: &str, new: &str, name: &str, expected: &str| {
            let extraction = Extraction {
                renamed: Some((old.into(), new.into())),
                ..Extraction::default()
            };
            let renamed = extraction.rename(name.as_bytes());
            assert_eq!(String::from_utf8_lossy(&renamed), expected, "{name}");
        };
        check("a", "b", "a", "b");
        check("a", "b", "a/", "b/");
        check("a", "b", "a/x", "b/x");
        check("a", "b", "ab/x", "ab/x");
        check(".", "b", "./x", "b/x");
        check(".", "b", "./", "b/");
        check("", "b", "/", "b/");
        check("", "b", "/etc/x", "b/etc/x");
    }
}
