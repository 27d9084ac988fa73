//! Reads a blob while it is received.

use std::fs::File;
use std::io::{self, Read, Take, Write};

use whelk_sys::fs;

use super::Writer;
use crate::error::Result;

/// Reads a blob from its beginning: what earlier writers have received, and then the rest, which is
/// stored as it comes in. Dropped, or after an error of the input, it leaves what was received to
/// the next writer.
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
    /// Returns whether the input has failed, which says nothing about the blob.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Reads the rest, verifies the blob and drops its content, which the store does not keep.
    ///
    /// # Errors
    /// Returns [`crate::Error::Invalid`] if the content is not what the digest says, in which case
    /// nothing of it remains; an error of the input leaves it to the next writer.
    pub fn finish(mut self) -> Result<()> {
        io::copy(&mut self, &mut io::sink()).map_err(crate::error::io("read blob"))?;
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
        self.writer.write_all(&buffer[..count])?;
        Ok(count)
    }
}
