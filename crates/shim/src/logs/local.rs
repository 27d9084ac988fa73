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
    /// Not a record: the file was damaged here. Nothing behind it can be told apart.
    Damaged,
}

pub(super) fn decode(bytes: &[u8], attributes: &BTreeMap<String, String>) -> Decoded {
    let Some(head) = bytes.first_chunk::<HEAD>() else { return Decoded::More };
    let length = u32::from_le_bytes(*head) as usize;
    if !(FIXED..=FIXED + PIECE + 1).contains(&length) {
        return Decoded::Damaged;
    }
    let Some(body) = bytes.get(HEAD..HEAD + length) else { return Decoded::More };
    let Some((time, rest)) = body.split_first_chunk::<8>() else { return Decoded::Damaged };
    let stream = match rest[0] {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        _ => return Decoded::Damaged,
    };
    Decoded::Record(
        Record { time: i64::from_le_bytes(*time), stream, data: rest[1..].to_vec(), attributes: attributes.clone() },
        HEAD + length,
    )
}
