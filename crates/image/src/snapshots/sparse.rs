//! Sparse files in pax headers: GNU formats 0.0, 0.1 and 1.0. (The old GNU format, which has an
//! entry type of its own, is decoded by the tar parser.)
//!
//! | version | where the map of stored data is |
//! | --- | --- |
//! | 0.0 | `GNU.sparse.offset` and `GNU.sparse.numbytes`, repeated |
//! | 0.1 | `GNU.sparse.map`: `offset,length,offset,length…` |
//! | 1.0 | in front of the content, as lines of decimal numbers: the number of pieces, then offset and length of each; padded to whole blocks |

use std::io::{self, Read, Seek, SeekFrom, Write};

use super::pax::BLOCK;
use crate::error::{Error, Result, io};

/// Maximum total size of the sparse files of one archive, in bytes. A sparse file can claim any
/// size at no cost to the sender.
pub(crate) const MAX_TOTAL_SIZE: u64 = 256 << 30;

/// Maximum size of a version 1.0 map in bytes.
const MAX_MAP_SIZE: usize = 512 << 10;

/// What an entry's pax headers say about sparseness.
pub(crate) struct Sparse {
    /// The file's real name. The tar header has a substitute for programs that do not know sparse
    /// files.
    pub(crate) name: Option<Vec<u8>>,
    /// The file's size including holes, in bytes.
    pub(crate) size: u64,
    /// `None` if the map is in front of the content (version 1.0).
    pieces: Option<Vec<Piece>>,
}

/// A stored part of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    offset: u64,
    length: u64,
}

impl Sparse {
    /// Reads an entry's pax records. Returns `None` if the entry is not sparse.
    ///
    /// # Errors
    /// Returns an error if the version is unknown or a number is malformed.
    pub(crate) fn of(records: &[(String, Vec<u8>)]) -> Result<Option<Self>> {
        let get = |key: &str| {
            records
                .iter()
                .rev()
                .find(|(known, _)| known == key)
                .map(|(_, value)| value.as_slice())
        };
        let inline = match (get("GNU.sparse.major"), get("GNU.sparse.minor")) {
            (Some(b"1"), Some(b"0")) => false,
            (Some(b"0"), Some(b"0" | b"1")) => true,
            // Versions 0.0 and 0.1 have no version records.
            (None, None) if get("GNU.sparse.map").or(get("GNU.sparse.offset")).is_some() => true,
            (None, None) => return Ok(None),
            (major, minor) => {
                let text = |part: Option<&[u8]>| {
                    String::from_utf8_lossy(part.unwrap_or(b"?"))
                        .escape_debug()
                        .to_string()
                };
                return Err(Error::invalid(format!(
                    "sparse files of version {}.{} are not supported",
                    text(major),
                    text(minor)
                )));
            }
        };
        let size = get("GNU.sparse.size")
            .or(get("GNU.sparse.realsize"))
            .ok_or_else(malformed)?;
        let pieces = if inline {
            Some(inline_map(records)?)
        } else {
            None
        };
        Ok(Some(Self {
            name: get("GNU.sparse.name").map(<[u8]>::to_vec),
            size: number(size)?,
            pieces,
        }))
    }

    /// Returns a reader for the file's content with its holes. `stored` is the entry's size in the
    /// archive, including the map.
    ///
    /// # Errors
    /// Returns an error if the map contradicts the file's size or the stored size.
    pub(crate) fn expand<R: Read>(self, mut inner: R, stored: u64) -> Result<Expanded<R>> {
        let (pieces, map) = match self.pieces {
            Some(pieces) => (pieces, 0),
            None => map_in_front(&mut inner)?,
        };
        let mut end = 0u64;
        let mut total = 0u64;
        for piece in &pieces {
            if piece.offset < end {
                return Err(malformed());
            }
            end = piece
                .offset
                .checked_add(piece.length)
                .filter(|end| *end <= self.size)
                .ok_or_else(malformed)?;
            total += piece.length;
        }
        if total.checked_add(map as u64) != Some(stored) {
            return Err(Error::invalid(format!(
                "the map of a sparse file names {total} bytes, {} are stored",
                stored.saturating_sub(map as u64)
            )));
        }
        Ok(Expanded {
            inner,
            size: self.size,
            at: 0,
            pieces: pieces.into_iter().peekable(),
        })
    }
}

fn malformed() -> Error {
    Error::invalid("malformed sparse file map")
}

fn number(text: &[u8]) -> Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(malformed)
}

fn inline_map(records: &[(String, Vec<u8>)]) -> Result<Vec<Piece>> {
    let mut numbers = Vec::new();
    for (key, value) in records {
        match key.as_str() {
            "GNU.sparse.map" => value
                .split(|&byte| byte == b',')
                .filter(|text| !text.is_empty())
                .try_for_each(|text| {
                    numbers.push(number(text)?);
                    Ok::<_, Error>(())
                })?,
            // Offset and length records must alternate.
            "GNU.sparse.offset" if numbers.len() % 2 == 0 => numbers.push(number(value)?),
            "GNU.sparse.numbytes" if numbers.len() % 2 == 1 => numbers.push(number(value)?),
            "GNU.sparse.offset" | "GNU.sparse.numbytes" => return Err(malformed()),
            _ => {}
        }
    }
    pieces(&numbers)
}

fn pieces(numbers: &[u64]) -> Result<Vec<Piece>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs
            .iter()
            .map(|&[offset, length]| Piece { offset, length })
            .collect())
    } else {
        Err(malformed())
    }
}

/// Reads a version 1.0 map. Returns the pieces and the map's size in bytes.
fn map_in_front(inner: &mut impl Read) -> Result<(Vec<Piece>, usize)> {
    let mut numbers: Vec<u64> = Vec::new();
    let mut present: Option<u64> = None;
    let mut block = [0; BLOCK];
    let mut taken = 0;
    loop {
        if taken >= MAX_MAP_SIZE {
            return Err(Error::invalid(format!(
                "the map of a sparse file is larger than {MAX_MAP_SIZE} bytes"
            )));
        }
        inner
            .read_exact(&mut block)
            .map_err(io("read the map of a sparse file"))?;
        taken += BLOCK;
        for &byte in &block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    present = Some(
                        present
                            .unwrap_or(0)
                            .checked_mul(10)
                            .and_then(|value| value.checked_add(digit))
                            .ok_or_else(malformed)?,
                    );
                }
                b'\n' => {
                    numbers.push(present.take().ok_or_else(malformed)?);
                    if numbers.len() as u64 == numbers[0].saturating_mul(2).saturating_add(1) {
                        return Ok((pieces(&numbers[1..])?, taken));
                    }
                }
                _ => return Err(malformed()),
            }
        }
    }
}

/// Reads a sparse file's content, with zeros for its holes.
pub(crate) struct Expanded<R> {
    inner: R,
    size: u64,
    at: u64,
    pieces: std::iter::Peekable<std::vec::IntoIter<Piece>>,
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self
            .pieces
            .next_if(|piece| piece.offset + piece.length <= self.at)
            .is_some()
        {}
        let (end, stored) = match self.pieces.peek() {
            Some(piece) if piece.offset <= self.at => (piece.offset + piece.length, true),
            Some(piece) => (piece.offset, false),
            None => (self.size, false),
        };
        let most = usize::try_from(end - self.at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let buffer = &mut buffer[..most];
        let count = if stored {
            match self.inner.read(buffer)? {
                0 if !buffer.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => count,
            }
        } else {
            buffer.fill(0);
            most
        };
        self.at += count as u64;
        Ok(count)
    }
}

/// An output that can have holes, which read as zeros.
pub(super) trait Holes {
    /// Leaves out `length` bytes.
    fn skip(&mut self, length: u64) -> io::Result<()>;

    /// Ends the output, whose last part may be a hole, after `total` bytes.
    fn end_at(&mut self, total: u64) -> io::Result<()>;
}

impl Holes for std::fs::File {
    fn skip(&mut self, length: u64) -> io::Result<()> {
        let length = length.try_into().unwrap_or(i64::MAX);
        self.seek(SeekFrom::Current(length)).map(drop)
    }

    fn end_at(&mut self, total: u64) -> io::Result<()> {
        self.set_len(total)
    }
}

/// Copies a file's content, leaving holes for pages of zeros. Calls `each` after every read.
pub(super) fn copy(
    mut content: impl Read,
    output: &mut (impl Write + Holes),
    each: impl Fn(),
) -> Result<u64> {
    const PAGE: usize = 4096;
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0u64;
    loop {
        let count = content.read(&mut buffer).map_err(io("read sparse file"))?;
        each();
        if count == 0 {
            break;
        }
        for page in buffer[..count].chunks(PAGE) {
            if page.iter().all(|&byte| byte == 0) {
                output.skip(page.len() as u64).map_err(io("seek"))?;
            } else {
                output.write_all(page).map_err(io("write"))?;
            }
        }
        total += count as u64;
    }
    output.end_at(total).map_err(io("truncate"))?;
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(records: &[(&str, &str)], data: &[u8]) -> Result<Vec<u8>> {
        let records: Vec<_> = records
            .iter()
            .map(|(key, value)| (format!("GNU.sparse.{key}"), value.as_bytes().to_vec()))
            .collect();
        let sparse = Sparse::of(&records)?.ok_or_else(malformed)?;
        let mut content = Vec::new();
        sparse
            .expand(data, data.len() as u64)?
            .read_to_end(&mut content)
            .map_err(io("read"))?;
        Ok(content)
    }

    /// Returns a version 1.0 map, padded to whole blocks, followed by the data.
    fn with_map(map: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = map.as_bytes().to_vec();
        bytes.resize(map.len().next_multiple_of(BLOCK), 0);
        bytes.extend_from_slice(data);
        bytes
    }

    #[test]
    fn expands_all_versions_of_sparse_maps() {
        let expected = b"\0\0ab\0\0\0c\0";
        let v00 = [
            ("size", "9"),
            ("numblocks", "2"),
            ("offset", "2"),
            ("numbytes", "2"),
            ("offset", "7"),
            ("numbytes", "1"),
        ];
        assert_eq!(expanded(&v00, b"abc").unwrap(), expected);
        assert_eq!(
            expanded(&[("size", "9"), ("map", "2,2,7,1")], b"abc").unwrap(),
            expected
        );
        let v10 = [
            ("major", "1"),
            ("minor", "0"),
            ("realsize", "9"),
            ("name", "x"),
        ];
        assert_eq!(
            expanded(&v10, &with_map("2\n2\n2\n7\n1\n", b"abc")).unwrap(),
            expected
        );
        assert_eq!(expanded(&v10, &with_map("0\n", b"")).unwrap(), [0; 9]);
        let many: String = std::iter::once("200\n".to_owned())
            .chain((0..200).map(|n| format!("{}\n0\n", n / 100)))
            .collect();
        assert_eq!(expanded(&v10, &with_map(&many, b"")).unwrap(), [0; 9]);
    }

    #[test]
    fn rejects_inconsistent_maps() {
        let check = |records: &[(&str, &str)], data: &[u8], expected: &str| {
            let error = expanded(records, data).unwrap_err().to_string();
            assert!(error.contains(expected), "{records:?}: {error}");
        };
        let malformed = "malformed sparse file map";
        for (map, data, expected) in [
            ("2,2,1,1", "abc", malformed),
            ("8,2", "ab", malformed),
            (
                "0,2",
                "abc",
                "the map of a sparse file names 2 bytes, 3 are stored",
            ),
            (
                "0,3",
                "ab",
                "the map of a sparse file names 3 bytes, 2 are stored",
            ),
            ("0", "", malformed),
            ("x,1", "a", malformed),
            ("0,18446744073709551615,5,1", "a", malformed),
        ] {
            check(&[("size", "9"), ("map", map)], data.as_bytes(), expected);
        }
        let two_offsets = [("size", "9"), ("offset", "1"), ("offset", "2")];
        check(&two_offsets, b"", malformed);
        let no_size = [("map", "0,1")];
        check(&no_size, b"a", malformed);
        let v10 = [("major", "1"), ("minor", "0"), ("realsize", "9")];
        for map in [
            "1\n",
            "18446744073709551615\n0\n",
            "99999999999999999999\n",
            "\n",
            "1\nx\n1\n",
        ] {
            check(&v10, &with_map(map, b""), malformed);
        }
        check(
            &[("major", "2"), ("minor", "0"), ("size", "1")],
            b"",
            "sparse files of version 2.0 are not supported",
        );
    }
}
