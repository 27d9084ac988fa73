//! Files that are written as their bytes come. No thread waits for the bytes: who sends them may take any time.

use std::fs::File;
use std::io::Write as _;

use bytes::Bytes;
use whelk_image::Digest;
use whelk_image::digest::{Algorithm, Hashing};

use crate::blocking;
use crate::error::{Error, Result, os};

/// Number of bytes that are written together.
const TOGETHER: usize = 1 << 20;

/// A file that is being written.
pub(crate) struct Spool {
    /// `None` after an error.
    output: Option<Hashing<File>>,
    /// What the file is, for errors.
    name: String,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    size: u64,
}

impl Spool {
    pub fn new(file: File, algorithm: Algorithm, name: impl Into<String>) -> Self {
        Self {
            output: Some(Hashing::with(algorithm, file)),
            name: name.into(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            size: 0,
        }
    }

    /// The number of bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds bytes.
    pub async fn add(&mut self, piece: Bytes) -> Result<()> {
        self.size += piece.len() as u64;
        self.waiting_bytes += piece.len();
        self.waiting.push(piece);
        match self.waiting_bytes >= TOGETHER {
            true => self.write().await,
            false => Ok(()),
        }
    }

    /// Writes the rest, and returns the digest and the file.
    pub async fn finish(mut self) -> Result<(Digest, File)> {
        self.write().await?;
        let output = self.output.take().ok_or_else(|| self.failed_before())?;
        let (digest, _, file) = output.finish();
        Ok((digest, file))
    }

    async fn write(&mut self) -> Result<()> {
        let mut output = self.output.take().ok_or_else(|| self.failed_before())?;
        let (pieces, name) = (std::mem::take(&mut self.waiting), self.name.clone());
        self.waiting_bytes = 0;
        let written = blocking(move || {
            for piece in &pieces {
                let written = output.write_all(piece);
                written.map_err(os::<std::io::Error>(format!("write {name}")))?;
            }
            Ok(output)
        });
        self.output = Some(written.await?);
        Ok(())
    }

    fn failed_before(&self) -> Error {
        Error::internal(format!("{} could not be written", self.name))
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::time::Duration;

    use whelk_sys::{Scratch, fs};

    use super::*;

    #[tokio::test]
    async fn bytes_are_written_and_hashed() {
        let scratch = Scratch::temporary("spool").unwrap();
        let path = scratch.path().join("file");
        let file = fs::create(&path, 0o600).unwrap();
        let mut spool = Spool::new(file, Algorithm::Sha256, "file");
        let mut all = Vec::new();
        for number in 0..5_u8 {
            let piece = vec![number; TOGETHER / 2];
            all.extend_from_slice(&piece);
            spool.add(piece.into()).await.unwrap();
        }
        assert_eq!(spool.size(), all.len() as u64);
        let (digest, _) = spool.finish().await.unwrap();
        assert_eq!(digest, Digest::of(&all));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), all.len() as u64);
    }

    /// Files whose bytes do not come do not keep a thread from others.
    #[test]
    fn files_that_stall_need_no_threads() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let scratch = Scratch::temporary("spool").unwrap();
            let mut stalled = Vec::new();
            for number in 0..8 {
                let file = fs::create(scratch.path().join(number.to_string()), 0o600).unwrap();
                let mut spool = Spool::new(file, Algorithm::Sha256, "file");
                spool.add(vec![0; TOGETHER].into()).await.unwrap();
                stalled.push(spool);
            }
            let other = tokio::time::timeout(Duration::from_secs(60), blocking(|| Ok(1)));
            assert_eq!(other.await.unwrap().unwrap(), 1);
        });
    }
}
