//! Unpacks an archive into a directory in use, by the rules of `docker cp`.
//!
//! Names are resolved inside that directory (see [`super::tree`]), and each entry is one call on a
//! name in an opened directory. So neither the archive nor a process that replaces directories by links
//! meanwhile leads outside.

use std::ffi::OsStr;
use std::fmt;
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
    /// The root of the upper layer, if the directory is in an overlay.
    pub upper: Option<&'a OwnedFd>,
    /// The first component of names, and what replaces it.
    pub renamed: Option<(Vec<u8>, Vec<u8>)>,
    pub replaced: Option<Replaced<'a>>,
    pub created: Option<Created<'a>>,
}

/// Gets a large file that was replaced. The kernel frees its content, which takes long, when the descriptor is
/// dropped.
#[derive(Clone, Copy)]
pub struct Replaced<'a>(pub &'a dyn Fn(OwnedFd));

impl fmt::Debug for Replaced<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Replaced")
    }
}

/// Gets the inode number of each regular file that is created, and the SHA-256 of its bytes: they are hashed while they are
/// in memory, so that nobody has to read the file for it. The digest is `None` for a file with holes, and for one that
/// may have extended attributes.
#[derive(Clone, Copy)]
pub struct Created<'a>(pub &'a dyn Fn(u64, Option<[u8; 32]>));

impl fmt::Debug for Created<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Created")
    }
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

/// What links that are in the directory are resolved in: a root directory, and the path of the directory in
/// it, without links. Links of the archive itself do not lead out of the directory.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    pub root: &'a OwnedFd,
    pub path: &'a Path,
}

/// Unpacks the plain or compressed archive `input` into `directory`. Links are resolved as if the directory
/// was the root.
///
/// # Errors
/// Returns an error with Docker's text if the archive is malformed, leads outside of the directory, or
/// contradicts the rules. What was unpacked until then remains.
pub fn extract(
    input: impl Read + Send,
    directory: OwnedFd,
    extraction: Extraction<'_>,
) -> Result<()> {
    extract_until(input, directory, None, extraction, || false)
}

/// Like [`extract`], with links resolved in `base`. Reading the archive fails when `is_over` returns true,
/// also in the middle of a file.
///
/// # Errors
/// As [`extract`].
pub fn extract_until(
    input: impl Read + Send,
    directory: OwnedFd,
    base: Option<Base<'_>>,
    extraction: Extraction<'_>,
    is_over: impl Fn() -> bool,
) -> Result<()> {
    let input = Until {
        input: decompress(input)?,
        is_over,
    };
    let tree = match base {
        Some(base) => Tree::below(directory, base.root, base.path)?,
        None => Tree::of(directory),
    };
    let mut files = Directory::of(tree, Purpose::Copy, extraction);
    match add_all(&mut files, input, &Tap::new(None)) {
        Ok(_) => Ok(()),
        Err(Error::Invalid(text)) => Err(Error::Invalid(in_dockers_words(text))),
        Err(error) => Err(error),
    }
}

/// A reader that fails when something is over.
struct Until<R, F> {
    input: R,
    is_over: F,
}

impl<R: Read, F: Fn() -> bool> Read for Until<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if (self.is_over)() {
            return Err(std::io::Error::other("it has to end"));
        }
        self.input.read(buffer)
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
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::cell::Cell;

    use sha2::{Digest as _, Sha256};
    use whelk_sys::Scratch;

    use super::*;

    fn header(size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    }

    /// A large file of zeros, which takes little space while it is compressed.
    fn bomb(size: u64) -> Vec<u8> {
        let mut header = header(size);
        let mut archive = tar::Builder::new(Vec::new());
        let zeros = std::io::repeat(0).take(size);
        archive.append_data(&mut header, "bomb", zeros).unwrap();
        let archive = archive.into_inner().unwrap();
        zstd::stream::encode_all(&archive[..], 1).unwrap()
    }

    #[test]
    fn a_bomb_ends_with_the_copy() {
        const SIZE: u64 = 32 << 20;
        let scratch = Scratch::temporary("bomb").unwrap();
        let asked = Cell::new(0);
        let is_over = || {
            asked.set(asked.get() + 1);
            asked.get() > 20
        };
        let directory = fs::open(scratch.path()).unwrap().into();
        let archive = bomb(SIZE);
        let done = extract_until(
            &archive[..],
            directory,
            None,
            Extraction::default(),
            is_over,
        );
        assert!(done.is_err());
        // A file that is not complete does not stay.
        assert!(fs::list(scratch.path()).unwrap().is_empty());
        assert!(asked.get() < 100, "{}", asked.get());
    }

    #[test]
    fn links_lead_into_the_base() {
        let scratch = Scratch::temporary("base").unwrap();
        let path = |name: &str| scratch.path().join(name);
        for directory in ["srv/app", "opt/5", "srv/next"] {
            fs::create_dir_all(path(directory), 0o755).unwrap();
        }
        for (link, target) in [
            ("srv/app/absolute", "/opt/5"),
            ("srv/app/up", "../next"),
            ("srv/app/far", "../../../../opt/5"),
            ("srv/app/within", "made"),
        ] {
            rustix::fs::symlink(target, path(link)).unwrap();
        }
        let mut archive = tar::Builder::new(Vec::new());
        for name in ["absolute/a", "up/b", "far/c", "within/d", "plain/e"] {
            let mut header = header(0);
            archive.append_data(&mut header, name, &b""[..]).unwrap();
        }
        for (link, target, file) in [
            ("own", "/opt/5", "own/g"),
            ("own-up", "../../opt/5", "own-up/h"),
        ] {
            let mut linked = header(0);
            linked.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut linked, link, target).unwrap();
            archive.append_data(&mut header(0), file, &b""[..]).unwrap();
        }
        let archive = archive.into_inner().unwrap();
        let root: OwnedFd = fs::open(scratch.path()).unwrap().into();
        let base = Base {
            root: &root,
            path: Path::new("/srv/app"),
        };
        let directory = fs::open(path("srv/app")).unwrap().into();
        let rules = Extraction::default();
        extract_until(&archive[..], directory, Some(base), rules, || false).unwrap();
        for made in [
            "opt/5/a",
            "srv/next/b",
            "opt/5/c",
            "srv/app/made/d",
            "srv/app/plain/e",
        ] {
            assert!(fs::exists(path(made)), "{made}");
        }
        // Links of the archive do not lead out of the directory.
        for made in ["srv/app/opt/5/g", "srv/app/opt/5/h"] {
            assert!(fs::exists(path(made)), "{made}");
        }
        assert!(!fs::exists(path("opt/5/g")) && !fs::exists(path("opt/5/h")));
    }

    #[test]
    fn only_large_files_that_were_replaced_are_handed_over() {
        const SIZE: u64 = 5 << 20;
        let scratch = Scratch::temporary("replaced").unwrap();
        let path = |name: &str| scratch.path().join(name);
        for name in ["large", "linked"] {
            fs::write(path(name), vec![0; 5 << 20]).unwrap();
        }
        fs::write(path("small"), "old").unwrap();
        std::fs::hard_link(path("linked"), path("other")).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        for name in ["large", "linked", "small", "new"] {
            let content = std::io::repeat(1).take(SIZE);
            archive
                .append_data(&mut header(SIZE), name, content)
                .unwrap();
        }
        let archive = archive.into_inner().unwrap();
        let replaced = std::cell::RefCell::new(Vec::new());
        let keep = |file| replaced.borrow_mut().push(file);
        let rules = Extraction {
            replaced: Some(Replaced(&keep)),
            ..Extraction::default()
        };
        let directory = fs::open(scratch.path()).unwrap().into();
        extract(&archive[..], directory, rules).unwrap();
        let replaced = replaced.into_inner();
        assert_eq!(replaced.len(), 1);
        let old = rustix::fs::fstat(&replaced[0]).unwrap();
        assert_eq!((old.st_nlink, old.st_size), (0, 5 << 20));
        for name in ["large", "linked", "small", "new"] {
            assert_eq!(fs::read(path(name)).unwrap(), vec![1; 5 << 20], "{name}");
        }
    }

    #[test]
    fn the_digests_of_created_files_are_told() {
        let scratch = Scratch::temporary("digests").unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        // Larger than the buffer that files are copied through.
        let large = vec![7; 300 << 10];
        for (name, content) in [("one", &b"first"[..]), ("two", &large), ("one", b"second")] {
            let mut header = header(content.len() as u64);
            archive.append_data(&mut header, name, content).unwrap();
        }
        let attribute = ("SCHILY.xattr.user.a", &b"b"[..]);
        archive.append_pax_extensions([attribute]).unwrap();
        for name in ["attributed", "after"] {
            archive.append_data(&mut header(0), name, &b""[..]).unwrap();
        }
        let archive = archive.into_inner().unwrap();
        let created = std::cell::RefCell::new(std::collections::HashMap::new());
        let keep = |inode, digest| {
            created.borrow_mut().insert(inode, digest);
        };
        let rules = Extraction {
            created: Some(Created(&keep)),
            ..Extraction::default()
        };
        let directory = fs::open(scratch.path()).unwrap().into();
        extract(&archive[..], directory, rules).unwrap();
        let told = |name: &str| {
            let stat = rustix::fs::stat(scratch.path().join(name)).unwrap();
            created.borrow()[&stat.st_ino]
        };
        let digest = |bytes: &[u8]| Some(Sha256::digest(bytes).into());
        assert_eq!(told("one"), digest(b"second"));
        assert_eq!(told("two"), digest(&large));
        // Behind a directory with a default ACL, every file could have one.
        assert_eq!((told("attributed"), told("after")), (None, None));
    }

    #[test]
    fn a_file_that_does_not_fit_leaves_the_old_one() {
        let scratch = Scratch::temporary("full").unwrap();
        fs::write(scratch.path().join("file"), "old").unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        for name in ["file", "new"] {
            let mut header = header(3000);
            archive
                .append_data(&mut header, name, &[b'x'; 3000][..])
                .unwrap();
        }
        let archive = archive.into_inner().unwrap();
        for (cut, left) in [(2000, 1), (512 + 3072 + 2000, 1)] {
            let directory = fs::open(scratch.path()).unwrap().into();
            let cut = &archive[..cut];
            extract(cut, directory, Extraction::default()).unwrap_err();
            assert_eq!(fs::list(scratch.path()).unwrap().len(), left);
            if cut.len() < 3000 {
                assert_eq!(fs::read(scratch.path().join("file")).unwrap(), b"old");
            }
        }
        assert_eq!(fs::read(scratch.path().join("file")).unwrap().len(), 3000);
    }

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
