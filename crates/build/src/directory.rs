//! Directories of clients: build contexts.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Weak};

use rustix::fs::{Mode, OFlags, Stat};
use whelk_image::Store;
use whelk_image::snapshots::{Created, Extraction, Owner, extract};
use whelk_llb::Digest;
use whelk_llb::key::Selector;
use whelk_sys::in_root;

use crate::error::{Error, Result, os};
use crate::layers::Workspace;
use crate::padding::Padded;

/// Maximum size of a Dockerfile or an ignore file in bytes.
const MAX_TEXT: usize = 1 << 20;

/// The files that a client has sent. They are removed when nobody has them any more.
#[derive(Clone, Debug)]
pub struct Directory {
    workspace: Arc<Workspace>,
    /// Different for each directory, and for each content that one has had.
    identity: String,
    index: Option<Arc<dyn Index>>,
}

/// A directory that exists as long as others have it.
#[derive(Clone, Debug)]
pub struct WeakDirectory {
    workspace: Weak<Workspace>,
    identity: String,
    index: Option<Weak<dyn Index>>,
}

impl WeakDirectory {
    /// Returns the directory; `None` if nobody has it any more.
    pub fn upgrade(&self) -> Option<Directory> {
        Some(Directory {
            workspace: self.workspace.upgrade()?,
            identity: self.identity.clone(),
            // Those that use only the files do not have it. Without it, they are read again.
            index: self.index.as_ref().and_then(Weak::upgrade),
        })
    }
}

/// What is known of the regular files of a directory, so that they need not be read again.
pub trait Index: std::fmt::Debug + Send + Sync {
    /// Returns the content of a file, by its path below the directory or by its inode; `None` if it is not known.
    fn content(&self, path: &str, stat: &Stat) -> Option<Content<'_>>;

    /// Returns the digest of what was selected before; `None` if it is not known.
    fn selected(&self, _selectors: &[Selector]) -> Option<Digest> {
        None
    }

    /// Keeps the digest of what is selected, for [`Index::selected`].
    fn keep_selected(&self, _selectors: &[Selector], _digest: Digest) {}
}

/// The content of a regular file.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// SHA-256 of the bytes.
    pub digest: [u8; 32],
    pub xattrs: &'a BTreeMap<String, Vec<u8>>,
}

/// The digests of files that were unpacked, by inode: other names of a file have its content, too.
#[derive(Debug, Default)]
struct Unpacked {
    digests: HashMap<u64, [u8; 32]>,
    /// Files with attributes are not in the index.
    no_xattrs: BTreeMap<String, Vec<u8>>,
}

impl Unpacked {
    /// Maximum number of files: the index is in memory, in about 50 bytes for each. Others are read when they are selected.
    const MAX: usize = 100_000;

    /// Notes a file that was created. Its inode may be that of one which was removed.
    fn note(&mut self, inode: u64, digest: Option<[u8; 32]>) {
        match digest {
            Some(digest) if self.digests.len() < Self::MAX => {
                self.digests.insert(inode, digest);
            }
            _ => {
                self.digests.remove(&inode);
            }
        }
    }
}

impl Index for Unpacked {
    fn content(&self, _: &str, stat: &Stat) -> Option<Content<'_>> {
        let digest = *self.digests.get(&stat.st_ino)?;
        let xattrs = &self.no_xattrs;
        Some(Content { digest, xattrs })
    }
}

impl Directory {
    /// Makes an empty directory, to be filled below [`Directory::open`]. Blocking.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub fn create(store: &Store) -> Result<Self> {
        let workspace = Workspace::create(store)?;
        let identity = workspace.path().display().to_string();
        Ok(Self {
            workspace,
            identity,
            index: None,
        })
    }

    /// Returns one whose files are at `place/fs`, and belong to the caller: they stay as they are, and as `index` says,
    /// as long as `holder` exists.
    pub fn kept(place: &Path, holder: Arc<dyn Any + Send + Sync>, index: Arc<dyn Index>) -> Self {
        let now = whelk_engine::events::now();
        Self {
            workspace: Workspace::kept(place, holder),
            identity: format!("{} {now}", place.display()),
            index: Some(index),
        }
    }

    /// Returns the directory whose files are in a workspace.
    pub(crate) fn of(workspace: Arc<Workspace>) -> Self {
        let identity = workspace.path().display().to_string();
        Self {
            workspace,
            identity,
            index: None,
        }
    }

    /// As [`Directory::kept`], of files that are known by their content.
    pub(crate) fn fetched(place: &Path, holder: Arc<dyn Any + Send + Sync>, content: &str) -> Self {
        Self {
            workspace: Workspace::kept(place, holder),
            identity: content.to_owned(),
            index: None,
        }
    }

    pub(crate) fn identity(&self) -> String {
        self.identity.clone()
    }

    pub fn downgrade(&self) -> WeakDirectory {
        WeakDirectory {
            workspace: Arc::downgrade(&self.workspace),
            identity: self.identity.clone(),
            index: self.index.as_ref().map(Arc::downgrade),
        }
    }

    /// Unpacks a plain or compressed archive. All files belong to root, as in every client's context. Blocking.
    ///
    /// # Errors
    /// Returns an error for an invalid archive, or if the disk fails.
    pub fn unpack(store: &Store, archive: impl Read + Send) -> Result<Self> {
        let mut directory = Self::create(store)?;
        let unpacked = RefCell::new(Unpacked::default());
        let note = |inode, digest| unpacked.borrow_mut().note(inode, digest);
        let rules = Extraction {
            shown: "/",
            owner: Owner::Fixed(0, 0),
            created: Some(Created(&note)),
            ..Extraction::default()
        };
        let plain = whelk_image::compression::decompress(archive)?;
        let extracted = extract(Padded::new(plain), directory.open()?, rules);
        let extracted = extracted.map_err(|error| name_cut("the context", error));
        extracted.map_err(|error| match &error {
            // Only the target of a hard link can be missing: directories are created.
            whelk_image::Error::Io { source, .. }
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Error::invalid(error.to_string())
            }
            _ => error.into(),
        })?;
        directory.index = Some(Arc::new(unpacked.into_inner()));
        Ok(directory)
    }

    pub(crate) fn index(&self) -> Option<&dyn Index> {
        self.index.as_deref()
    }

    pub(crate) fn workspace(&self) -> Arc<Workspace> {
        self.workspace.clone()
    }

    /// Opens the topmost directory.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub fn open(&self) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(self.workspace.upper(), flags, Mode::empty())
            .map_err(os("open the context"))
    }

    /// Returns the names in the topmost directory. Blocking.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let entries = whelk_sys::fs::list(self.workspace.upper())?;
        let names = entries.iter().map(std::fs::DirEntry::file_name);
        Ok(names
            .map(|name| name.to_string_lossy().into_owned())
            .collect())
    }

    /// Opens a file in the topmost directory.
    pub(crate) fn open_file(&self, name: &str) -> Result<std::fs::File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.open()?, name, flags, Mode::empty());
        Ok(file.map_err(os(format!("open {name}")))?.into())
    }

    /// Reads a text; `None` if there is no such file. Links are followed within the directory.
    ///
    /// # Errors
    /// Returns an error if it is not a file, too large, or not UTF-8.
    pub fn read(&self, path: &str) -> Result<Option<String>> {
        let found = in_root::read_regular(self.open()?, Path::new(path), MAX_TEXT);
        match found {
            Ok(bytes) => String::from_utf8(bytes)
                .map(Some)
                .map_err(|_| Error::invalid(format!("{path} is not UTF-8"))),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::invalid(format!("read {path}: {error}"))),
        }
    }

    /// Removes what an ignore file excludes. Blocking.
    ///
    /// # Errors
    /// Returns an error for a malformed pattern, or if the disk fails.
    pub fn ignore(&self, patterns: &[String]) -> Result<()> {
        crate::tree::remove_excluded(&self.open()?, patterns)
    }
}

/// Adds the name of an archive, and what is wrong, to the words that Docker has for one that is cut off.
pub(crate) fn name_cut(name: &str, error: whelk_image::Error) -> whelk_image::Error {
    match error {
        whelk_image::Error::Invalid(text) if text == "unexpected EOF" => {
            whelk_image::Error::Invalid(format!("unpack {name}: {text}: the archive is cut off"))
        }
        other => other,
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use tar::EntryType;

    use super::*;

    fn add(archive: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, content: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(0);
        if kind == EntryType::Regular {
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, name, content.as_bytes())
        } else {
            archive.append_link(&mut header, name, content)
        }
        .unwrap();
    }

    #[test]
    fn a_directory_exists_as_long_as_anybody_has_its_files() {
        let root = whelk_sys::Scratch::temporary("weak").unwrap();
        let store = Store::open(root.path()).unwrap();
        // An archive without entries.
        let directory = Directory::unpack(&store, &[0_u8; 1024][..]).unwrap();
        let weak = directory.downgrade();
        let same = weak.upgrade().unwrap();
        assert!(same.index().is_some());
        assert_eq!(same.identity(), directory.identity());
        let workspace = directory.workspace();
        drop((same, directory));
        assert!(weak.upgrade().unwrap().index().is_none());
        drop(workspace);
        assert!(weak.upgrade().is_none());
    }

    #[test]
    fn contexts_that_are_cut_off_are_told_so() {
        let root = whelk_sys::Scratch::temporary("cut").unwrap();
        let store = Store::open(root.path()).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        add(&mut archive, EntryType::Regular, "x", &"x".repeat(5000));
        let archive = archive.into_inner().unwrap();
        let error = Directory::unpack(&store, &archive[..3000]).err().unwrap();
        assert_eq!(
            error.to_string(),
            "unpack the context: unexpected EOF: the archive is cut off"
        );
    }

    #[test]
    fn unpacked_files_are_known_by_what_they_are_at_the_end() {
        let root = whelk_sys::Scratch::temporary("unpacked").unwrap();
        let store = Store::open(root.path()).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        for (kind, name, content) in [
            (EntryType::Regular, "d/replaced", "old"),
            (EntryType::Regular, "d/link", "first"),
            (EntryType::Regular, "d/replaced", "new"),
            // The inode of the first one can be taken again.
            (EntryType::Regular, "d/next", "other"),
            (EntryType::Link, "d/link", "d/next"),
            (EntryType::Symlink, "d/symbolic", "next"),
        ] {
            add(&mut archive, kind, name, content);
        }
        let attribute = ("SCHILY.xattr.user.a", &b"b"[..]);
        archive.append_pax_extensions([attribute]).unwrap();
        add(&mut archive, EntryType::Regular, "d/attributed", "text");
        add(&mut archive, EntryType::Regular, "d/after", "text");
        let archive = archive.into_inner().unwrap();
        let directory = Directory::unpack(&store, &archive[..]).unwrap();
        let opened = directory.open().unwrap();
        let index = directory.index().unwrap();
        for path in ["/", "d/replaced", "d/link", "d/next", "d/attributed", "d/*"] {
            let selector = [Selector {
                path: path.into(),
                wildcard: true,
                ..Selector::default()
            }];
            let of = |index| crate::select::digest(&opened, &selector, index).unwrap();
            assert_eq!(of(Some(index)), of(None), "{path}");
        }
        // What is in the index is not read.
        let path = directory.workspace.upper().join("d/next");
        let stat = rustix::fs::stat(&path).unwrap();
        let content = index.content("d/link", &stat).unwrap();
        assert_eq!(content.digest, *Digest::of(b"other").as_bytes());
        let stat = rustix::fs::stat(path.with_file_name("after")).unwrap();
        assert!(index.content("d/after", &stat).is_none());
    }
}
