//! The `local` format: length, time, stream, data.
//!
//! ```text
//! length of what follows (u32 LE) | nanoseconds since the epoch (i64 LE) | stream (u8: 1, 2) | data
//! ```

use std::collections::BTreeMap;

use super::{PIECE, Record, Stream};

const HEAD: usize = 4;
const FIXED: usize = 8 + 1;

pub(super) fn encode(record: &Record, out: &mut Vec<u8>) {
    let length = u32::try_from(FIXED + record.data.len()).unwrap_or_default();
    out.extend(length.to_le_bytes());
    out.extend(record.time.to_le_bytes());
    out.push(record.stream as u8);
    out.extend(&record.data);
}

/// What the front of a buffer holds.
pub(super) enum Found {
    /// A record of so many bytes.
    Record(usize),
    /// The record is not complete yet.
    More,
    /// Not a record: the file was damaged here. This many bytes further on there may be one again.
    Damaged(usize),
}

/// Where in damaged bytes a record may begin, or how many of them surely are of none.
fn resume(bytes: &[u8]) -> usize {
    /// No log is from before this engine; a clock that is wrong the other way is not told from
    /// damage.
    const EARLIEST: i64 = 1_577_836_800_000_000_000;
    let begins = |at: &usize| {
        let head = &bytes[*at..];
        let (Some(length), Some(time)) = (
            head.first_chunk::<HEAD>(),
            head.get(HEAD..).and_then(<[u8]>::first_chunk::<8>),
        ) else {
            return true;
        };
        (FIXED..=FIXED + PIECE + 1).contains(&(u32::from_le_bytes(*length) as usize))
            && (EARLIEST..).contains(&i64::from_le_bytes(*time))
            && head
                .get(HEAD + 8)
                .is_none_or(|stream| matches!(stream, 1 | 2))
    };
    (1..bytes.len()).find(begins).unwrap_or(bytes.len())
}

/// Looks for a record at the front of `bytes`.
pub(super) fn find(bytes: &[u8]) -> Found {
    let Some(head) = bytes.first_chunk::<HEAD>() else {
        return Found::More;
    };
    let length = u32::from_le_bytes(*head) as usize;
    if !(FIXED..=FIXED + PIECE + 1).contains(&length) {
        return Found::Damaged(resume(bytes));
    }
    match bytes.get(HEAD + FIXED - 1) {
        Some(1 | 2) if bytes.len() >= HEAD + length => Found::Record(HEAD + length),
        Some(1 | 2) | None => Found::More,
        Some(_) => Found::Damaged(resume(bytes)),
    }
}

/// Reads a record that [`find`] has found. `None` for bytes that are none.
pub(super) fn decode(record: &[u8], attributes: &BTreeMap<String, String>) -> Option<Record> {
    let (time, rest) = record.get(HEAD..)?.split_first_chunk::<8>()?;
    let (stream, data) = rest.split_first()?;
    let stream = if *stream == Stream::Stderr as u8 {
        Stream::Stderr
    } else {
        Stream::Stdout
    };
    Some(Record {
        time: i64::from_le_bytes(*time),
        stream,
        data: data.to_vec(),
        attributes: attributes.clone(),
    })
}
