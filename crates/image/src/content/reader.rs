//! Reads a blob.

use std::fs::File;
use std::io::{self, Read};

use whelk_sys::fs;

use super::{Content, damaged, missing};
use crate::digest::{Digest, Hashing};
use crate::error::Result;

/// Reads a blob from its beginning. The read that reaches the end fails with `InvalidData` if the
/// content does not match the blob's digest.
#[derive(Debug)]
pub struct Reader {
    digest: Digest,
    size: u64,
    /// `None` once the content was verified.
    input: Option<Hashing<File>>,
}

impl Content {
    /// Opens a blob for reading.
    ///
    /// # Errors
    /// Returns [`crate::Error::NotFound`] if it does not exist.
    pub fn reader(&self, digest: &Digest) -> Result<Reader> {
        let path = self.path(digest);
        let file = fs::open(&path).map_err(|error| missing(error, digest))?;
        let size = file.metadata().map_err(fs::at("stat", &path))?.len();
        Ok(Reader {
            digest: digest.clone(),
            size,
            input: Some(Hashing::with(digest.algorithm(), file)),
        })
    }
}

impl Reader {
    /// Returns the blob's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(input) = self.input.as_mut().filter(|_| !buffer.is_empty()) else {
            return Ok(0);
        };
        let count = input.read(buffer)?;
        if count == 0
            && let Some(input) = self.input.take()
            && input.finish().0 != self.digest
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                damaged(&self.digest),
            ));
        }
        Ok(count)
    }
}
