//! Bytes that are sent in pieces of the same size.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};

/// Collects what is written, and sends it in pieces. Nothing may be missing when it is dropped: it is flushed before.
#[derive(Debug)]
pub(crate) struct Pieces<S> {
    send: S,
    /// In bytes.
    size: usize,
    buffer: BytesMut,
}

impl<S: FnMut(Bytes) -> io::Result<()>> Pieces<S> {
    pub fn new(size: usize, send: S) -> Self {
        Self {
            send,
            size,
            buffer: BytesMut::with_capacity(size),
        }
    }
}

impl<S: FnMut(Bytes) -> io::Result<()>> Write for Pieces<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.size - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == self.size {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.buffer.reserve(self.size);
        (self.send)(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_one_size() -> io::Result<()> {
        let mut sent = Vec::new();
        let mut pieces = Pieces::new(4, |piece: Bytes| {
            sent.push(piece);
            Ok(())
        });
        for part in ["a", "bcdef", "", "ghi", "j"] {
            pieces.write_all(part.as_bytes())?;
        }
        pieces.flush()?;
        pieces.flush()?;
        assert_eq!(sent, ["abcd", "efgh", "ij"]);
        Ok(())
    }
}
