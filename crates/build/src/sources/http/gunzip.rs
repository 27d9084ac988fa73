//! Decompression of a body that its server has compressed for the transfer (`Content-Encoding: gzip`).

use std::io::{Result, Write as _};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;

/// Number of bytes that are decompressed together. They become 16 MiB at most.
const TOGETHER: usize = 16 << 10;

/// A body that is decompressed as it comes.
pub(super) struct Gunzip {
    decoder: MultiGzDecoder<Vec<u8>>,
    /// What has come and is not decompressed yet.
    waiting: Bytes,
    is_empty: bool,
}

impl Gunzip {
    pub fn new() -> Self {
        Self {
            decoder: MultiGzDecoder::new(Vec::new()),
            waiting: Bytes::new(),
            is_empty: true,
        }
    }

    /// Adds what has come, after all before was taken.
    pub fn add(&mut self, piece: Bytes) {
        self.is_empty &= piece.is_empty();
        self.waiting = piece;
    }

    /// Takes the next bytes; `None` if more must come first.
    ///
    /// # Errors
    /// Returns an error if the body is no gzip.
    pub fn next(&mut self) -> Result<Option<Bytes>> {
        while !self.waiting.is_empty() {
            let part = self.waiting.split_to(TOGETHER.min(self.waiting.len()));
            self.decoder.write_all(&part)?;
            let output = std::mem::take(self.decoder.get_mut());
            if !output.is_empty() {
                return Ok(Some(output.into()));
            }
        }
        Ok(None)
    }

    /// Takes the last bytes, when the body is over.
    ///
    /// # Errors
    /// Returns an error if the gzip is not complete.
    pub fn finish(&mut self) -> Result<Bytes> {
        if !self.is_empty {
            self.decoder.try_finish()?;
        }
        Ok(std::mem::take(self.decoder.get_mut()).into())
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn gunzip(body: &[u8], size: usize) -> Result<Vec<u8>> {
        let mut gunzip = Gunzip::new();
        let mut found = Vec::new();
        for piece in body.chunks(size) {
            gunzip.add(Bytes::copy_from_slice(piece));
            while let Some(bytes) = gunzip.next()? {
                found.extend_from_slice(&bytes);
            }
        }
        found.extend_from_slice(&gunzip.finish()?);
        Ok(found)
    }

    #[test]
    fn bodies_are_decompressed_in_pieces() {
        let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let both = [gzip(&content), gzip(b"more")].concat();
        let expected = [&content[..], b"more"].concat();
        for size in [1, 1000, 1 << 20] {
            assert_eq!(gunzip(&both, size).unwrap(), expected, "{size}");
        }
        assert_eq!(gunzip(b"", 1).unwrap(), b"");
        for broken in [&both[..both.len() - 3], b"<html>no gzip", &[0x1f, 0x8b]] {
            gunzip(broken, 1000).unwrap_err();
        }
    }
}
