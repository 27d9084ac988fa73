//! Directories that were received.
//!
//! ```text
//! PLACE/fs         the files
//! PLACE/incoming   files whose content is not complete
//! PLACE/index      what is in fs, while nothing is received
//! ```
//! The index is removed before the first change, and written when a transfer is complete: without it, what is in `fs` is
//! not known, and the directory is of no use. It is not flushed to disk, so one of an earlier boot does not count.
//!
//! A file is never changed: another one is renamed to its place.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use prost::Message;
use rustix::fs::{Mode, OFlags};
use whelk_sys::fs;

use super::{Entry, Error, Result};
use crate::pb::files::Stat;

/// Maximum size of an index in bytes.
const MAX_INDEX: u64 = 2 << 30;

/// A directory that was received, or is about to be.
#[derive(Debug)]
pub struct Directory {
    pub(super) place: PathBuf,
    /// Opened with `O_PATH`.
    pub(super) root: OwnedFd,
    pub(super) incoming: OwnedFd,
    pub(super) entries: BTreeMap<String, Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Index {
    #[prost(string, tag = "1")]
    boot: String,
    #[prost(message, repeated, tag = "2")]
    entries: Vec<Stat>,
}

impl Directory {
    /// Creates one at a place, which is an empty directory.
    ///
    /// # Errors
    /// Returns an error if it cannot be created.
    pub fn create(place: &Path) -> Result<Self> {
        let failed = |error: fs::PathError| Error::Io {
            operation: "create the directory",
            path: place.display().to_string(),
            cause: std::io::Error::other(error.to_string()),
        };
        fs::create_dir(place.join("fs"), 0o755).map_err(failed)?;
        fs::create_dir(place.join("incoming"), 0o700).map_err(failed)?;
        Self::new(place, BTreeMap::new())
    }

    /// Opens one that was received in this boot; `None` if it is not complete.
    ///
    /// # Errors
    /// Returns an error if it cannot be opened.
    pub fn open(place: &Path, boot: &str) -> Result<Option<Self>> {
        let Ok(bytes) = fs::read_at_most(place.join("index"), MAX_INDEX) else {
            return Ok(None);
        };
        let Ok(index) = Index::decode(bytes.as_slice()) else {
            return Ok(None);
        };
        if index.boot != boot {
            return Ok(None);
        }
        let entries = index.entries.into_iter().map(|stat| {
            let entry = Entry::from_stat(stat)?;
            Ok((entry.path.clone(), entry))
        });
        Self::new(place, entries.collect::<Result<_>>()?).map(Some)
    }

    fn new(place: &Path, entries: BTreeMap<String, Entry>) -> Result<Self> {
        let open = |name: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::open(place.join(name), flags, Mode::empty())
                .map_err(Error::io("open the directory", name))
        };
        Ok(Self {
            root: open("fs")?,
            incoming: open("incoming")?,
            place: place.to_owned(),
            entries,
        })
    }

    /// The path of the files.
    pub fn files(&self) -> PathBuf {
        self.place.join("fs")
    }

    /// Returns what is in it, by path.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    pub(super) fn forget(&self) -> Result<()> {
        let removed = fs::remove_if_exists(self.place.join("index"));
        removed.map(drop).map_err(|error| self.index_error(&error))
    }

    /// Writes the index. `boot` is the id of this boot.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn remember(&self, boot: &str) -> Result<()> {
        let index = Index {
            boot: boot.to_owned(),
            entries: self.entries.values().map(Entry::to_stat).collect(),
        };
        let written = self.place.join("incoming/index");
        fs::write_with_mode(&written, index.encode_to_vec(), 0o600)
            .and_then(|()| fs::rename(&written, self.place.join("index")))
            .map_err(|error| self.index_error(&error))
    }

    fn index_error(&self, error: &fs::PathError) -> Error {
        Error::Io {
            operation: "note the content of",
            path: self.place.display().to_string(),
            cause: std::io::Error::other(error.to_string()),
        }
    }
}

impl AsMut<Self> for Directory {
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}
