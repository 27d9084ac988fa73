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
pub(super) enum Decoded {
    Record(Record, usize),
    /// The record is not complete yet.
    More,
    /// Not a record: the file was damaged here. This many bytes further on there may be one again.
    Damaged(usize),
}

/// Where in damaged bytes a record may begin, or how many of them surely are of none.
fn resume(bytes: &[u8]) -> usize {
    /// No log is from before this engine; a clock that is wrong the other way is not told from damage.
    const EARLIEST: i64 = 1_577_836_800_000_000_000;
    let begins = |at: &usize| {
        let head = &bytes[*at..];
        let (Some(length), Some(time)) = (head.first_chunk::<HEAD>(), head.get(HEAD..).and_then(<[u8]>::first_chunk::<8>)) else {
            return true;
        };
        (FIXED..=FIXED + PIECE + 1).contains(&(u32::from_le_bytes(*length) as usize))
            && (EARLIEST..).contains(&i64::from_le_bytes(*time))
            && head.get(HEAD + 8).is_none_or(|stream| matches!(stream, 1 | 2))
    };
    (1..bytes.len()).find(begins).unwrap_or(bytes.len())
}

pub(super) fn decode(bytes: &[u8], attributes: &BTreeMap<String, String>) -> Decoded {
    let Some(head) = bytes.first_chunk::<HEAD>() else { return Decoded::More };
    let length = u32::from_le_bytes(*head) as usize;
    if !(FIXED..=FIXED + PIECE + 1).contains(&length) {
        return Decoded::Damaged(resume(bytes));
    }
    let Some(body) = bytes.get(HEAD..HEAD + length) else { return Decoded::More };
    let Some((time, rest)) = body.split_first_chunk::<8>() else { return Decoded::Damaged(resume(bytes)) };
    let stream = match rest[0] {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        _ => return Decoded::Damaged(resume(bytes)),
    };
    Decoded::Record(
        Record { time: i64::from_le_bytes(*time), stream, data: rest[1..].to_vec(), attributes: attributes.clone() },
        HEAD + length,
    )
}
