//! Reads a blob while it is received.

use std::fs::File;
use std::io::{self, Read, Take, Write};

use super::Writer;
use crate::error::Result;

/// Reads a blob from its beginning: the bytes that earlier writers have received, and then the rest,
/// which is stored while it is read. When this is dropped, or after an error of the input or the disk,
/// the received bytes remain for the next writer.
#[derive(Debug)]
pub struct Tee<R> {
    /// The bytes that earlier writers have received.
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
        let received = self.file()?.take(self.offset());
        Ok(Tee {
            received,
            input,
            writer: self,
            interrupted: false,
        })
    }
}

impl<R: Read> Tee<R> {
    /// Returns whether reading has failed because of the input or the disk, and not because of the
    /// blob's content.
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

    /// Verifies the blob after its end was read, and removes it, because the store does not keep it.
    ///
    /// # Errors
    /// Returns [`crate::Error::Invalid`] if the content does not match the digest. It is removed then,
    /// too.
    pub fn finish(self) -> Result<()> {
        self.writer.discard()
    }

    /// Removes the content.
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
                // `InvalidData` says that the content is longer than the blob; other errors are the disk's.
                self.interrupted = error.kind() != io::ErrorKind::InvalidData;
            })?;
        Ok(count)
    }
}
