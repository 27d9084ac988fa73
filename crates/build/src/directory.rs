//! Directories of clients: build contexts.

use std::any::Any;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use whelk_image::Store;
use whelk_image::snapshots::{Extraction, Owner, extract};
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

/// What is known of the regular files of a directory, so that they need not be read again.
pub trait Index: std::fmt::Debug + Send + Sync {
    /// Returns the content of a file by its path below the directory; `None` if it is not known.
    fn content(&self, path: &str) -> Option<Content<'_>>;

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

    /// Unpacks a plain or compressed archive. All files belong to root, as in every client's context. Blocking.
    ///
    /// # Errors
    /// Returns an error for an invalid archive, or if the disk fails.
    pub fn unpack(store: &Store, archive: impl Read + Send) -> Result<Self> {
        let directory = Self::create(store)?;
        let rules = Extraction {
            shown: "/",
            owner: Owner::Fixed(0, 0),
            ..Extraction::default()
        };
        let plain = whelk_image::compression::decompress(archive)?;
        let extracted = extract(Padded::new(plain), directory.open()?, rules);
        extracted.map_err(|error| match &error {
            // Only the target of a hard link can be missing: directories are created.
            whelk_image::Error::Io { source, .. }
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Error::invalid(error.to_string())
            }
            _ => error.into(),
        })?;
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
