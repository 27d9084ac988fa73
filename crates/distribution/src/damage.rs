//! Content that is not what its digest says, because the disk or an administrator has changed it.
//!
//! Blobs are verified while they are sent. A damaged one is moved out of the way, so that it is missing
//! like one that was never pushed: the next push of an image sends it again, and a cache fetches it again.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use whelk_image::Digest;
use whelk_image::digest::Hashing;
use whelk_sys::fs;

use crate::error::Result;
use crate::records::{Registry, create_directories};

impl Registry {
    /// Moves a damaged blob, read from `file`, out of the way: to the directory `damaged`, or in a cache to
    /// the trash.
    pub(crate) fn set_aside(&self, digest: &Digest, file: &File) {
        let moved = self.move_aside(digest, Some(file));
        match moved {
            Ok(Some(to)) => {
                tracing::error!("blob {digest} is damaged; it is in {} now", to.display());
            }
            Ok(None) => tracing::error!("blob {digest} is damaged; it will be fetched again"),
            Err(error) => tracing::error!("blob {digest} is damaged, and cannot be moved: {error}"),
        }
    }

    /// Moves a blob out of the way: the one that was read from `file`, or without that any. Returns its new
    /// path, unless it was replaced or went to the trash.
    pub(crate) fn move_aside(
        &self,
        digest: &Digest,
        file: Option<&File>,
    ) -> Result<Option<PathBuf>> {
        let path = self.store.content.path(digest);
        let is_same = |path: &Path| {
            file.is_none_or(|file| {
                let (file, named) = (file.metadata(), fs::metadata(path));
                file.is_ok_and(|file| named.is_ok_and(|named| named.ino() == file.ino()))
            })
        };
        // The blob was pushed again meanwhile.
        if !is_same(&path) {
            return Ok(None);
        }
        if self.is_cache {
            let trashed = self.store.staging.trash(&path)?;
            self.store.staging.dispose(trashed);
            return Ok(None);
        }
        let directory = self.damaged();
        create_directories(&directory)?;
        let place = directory.join(digest.hex());
        fs::rename(&path, &place)?;
        if !is_same(&place) {
            fs::rename(&place, &path)?;
            return Ok(None);
        }
        Ok(Some(place))
    }

    /// Reads a blob, and moves it out of the way if it is damaged. Returns whether it is.
    pub(crate) fn set_aside_if_damaged(&self, digest: &Digest) -> Result<bool> {
        let file = fs::open(self.store.content.path(digest))?;
        let is_damaged = !is_intact(digest, &file)?;
        if is_damaged {
            self.set_aside(digest, &file);
        }
        Ok(is_damaged)
    }
}

/// Reads a file from its beginning, and returns whether its content has a digest.
pub(crate) fn is_intact(digest: &Digest, file: &File) -> Result<bool> {
    let mut input = Hashing::with(digest.algorithm(), file);
    io::copy(&mut input, &mut io::sink()).map_err(|source| {
        let operation = format!("read blob {digest}");
        whelk_image::Error::Io { operation, source }
    })?;
    Ok(input.finish().0 == *digest)
}
