//! Streamed bodies, between the engine's blocking readers and writers and async HTTP.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use futures_util::{Stream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::{mpsc, oneshot};
use whelk_buildkit::turns::{MAX_STALL, Peer, STALLED, Turn, Turns};

use crate::error::{ApiError, ApiResult};

/// Maximum number of streams of files at a time, which are written or read by threads: a client that does not
/// read, or send, holds one for as long as nobody else needs it. The runtime has twice as many, which other
/// operations need too.
const MOST: usize = 256;

static TURNS: Turns = Turns::new(MOST);

/// Begins a stream of files. If there are too many of them, those end whose clients do nothing.
///
/// # Errors
/// Returns an error if all clients do something.
pub(crate) async fn begin() -> ApiResult<Turn> {
    TURNS.begin_soon().await.ok_or_else(|| {
        ApiError::unavailable(format!(
            "{MOST} files or archives are being sent and received, which is the maximum: try again later; clients that do nothing lose their place after {} s",
            MAX_STALL.as_secs()
        ))
    })
}

/// Maximum number of chunks queued between a blocking thread and HTTP.
const DEPTH: usize = 8;
const PIECE: usize = 128 << 10;

/// Bytes of a request body that wait for its reader; one more piece may come.
const WAITING: usize = 256 << 10;
/// Number of pieces of a request body that wait for its reader: each takes memory, also if it has only one byte.
const PIECES: usize = 4096;

/// How long the rest of a request body that is not needed is read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

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
    turn: Turn,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E> + Send + 'static,
) -> Body {
    let (sender, receiver) = mpsc::channel(DEPTH);
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let output = ChannelWriter {
            sender: sender.clone(),
            client: turn.peer.clone(),
            runtime: runtime.clone(),
        };
        let mut writer = io::BufWriter::with_capacity(PIECE, output);
        let result = write(&mut writer)
            .map_err(|error| io::Error::other(error.to_string()))
            .and_then(|()| writer.flush());
        if let Err(error) = result {
            tracing::warn!("response aborted: {error}");
            // A client that takes nothing must not keep the thread.
            runtime.spawn(async move { sender.send(Err(error)).await });
        }
        drop(turn);
    });
    from_channel(receiver)
}

/// Returns a body of the pieces that `write` sends, on a blocking thread. If `write` fails, or `ended`
/// resolves, the response is aborted, and `write` also ends while the client takes nothing.
pub(crate) fn written_in_pieces<E: std::fmt::Display + Send + 'static>(
    turn: Turn,
    write: impl FnOnce(&mut dyn FnMut(Vec<u8>) -> io::Result<()>) -> Result<(), E> + Send + 'static,
    ended: impl Future<Output = ()> + Send + 'static,
) -> Body {
    let (sender, receiver) = mpsc::channel::<Bytes>(DEPTH);
    let (outcome, result) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let client = turn.peer.clone();
        let (mut ended, mut is_over) = (Box::pin(ended), false);
        // The body of a client that takes nothing is not polled: the end is noticed here.
        let mut send = |piece: Vec<u8>| {
            let sending = async {
                tokio::select! {
                    biased;
                    () = &mut ended => Err("the copy has to end"),
                    sent = client.wait(sender.send(Bytes::from(piece))) => match sent {
                        Some(sent) => sent.map_err(|_| "the client has left"),
                        None => Err(STALLED),
                    },
                }
            };
            let sent = if is_over {
                Err("the copy has ended")
            } else {
                runtime.block_on(sending)
            };
            is_over = sent.is_err();
            sent.map_err(io::Error::other)
        };
        let written = write(&mut send).map_err(|error| io::Error::other(error.to_string()));
        if let Err(error) = &written {
            tracing::warn!("response aborted: {error}");
        }
        let _ = outcome.send(written);
        drop(turn);
    });
    // Dropping the receiver ends the thread.
    let state = Some((receiver, result));
    Body::from_stream(futures_util::stream::unfold(state, async |state| {
        let (mut receiver, result) = state?;
        if let Some(piece) = receiver.recv().await {
            return Some((Ok(piece), Some((receiver, result))));
        }
        let lost = |_| Err(io::Error::other("the thread that writes has ended"));
        let error = result.await.unwrap_or_else(lost).err()?;
        Some((Err(error), None))
    }))
}

struct ChannelWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    client: Arc<Peer>,
    runtime: tokio::runtime::Handle,
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sending = self.sender.send(Ok(Bytes::copy_from_slice(bytes)));
        match self.runtime.block_on(self.client.wait(sending)) {
            Some(Ok(())) => Ok(bytes.len()),
            Some(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            None => Err(io::Error::other(STALLED)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns a blocking reader for a request body.
pub(crate) fn reader(turn: Turn, body: Body) -> BodyReader {
    reader_until(turn, body, std::future::pending())
}

/// Like [`reader`]. When `ended` resolves, reading fails.
pub(crate) fn reader_until(
    turn: Turn,
    body: Body,
    ended: impl Future<Output = ()> + Send + 'static,
) -> BodyReader {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(receive(body, sender, turn.peer.clone(), ended));
    BodyReader {
        receiver,
        pieces: VecDeque::new(),
        bytes: Bytes::new(),
        has_ended: false,
        failure: None,
        _turn: turn,
    }
}

/// Sends the pieces of a body, all at once that have come since the reader took some: clients write the headers and the
/// contents of an archive's files one by one, and to wake the reader for each takes longer than to read it.
async fn receive(
    body: Body,
    sender: mpsc::Sender<VecDeque<Piece>>,
    client: Arc<Peer>,
    ended: impl Future<Output = ()>,
) {
    let mut body = body.into_data_stream();
    let mut ended = std::pin::pin!(ended);
    let (mut pieces, mut waiting) = (VecDeque::new(), 0);
    let mut is_complete = false;
    loop {
        let piece = tokio::select! {
            biased;
            sending = sender.reserve(), if !pieces.is_empty() => {
                let Ok(sending) = sending else {
                    return;
                };
                sending.send(std::mem::take(&mut pieces));
                if is_complete {
                    return;
                }
                waiting = 0;
                continue;
            }
            () = &mut ended, if !is_complete => Piece::Failed("it has to end".to_owned()),
            next = client.wait(body.next()), if !is_complete && waiting < WAITING && pieces.len() < PIECES => match next {
                Some(Some(Ok(bytes))) if bytes.is_empty() => continue,
                Some(Some(Ok(bytes))) => Piece::Bytes(bytes),
                Some(Some(Err(error))) => Piece::Failed(error.to_string()),
                Some(None) => Piece::End,
                None => Piece::Failed(STALLED.to_owned()),
            },
        };
        match &piece {
            Piece::Bytes(bytes) => waiting += bytes.len(),
            Piece::End | Piece::Failed(_) => is_complete = true,
        }
        pieces.push_back(piece);
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

/// A blocking reader for a request body. A connection that is lost before the body's end is an error,
/// so that an incomplete body is not used.
pub(crate) struct BodyReader {
    receiver: mpsc::Receiver<VecDeque<Piece>>,
    pieces: VecDeque<Piece>,
    bytes: Bytes,
    has_ended: bool,
    /// The error of all reads from now on.
    failure: Option<String>,
    _turn: Turn,
}

impl BodyReader {
    fn next(&mut self) -> Piece {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return piece;
            }
            match self.receiver.blocking_recv() {
                Some(pieces) => self.pieces = pieces,
                // The task that receives the body ends early only when the engine exits.
                None => return Piece::Failed("the engine is shutting down".to_owned()),
            }
        }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let lost = |text: &str| io::Error::new(io::ErrorKind::UnexpectedEof, text);
        if let Some(text) = &self.failure {
            return Err(lost(text));
        }
        if self.bytes.is_empty() && !self.has_ended {
            match self.next() {
                Piece::Bytes(bytes) => self.bytes = bytes,
                Piece::End => self.has_ended = true,
                Piece::Failed(reason) => {
                    let text = format!("request body ended early: {reason}");
                    tracing::warn!("{text}");
                    let error = lost(&text);
                    self.failure = Some(text);
                    return Err(error);
                }
            }
        }
        let count = buffer.len().min(self.bytes.len());
        buffer[..count].copy_from_slice(&self.bytes.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts what is logged.
    struct Logged(Arc<AtomicUsize>);

    impl tracing::Subscriber for Logged {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }

        fn enter(&self, _: &tracing::span::Id) {}

        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[tokio::test]
    async fn a_body_that_ends_early_is_logged_once_and_stays_an_error() {
        let pieces = [
            Ok(Bytes::from_static(b"part")),
            Ok(Bytes::new()),
            Err(io::Error::other("reset")),
        ];
        let body = Body::from_stream(futures_util::stream::iter(pieces));
        let mut reader = reader(begin().await.unwrap(), body);
        let count = Arc::new(AtomicUsize::new(0));
        let logged = Logged(Arc::clone(&count));
        let read = tokio::task::spawn_blocking(move || {
            tracing::subscriber::with_default(logged, || {
                let mut part = [0; 9];
                assert_eq!(reader.read(&mut part).unwrap(), 4);
                for _ in 0..3 {
                    let error = reader.read(&mut part).unwrap_err().to_string();
                    assert_eq!(error, "request body ended early: reset");
                }
            });
        });
        read.await.unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn few_pieces_of_a_body_wait_and_all_are_read() {
        let count = Arc::new(AtomicUsize::new(0));
        let taken = Arc::clone(&count);
        let pieces = (0..3 * PIECES).map(move |number| {
            taken.fetch_add(1, Ordering::SeqCst);
            Ok::<_, io::Error>(Bytes::from(vec![number.to_le_bytes()[0]]))
        });
        let expected: Vec<u8> = (0..3 * PIECES)
            .map(|number| number.to_le_bytes()[0])
            .collect();
        let body = Body::from_stream(futures_util::stream::iter(pieces));
        let mut reader = reader(begin().await.unwrap(), body);
        // The first one is on its way to the reader, which takes none.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(count.load(Ordering::SeqCst), PIECES + 1);
        let read = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        assert_eq!(read.await.unwrap(), expected);
    }

    #[tokio::test]
    async fn a_body_of_a_client_that_has_stalled_fails() {
        let turn = begin().await.unwrap();
        let client = turn.peer.clone();
        let body = Body::from_stream(futures_util::stream::pending::<io::Result<Bytes>>());
        let mut reader = reader(turn, body);
        client.end();
        let read = tokio::task::spawn_blocking(move || reader.read(&mut [0; 1]).unwrap_err());
        let error = read.await.unwrap().to_string();
        assert_eq!(error, format!("request body ended early: {STALLED}"));
    }
}
