//! The output of steps: in files, so that what is slow or joins later gets all of it and costs no memory.

use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use whelk_image::Staging;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::error::{Error, Result, os};

/// Maximum size of a step's output in bytes. What follows is dropped.
const LIMIT: u64 = 1 << 30;

/// What output leaves free on the disk, in bytes, and how often that is looked at.
const LEFT: u64 = 64 << 20;
const BETWEEN_CHECKS: u64 = 4 << 20;

/// Maximum size of output that is kept in memory, in bytes.
pub(crate) const SHORT: usize = 16 << 10;

/// Maximum size of output that is read at a time, in bytes.
const READ: usize = 64 << 10;

/// Time that the beginning of a line waits for its rest.
const LINE_PATIENCE: Duration = Duration::from_millis(100);

/// Size of a frame's header in bytes.
const HEADER: usize = 8;

/// How much has been written, and whether that is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Written {
    bytes: u64,
    is_closed: bool,
}

/// Returns a frame of a stream's output: 1 is the standard output, 2 the standard error.
pub(crate) fn frame(stream: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&[stream, 0, 0, 0][..], &length.to_be_bytes(), bytes].concat()
}

/// The output of a step while it is executed, and after that for as long as somebody has it.
///
/// A piece is a frame of Docker's: the number of the stream, three zeros, the length, and the bytes.
#[derive(Debug)]
pub struct Log {
    staging: Staging,
    storage: Mutex<Storage>,
    written: watch::Sender<Written>,
    frames: Mutex<Boundary>,
    limit: u64,
}

/// The position within a frame: output is dropped from the beginning of a frame on.
#[derive(Debug, Default)]
struct Boundary {
    /// The bytes of a header that is not complete.
    header: Vec<u8>,
    /// Number of bytes that are left of the frame.
    left: usize,
    /// Whether further output is dropped.
    is_over: bool,
}

impl Boundary {
    /// Returns the number of bytes that belong to frames that begin within the first `room` bytes.
    fn take(&mut self, bytes: &[u8], room: u64) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if self.left > 0 {
                let count = self.left.min(rest.len());
                self.left -= count;
                at += count;
            } else if self.header.is_empty() && at as u64 >= room {
                break;
            } else {
                let count = (HEADER - self.header.len()).min(rest.len());
                self.header.extend_from_slice(&rest[..count]);
                at += count;
                if let [_, _, _, _, a, b, c, d] = self.header[..] {
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.header.clear();
                }
            }
        }
        at
    }
}

/// Where the bytes of a log are.
#[derive(Debug, Default)]
enum Storage {
    #[default]
    Nowhere,
    /// A file without a name.
    File(Arc<std::fs::File>),
    /// Of a short log that is complete, so that it needs no descriptor.
    Memory(Vec<u8>),
}

impl Log {
    /// Returns an empty log, which has no file yet.
    pub(crate) fn new(staging: &Staging) -> Self {
        Self {
            staging: staging.clone(),
            storage: Mutex::default(),
            written: watch::Sender::default(),
            frames: Mutex::default(),
            limit: LIMIT,
        }
    }

    /// Appends frames, which may be cut anywhere. When the log gets too long, it ends with a line that says so. Blocking.
    ///
    /// # Errors
    /// Returns an error if there is too little space on the disk.
    pub(crate) fn append(&self, frames: &[u8]) -> Result<()> {
        let Written { bytes, is_closed } = *self.written.borrow();
        if is_closed {
            return Ok(());
        }
        let mut boundary = self.frames.lock().ignore_poison();
        if boundary.is_over {
            return Ok(());
        }
        let count = boundary.take(frames, self.limit.saturating_sub(bytes));
        let whole;
        let frames = if count < frames.len() {
            boundary.is_over = true;
            let limit = whelk_text::size::binary(self.limit);
            let text =
                format!("\n[the step has more than {limit} of output: the rest is dropped]\n");
            whole = [&frames[..count], &frame(2, text.as_bytes())].concat();
            whole.as_slice()
        } else {
            frames
        };
        let after = bytes + frames.len() as u64;
        if bytes / BETWEEN_CHECKS != after / BETWEEN_CHECKS {
            self.check_space()?;
        }
        let appended = self.file()?.write_all_at(frames, bytes);
        appended.map_err(|error| Error::os("write the log of a step", error))?;
        self.written.send_modify(|written| written.bytes = after);
        Ok(())
    }

    /// Returns the file, which is created if it does not exist.
    fn file(&self) -> Result<Arc<std::fs::File>> {
        let mut storage = self.storage.lock().ignore_poison();
        if let Storage::File(file) = &*storage {
            return Ok(file.clone());
        }
        let scratch = self.staging.scratch()?;
        let path = scratch.path().join("log");
        let mut options = std::fs::File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(fs::at("create", &path))?;
        let file = Arc::new(file);
        *storage = Storage::File(file.clone());
        Ok(file)
    }

    /// Leaves space for others on the disk.
    fn check_space(&self) -> Result<()> {
        let root = self.staging.root();
        let found = rustix::fs::statvfs(root).map_err(os("statvfs"))?;
        if found.f_bavail.saturating_mul(found.f_frsize) < LEFT {
            let left = whelk_text::size::binary(LEFT);
            let text = format!("write the log of a step: less than {left} are left on the disk");
            return Err(Error::os(text, rustix::io::Errno::NOSPC));
        }
        Ok(())
    }

    pub(crate) fn close(&self) {
        let bytes = usize::try_from(self.written.borrow().bytes);
        let mut storage = self.storage.lock().ignore_poison();
        if let (Storage::File(file), Ok(bytes @ 0..=SHORT)) = (&*storage, bytes) {
            let mut content = vec![0; bytes];
            if file.read_exact_at(&mut content, 0).is_ok() {
                *storage = Storage::Memory(content);
            }
        }
        drop(storage);
        self.written.send_modify(|written| written.is_closed = true);
    }

    /// Returns further bytes behind `offset`; none at the end.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub async fn read(&self, offset: u64) -> Result<Vec<u8>> {
        let mut written = self.written.subscribe();
        let available = written
            .wait_for(|written| written.bytes > offset || written.is_closed)
            .await
            .map(|written| written.bytes)
            .unwrap_or(offset);
        let length = available.saturating_sub(offset).min(READ as u64);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let file = match &*self.storage.lock().ignore_poison() {
            Storage::Nowhere => return Ok(Vec::new()),
            Storage::File(file) => file.clone(),
            Storage::Memory(content) => {
                let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                return Ok(content.get(offset..).unwrap_or_default().to_vec());
            }
        };
        // It was written a moment ago, so that this hardly ever waits for the disk.
        let read = file.read_exact_at(&mut bytes, offset);
        read.map_err(|error| Error::os("read the log of a step", error))?;
        Ok(bytes)
    }

    /// Like [`read`](Self::read), but returns whole lines if they come soon. Where buildx repeats the output of a step that has failed, it
    /// shows only the last piece of a line that it gets in pieces; some shells write the name and the text of an error one after the other.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub async fn read_lines(&self, offset: u64) -> Result<Vec<u8>> {
        let mut bytes = self.read(offset).await?;
        let deadline = Instant::now() + LINE_PATIENCE;
        while bytes.len() < READ && bytes.last().is_some_and(|last| *last != b'\n') {
            let more = self.read(offset + bytes.len() as u64);
            let Ok(more) = timeout_at(deadline, more).await else {
                break;
            };
            let more = more?;
            if more.is_empty() {
                break;
            }
            bytes.extend(more);
        }
        Ok(bytes)
    }
}

/// Takes the frames of a log apart.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// Adds bytes, and returns the complete frames: the stream's number and the bytes of each.
    pub fn add(&mut self, bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
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
        let store = whelk_image::Store::open(scratch.path()).unwrap();
        let log = Arc::new(Log::new(&store.staging));
        log.append(&frame(1, b"one ")).unwrap();
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
        log.append(&frame(1, b"two")).unwrap();
        log.close();
        let all = [frame(1, b"one "), frame(1, b"two")].concat();
        assert_eq!(follow.await.unwrap(), all);
        assert_eq!(log.read(12).await.unwrap(), frame(1, b"two"));
        assert!(log.read(23).await.unwrap().is_empty());
        assert!(matches!(&*log.storage.lock().unwrap(), Storage::Memory(_)));
        let long = Log::new(&store.staging);
        let content = vec![b'x'; 100_000];
        long.append(&frame(1, &content)).unwrap();
        long.close();
        assert_eq!(long.read(0).await.unwrap().len(), 64 << 10);
        assert_eq!(long.read(100_007).await.unwrap(), b"x");
        // Without output there is no file, and none has a name.
        let empty = Log::new(&store.staging);
        empty.close();
        assert!(empty.read(0).await.unwrap().is_empty());
        let files = fs::list(store.staging.root().join("tmp")).unwrap();
        assert!(files.is_empty());
    }

    #[tokio::test]
    async fn the_rest_of_a_line_is_waited_for() {
        let scratch = Scratch::temporary("step-log-lines").unwrap();
        let store = whelk_image::Store::open(scratch.path()).unwrap();
        let log = Log::new(&store.staging);
        let name = frame(2, b"/bin/sh: ");
        let text = frame(2, b"not found\n");
        log.append(&name).unwrap();
        let (line, ()) = tokio::join!(log.read_lines(0), async { log.append(&text).unwrap() });
        let line = line.unwrap();
        assert_eq!(line, [name, text].concat());
        // Not for ever: programs ask questions without ending the line.
        let question = frame(1, b"continue? ");
        log.append(&question).unwrap();
        assert_eq!(log.read_lines(line.len() as u64).await.unwrap(), question);
        let end = line.len() as u64;
        let (last, ()) = tokio::join!(log.read_lines(end), async { log.close() });
        assert_eq!(last.unwrap(), question);
        let end = end + question.len() as u64;
        assert!(log.read_lines(end).await.unwrap().is_empty());
    }

    /// The output ends with a line behind the last frame that has begun before the limit; the step goes on.
    #[tokio::test]
    async fn output_beyond_the_limit_is_dropped() {
        let scratch = Scratch::temporary("step-log-limit").unwrap();
        let store = whelk_image::Store::open(scratch.path()).unwrap();
        let output = [frame(1, b"one"), frame(2, b"two"), frame(1, b"three")].concat();
        let text = "\n[the step has more than 12B of output: the rest is dropped]\n";
        let expected = vec![
            (1, b"one".to_vec()),
            (2, b"two".to_vec()),
            (2, text.as_bytes().to_vec()),
        ];
        for cut in 0..=output.len() {
            let log = Log {
                limit: 12,
                ..Log::new(&store.staging)
            };
            log.append(&output[..cut]).unwrap();
            log.append(&output[cut..]).unwrap();
            log.append(&frame(1, b"four")).unwrap();
            log.close();
            let bytes = log.read(0).await.unwrap();
            assert_eq!(Frames::default().add(&bytes), expected, "{cut}");
        }
        // As many bytes as the limit are all kept.
        let log = Log {
            limit: output.len() as u64,
            ..Log::new(&store.staging)
        };
        log.append(&output).unwrap();
        log.close();
        assert_eq!(log.read(0).await.unwrap(), output);
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
