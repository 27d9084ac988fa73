//! Blobs by digest: received as streams that can be resumed, and verified when they are read.
//!
//! ```text
//! <root>/blobs/sha256/<digits>     complete blobs, by digest
//!             /sha512/<digits>
//!             /partial/<digits>    the beginning of a blob that was not received completely
//! ```
//! A blob appears under its name by a rename after its content was verified and is on disk. The
//! partial file of a blob belongs to one [`Writer`] at a time; it remains if the writer, or the
//! engine, ends before the blob is complete, and the next writer continues it.

mod reader;
mod tee;
mod writer;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::leases::Lease;
use crate::staging::{Staging, is_younger};

pub use reader::Reader;
pub use tee::Tee;
pub use writer::Writer;

/// Maximum size of an image configuration in bytes.
pub const MAX_CONFIG_SIZE: u64 = 8 << 20;

/// Age at which the content of an unfinished pull is removed: partial blobs, since their last change, and
/// complete layers.
pub const MAX_PARTIAL_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The blobs of a store.
#[derive(Clone, Debug)]
pub struct Content {
    root: PathBuf,
    partial: PathBuf,
    staging: Staging,
    /// Blobs whose partial file belongs to a writer.
    writing: Arc<Mutex<BTreeSet<Digest>>>,
}

/// What was received of a blob that is not complete.
#[derive(Clone, Debug)]
pub struct PartialBlob {
    pub digest: Digest,
    /// Number of received bytes.
    pub size: u64,
    /// When the last of them was received.
    pub changed: SystemTime,
}

impl Content {
    pub(crate) fn open(root: &Path, staging: Staging) -> Result<Self> {
        let root = root.join("blobs");
        let content = Self {
            partial: root.join("partial"),
            root,
            staging,
            writing: Arc::default(),
        };
        fs::create_dir_all(&content.partial, 0o700)?;
        for algorithm in Algorithm::ALL {
            fs::create_dir_all(content.directory(algorithm), 0o700)?;
        }
        Ok(content)
    }

    /// Returns the directory of the blobs with digests of one algorithm.
    pub fn directory(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join(algorithm.name())
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.directory(digest.algorithm()).join(digest.hex())
    }

    /// Holds a blob in `lease`, and returns whether the store has it. It can be relied on only after
    /// this call, because a blob that nothing holds can be collected at any time.
    pub fn claim(&self, lease: &Lease, digest: &Digest) -> bool {
        lease.hold(digest);
        fs::exists(self.path(digest))
    }

    /// Stores a small blob durably and returns its SHA-256 digest. One that is there, but damaged, is
    /// replaced.
    pub fn put(&self, lease: &Lease, content: &[u8]) -> Result<Digest> {
        self.put_as(lease, Algorithm::Sha256, content)
    }

    /// Like [`Content::put`], under the digest of another algorithm.
    pub fn put_as(&self, lease: &Lease, algorithm: Algorithm, content: &[u8]) -> Result<Digest> {
        let digest = algorithm.digest(content);
        let is_there = self.claim(lease, &digest)
            && fs::read_at_most(self.path(&digest), MAX_CONFIG_SIZE)
                .is_ok_and(|known| known == content);
        if !is_there {
            let staged = self.staging.path();
            let mut file = fs::create(&staged, 0o600)?;
            file.write_all(content)
                .and_then(|()| file.sync_data())
                .map_err(fs::at("write", &staged))?;
            fs::rename(&staged, self.path(&digest))?;
        }
        Ok(digest)
    }

    /// Reads a small blob: a configuration, a manifest or an index.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if it does not exist, and [`Error::Invalid`] if its content does
    /// not match its digest.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let content = fs::read_at_most(self.path(digest), MAX_CONFIG_SIZE)
            .map_err(|error| missing(error, digest))?;
        if digest.is_of(&content) {
            Ok(content)
        } else {
            Err(Error::invalid(damaged(digest)))
        }
    }

    /// Returns the digests of all blobs.
    pub fn list(&self) -> Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for algorithm in Algorithm::ALL {
            let entries = fs::list(self.directory(algorithm))?;
            let names = entries.iter().map(std::fs::DirEntry::file_name);
            let found = names.filter_map(|name| Digest::from_hex(name.to_str()?));
            digests.extend(found.filter(|digest| digest.algorithm() == algorithm));
        }
        Ok(digests)
    }

    /// Returns what was received of blobs that are not complete, also of those that are being written.
    pub fn partials(&self) -> Result<Vec<PartialBlob>> {
        let mut found = Vec::new();
        for entry in fs::list(&self.partial)? {
            let digest = entry.file_name().to_str().and_then(Digest::from_hex);
            // A file that is renamed or removed meanwhile is left out.
            let (Some(digest), Ok(metadata)) = (digest, entry.metadata()) else {
                continue;
            };
            found.push(PartialBlob {
                digest,
                size: metadata.len(),
                changed: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            });
        }
        Ok(found)
    }

    /// Moves what was received of a blob to the trash, unless it is being written. Returns its path there;
    /// `None` if nothing was moved.
    pub fn trash_partial(&self, digest: &Digest) -> Result<Option<PathBuf>> {
        // Locked, so that no writer continues the file while it is moved.
        let writing = self.writing.lock().ignore_poison();
        if writing.contains(digest) {
            return Ok(None);
        }
        self.staging.trash(&self.partial.join(digest.hex()))
    }

    /// Returns the partial blobs that [`Content::expire_partials`] would move to the trash.
    pub(crate) fn expired_partials(&self, age: Duration) -> Result<Vec<PathBuf>> {
        let writing = self.writing.lock().ignore_poison().clone();
        let entries = fs::list(&self.partial)?.into_iter();
        let expired = entries.filter(|entry| {
            let digest = entry.file_name().to_str().and_then(Digest::from_hex);
            let is_young = || {
                let metadata = entry.metadata();
                metadata.is_ok_and(|metadata| is_younger(&metadata, age))
            };
            digest.is_none_or(|digest| !writing.contains(&digest) && !is_young())
        });
        Ok(expired.map(|entry| entry.path()).collect())
    }

    /// Moves partial blobs to the trash that have no writer and were last changed `age` or longer
    /// ago. `take` gets the outcome for each.
    pub(crate) fn expire_partials(
        &self,
        age: Duration,
        mut take: impl FnMut(Result<Option<PathBuf>>),
    ) -> Result<()> {
        for entry in fs::list(&self.partial)? {
            // Locked, so that no writer continues the file while it is moved.
            let writing = self.writing.lock().ignore_poison();
            let digest = entry.file_name().to_str().and_then(Digest::from_hex);
            let is_young = entry
                .metadata()
                .is_ok_and(|metadata| is_younger(&metadata, age));
            if digest.is_none_or(|digest| !writing.contains(&digest) && !is_young) {
                take(self.staging.trash(&entry.path()));
            }
        }
        Ok(())
    }
}

fn missing(error: fs::PathError, digest: &Digest) -> Error {
    if error.is_not_found() {
        Error::NotFound(format!("blob {digest} is not in the store"))
    } else {
        error.into()
    }
}

fn damaged(digest: &Digest) -> String {
    format!("blob {digest} is damaged")
}
