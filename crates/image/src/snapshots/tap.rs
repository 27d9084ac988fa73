//! Observes the bytes of an archive below the tar parser: headers are recorded for replaying,
//! content is recorded by path.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use super::tar_split::Recorder;
use crate::error::{Result, io};

/// Maximum size of one entry's headers (long names, extended attributes) in bytes. They are held in
/// memory.
pub(crate) const MAX_HEADERS_SIZE: u64 = 1 << 20;

/// Discards trailing bytes, clearing the header buffer so that long padding does not exceed the
/// header limit.
pub(super) struct Sink<'a>(pub(super) &'a Tap);

impl io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        drop(self.0.take_headers());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a file's content is kept.
pub(super) enum Place<'a> {
    /// In the file with this inode number at a path in the layer's directory.
    File { path: &'a Path, inode: u64 },
    /// At an offset of the layer's image.
    Image { offset: u64 },
}

/// Shared state of the reader below the tar parser and the code above it: whether the current bytes
/// are headers or content.
#[derive(Clone)]
pub(super) struct Tap(Rc<TapState>);

struct TapState {
    recorder: RefCell<Option<Recorder>>,
    in_content: Cell<bool>,
    /// Header blocks of the current entry, preceded by the padding of the previous one.
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
    pub(super) fn take_headers(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.headers.borrow_mut())
    }

    fn pass(&self, bytes: &[u8]) -> io::Result<()> {
        if self.0.in_content.get() {
            return Ok(());
        }
        let mut headers = self.0.headers.borrow_mut();
        headers.extend_from_slice(bytes);
        if headers.len() as u64 > MAX_HEADERS_SIZE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("an entry's headers are larger than {MAX_HEADERS_SIZE} bytes"),
            ));
        }
        self.0
            .recorder
            .borrow_mut()
            .as_mut()
            .map_or(Ok(()), |recorder| recorder.verbatim(bytes))
    }

    /// Runs `read`, during which all bytes are the content of a file, of `size` bytes, that is kept at
    /// `place`.
    pub(super) fn content<T>(
        &self,
        place: Place<'_>,
        size: u64,
        read: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if let Some(recorder) = self.0.recorder.borrow_mut().as_mut() {
            match place {
                Place::File { path, inode } => recorder.content(path, inode, size),
                Place::Image { offset } => recorder.in_image(offset, size),
            }
            .map_err(io("write layer index"))?;
        }
        self.0.in_content.set(true);
        let result = read();
        self.0.in_content.set(false);
        result
    }

    /// Preserves the content of `name` in `parent`, a file or a directory tree, which is about to
    /// be replaced by a later entry: it is part of the archive.
    pub(super) fn preserve(&self, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        self.0
            .recorder
            .borrow_mut()
            .as_mut()
            .map_or(Ok(()), |recorder| {
                recorder
                    .preserve(parent, name)
                    .map_err(io("preserve replaced content"))
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
