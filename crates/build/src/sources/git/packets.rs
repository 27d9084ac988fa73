//! The packets of git's protocol (gitprotocol-common).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::MutexGuard;
use whelk_registry::{Pace, WebResponse};

use super::link::Link;

/// The time in which the minimum of bytes must come. A server sends little while it looks for what a large pack needs.
pub(super) const WINDOW: Duration = Duration::from_secs(300);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Data(Bytes),
    Delimiter,
    End,
}

/// The packets of an answer.
pub(super) struct Packets<'a> {
    source: Source<'a>,
    pace: Pace,
    /// Number of bytes that were received.
    received: u64,
    /// The maximum of these.
    most: u64,
}

enum Source<'a> {
    Web {
        response: Box<WebResponse>,
        buffer: BytesMut,
    },
    /// A connection that goes on behind the answer.
    Ssh(MutexGuard<'a, Link>),
}

impl Source<'_> {
    /// Returns what was received and is not taken yet.
    fn buffer(&mut self) -> &mut BytesMut {
        match self {
            Self::Web { buffer, .. } => buffer,
            Self::Ssh(link) => &mut link.buffer,
        }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, String> {
        match self {
            Self::Web { response, .. } => response.piece().await.map_err(|error| error.to_string()),
            Self::Ssh(link) => link.piece().await,
        }
    }
}

impl<'a> Packets<'a> {
    pub fn of_response(response: WebResponse, most: u64) -> Self {
        let source = Source::Web {
            response: Box::new(response),
            buffer: BytesMut::new(),
        };
        Self::of(source, most)
    }

    pub fn of_link(link: MutexGuard<'a, Link>, most: u64) -> Self {
        Self::of(Source::Ssh(link), most)
    }

    fn of(source: Source<'a>, most: u64) -> Self {
        Self {
            source,
            pace: Pace::new(WINDOW),
            received: 0,
            most,
        }
    }

    /// Returns the next packet; `None` at the end of the answer.
    pub async fn next(&mut self) -> Result<Option<Packet>, String> {
        loop {
            if let Some(packet) = take(self.source.buffer())? {
                return Ok(Some(packet));
            }
            let size =
                |piece: &Result<Option<Bytes>, String>| Some(piece.as_ref().ok()?.as_ref()?.len());
            let piece = self.pace.wait(self.source.piece(), size).await;
            let piece = piece.map_err(|slow| slow.to_string())??;
            let buffer = self.source.buffer();
            match piece {
                Some(piece) => {
                    self.received += piece.len() as u64;
                    if self.received > self.most {
                        return Err(format!("the answer has more than {} bytes", self.most));
                    }
                    buffer.extend_from_slice(&piece);
                }
                None if buffer.is_empty() => return Ok(None),
                None => {
                    return Err(
                        "the answer ends within a packet: it is cut, or not of git's smart protocol"
                            .into(),
                    );
                }
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
