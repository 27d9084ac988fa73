//! Messages of fluentd's forward protocol: `[tag, time, record, option]` in MessagePack.

use std::io;

use serde::{Deserialize, Serialize};

use crate::{Address, Identity, Record};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fluentd {
    pub address: Address,
    /// Whether the container neither waits for the collector nor for its first connection.
    pub is_async: bool,
    /// After how many milliseconds another connection is made, so that changes of the collector's addresses
    /// are noticed; only if it is asynchronous.
    #[serde(default)]
    pub reconnect_interval: Option<u64>,
    /// Number of records that wait for an asynchronous transfer.
    pub buffer_limit: u64,
    pub retries: u32,
    /// Milliseconds.
    pub retry_wait: u64,
    /// Whether times are event times (seconds and nanoseconds) instead of seconds.
    pub sub_second: bool,
    /// Whether the collector is asked to acknowledge each line.
    #[serde(default)]
    pub wants_acknowledgement: bool,
}

impl Fluentd {
    /// Appends a message. With an id in `chunk` the collector is asked to acknowledge it.
    pub(crate) fn encode(
        &self,
        identity: &Identity,
        record: &Record,
        chunk: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        let source = if record.is_error { "stderr" } else { "stdout" };
        let name = format!("/{}", identity.name);
        let mut fields: Vec<(&str, &[u8])> = vec![
            ("container_id", identity.id.as_bytes()),
            ("container_name", name.as_bytes()),
            ("source", source.as_bytes()),
            ("log", &record.line),
        ];
        let attributes = identity.attributes.iter();
        fields.extend(attributes.map(|(key, value)| (key.as_str(), value.as_bytes())));
        let ordinal;
        if let Some(part) = &record.part {
            ordinal = part.ordinal.to_string();
            let last: &[u8] = if part.last { b"true" } else { b"false" };
            fields.push(("partial_message", b"true"));
            fields.push(("partial_id", part.id.as_bytes()));
            fields.push(("partial_ordinal", ordinal.as_bytes()));
            fields.push(("partial_last", last));
        }
        const ARRAY_OF_4: u8 = 0x94;
        const EMPTY_MAP: u8 = 0x80;
        out.push(ARRAY_OF_4);
        text(identity.tag.as_bytes(), out);
        self.time(record.time, out);
        map(fields.len(), out);
        for (key, value) in fields {
            text(key.as_bytes(), out);
            text(value, out);
        }
        match chunk {
            Some(chunk) => {
                map(1, out);
                text(b"chunk", out);
                text(chunk.as_bytes(), out);
            }
            None => out.push(EMPTY_MAP),
        }
    }

    fn time(&self, time: i64, out: &mut Vec<u8>) {
        const SECOND: i64 = 1_000_000_000;
        let seconds = u32::try_from(time.div_euclid(SECOND)).unwrap_or(u32::MAX);
        if self.sub_second {
            // EventTime: extension type 0 of 8 bytes.
            out.extend([0xd7, 0x00]);
            out.extend(seconds.to_be_bytes());
            let nanoseconds = u32::try_from(time.rem_euclid(SECOND)).unwrap_or_default();
            out.extend(nanoseconds.to_be_bytes());
        } else {
            out.push(0xce);
            out.extend(seconds.to_be_bytes());
        }
    }
}

/// Takes the acknowledgement of a message, `{"ack": CHUNK}`, from the front of what a collector has sent. Returns
/// the id; `None` if it is not complete.
///
/// # Errors
/// Returns an error if it is something else.
pub(crate) fn take_acknowledgement(inbox: &mut Vec<u8>) -> io::Result<Option<String>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "invalid acknowledgement");
    let head = b"\x81\xa3ack";
    if inbox.len() < head.len() {
        return Ok(None);
    }
    let rest = inbox.strip_prefix(head).ok_or_else(invalid)?;
    let (length, skipped) = match rest {
        [] => return Ok(None),
        [short @ 0xa0..=0xbf, ..] => (usize::from(short & 0x1f), 1),
        [0xd9, length, ..] => (usize::from(*length), 2),
        [0xd9] => return Ok(None),
        _ => return Err(invalid()),
    };
    let Some(chunk) = rest.get(skipped..skipped + length) else {
        return Ok(None);
    };
    let chunk = String::from_utf8_lossy(chunk).into_owned();
    inbox.drain(..head.len() + skipped + length);
    Ok(Some(chunk))
}

/// Appends a string.
fn text(bytes: &[u8], out: &mut Vec<u8>) {
    let length = bytes.len();
    if let Ok(short) = u8::try_from(length) {
        if short < 32 {
            out.push(0xa0 | short);
        } else {
            out.extend([0xd9, short]);
        }
    } else if let Ok(middle) = u16::try_from(length) {
        out.push(0xda);
        out.extend(middle.to_be_bytes());
    } else {
        out.push(0xdb);
        out.extend(u32::try_from(length).unwrap_or_default().to_be_bytes());
    }
    out.extend(bytes);
}

/// Appends the head of a map.
fn map(length: usize, out: &mut Vec<u8>) {
    match u8::try_from(length) {
        Ok(short) if short < 16 => out.push(0x80 | short),
        _ => {
            out.push(0xde);
            out.extend(u16::try_from(length).unwrap_or_default().to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_taken_when_they_are_complete() {
        let long = "x".repeat(40);
        let message = [
            &b"\x81\xa3ack\xa2id\x81\xa3ack\xd9\x28"[..],
            long.as_bytes(),
        ]
        .concat();
        let (mut inbox, mut taken) = (Vec::new(), Vec::new());
        for byte in message {
            inbox.push(byte);
            taken.extend(take_acknowledgement(&mut inbox).unwrap());
        }
        assert_eq!(taken, ["id", &long]);
        assert!(inbox.is_empty());
        for wrong in [&b"\x82\xa3ack"[..], b"\x81\xa3ack\x01", b"HTTP/1.1"] {
            take_acknowledgement(&mut wrong.to_vec()).unwrap_err();
        }
    }
}
