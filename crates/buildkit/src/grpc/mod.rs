//! gRPC over HTTP/2 without TLS (h2c), on a connection that exists already.
//!
//! Messages are not compressed. A call's status is in the trailers of its answer:
//! ```text
//! grpc-status   grpc-message (percent-encoded)   grpc-status-details-bin (base64 of google.rpc.Status)
//! ```

mod client;
mod frame;
mod server;
mod status;

use std::time::Duration;

use hyper::body::Frame;
use tokio::sync::mpsc;

pub use client::{Channel, Driver, Requests, Stream};
pub use frame::Messages;
pub use server::{Call, Limits, Responses, serve};
pub use status::{Code, Status};

pub type Result<T> = std::result::Result<T, Status>;

/// Maximum size of a message that is received, in bytes: the limit of a definition, and the rest of a request.
const MAX_MESSAGE: usize = 16 << 20;

/// Number of bytes of a stream, and of a connection, that a sender need not wait for.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Maximum size of the headers of a call; Go's servers have the same limit.
const MAX_HEADERS: u32 = 1 << 20;

/// Number of messages that wait to be sent.
const WAITING: usize = 32;

/// How often the other side is asked whether it is still there, and how long it may take for the answer.
pub const PING: Duration = Duration::from_secs(15);
pub const PATIENCE: Duration = Duration::from_secs(30);

const CONTENT_TYPE: &str = "application/grpc";

/// A connection that calls are made on.
pub trait Io: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static {}

impl<T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static> Io for T {}

/// The body of a request or an answer: frames as they come.
pub type Body = http_body_util::StreamBody<Frames>;

/// Frames from a channel.
#[derive(Debug)]
pub struct Frames(mpsc::Receiver<Frame<bytes::Bytes>>);

impl futures_core::Stream for Frames {
    type Item = std::result::Result<Frame<bytes::Bytes>, std::convert::Infallible>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.get_mut()
            .0
            .poll_recv(context)
            .map(|frame| frame.map(Ok))
    }
}

fn body() -> (mpsc::Sender<Frame<bytes::Bytes>>, Body) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (sender, Body::new(Frames(receiver)))
}
