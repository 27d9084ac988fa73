//! The `local` format: length, time, stream, data.
//!
//! ```text
//! length of the rest (u32 LE) | nanoseconds since the epoch (i64 LE) | stream (u8: 1, 2) | data
//! ```

use std::collections::BTreeMap;

use super::{LogRecord, PIECE, Stream};

const HEAD: usize = 4;
const FIXED: usize = 8 + 1;

pub(super) fn encode(record: &LogRecord, out: &mut Vec<u8>) {
    let length = u32::try_from(FIXED + record.data.len()).unwrap_or_default();
    out.extend(length.to_le_bytes());
    out.extend(record.time.to_le_bytes());
    out.push(record.stream as u8);
    out.extend(&record.data);
}

/// Returns the length of the record at the front of `bytes`, from its head.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.first_chunk::<HEAD>()?;
    Some(HEAD + u32::from_le_bytes(*head) as usize)
}

/// What is at the front of a buffer.
pub(super) enum Found {
    /// A record of this many bytes.
    Record(usize),
    /// The record is not complete yet.
    More,
    /// Not a record: the file is damaged here. The next record may begin after this many bytes.
    Damaged(usize),
}

/// Returns the next offset in damaged data at which a record may begin, or the length of the data
/// if there is none.
fn resynchronize(bytes: &[u8]) -> usize {
    /// 2020-01-01: no log is older than this engine. Timestamps in the future cannot be told from
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

/// Finds the record at the front of `bytes`.
pub(super) fn find(bytes: &[u8]) -> Found {
    let Some(head) = bytes.first_chunk::<HEAD>() else {
        return Found::More;
    };
    let length = u32::from_le_bytes(*head) as usize;
    if !(FIXED..=FIXED + PIECE + 1).contains(&length) {
        return Found::Damaged(resynchronize(bytes));
    }
    match bytes.get(HEAD + FIXED - 1) {
        Some(1 | 2) if bytes.len() >= HEAD + length => Found::Record(HEAD + length),
        Some(1 | 2) | None => Found::More,
        Some(_) => Found::Damaged(resynchronize(bytes)),
    }
}

/// Decodes a record that [`find`] has found. Returns `None` if the bytes are not a record.
pub(super) fn decode(record: &[u8], attributes: &BTreeMap<String, String>) -> Option<LogRecord> {
    let (time, rest) = record.get(HEAD..)?.split_first_chunk::<8>()?;
    let (stream, data) = rest.split_first()?;
    let stream = if *stream == Stream::Stderr as u8 {
        Stream::Stderr
    } else {
        Stream::Stdout
    };
    Some(LogRecord {
        time: i64::from_le_bytes(*time),
        stream,
        data: data.to_vec(),
        attributes: attributes.clone(),
    })
}
