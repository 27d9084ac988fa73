//! Finds the beginning of the last records of a log, with memory use independent of their number.
//!
//! In uncompressed JSON files, lines are counted backwards from the end. Where records can only be
//! found from the front (the `local` format, compressed files), a file is read twice: once to count
//! its records, once to skip those before the tail. Only the files that contain the tail are read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use whelk_sys::fs::{self, Result};

use super::local::Found;
use super::reader::{CHUNK, Part};
use super::{Driver, local};

/// The beginning of a tail: index of the file, offset in it, and the number of records to skip from
/// there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Begin {
    pub part: usize,
    pub offset: u64,
    pub skip: u64,
}

/// Finds the record at the front of `bytes`.
pub(super) fn find(driver: Driver, bytes: &[u8]) -> Found {
    match driver {
        Driver::JsonFile => bytes
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(Found::More, |newline| Found::Record(newline + 1)),
        Driver::Local | Driver::None => local::find(bytes),
    }
}

/// Finds the last `wanted` records of the files, which are ordered from the oldest to the newest.
pub(super) fn begin(driver: Driver, parts: &[Part], mut wanted: u64) -> Result<Begin> {
    for (index, part) in parts.iter().enumerate().rev() {
        if driver == Driver::JsonFile && !part.is_compressed() {
            let (offset, found) =
                last_lines(&part.file, part.length, wanted).map_err(fs::at("read", &part.path))?;
            if offset > 0 || found == wanted {
                return Ok(Begin {
                    part: index,
                    offset,
                    skip: 0,
                });
            }
            wanted -= found;
        } else {
            let found = count(driver, part.read(0, Some(part.length))?)
                .map_err(fs::at("read", &part.path))?;
            if found >= wanted {
                return Ok(Begin {
                    part: index,
                    offset: 0,
                    skip: found - wanted,
                });
            }
            wanted -= found;
        }
    }
    Ok(Begin::default())
}

/// Returns the offset of the last `wanted` complete lines in the first `length` bytes, and their
/// number.
fn last_lines(file: &File, length: u64, wanted: u64) -> io::Result<(u64, u64)> {
    let mut buffer = vec![0; CHUNK];
    let (mut end, mut found) = (length, 0);
    while end > 0 {
        let begin = end.saturating_sub(CHUNK as u64);
        let piece = &mut buffer[..usize::try_from(end - begin).unwrap_or(CHUNK)];
        file.read_exact_at(piece, begin)?;
        for (index, _) in piece
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
        {
            // The newline at the end of the line before the tail.
            if found == wanted {
                return Ok((begin + index as u64 + 1, found));
            }
            found += 1;
        }
        end = begin;
    }
    Ok((0, found))
}

/// Counts the records in `read`.
fn count(driver: Driver, mut read: impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; 2 * CHUNK];
    let (mut filled, mut counted) = (0, 0);
    loop {
        if filled == buffer.len() {
            // A longer line, which was not written by this engine.
            buffer.resize(2 * filled, 0);
        }
        match read.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(counted),
            Ok(count) => filled += count,
            // A truncated compressed file: what can be decompressed counts.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(counted),
            Err(error) => return Err(error),
        }
        let (skipped, found) = skip_records(driver, &buffer[..filled], u64::MAX);
        counted += found;
        buffer.copy_within(skipped..filled, 0);
        filled -= skipped;
    }
}

/// Skips the records at the front of `bytes`, at most `limit`. Returns the numbers of bytes and
/// records.
pub(super) fn skip_records(driver: Driver, bytes: &[u8], limit: u64) -> (usize, u64) {
    let (mut skipped, mut found) = (0, 0);
    while found < limit {
        match find(driver, &bytes[skipped..]) {
            Found::Record(length) => {
                skipped += length;
                found += 1;
            }
            Found::Damaged(length) => skipped += length,
            Found::More => break,
        }
    }
    (skipped, found)
}

/// A range of an uncompressed file, read by offset, since the file's position is shared.
#[derive(Debug)]
pub(super) struct Span {
    pub file: Arc<File>,
    pub at: u64,
    pub end: u64,
}

impl Read for Span {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.end.saturating_sub(self.at))
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read_at(&mut buffer[..limit], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
