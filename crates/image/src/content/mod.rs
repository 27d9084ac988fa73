//! Blobs by digest.
//!
//! ```text
//! <root>/blobs/sha256/<digits>     image configurations, by digest
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};

use whelk_sys::fs;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::staging::Staging;

/// Maximum size of an image configuration in bytes.
pub const MAX_CONFIG_SIZE: u64 = 8 << 20;

/// The blobs of a store.
#[derive(Clone, Debug)]
pub struct Content {
    directory: PathBuf,
    staging: Staging,
}

impl Content {
    pub(crate) fn open(root: &Path, staging: Staging) -> Result<Self> {
        let directory = root.join("blobs/sha256");
        fs::create_dir_all(&directory, 0o700)?;
        Ok(Self { directory, staging })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    /// Stores a blob durably and returns its digest.
    pub fn put(&self, content: &[u8]) -> Result<Digest> {
        let digest = Digest::of(content);
        let path = self.path(&digest);
        if !fs::exists(&path) {
            let staged = self.staging.path();
            let mut file = fs::create(&staged, 0o600)?;
            file.write_all(content)
                .and_then(|()| file.sync_data())
                .map_err(fs::at("write", &staged))?;
            fs::rename(&staged, &path)?;
        }
        Ok(digest)
    }

    /// Reads a small blob: a configuration, a manifest or an index.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if it does not exist, and [`Error::Invalid`] if its content does
    /// not match its digest.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let content = match fs::read_at_most(self.path(digest), MAX_CONFIG_SIZE) {
            Err(error) if error.is_not_found() => {
                return Err(Error::NotFound(format!(
                    "blob {digest} is not in the store"
                )));
            }
            result => result?,
        };
        if Digest::of(&content) == *digest {
            Ok(content)
        } else {
            Err(Error::invalid(format!("blob {digest} is damaged")))
        }
    }

    /// Returns the digests of all blobs.
    pub fn list(&self) -> Result<Vec<Digest>> {
        let entries = fs::list(&self.directory)?;
        Ok(entries
            .iter()
            .filter_map(|entry| {
                format!("sha256:{}", entry.file_name().to_str()?)
                    .parse()
                    .ok()
            })
            .collect())
    }
}
