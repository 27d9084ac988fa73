//! Parses and encodes an entry's pax extended headers (POSIX.1-2001).

use rustix::fs::Timespec;

use crate::error::{Error, Result};

/// Tar block size in bytes.
pub(crate) const BLOCK: usize = 512;

/// Returns the pax records of an entry from its raw header blocks. Values may contain any byte: a
/// record ends where its length says, not at a newline.
pub(super) fn records(headers: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut records = Vec::new();
    // An incomplete block at the front is padding of the previous entry.
    let mut rest = &headers[headers.len() % BLOCK..];
    while rest.len() >= BLOCK {
        let (block, tail) = rest.split_at(BLOCK);
        let header = tar::Header::from_byte_slice(block);
        let kind = header.entry_type();
        if !kind.is_pax_local_extensions()
            && !kind.is_gnu_longname()
            && !kind.is_gnu_longlink()
            && !kind.is_pax_global_extensions()
        {
            break;
        }
        let size = header
            .entry_size()
            .ok()
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(usize::MAX);
        let Some(content) = tail.get(..size) else {
            break;
        };
        if kind.is_pax_local_extensions() {
            parse_records(content, &mut records)?;
        }
        rest = tail.get(size.div_ceil(BLOCK) * BLOCK..).unwrap_or_default();
    }
    Ok(records)
}

/// Parses a sequence of `LENGTH KEY=VALUE\n` records.
fn parse_records(mut content: &[u8], records: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let malformed = || Error::invalid("malformed pax header");
    while !content.is_empty() {
        let space = content
            .iter()
            .position(|&byte| byte == b' ')
            .ok_or_else(malformed)?;
        let length: usize = std::str::from_utf8(&content[..space])
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(malformed)?;
        let record = content
            .get(space + 1..length)
            .and_then(|record| record.strip_suffix(b"\n"))
            .ok_or_else(malformed)?;
        let equals = record
            .iter()
            .position(|&byte| byte == b'=')
            .ok_or_else(malformed)?;
        let key = std::str::from_utf8(&record[..equals]).map_err(|_| malformed())?;
        records.push((key.to_owned(), record[equals + 1..].to_vec()));
        content = &content[length..];
    }
    Ok(())
}

/// Encodes pax records: `LENGTH KEY=VALUE\n`, where the length includes its own digits.
pub(super) fn encode(records: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        // The space, the equals sign and the newline.
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        content.extend_from_slice(format!("{length} {key}=").as_bytes());
        content.extend_from_slice(value);
        content.push(b'\n');
    }
    content
}

/// Parses seconds since the epoch with an optional fraction: `1700000000.25`.
pub(super) fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{:0<9.9}", fraction);
    Some(Timespec {
        tv_sec: seconds.parse().ok()?,
        tv_nsec: digits.parse().ok()?,
    })
}
