//! Verifies layers on disk.

use std::path::PathBuf;

use whelk_sys::fs;

use super::{Snapshots, tar_split, unchanged};
use crate::digest::{Digest, Hashing};
use crate::error::Result;

impl Snapshots {
    /// Returns what a layer lacks, as a predicate for an error text. Its content is not read.
    pub fn lack(&self, diff_id: &Digest) -> Option<&'static str> {
        if !self.has(diff_id) {
            Some("is missing")
        } else if !fs::exists(self.files(diff_id)) {
            Some("has lost its files")
        } else if !fs::exists(tar_split::path(&self.path(diff_id))) {
            Some("has lost the index of its archive")
        } else if self.size(diff_id).is_err() {
            Some("has lost its size")
        } else {
            None
        }
    }

    /// Compares a layer with its digest, for which its archive is generated from its files. Reads all of
    /// them.
    ///
    /// # Errors
    /// Returns an error if the layer was changed on disk, or cannot be read.
    pub fn verify(&self, diff_id: &Digest) -> Result<()> {
        let mut hashing = Hashing::new(std::io::sink());
        self.replay(diff_id, &mut hashing)?;
        let (digest, ..) = hashing.finish();
        unchanged(diff_id, &digest)
    }

    /// Moves a damaged layer to `lost+found`, so that it is missing: the next pull or load of an image with
    /// it adds it again. Returns its path there.
    ///
    /// # Errors
    /// Returns an error if it cannot be moved.
    pub fn set_aside(&self, diff_id: &Digest) -> Result<PathBuf> {
        let path = self.path(diff_id);
        let place = self.staging.set_aside(&path)?;
        self.mounts.forget(&path);
        Ok(place)
    }
}
