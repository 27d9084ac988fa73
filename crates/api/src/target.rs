//! Escapes characters in the targets of HTTP/1.1 requests that RFC 3986 does not allow there, but Go's server
//! accepts, such as the quotes in `GET /images/json?filters={"label":["a"]}`. hyper refuses them.
//!
//! The bytes of a connection are followed as far as it takes to know where a request begins: a head, and a
//! body of a length that the head tells. Everything else, such as a body of unknown length or a hijacked
//! connection, ends this: bytes are passed on unchanged from there. Nothing but these characters is ever
//! changed, and nothing is held back.

use std::io::Result;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Maximum length of a path, and of a header, that is looked at.
const MAX_LOOK: usize = 1 << 10;

/// A connection in whose requests targets are escaped.
#[derive(Debug)]
pub(crate) struct Escaped<S> {
    stream: S,
    requests: Requests,
    /// Bytes that did not fit into the reader's buffer.
    rest: Bytes,
}

/// Part of a request that the next byte of a connection is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The method of a request, or empty lines before it.
    Method,
    Target,
    /// The protocol version.
    Version,
    Headers,
    /// A body of which these bytes are left.
    Body(u64),
    /// Anything.
    Unknown,
}

/// Follows the requests of a connection.
#[derive(Debug)]
struct Requests {
    place: Place,
    /// The target's path as far as it was received.
    path: Vec<u8>,
    /// The header as far as it was received, without its end if it is long.
    line: Vec<u8>,
    /// Of the body.
    length: Option<u64>,
    /// The length of the body is unknown, or raw bytes may follow: the rest of the connection is passed
    /// on unchanged.
    is_last: bool,
}

impl<S> Escaped<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            requests: Requests {
                place: Place::Method,
                path: Vec::new(),
                line: Vec::new(),
                length: None,
                is_last: false,
            },
            rest: Bytes::new(),
        }
    }
}

impl Requests {
    /// Moves on by some of these bytes, at least one. Returns how many there were, and the text in the place
    /// of the last one if it is to be escaped.
    fn advance(&mut self, bytes: &[u8]) -> (usize, Option<&'static [u8; 3]>) {
        match self.place {
            Place::Unknown => (bytes.len(), None),
            Place::Body(left) => {
                let count = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.place = match left - count as u64 {
                    0 => Place::Method,
                    left => Place::Body(left),
                };
                (count, None)
            }
            _ => (1, self.byte(bytes[0])),
        }
    }

    fn byte(&mut self, byte: u8) -> Option<&'static [u8; 3]> {
        match (self.place, byte) {
            (Place::Method, b'A'..=b'Z' | b'\r' | b'\n') => {}
            (Place::Method, b' ') => {
                self.path.clear();
                self.length = None;
                self.is_last = false;
                self.place = Place::Target;
            }
            (Place::Target, b' ') => {
                self.is_last |= self.path.len() >= MAX_LOOK || is_hijacked(&self.path);
                self.place = Place::Version;
            }
            (Place::Target, b'!'..) => {
                if self.path.len() < MAX_LOOK {
                    self.path.push(byte);
                }
                return escape(byte);
            }
            (Place::Version, b'\n') => {
                self.line.clear();
                self.place = Place::Headers;
            }
            (Place::Version, b' '..=b'~' | b'\r') => {}
            (Place::Headers, b'\n') => {
                let line = std::mem::take(&mut self.line);
                self.header(line.strip_suffix(b"\r").unwrap_or(&line));
            }
            (Place::Headers, _) => {
                if self.line.len() < MAX_LOOK {
                    self.line.push(byte);
                }
            }
            _ => self.place = Place::Unknown,
        }
        None
    }

    fn header(&mut self, line: &[u8]) {
        if line.is_empty() {
            self.place = match self.length {
                _ if self.is_last => Place::Unknown,
                Some(length @ 1..) => Place::Body(length),
                Some(0) | None => Place::Method,
            };
            return;
        }
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &b""[..]),
        };
        if name.eq_ignore_ascii_case(b"content-length") {
            let value = value.trim_ascii();
            let is_number = value.iter().all(u8::is_ascii_digit) && line.len() < MAX_LOOK;
            let number = str::from_utf8(value).ok().filter(|_| is_number);
            let length = number.and_then(|number| number.parse().ok());
            self.is_last |= length.is_none() || self.length.is_some();
            self.length = length;
        }
        let ends = [&b"transfer-encoding"[..], b"upgrade"];
        // A line that continues another begins with a space.
        self.is_last |= ends.iter().any(|end| name.eq_ignore_ascii_case(end))
            || name.first().is_none_or(u8::is_ascii_whitespace);
    }
}

/// Returns whether raw bytes may follow a request for this target, also without `Upgrade`.
fn is_hijacked(target: &[u8]) -> bool {
    let path = target.split(|byte| *byte == b'?').next();
    let mut names = path.unwrap_or_default().split(|byte| *byte == b'/');
    names.any(|name| [&b"attach"[..], b"exec", b"session", b"grpc"].contains(&name))
}

/// Returns the escaped form of a character that hyper does not accept in a target, or ends it at.
fn escape(byte: u8) -> Option<&'static [u8; 3]> {
    match byte {
        b'"' => Some(b"%22"),
        // HTTP parsers cut a target off at it, as at the beginning of a fragment.
        b'#' => Some(b"%23"),
        b'<' => Some(b"%3C"),
        b'>' => Some(b"%3E"),
        b'`' => Some(b"%60"),
        _ => None,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Escaped<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            let received = &buffer.filled()[before..];
            let (mut at, mut changed) = (0, None);
            while at < received.len() {
                let (count, escaped) = this.requests.advance(&received[at..]);
                at += count;
                if let Some(escaped) = escaped {
                    // From here on the bytes have other places.
                    let (_, changed) = changed.get_or_insert_with(|| (at - 1, Vec::new()));
                    changed.extend_from_slice(escaped);
                } else if let Some((_, changed)) = &mut changed {
                    changed.extend_from_slice(&received[at - count..at]);
                }
            }
            let Some((same, changed)) = changed else {
                return Poll::Ready(Ok(()));
            };
            buffer.set_filled(before + same);
            this.rest = changed.into();
        }
        let count = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Escaped<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Checks what is read of a connection on which this is sent, in pieces of any length.
    async fn check(sent: &str, expected: &str) {
        for length in [1, 2, 7, 1 << 16] {
            for room in [1, 3, 1 << 16] {
                let (mut client, server) = tokio::io::duplex(1 << 20);
                for piece in sent.as_bytes().chunks(length) {
                    client.write_all(piece).await.unwrap();
                }
                drop(client);
                let (mut server, mut read) = (Escaped::new(server), Vec::new());
                let mut piece = vec![0; room];
                loop {
                    match server.read(&mut piece).await.unwrap() {
                        0 => break,
                        count => read.extend_from_slice(&piece[..count]),
                    }
                }
                assert_eq!(String::from_utf8_lossy(&read), expected, "{length} {room}");
            }
        }
    }

    async fn unchanged(sent: &str) {
        check(sent, sent).await;
    }

    #[tokio::test]
    async fn targets_are_escaped_and_nothing_else() {
        check(
            "GET /a?f={\"x\":[\"<`>#\"]} HTTP/1.1\r\nHost: \"h\"\r\n\r\n",
            "GET /a?f={%22x%22:[%22%3C%60%3E%23%22]} HTTP/1.1\r\nHost: \"h\"\r\n\r\n",
        )
        .await;
        // The next requests of the connection, after bodies of known length, and in which there are quotes.
        check(
            "POST /a HTTP/1.1\r\ncontent-length: 14\r\n\r\nGET /\" HTTP/1.GET /\" HTTP/1.1\r\n\r\nDELETE /\"x HTTP/1.1\r\n\r\n",
            "POST /a HTTP/1.1\r\ncontent-length: 14\r\n\r\nGET /\" HTTP/1.GET /%22 HTTP/1.1\r\n\r\nDELETE /%22x HTTP/1.1\r\n\r\n",
        )
        .await;
        for sent in [
            "GET /a HTTP/1.1\r\nA: \"\r\n\r\n",
            "GET \"a b\"c HTTP/1.1\r\n\r\n\"",
            "",
            "\u{16}\u{3}\u{1} /\" HTTP/1.1\r\n",
        ] {
            check(sent, &sent.replace("GET \"a", "GET %22a")).await;
        }
    }

    #[tokio::test]
    async fn what_cannot_be_followed_is_unchanged() {
        let next = "GET /\" HTTP/1.1\r\n\r\n";
        for head in [
            "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
            "POST /a HTTP/1.1\r\nUPGRADE: tcp\r\n",
            "POST /containers/x/attach?stdin=1 HTTP/1.1\r\n",
            "POST /v1.51/exec/x/start HTTP/1.1\r\nContent-Length: 0\r\n",
            "POST /session HTTP/1.1\r\n",
            "POST /a HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n",
            "POST /a HTTP/1.1\r\nContent-Length: +0\r\n",
            "POST /a HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n",
            "POST /a HTTP/1.1\r\nA: b\r\n Content-Length: 0\r\n",
            "post /a HTTP/1.1\r\n",
        ] {
            unchanged(&format!("{head}\r\n{next}")).await;
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n{next}", "a".repeat(MAX_LOOK));
        unchanged(&long).await;
        unchanged(&format!(
            "POST /a HTTP/1.1\r\nContent-Length: {}\r\n\r\n{next}",
            u64::MAX
        ))
        .await;
    }
}
