//! Messages of the Graylog Extended Log Format, version 1.1.
//!
//! ```text
//! chunk of a datagram: 1e 0f | id (8 bytes) | number (u8) | count (u8) | data
//! ```

use std::io::Write;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Address, Identity, Record};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gelf {
    pub address: Address,
    pub compression: Compression,
    pub level: i8,
    pub reconnects: u32,
    /// Seconds.
    pub reconnect_delay: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    Gzip,
    Zlib,
    None,
}

/// Size of a chunk in bytes, and of its head: what fits into a packet of Ethernet.
const CHUNK: usize = 1420;
const HEAD: usize = 12;
const MAX_CHUNKS: usize = 128;

impl Gelf {
    /// Appends the JSON of a message.
    pub(crate) fn encode(identity: &Identity, record: &Record, out: &mut Vec<u8>) {
        const ERROR: u8 = 3;
        const INFO: u8 = 6;
        #[expect(
            clippy::cast_precision_loss,
            reason = "milliseconds since the epoch fit into the mantissa"
        )]
        let time = (record.time / 1_000_000) as f64 / 1000.0;
        let mut message = Map::new();
        let mut add = |key: &str, value: Value| drop(message.insert(key.to_owned(), value));
        add("version", "1.1".into());
        add("host", identity.hostname.as_str().into());
        let line = String::from_utf8_lossy(&record.line);
        add("short_message", line.as_ref().into());
        add("timestamp", time.into());
        add("level", if record.is_error { ERROR } else { INFO }.into());
        add("_command", identity.command.as_str().into());
        add("_container_id", identity.id.as_str().into());
        add("_container_name", identity.name.as_str().into());
        add("_created", identity.created.as_str().into());
        add("_image_id", identity.image_id.as_str().into());
        add("_image_name", identity.image_name.as_str().into());
        add("_tag", identity.tag.as_str().into());
        for (key, value) in &identity.attributes {
            let prefix = if key.starts_with('_') { "" } else { "_" };
            add(&format!("{prefix}{key}"), value.as_str().into());
        }
        // Cannot fail: it is written to memory and has only strings as keys.
        let _ = serde_json::to_writer(out, &message);
    }

    /// Returns the datagrams of a message; `None` if it is too long for chunks.
    pub(crate) fn datagrams(&self, message: &[u8], id: [u8; 8]) -> Option<Vec<Vec<u8>>> {
        let level = u32::try_from(self.level)
            .map_or_else(|_| flate2::Compression::default(), flate2::Compression::new);
        let mut bytes = Vec::new();
        // Writing to memory does not fail.
        match self.compression {
            Compression::None => bytes.extend(message),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(&mut bytes, level);
                encoder
                    .write_all(message)
                    .and_then(|()| encoder.try_finish())
                    .ok()?;
            }
            Compression::Zlib => {
                let mut encoder = flate2::write::ZlibEncoder::new(&mut bytes, level);
                encoder
                    .write_all(message)
                    .and_then(|()| encoder.try_finish())
                    .ok()?;
            }
        }
        if bytes.len() <= CHUNK {
            return Some(vec![bytes]);
        }
        let parts = bytes.chunks(CHUNK - HEAD);
        let count = u8::try_from(parts.len()).ok()?;
        if parts.len() > MAX_CHUNKS {
            return None;
        }
        let with_head =
            |(number, part): (u8, &[u8])| [&[0x1e, 0x0f], &id[..], &[number, count], part].concat();
        Some((0..count).zip(parts).map(with_head).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_sent_in_chunks() {
        let gelf = |compression| Gelf {
            address: Address::Udp(String::new()),
            compression,
            level: 1,
            reconnects: 0,
            reconnect_delay: 0,
        };
        let message = vec![b'x'; 3000];
        let chunks = gelf(Compression::None).datagrams(&message, [7; 8]).unwrap();
        assert_eq!(chunks.len(), 3);
        assert_eq!(chunks[1][..12], [0x1e, 0x0f, 7, 7, 7, 7, 7, 7, 7, 7, 1, 3]);
        let data: Vec<u8> = chunks
            .iter()
            .flat_map(|chunk| chunk[12..].to_vec())
            .collect();
        assert_eq!(data, message);
        assert_eq!(
            gelf(Compression::None).datagrams(&vec![0; 200_000], [0; 8]),
            None
        );
        let gzip = gelf(Compression::Gzip).datagrams(&message, [0; 8]).unwrap();
        assert!(gzip.len() == 1 && gzip[0].starts_with(&[0x1f, 0x8b]));
        let zlib = gelf(Compression::Zlib).datagrams(&message, [0; 8]).unwrap();
        assert!(zlib[0].starts_with(&[0x78]));
    }
}
