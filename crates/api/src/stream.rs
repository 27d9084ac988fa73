//! Streamed bodies, between the engine's blocking readers and writers and async HTTP.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use futures_util::{Stream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::mpsc;

/// Maximum number of chunks queued between a blocking thread and HTTP.
const DEPTH: usize = 8;
const PIECE: usize = 128 << 10;

/// How long the rest of a request body that is not needed is read.
const DRAIN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// Returns a body of the chunks received from a channel. An error aborts the response.
pub(crate) fn from_channel(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    Body::from_stream(pieces(receiver))
}

/// Converts a receiver to a stream. Dropping the stream closes the channel, which the sender
/// notices.
pub(crate) fn pieces<T>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    futures_util::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|piece| (piece, receiver))
    })
}

/// A request body whose rest is read and discarded on drop, up to [`DRAIN_TIMEOUT`]: some clients
/// read the response only after they have sent the whole body, and may not get it if the connection
/// is closed before.
pub(crate) struct DrainedBody {
    body: Option<Incoming>,
    /// The client sends the body only on request (`Expect: 100-continue`), which hyper sends when
    /// the body is polled.
    awaits_request: bool,
}

impl DrainedBody {
    pub(crate) fn new(body: Incoming, headers: &HeaderMap) -> Self {
        Self {
            body: Some(body),
            awaits_request: headers.contains_key(header::EXPECT),
        }
    }
}

impl hyper::body::Body for DrainedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.awaits_request = false;
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body
            .as_ref()
            .is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or(SizeHint::with_exact(0), hyper::body::Body::size_hint)
    }
}

impl Drop for DrainedBody {
    fn drop(&mut self) {
        use hyper::body::Body as _;
        let awaits_request = self.awaits_request;
        let Some(mut body) = self
            .body
            .take()
            .filter(|body| !body.is_end_stream() && !awaits_request)
        else {
            return;
        };
        tokio::spawn(async move {
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, rest).await;
        });
    }
}

/// Returns a body that `write` produces on a blocking thread. If `write` fails, the response is
/// aborted, so that the client does not take it as complete.
pub(crate) fn written<E: std::fmt::Display + Send + 'static>(
    write: impl FnOnce(&mut dyn Write) -> Result<(), E> + Send + 'static,
) -> Body {
    let (sender, receiver) = mpsc::channel(DEPTH);
    tokio::task::spawn_blocking(move || {
        let mut writer = io::BufWriter::with_capacity(PIECE, ChannelWriter(sender.clone()));
        let result = write(&mut writer)
            .map_err(|error| io::Error::other(error.to_string()))
            .and_then(|()| writer.flush());
        if let Err(error) = result {
            tracing::warn!("response aborted: {error}");
            let _ = sender.blocking_send(Err(error));
        }
    });
    from_channel(receiver)
}

struct ChannelWriter(mpsc::Sender<io::Result<Bytes>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns a blocking reader for a request body.
pub(crate) fn reader(body: Body) -> BodyReader {
    let (sender, receiver) = mpsc::channel(DEPTH);
    tokio::spawn(async move {
        let mut pieces = body.into_data_stream();
        loop {
            let piece = match pieces.next().await {
                Some(Ok(bytes)) if bytes.is_empty() => continue,
                Some(Ok(bytes)) => Piece::Bytes(bytes),
                Some(Err(error)) => Piece::Failed(error.to_string()),
                None => Piece::End,
            };
            let is_last = !matches!(piece, Piece::Bytes(_));
            if sender.send(piece).await.is_err() || is_last {
                break;
            }
        }
    });
    BodyReader {
        receiver,
        bytes: Bytes::new(),
        has_ended: false,
        failure: None,
    }
}

/// A piece of a request body.
enum Piece {
    /// Not empty.
    Bytes(Bytes),
    /// The client has sent everything.
    End,
    Failed(String),
}

/// A request body. It only ends where the client has ended it: a connection that is lost is an
/// error, so that what has arrived is not taken for everything.
pub(crate) struct BodyReader {
    receiver: mpsc::Receiver<Piece>,
    bytes: Bytes,
    has_ended: bool,
    failure: Option<String>,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() && !self.has_ended {
            let lost = |reason: &str| {
                let text = format!("request body ended early: {reason}");
                tracing::warn!("{text}");
                io::Error::new(io::ErrorKind::UnexpectedEof, text)
            };
            match self.receiver.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.bytes = bytes,
                Some(Piece::End) => self.has_ended = true,
                Some(Piece::Failed(reason)) => {
                    self.failure = Some(reason.clone());
                    return Err(lost(&reason));
                }
                // The task that reads the body ends early only with the engine.
                None => {
                    let reason = self.failure.as_deref();
                    return Err(lost(reason.unwrap_or("the engine is shutting down")));
                }
            }
        }
        let count = buffer.len().min(self.bytes.len());
        buffer[..count].copy_from_slice(&self.bytes.split_to(count));
        Ok(count)
    }
}
