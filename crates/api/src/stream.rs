//! Bodies that come in pieces: between the engine's blocking readers and writers and HTTP.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use futures_util::{Stream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::mpsc;

/// Pieces in flight between a blocking side and HTTP.
const DEPTH: usize = 8;
const PIECE: usize = 128 << 10;

/// How long a client may go on to send what nobody wants any more.
const LONGEST_REST: std::time::Duration = std::time::Duration::from_secs(60);

/// A body out of what a channel brings. It ends where the channel does; an error cuts it off.
pub(crate) fn from_channel(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    Body::from_stream(pieces(receiver))
}

/// What a channel brings, as a stream. Its sender learns that nobody wants it any more when the
/// stream is dropped.
pub(crate) fn pieces<T>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    futures_util::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|piece| (piece, receiver))
    })
}

/// A request's body. What is left of it when it is dropped is read all the same, for a while: a
/// client that is refused looks for the answer only when it has sent everything, and one whose
/// connection is closed before may never find it.
pub(crate) struct DrainedBody {
    body: Option<Incoming>,
    /// The client sends the body only when it is asked for it (`Expect: 100-continue`), which
    /// reading it does.
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
            let _ = tokio::time::timeout(LONGEST_REST, rest).await;
        });
    }
}

/// A body out of what `write` writes on a blocking thread. If it fails, the body is cut off, so
/// that the client does not take a part for the whole.
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
            tracing::warn!("a stream ended early: {error}");
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

/// A request's body for a blocking reader.
pub(crate) fn reader(body: Body) -> BodyReader {
    let (sender, receiver) = mpsc::channel(DEPTH);
    tokio::spawn(async move {
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let failed = piece.is_err();
            let piece = piece
                .map_err(|error| io::Error::new(io::ErrorKind::UnexpectedEof, error.to_string()));
            if failed || sender.send(piece).await.is_err() {
                break;
            }
        }
    });
    BodyReader {
        receiver,
        piece: Bytes::new(),
    }
}

pub(crate) struct BodyReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
