//! Detects HTTP/1.1 or HTTP/2 by the first bytes of a connection: an HTTP/2 client with prior knowledge
//! begins with a preface (RFC 9113, section 3.4), with and without TLS.

use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Number of bytes that no method of HTTP/1.1 has in common with the preface.
const DISTINCT: usize = 3;

/// Returns the protocol of a connection, and the connection with nothing of it consumed.
///
/// # Errors
/// Returns an error if the client sends nothing for the time `first`, or if the `rest` of the preface
/// does not follow.
pub(crate) async fn detect<S: AsyncRead + Unpin>(
    mut stream: S,
    first: Duration,
    rest: Duration,
) -> Result<(Protocol, Replayed<S>)> {
    let (mut head, mut length) = ([0; PREFACE.len()], 0);
    let mut deadline = Instant::now() + first;
    let protocol = loop {
        match timeout_at(deadline, stream.read(&mut head[length..])).await {
            // HTTP/1.1 has a time limit of its own.
            Err(_) if (1..DISTINCT).contains(&length) => break Protocol::Http1,
            Err(_) if length == 0 => return Err(late("no request")),
            Err(_) => return Err(late("incomplete HTTP/2 preface")),
            Ok(count) => {
                let count = count?;
                if length == 0 {
                    deadline = Instant::now() + rest;
                }
                length += count;
                if count == 0 || !PREFACE.starts_with(&head[..length]) {
                    break Protocol::Http1;
                }
                if length == PREFACE.len() {
                    break Protocol::Http2;
                }
            }
        }
    };
    let head = Bytes::copy_from_slice(&head[..length]);
    Ok((protocol, Replayed { head, stream }))
}

fn late(text: &str) -> Error {
    Error::new(ErrorKind::TimedOut, text)
}

/// A stream of which some bytes were read, which are read again.
#[derive(Debug)]
pub(crate) struct Replayed<S> {
    head: Bytes,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.head.len().min(buffer.remaining());
        buffer.put_slice(&self.head.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
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
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(200);

    /// Sends these pieces, with a pause after each. Returns the protocol, or the error's text, and what
    /// can be read afterwards.
    async fn detected(
        pieces: &[&[u8]],
        pause: Duration,
        first: Duration,
        rest: Duration,
    ) -> (std::result::Result<Protocol, String>, Vec<u8>) {
        let (mut client, server) = duplex(1 << 10);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let sending = async {
            for piece in pieces {
                client.write_all(&piece).await.unwrap();
                tokio::time::sleep(pause).await;
            }
            std::future::pending().await
        };
        let found = tokio::select! {
            found = detect(server, first, rest) => found,
            () = sending => unreachable!("it is pending"),
        };
        let mut all = Vec::new();
        match found {
            Ok((protocol, mut stream)) => {
                drop(client);
                stream.read_to_end(&mut all).await.unwrap();
                (Ok(protocol), all)
            }
            Err(error) => (Err(error.to_string()), all),
        }
    }

    #[tokio::test]
    async fn the_preface_selects_http2() {
        let with_frames = [&PREFACE[..], b"frames"].concat();
        for (pieces, protocol) in [
            (&[&with_frames[..]][..], Protocol::Http2),
            (&[&PREFACE[..7], &PREFACE[7..]], Protocol::Http2),
            (&[b"GET / HTTP/1.1\r\n\r\n"], Protocol::Http1),
            (&[b"P", b"OST / HTTP/1.1\r\n\r\n"], Protocol::Http1),
            (&[b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"], Protocol::Http1),
            (&[b"\x16\x03\x01"], Protocol::Http1),
        ] {
            let pause = Duration::from_millis(20);
            let (found, all) = detected(pieces, pause, LONG, LONG).await;
            assert_eq!(found, Ok(protocol), "{pieces:?}");
            assert_eq!(all, pieces.concat());
        }
        // Too short for a decision.
        let (found, all) = detected(&[b"P"], SHORT, LONG, SHORT).await;
        assert_eq!((found, all), (Ok(Protocol::Http1), b"P".to_vec()));
    }

    #[tokio::test]
    async fn slow_clients_are_not_waited_for() {
        let one_by_one: Vec<&[u8]> = PREFACE.chunks(1).collect();
        for (pieces, first, rest, text) in [
            (&[][..], SHORT, LONG, "no request"),
            (&[&PREFACE[..23]], LONG, SHORT, "incomplete HTTP/2 preface"),
            // Each of them begins no new time.
            (&one_by_one, LONG, SHORT * 4, "incomplete HTTP/2 preface"),
        ] {
            let (found, _) = detected(pieces, SHORT, first, rest).await;
            assert_eq!(found, Err(text.to_owned()), "{pieces:?}");
        }
    }
}
