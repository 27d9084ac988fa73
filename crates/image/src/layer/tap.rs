//! Watching the bytes of an archive go by below the parser: headers are kept for replaying, content
//! is noted by path.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use super::split::Recorder;
use crate::error::{Result, io};

/// Headers of one entry (long names, extended attributes) may take this many bytes; memory must not
/// be the sender's to fill.
pub(crate) const LARGEST_HEADERS: u64 = 1 << 20;

/// Discards trailing bytes while keeping the header bound from tripping on long padding.
pub(super) struct Sink<'a>(pub(super) &'a Tap);

impl io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        drop(self.0.entry_begins());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Shared between the reader below the tar parser and the code above it: which bytes are headers,
/// which are content.
#[derive(Clone)]
pub(super) struct Tap(Rc<TapState>);

struct TapState {
    recorder: RefCell<Option<Recorder>>,
    in_content: Cell<bool>,
    /// The header blocks of the present entry, behind the padding of the one before.
    headers: RefCell<Vec<u8>>,
}

impl Tap {
    pub(super) fn new(recorder: Option<Recorder>) -> Self {
        Self(Rc::new(TapState {
            recorder: RefCell::new(recorder),
            in_content: Cell::new(false),
            headers: RefCell::default(),
        }))
    }

    /// Takes the header blocks of the entry that was just read.
    pub(super) fn entry_begins(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.headers.borrow_mut())
    }

    fn pass(&self, bytes: &[u8]) -> io::Result<()> {
        if self.0.in_content.get() {
            return Ok(());
        }
        let mut headers = self.0.headers.borrow_mut();
        headers.extend_from_slice(bytes);
        if headers.len() as u64 > LARGEST_HEADERS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("an entry's headers are larger than {LARGEST_HEADERS} bytes"),
            ));
        }
        self.0
            .recorder
            .borrow_mut()
            .as_mut()
            .map_or(Ok(()), |recorder| recorder.verbatim(bytes))
    }

    /// Runs `read` while what passes is the content of the file `inode` at `path`, of `size` bytes.
    pub(super) fn content<T>(
        &self,
        path: &Path,
        inode: u64,
        size: u64,
        read: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if let Some(recorder) = self.0.recorder.borrow_mut().as_mut() {
            recorder
                .content(path, inode, size)
                .map_err(io("write layer index"))?;
        }
        self.0.in_content.set(true);
        let result = read();
        self.0.in_content.set(false);
        result
    }

    /// Keeps the content of what is `name` in `parent`, a file or a tree, which is about to be
    /// replaced: the archive has it.
    pub(super) fn set_aside(&self, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        self.0
            .recorder
            .borrow_mut()
            .as_mut()
            .map_or(Ok(()), |recorder| {
                recorder
                    .set_aside(parent, name)
                    .map_err(io("set replaced content aside"))
            })
    }

    pub(super) fn finish(&self) -> Result<()> {
        self.0
            .recorder
            .borrow_mut()
            .take()
            .map_or(Ok(()), |recorder| {
                recorder.finish().map_err(io("write layer index"))
            })
    }
}

pub(super) struct Tapped<R> {
    pub(super) inner: R,
    pub(super) tap: Tap,
}

impl<R: Read> Read for Tapped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.tap.pass(&buffer[..count])?;
        Ok(count)
    }
}
