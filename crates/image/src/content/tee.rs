//! Reads a blob while it is received.

use std::fs::File;
use std::io::{self, Read, Take, Write};

use whelk_sys::fs;

use super::Writer;
use crate::error::Result;

/// Reads a blob from its beginning: what earlier writers have received, and then the rest, which is
/// stored as it comes in. Dropped, or after an error of the input or the disk, it leaves what was
/// received to the next writer.
#[derive(Debug)]
pub struct Tee<R> {
    /// What was received before.
    received: Take<File>,
    input: R,
    writer: Writer,
    interrupted: bool,
}

impl Writer {
    /// Returns a reader of the whole blob. `input` continues what was received so far.
    ///
    /// # Errors
    /// Returns an error if the partial file cannot be opened.
    pub fn tee<R: Read>(self, input: R) -> Result<Tee<R>> {
        let received = fs::open(self.partial_path())?.take(self.offset());
        Ok(Tee {
            received,
            input,
            writer: self,
            interrupted: false,
        })
    }
}

impl<R: Read> Tee<R> {
    /// Returns whether the input has failed, or what it gave could not be stored. This says nothing
    /// about the blob.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Reads the rest.
    ///
    /// # Errors
    /// Returns an error of the input, or of the disk.
    pub fn drain(&mut self) -> Result<()> {
        let rest = io::copy(self, &mut io::sink());
        rest.map(drop).map_err(crate::error::io("read blob"))
    }

    /// Verifies the blob, which was read to its end, and drops its content, which the store does not
    /// keep.
    ///
    /// # Errors
    /// Returns [`crate::Error::Invalid`] if the content is not what the digest says, in which case
    /// nothing of it remains.
    pub fn finish(self) -> Result<()> {
        self.writer.discard()
    }

    /// Drops the content for good.
    pub fn abort(self) {
        self.writer.abort();
    }
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.received.read(buffer)?;
        if count > 0 || buffer.is_empty() {
            return Ok(count);
        }
        let count = self.input.read(buffer).inspect_err(|error| {
            self.interrupted = error.kind() != io::ErrorKind::Interrupted;
        })?;
        self.writer
            .write_all(&buffer[..count])
            .inspect_err(|error| {
                // What is longer than the blob is wrong; everything else is the disk's.
                self.interrupted = error.kind() != io::ErrorKind::InvalidData;
            })?;
        Ok(count)
    }
}
