//! Finding where the last records of a log begin, in memory that does not depend on how many they
//! are.
//!
//! Lines are counted backwards from the end of a plain file. Where records can only be found from
//! the front (the `local` format, compressed files), a file is gone through twice: once to count
//! its records, once to skip those before the tail. Only the files that the tail lies in are read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use whelk_sys::fs::{self, Result};

use super::local::Found;
use super::reader::{CHUNK, Part};
use super::{Driver, local};

/// Where to begin: in which file, at which byte of it, and how many records from there are to be
/// skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Begin {
    pub part: usize,
    pub offset: u64,
    pub skip: u64,
}

/// Looks for a record at the front of `bytes`.
pub(super) fn find(driver: Driver, bytes: &[u8]) -> Found {
    match driver {
        Driver::JsonFile => bytes
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(Found::More, |newline| Found::Record(newline + 1)),
        Driver::Local | Driver::None => local::find(bytes),
    }
}

/// Where the last `wanted` records of the files begin, the oldest file being the first.
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

/// Where the last `wanted` complete lines of the first `length` bytes begin, and how many there
/// are.
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
            // The end of the line before the tail.
            if found == wanted {
                return Ok((begin + index as u64 + 1, found));
            }
            found += 1;
        }
        end = begin;
    }
    Ok((0, found))
}

/// Counts the records that `read` brings.
fn count(driver: Driver, mut read: impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; 2 * CHUNK];
    let (mut filled, mut counted) = (0, 0);
    loop {
        if filled == buffer.len() {
            // A line longer than this, which somebody else has written.
            buffer.resize(2 * filled, 0);
        }
        match read.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(counted),
            Ok(count) => filled += count,
            // A compressed file that was cut short: what came out of it counts.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(counted),
            Err(error) => return Err(error),
        }
        let (passed, found) = pass(driver, &buffer[..filled], u64::MAX);
        counted += found;
        buffer.copy_within(passed..filled, 0);
        filled -= passed;
    }
}

/// Passes over the records at the front of `bytes`, at most `most`: how many bytes, and how many
/// records.
pub(super) fn pass(driver: Driver, bytes: &[u8], most: u64) -> (usize, u64) {
    let (mut passed, mut found) = (0, 0);
    while found < most {
        match find(driver, &bytes[passed..]) {
            Found::Record(length) => {
                passed += length;
                found += 1;
            }
            Found::Damaged(length) => passed += length,
            Found::More => break,
        }
    }
    (passed, found)
}

/// A part of a plain file, read without a position that others share.
#[derive(Debug)]
pub(super) struct Span {
    pub file: Arc<File>,
    pub at: u64,
    pub end: u64,
}

impl Read for Span {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end.saturating_sub(self.at))
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
