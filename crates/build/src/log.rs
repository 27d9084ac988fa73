//! The output of steps: in files, so that what is slow or joins later gets all of it and costs no memory.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;

use tokio::sync::watch;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::error::{Error, Result};

/// How much has been written, and whether that is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Written {
    bytes: u64,
    is_closed: bool,
}

/// The output of a step while it is executed, and after that for as long as somebody has it.
///
/// A piece is a frame of Docker's: the number of the stream, three zeros, the length, and the bytes.
#[derive(Debug)]
pub struct Log {
    file: Mutex<std::fs::File>,
    reader: std::fs::File,
    written: watch::Sender<Written>,
}

impl Log {
    /// Creates a log at a path, whose file is unlinked at once.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = fs::create(path, 0o600)?;
        let reader = fs::open(path)?;
        fs::remove_file(path)?;
        Ok(Self {
            file: Mutex::new(file),
            reader,
            written: watch::Sender::new(Written::default()),
        })
    }

    /// Appends frames.
    pub(crate) fn append(&self, frames: &[u8]) -> Result<()> {
        let appended = self.file.lock().ignore_poison().write_all(frames);
        appended.map_err(|error| Error::os("write the log of a step", error))?;
        self.written
            .send_modify(|written| written.bytes += frames.len() as u64);
        Ok(())
    }

    pub(crate) fn close(&self) {
        self.written.send_modify(|written| written.is_closed = true);
    }

    /// Returns further bytes behind `offset`; none at the end.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub async fn read(&self, offset: u64) -> Result<Vec<u8>> {
        const MOST: u64 = 64 << 10;
        let mut written = self.written.subscribe();
        let available = written
            .wait_for(|written| written.bytes > offset || written.is_closed)
            .await
            .map(|written| written.bytes)
            .unwrap_or(offset);
        let length = usize::try_from((available - offset).min(MOST)).unwrap_or(0);
        let mut bytes = vec![0; length];
        // Hardly ever from the disk: it has just been written.
        self.reader
            .read_exact_at(&mut bytes, offset)
            .map_err(|error| Error::os("read the log of a step", error))?;
        Ok(bytes)
    }
}

/// Takes the frames of a log apart.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// Adds bytes, and returns the complete frames: the stream's number and the bytes of each.
    pub fn add(&mut self, bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        const HEADER: usize = 8;
        self.0.extend_from_slice(bytes);
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some([stream, _, _, _, a, b, c, d]) = self.0[at..].first_chunk::<HEADER>() {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let Some(content) = self.0[at + HEADER..].get(..length) else {
                break;
            };
            frames.push((*stream, content.to_vec()));
            at += HEADER + length;
        }
        self.0.drain(..at);
        frames
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::sync::Arc;

    use whelk_sys::Scratch;

    use super::*;

    #[tokio::test]
    async fn readers_follow_to_the_end() {
        let scratch = Scratch::temporary("step-log").unwrap();
        let log = Arc::new(Log::create(&scratch.path().join("log")).unwrap());
        log.append(b"one ").unwrap();
        let follow = tokio::spawn({
            let log = log.clone();
            async move {
                let mut all = Vec::new();
                loop {
                    let bytes = log.read(all.len() as u64).await.unwrap();
                    if bytes.is_empty() {
                        return all;
                    }
                    all.extend(bytes);
                }
            }
        });
        tokio::task::yield_now().await;
        log.append(b"two").unwrap();
        log.close();
        assert_eq!(follow.await.unwrap(), b"one two");
        assert_eq!(log.read(4).await.unwrap(), b"two");
    }

    #[test]
    fn frames_may_be_cut_anywhere() {
        let whole = [
            &whelk_shim::protocol::output_header(1, 3)[..],
            b"abc",
            &whelk_shim::protocol::output_header(2, 0),
            &whelk_shim::protocol::output_header(2, 1),
            b"d",
        ]
        .concat();
        let expected = [(1, b"abc".to_vec()), (2, vec![]), (2, b"d".to_vec())];
        for cut in 0..=whole.len() {
            let mut frames = Frames::default();
            let mut found = frames.add(&whole[..cut]);
            found.extend(frames.add(&whole[cut..]));
            assert_eq!(found, expected, "{cut}");
        }
    }
}
