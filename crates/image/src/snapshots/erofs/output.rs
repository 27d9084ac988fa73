//! The file that an image is written to.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use whelk_sys::fs;

use super::format::{BLOCK, SLOT};
use crate::error::Result;
use crate::snapshots::sparse::Holes;

/// Number of bytes that are written at once.
const BUFFER: usize = 256 << 10;

/// Maximum size of an image in bytes: blocks have numbers of 32 bits, of which the highest means none.
const MAX_SIZE: u64 = (u32::MAX as u64 - 1) * BLOCK as u64;

/// Number of bytes after which the disk begins to write them.
const WRITEBACK: u64 = 8 << 20;

/// Appends to an image.
pub(super) struct Output {
    file: File,
    buffer: Vec<u8>,
    /// Where the buffer's content goes.
    written: u64,
    /// Up to where the disk was told to write.
    passed_on: u64,
}

impl Output {
    /// Creates an image whose first block is left out.
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self {
            file: fs::create(path, 0o600)?,
            buffer: Vec::with_capacity(BUFFER),
            written: BLOCK as u64,
            passed_on: 0,
        })
    }

    /// Returns where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Goes on at the next block.
    pub(super) fn align(&mut self) -> io::Result<()> {
        self.pad_to(self.position().next_multiple_of(BLOCK as u64))
    }

    /// Goes on at a later position; what is between reads as zeros.
    pub(super) fn pad_to(&mut self, position: u64) -> io::Result<()> {
        let gap = position.saturating_sub(self.position());
        match usize::try_from(gap) {
            Ok(gap) if gap <= BLOCK => self.write_all(&[0; BLOCK][..gap]),
            _ => self.skip(gap),
        }
    }

    /// Ends the file here, and returns its size.
    pub(super) fn end(&mut self) -> io::Result<u64> {
        self.flush()?;
        self.file.set_len(self.written)?;
        Ok(self.written)
    }

    /// Counts what was written or left out, and lets the disk begin to write it.
    fn advance(&mut self, length: u64) -> io::Result<()> {
        self.written = self
            .written
            .checked_add(length)
            .filter(|end| *end <= MAX_SIZE)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        if self.written >= self.passed_on.saturating_add(WRITEBACK) {
            fs::start_writeback(&self.file);
            self.passed_on = self.written;
        }
        Ok(())
    }

    /// Writes at an earlier position.
    pub(super) fn write_at(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.file.write_all_at(bytes, position)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            self.file.write_all_at(bytes, self.written)?;
            self.advance(bytes.len() as u64)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.file.write_all_at(&self.buffer, self.written)?;
        let length = self.buffer.len() as u64;
        self.buffer.clear();
        self.advance(length)
    }
}

impl Holes for Output {
    fn skip(&mut self, length: u64) -> io::Result<()> {
        self.flush()?;
        self.advance(length)
    }

    fn end_at(&mut self, _: u64) -> io::Result<()> {
        // A hole at the end is inside the image, which ends with directories.
        Ok(())
    }
}

/// The content of a small file is never sparse.
impl Holes for Vec<u8> {
    fn skip(&mut self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.resize(self.len() + length, 0);
        Ok(())
    }

    fn end_at(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Assigns positions to inodes with what is behind them, one after the other.
pub(super) struct Positions {
    next: u64,
}

impl Positions {
    /// Begins at a block.
    pub(super) fn from(position: u64) -> Self {
        Self {
            next: position.next_multiple_of(BLOCK as u64),
        }
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Assigns `length` bytes, inside one block if they fit.
    pub(super) fn assign(&mut self, length: usize) -> u64 {
        let block = BLOCK as u64;
        let start = self.next.next_multiple_of(SLOT as u64);
        let end = start + length as u64;
        let start = if end > start.next_multiple_of(block) && !start.is_multiple_of(block) {
            start.next_multiple_of(block)
        } else {
            start
        };
        self.next = start + length as u64;
        start
    }
}

/// The region that small files are being written to. It is filled in memory, so that the blocks
/// of larger files can be between such regions.
#[derive(Default)]
pub(super) struct Small {
    region: Option<Region>,
}

struct Region {
    start: u64,
    positions: Positions,
    bytes: Vec<u8>,
}

impl Small {
    const REGION: usize = 64 * BLOCK;

    /// Returns the position for an inode of `length` bytes with its content, up to half a block.
    pub(super) fn reserve(&mut self, output: &mut Output, length: usize) -> io::Result<u64> {
        if let Some(region) = &mut self.region {
            let position = region.positions.assign(length);
            if position + length as u64 <= region.start + Self::REGION as u64 {
                return Ok(position);
            }
            self.flush(output)?;
        }
        output.align()?;
        let start = output.position();
        output.skip(Self::REGION as u64)?;
        let mut positions = Positions::from(start);
        let position = positions.assign(length);
        self.region = Some(Region {
            start,
            positions,
            bytes: Vec::with_capacity(Self::REGION),
        });
        Ok(position)
    }

    /// Writes what [`Small::reserve`] has returned the position for.
    pub(super) fn write(&mut self, position: u64, bytes: &[u8]) {
        if let Some(region) = &mut self.region {
            let offset = usize::try_from(position - region.start).unwrap_or(usize::MAX);
            region.bytes.resize(offset, 0);
            region.bytes.extend_from_slice(bytes);
        }
    }

    /// Writes the region to the output.
    pub(super) fn flush(&mut self, output: &mut Output) -> io::Result<()> {
        match self.region.take() {
            Some(region) => output.write_at(region.start, &region.bytes),
            None => Ok(()),
        }
    }
}
