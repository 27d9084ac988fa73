//! Directories that were received.
//!
//! ```text
//! PLACE/fs         the files
//! PLACE/incoming   files whose content is not complete
//! PLACE/index      what is in fs, while nothing is received
//! PLACE/summary    of which boot that is, and the size of the files: an index may be large
//! ```
//! The index is removed before the first change, and written when a transfer is complete: without it, what is in `fs` is
//! not known, and the directory is of no use. It is not flushed to disk, so one of an earlier boot does not count.
//!
//! A file is never changed: another one is renamed to its place.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use prost::Message;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use whelk_sys::{fs, in_root};

use super::attributes::{open_directory, set_attributes};
use super::{Chosen, Entry, Error, Kind, Result};
use crate::pb::files::Stat;

/// Maximum size of an index in bytes.
const MAX_INDEX: u64 = 2 << 30;
const MAX_SUMMARY: u64 = 4 << 10;

/// A directory that was received, or is about to be.
#[derive(Debug)]
pub struct Directory {
    pub(super) place: PathBuf,
    /// Opened with `O_PATH`.
    pub(super) root: OwnedFd,
    pub(super) incoming: OwnedFd,
    pub(super) entries: BTreeMap<String, Entry>,
    /// SHA-256 of the content of each regular file.
    pub(super) digests: HashMap<String, [u8; 32]>,
    /// Of which files the content is received, if not of all.
    pub(super) chosen: Option<Chosen>,
}

/// What is known of a directory without its index.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(string, tag = "1")]
    boot: String,
    #[prost(uint64, tag = "2")]
    size: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Index {
    #[prost(string, tag = "1")]
    boot: String,
    #[prost(message, repeated, tag = "2")]
    entries: Vec<Stat>,
    /// Of each entry; empty if it is no regular file.
    #[prost(bytes = "vec", repeated, tag = "3")]
    digests: Vec<Vec<u8>>,
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
        Self::new(place, BTreeMap::new(), HashMap::new())
    }

    /// Returns the size of the files of one that was received in this boot, in bytes; `None` if it is not complete.
    pub fn size_at(place: &Path, boot: &str) -> Option<u64> {
        let bytes = fs::read_at_most(place.join("summary"), MAX_SUMMARY).ok()?;
        let summary = Summary::decode(bytes.as_slice()).ok()?;
        let is_whole = summary.boot == boot && fs::exists(place.join("index"));
        is_whole.then_some(summary.size)
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
        let (mut entries, mut digests) = (BTreeMap::new(), HashMap::new());
        for (stat, digest) in index.entries.into_iter().zip(index.digests) {
            let entry = Entry::from_stat(stat)?;
            if let Ok(digest) = digest.try_into() {
                digests.insert(entry.path.clone(), digest);
            }
            entries.insert(entry.path.clone(), entry);
        }
        Self::new(place, entries, digests).map(Some)
    }

    fn new(
        place: &Path,
        entries: BTreeMap<String, Entry>,
        digests: HashMap<String, [u8; 32]>,
    ) -> Result<Self> {
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
            digests,
            chosen: None,
        })
    }

    /// Lets the next transfer receive only what is chosen, and a list of all files (`.fsutil-metadata`).
    pub fn choose(&mut self, chosen: Chosen) {
        self.chosen = Some(chosen);
    }

    /// Fills a new directory with the files of another one, which share their content with it. What could not be shared
    /// is left out.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be filled; it is of no use then.
    pub fn seed(&mut self, from: &Self) -> Result<()> {
        for (path, entry) in &from.entries {
            if entry.is_directory() {
                let (parent, name) = self.parent_of(path)?;
                let made = rustix::fs::mkdirat(parent, name, Mode::RWXU);
                made.map_err(Error::io("create", path))?;
            } else {
                let (old, _) = from.parent_of(path)?;
                let (new, name) = self.parent_of(path)?;
                let flags = AtFlags::empty();
                match rustix::fs::linkat(old, name, new, name, flags) {
                    Ok(()) => {}
                    Err(Errno::MLINK) => continue,
                    Err(error) => return Err(Error::io("create", path)(error)),
                }
            }
            self.entries.insert(path.clone(), entry.clone());
            if let Some(digest) = from.digests.get(path) {
                self.digests.insert(path.clone(), *digest);
            }
        }
        for (path, entry) in self.entries.iter().rev() {
            if entry.is_directory() {
                let opened = open_directory(&self.root, path)?;
                set_attributes(&opened, entry)?;
            }
        }
        Ok(())
    }

    /// Opens the directory that a path is in, and returns the last name.
    fn parent_of<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = in_root::open_no_links(&self.root, parent, flags);
        Ok((opened.map_err(Error::io("open", parent))?, name))
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
            digests: self.entries.keys().map(|path| self.stored(path)).collect(),
        };
        let summary = Summary {
            boot: boot.to_owned(),
            size: self.size(),
        };
        self.put("summary", &summary.encode_to_vec())
            .and_then(|()| self.put("index", &index.encode_to_vec()))
            .map_err(|error| self.index_error(&error))
    }

    /// Writes a file, which is there as a whole or not at all.
    fn put(&self, name: &str, content: &[u8]) -> fs::Result<()> {
        let written = self.place.join("incoming").join(name);
        fs::write_with_mode(&written, content, 0o600)?;
        fs::rename(&written, self.place.join(name))
    }

    fn stored(&self, path: &str) -> Vec<u8> {
        let digest = self.digests.get(path);
        digest.map_or_else(Vec::new, |digest| digest.to_vec())
    }

    /// Returns the size of all files in bytes.
    pub fn size(&self) -> u64 {
        let sizes = self.entries.values().map(|entry| entry.size);
        // They are what the sender says.
        sizes.fold(0, u64::saturating_add)
    }

    /// Returns what is known of the content of its files.
    pub fn into_contents(self) -> Contents {
        Contents {
            entries: self.entries,
            digests: self.digests,
        }
    }

    fn index_error(&self, error: &fs::PathError) -> Error {
        Error::Io {
            operation: "note the content of",
            path: self.place.display().to_string(),
            cause: std::io::Error::other(error.to_string()),
        }
    }
}

/// Extended attributes.
type Attributes = BTreeMap<String, Vec<u8>>;

/// What is known of the content of a directory's files.
#[derive(Debug)]
pub struct Contents {
    entries: BTreeMap<String, Entry>,
    digests: HashMap<String, [u8; 32]>,
}

impl Contents {
    /// Returns the SHA-256 of the content of a regular file, and its attributes. Names of the same file have the same.
    pub fn get(&self, path: &str) -> Option<([u8; 32], &Attributes)> {
        let mut entry = self.entries.get(path)?;
        if let Kind::HardLink(target) = &entry.kind {
            entry = self.entries.get(target)?;
        }
        let digest = self.digests.get(&entry.path)?;
        Some((*digest, &entry.xattrs))
    }
}

impl AsMut<Self> for Directory {
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}
