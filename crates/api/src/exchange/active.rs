//! Counts what is in progress on an HTTP/2 connection, to close it when it is idle: requests, responses
//! that were not sent completely, and output that the client does not read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use bytes::Buf;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, watch};

/// Counts the requests and the unwritten output of a connection.
#[derive(Clone)]
pub(super) struct Active(Arc<watch::Sender<usize>>);

impl Active {
    /// Returns a counter at 0, and a receiver of its value.
    pub(super) fn new() -> (Self, watch::Receiver<usize>) {
        let (count, watched) = watch::channel(0);
        (Self(Arc::new(count)), watched)
    }

    pub(super) fn begin(&self) -> Counted {
        self.0.send_modify(|count| *count += 1);
        Counted(self.clone())
    }
}

/// A request that has not been answered completely, or output that has not been written.
pub(super) struct Counted(Active);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// Counts a response as in flight, with its permit, until all of it was given to the connection's stream
/// or its client has left.
pub(super) type Guard = Arc<(Counted, OwnedSemaphorePermit)>;

/// A response's body. hyper drops it when the last piece is queued, which may wait for the client's
/// permission to send (RFC 9113, section 5.2): the pieces hold the guard, too.
pub(super) struct CountedBody {
    pub(super) body: Body,
    pub(super) guard: Guard,
}

/// A piece of a body, which is dropped when it was given to the stream.
pub(super) struct CountedPiece {
    bytes: Bytes,
    _guard: Guard,
}

impl Buf for CountedPiece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// A stream whose output counts as long as a part of it, such as small frames or the records of TLS,
/// is kept in memory because the client does not read.
pub(super) struct Flushed<S> {
    pub(super) stream: S,
    pub(super) active: Active,
    pub(super) unwritten: Option<Counted>,
}

impl<S> Flushed<S> {
    fn count<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_ready() {
            self.unwritten = None;
        } else if self.unwritten.is_none() {
            self.unwritten = Some(self.active.begin());
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Flushed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Flushed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.count(written)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.count(flushed)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl hyper::body::Body for CountedBody {
    type Data = CountedPiece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<CountedPiece>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| {
                frame.map_data(|bytes| CountedPiece {
                    bytes,
                    _guard: Arc::clone(&self.guard),
                })
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
