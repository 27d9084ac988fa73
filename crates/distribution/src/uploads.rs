//! Uploads of blobs, in one or more requests.
//!
//! The received bytes of an upload are in its file, without gaps; the file's length is the upload's
//! state. After a restart of the server the file is hashed again when the upload is continued. It is not
//! flushed before the blob is complete: after a power failure the client continues at the file's end,
//! and the digest of the complete blob is verified.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;
use whelk_image::digest::Hashing;
use whelk_image::{Algorithm, Digest};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::error::{Kind, Result};
use crate::names::{self, RepositoryName};
use crate::records::{Links, Registry, create_directories};

/// How long a request waits for another one that writes the same upload: one whose client has been
/// cut off ends when that is noticed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum number of uploads whose file is kept open between requests.
const MAX_OPEN: usize = 128;

type Slot = Arc<tokio::sync::Mutex<Option<Hashing<File>>>>;

/// The files of uploads that requests have written. One request at a time writes an upload.
#[derive(Debug, Default)]
pub(crate) struct Uploads(Mutex<HashMap<PathBuf, Slot>>);

impl Uploads {
    fn slot(&self, path: &Path) -> Slot {
        let mut slots = self.0.lock().ignore_poison();
        if slots.len() >= MAX_OPEN {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(path.to_owned()).or_default().clone()
    }

    fn forget(&self, path: &Path) {
        self.0.lock().ignore_poison().remove(path);
    }
}

/// An upload that belongs to one request.
#[derive(Debug)]
pub(crate) struct Upload {
    registry: Arc<Registry>,
    repository: RepositoryName,
    path: PathBuf,
    /// What has arrived is hashed with it.
    algorithm: Algorithm,
    slot: OwnedMutexGuard<Option<Hashing<File>>>,
}

impl Registry {
    fn upload_path(&self, repository: &RepositoryName, id: &str) -> PathBuf {
        self.directory(repository, Links::Uploads).join(id)
    }

    /// Begins an upload and returns its identifier.
    pub(crate) fn begin_upload(&self, repository: &RepositoryName) -> Result<String> {
        let id = names::random();
        create_directories(&self.directory(repository, Links::Uploads))?;
        fs::create(self.upload_path(repository, &id), 0o600)?;
        Ok(id)
    }

    /// Returns the number of bytes that have arrived.
    pub(crate) fn uploaded(&self, repository: &RepositoryName, id: &str) -> Result<u64> {
        match fs::metadata(self.upload_path(repository, id)) {
            Err(error) if error.is_not_found() => Err(names::unknown_upload()),
            metadata => Ok(metadata?.len()),
        }
    }
}

impl Upload {
    /// Waits until no other request writes the upload, whose digest will be of this algorithm, as far as
    /// is known.
    ///
    /// # Errors
    /// Returns [`Kind::UploadBusy`] after [`PATIENCE`].
    pub(crate) async fn claim(
        registry: &Arc<Registry>,
        repository: RepositoryName,
        id: &str,
        algorithm: Algorithm,
    ) -> Result<Self> {
        let path = registry.upload_path(&repository, id);
        let lock = registry.uploads.slot(&path).lock_owned();
        let slot = tokio::time::timeout(PATIENCE, lock).await;
        let slot =
            slot.map_err(|_| Kind::UploadBusy.error("another request writes this upload"))?;
        Ok(Self {
            registry: registry.clone(),
            repository,
            path,
            algorithm,
            slot,
        })
    }

    /// Opens the file, unless it is open and hashed with the right algorithm, and returns its length.
    ///
    /// # Errors
    /// Returns [`Kind::UploadUnknown`] if it does not exist.
    pub(crate) fn open(&mut self) -> Result<u64> {
        if !fs::exists(&self.path) {
            self.registry.uploads.forget(&self.path);
            return Err(names::unknown_upload());
        }
        if let Some(output) = &*self.slot
            && output.algorithm() == self.algorithm
        {
            return Ok(output.count());
        }
        let mut output = Hashing::with(self.algorithm, fs::append(&self.path, 0o600)?);
        let mut buffer = vec![0; 256 << 10];
        // Reading hashes too. The file is opened to append, so it does not matter where reading ends.
        while output
            .read(&mut buffer)
            .map_err(fs::at("read", &self.path))?
            > 0
        {}
        Ok(self.slot.insert(output).count())
    }

    pub(crate) fn append(&mut self, pieces: &[Bytes]) -> Result<()> {
        self.open()?;
        let Some(output) = &mut *self.slot else {
            return Err(names::unknown_upload());
        };
        let written = pieces.iter().try_for_each(|piece| output.write_all(piece));
        if written.is_err() {
            // A part may have been written without being hashed.
            *self.slot = None;
        }
        Ok(written.map_err(fs::at("write", &self.path))?)
    }

    /// Makes the upload a blob of its repository. What is not the blob is removed.
    ///
    /// # Errors
    /// Returns [`Kind::DigestInvalid`] if the digest of what has arrived is another one.
    pub(crate) fn finish(mut self, digest: &Digest) -> Result<()> {
        self.algorithm = digest.algorithm();
        self.open()?;
        let Some(output) = self.slot.take() else {
            return Err(names::unknown_upload());
        };
        let (actual, _, file) = output.finish();
        if actual != *digest {
            self.cancel()?;
            let text = format!("the content has the digest {actual}, not {digest}");
            return Err(Kind::DigestInvalid.error(text));
        }
        // After an error nothing of it can be used: the kernel reports an error of writing back once,
        // and the next fsync(2) would succeed without the data being on disk.
        if let Err(error) = file.sync_data() {
            fs::remove_if_exists(&self.path)?;
            return Err(fs::at("sync", &self.path)(error).into());
        }
        let registry = &self.registry;
        let lease = registry.store.leases.take();
        lease.hold(digest);
        fs::rename(&self.path, registry.store.content.path(digest))?;
        registry.uploads.forget(&self.path);
        registry.sync_blob(digest)?;
        registry.link_blob(&self.repository, digest)
    }

    /// Removes the upload.
    ///
    /// # Errors
    /// Returns [`Kind::UploadUnknown`] if it does not exist.
    pub(crate) fn cancel(mut self) -> Result<()> {
        *self.slot = None;
        self.registry.uploads.forget(&self.path);
        match fs::remove_file(&self.path) {
            Err(error) if error.is_not_found() => Err(names::unknown_upload()),
            removed => Ok(removed?),
        }
    }
}
