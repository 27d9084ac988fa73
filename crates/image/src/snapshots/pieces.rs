//! Writes tar entries as pieces of memory that are handed on without another copy.

use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::pax::BLOCK;

/// Size of a piece in bytes.
const SIZE: usize = 256 << 10;
/// Length of a name that fits into a header.
const SHORT: usize = 100;

/// An archive that is passed to `send` in pieces. The content of files is read directly into them.
pub(super) struct Pieces<F: FnMut(Vec<u8>) -> io::Result<()>> {
    piece: Vec<u8>,
    send: F,
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Pieces<F> {
    pub(super) fn new(send: F) -> Self {
        Self {
            piece: Vec::with_capacity(SIZE),
            send,
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(SIZE));
        (self.send)(piece)
    }

    /// Writes an entry's headers. `name` and `target`, the link's, are written as they are, with GNU's
    /// extension if they are long.
    pub(super) fn header(
        &mut self,
        header: &mut Header,
        name: &[u8],
        target: &[u8],
    ) -> io::Result<()> {
        self.long(EntryType::GNULongLink, target)?;
        self.long(EntryType::GNULongName, name)?;
        let fields = header.as_old_mut();
        for (field, text) in [(&mut fields.name, name), (&mut fields.linkname, target)] {
            let length = text.len().min(SHORT);
            field[..length].copy_from_slice(&text[..length]);
        }
        header.set_cksum();
        self.write_all(header.as_bytes())
    }

    fn long(&mut self, kind: EntryType, text: &[u8]) -> io::Result<()> {
        if text.len() <= SHORT {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        let name = b"././@LongLink";
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(text.len() as u64 + 1);
        header.set_cksum();
        self.write_all(header.as_bytes())?;
        self.write_all(text)?;
        self.write_all(&[0])?;
        self.pad(text.len() as u64 + 1)
    }

    /// Writes zeros up to the end of the block in which content of `size` bytes has ended.
    pub(super) fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if rest == 0 {
            return Ok(());
        }
        self.write_all(&[0; BLOCK][rest..])
    }

    /// Writes `size` bytes of a file. The header has the size already, so a file that shrinks meanwhile is
    /// padded with zeros, and what is appended to it is left out.
    pub(super) fn content(&mut self, file: impl AsFd, size: u64) -> io::Result<()> {
        let mut rest = size;
        while rest > 0 {
            if self.piece.len() == self.piece.capacity() {
                self.send()?;
            }
            let before = self.piece.len();
            match rustix::io::read(&file, spare_capacity(&mut self.piece)) {
                Ok(0) => break,
                Ok(count) => {
                    let kept = (count as u64).min(rest);
                    let end = before + usize::try_from(kept).unwrap_or(count);
                    self.piece.truncate(end);
                    rest -= kept;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        while rest > 0 {
            let zeros = [0; BLOCK];
            let count = usize::try_from(rest).unwrap_or(BLOCK).min(BLOCK);
            self.write_all(&zeros[..count])?;
            rest -= count as u64;
        }
        self.pad(size)
    }

    /// Writes the mark of the archive's end, and sends what is left.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.write_all(&[0; 2 * BLOCK])?;
        (self.send)(self.piece)
    }
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Write for Pieces<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == self.piece.capacity() {
            self.send()?;
        }
        let count = bytes.len().min(self.piece.capacity() - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
