//! The packets of git's protocol (gitprotocol-common).

use bytes::{Bytes, BytesMut};
use tokio::sync::MutexGuard;
use whelk_registry::WebResponse;

use super::link::Link;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Data(Bytes),
    Delimiter,
    End,
}

/// The packets of an answer.
pub(super) enum Packets<'a> {
    Web {
        response: Box<WebResponse>,
        buffer: BytesMut,
    },
    /// Those of a connection, which goes on behind the answer.
    Ssh(MutexGuard<'a, Link>),
}

impl Packets<'_> {
    pub fn of(response: WebResponse) -> Self {
        Self::Web {
            response: Box::new(response),
            buffer: BytesMut::new(),
        }
    }

    /// Returns the next packet; `None` at the end of the answer.
    pub async fn next(&mut self) -> Result<Option<Packet>, String> {
        loop {
            let buffer = match self {
                Self::Web { buffer, .. } => buffer,
                Self::Ssh(link) => &mut link.buffer,
            };
            if let Some(packet) = take(buffer)? {
                return Ok(Some(packet));
            }
            let piece = match self {
                Self::Web { response, .. } => {
                    response.piece().await.map_err(|error| error.to_string())?
                }
                Self::Ssh(link) => link.piece().await?,
            };
            let buffer = match self {
                Self::Web { buffer, .. } => buffer,
                Self::Ssh(link) => &mut link.buffer,
            };
            match piece {
                Some(piece) => buffer.extend_from_slice(&piece),
                None if buffer.is_empty() => return Ok(None),
                None => return Err("the answer ends within a packet".into()),
            }
        }
    }
}

/// Appends a packet with a text.
pub(super) fn put(buffer: &mut BytesMut, text: &str) {
    buffer.extend_from_slice(format!("{:04x}{text}", text.len() + 4).as_bytes());
}

/// Takes a packet out of a buffer; `None` if it is not complete.
fn take(buffer: &mut BytesMut) -> Result<Option<Packet>, String> {
    let Some(digits) = buffer.get(..4) else {
        return Ok(None);
    };
    let length = std::str::from_utf8(digits).ok();
    let length = length.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let length = length.and_then(|digits| usize::from_str_radix(digits, 16).ok());
    match length {
        Some(0 | 2) => {
            drop(buffer.split_to(4));
            Ok(Some(Packet::End))
        }
        Some(1) => {
            drop(buffer.split_to(4));
            Ok(Some(Packet::Delimiter))
        }
        Some(length @ 4..) if buffer.len() >= length => {
            let mut packet = buffer.split_to(length);
            Ok(Some(Packet::Data(packet.split_off(4).freeze())))
        }
        Some(4..) => Ok(None),
        _ => Err("the answer is not of git's protocol".into()),
    }
}

/// Takes all packets out of bytes.
pub(super) fn decode(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(_)) = take(&mut buffer) {}
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_taken_as_they_come() {
        let mut buffer = BytesMut::from(&b"0006a\n00010000"[..]);
        let mut next = || take(&mut buffer).unwrap();
        assert_eq!(next(), Some(Packet::Data(Bytes::from_static(b"a\n"))));
        assert_eq!(next(), Some(Packet::Delimiter));
        assert_eq!(next(), Some(Packet::End));
        assert_eq!(next(), None);
        assert_eq!(take(&mut BytesMut::from(&b"0009ab"[..])).unwrap(), None);
        for text in ["<html", "0003", "+00a", "00é"] {
            assert!(
                take(&mut BytesMut::from(text.as_bytes())).is_err(),
                "{text}"
            );
        }
    }
}
