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

/// A second in nanoseconds.
const SECOND: i64 = 1_000_000_000;

/// Parses seconds since the epoch with an optional fraction: `1700000000.25`. Before the epoch, both count
/// backwards: `-1.25` is a quarter before `-1`.
pub(super) fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = format!("{fraction:0<9.9}");
    let (tv_sec, tv_nsec): (i64, i64) = (seconds.parse().ok()?, digits.parse().ok()?);
    if seconds.starts_with('-') && tv_nsec > 0 {
        return Some(Timespec {
            tv_sec: tv_sec.checked_sub(1)?,
            tv_nsec: SECOND - tv_nsec,
        });
    }
    Some(Timespec { tv_sec, tv_nsec })
}

/// Formats a time as [`parse_time`] reads it.
pub(super) fn format_time(seconds: i64, nanoseconds: i64) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        (..0, _) => {
            let (whole, part) = ((seconds + 1).unsigned_abs(), SECOND - nanoseconds);
            format!("-{whole}.{part:09}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_and_formatted() {
        let check = |text: &str, expected: Option<(i64, i64)>| {
            let found = parse_time(text).map(|time| (time.tv_sec, time.tv_nsec));
            assert_eq!(found, expected, "{text}");
        };
        let both = |text: &str, seconds: i64, nanoseconds: i64| {
            check(text, Some((seconds, nanoseconds)));
            assert_eq!(format_time(seconds, nanoseconds), text);
        };
        both("0", 0, 0);
        both("1700000000.250000000", 1_700_000_000, 250_000_000);
        both("0.000000001", 0, 1);
        both("-1", -1, 0);
        both("-1.500000000", -2, 500_000_000);
        both("-0.500000000", -1, 500_000_000);
        both("-0.000000001", -1, 999_999_999);
        check("1.25", Some((1, 250_000_000)));
        check("1.", Some((1, 0)));
        check("1.0000000019", Some((1, 1)));
        check("-0", Some((0, 0)));
        check("-9223372036854775808", Some((i64::MIN, 0)));
        for bad in [
            "",
            "-",
            ".5",
            "1.-5",
            "1.+5",
            "1.5.5",
            "1.5x",
            "x",
            "-9223372036854775808.5",
            "9223372036854775808",
        ] {
            check(bad, None);
        }
    }
}
