//! The client of a connection: who it is, whether it has disconnected, and whether it has read
//! everything sent to it.
//!
//! HTTP does not show the last two. Without this, a client that disconnects during a quiet response (`wait`,
//! `events`, `logs -f`) would be noticed only when something is written, which may be never.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// A client and a duplicate of its socket.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    socket: Arc<OwnedFd>,
    identity: Arc<Identity>,
}

/// Who a client is, as far as the kernel or its certificate shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The process that has connected; its PID is `None` if it is outside this PID namespace.
    Unix { uid: u32, pid: Option<i32> },
    Tcp {
        address: SocketAddr,
        /// The subject of the verified certificate, such as `CN=client`.
        subject: Option<String>,
    },
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix {
                uid,
                pid: Some(pid),
            } => write!(f, "uid {uid}, process {pid}"),
            Self::Unix { uid, pid: None } => write!(f, "uid {uid}"),
            Self::Tcp {
                address,
                subject: Some(subject),
            } => write!(f, "{subject} at {address}"),
            Self::Tcp {
                address,
                subject: None,
            } => write!(f, "{address}"),
        }
    }
}

impl Peer {
    pub(crate) fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let process = stream.peer_cred()?;
        Self::new(
            stream,
            Identity::Unix {
                uid: process.uid(),
                pid: process.pid().filter(|pid| *pid > 0),
            },
        )
    }

    pub(crate) fn new(socket: impl AsFd, identity: Identity) -> std::io::Result<Self> {
        Ok(Self {
            socket: socket.as_fd().try_clone_to_owned()?.into(),
            identity: identity.into(),
        })
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    fn is_unix(&self) -> bool {
        matches!(*self.identity, Identity::Unix { .. })
    }

    #[expect(
        deprecated,
        reason = "its replacement is unsafe; the descriptor is owned and stays the same as long as it is registered"
    )]
    fn register(self, interest: Interest) -> std::io::Result<AsyncFd<Self>> {
        AsyncFd::with_interest(self, interest)
    }

    /// Waits until the client has disconnected.
    ///
    /// On a unix socket, a client that shut down only its sending direction still waits for the
    /// response. On TCP, both look alike until something is sent. Clients that await a response do
    /// not shut down anything there, so that this counts as disconnecting, as with Docker.
    pub(crate) async fn left(self) {
        // Normal data must cause no wake-up on unix sockets, which have no urgent data.
        let interest = if self.is_unix() {
            Interest::PRIORITY
        } else {
            Interest::READABLE
        };
        self.closed(interest).await;
    }

    /// Waits until neither direction of an upgraded connection is open. Here a client shuts down
    /// its sending direction at the end of its input. On TCP, a client that has disconnected is
    /// noticed when something is sent to it.
    pub(crate) async fn left_upgraded(self) {
        // Without READABLE, the kernel reports only a hang-up of both directions.
        self.closed(Interest::PRIORITY).await;
    }

    async fn closed(self, interest: Interest) {
        let Ok(socket) = self.register(interest) else {
            return std::future::pending().await;
        };
        loop {
            let Ok(mut guard) = socket.ready(interest).await else {
                return;
            };
            if guard.ready().is_read_closed() {
                return;
            }
            guard.clear_ready();
        }
    }

    /// Waits until the client has read everything sent to it (on TCP: its machine has received it),
    /// or has disconnected.
    pub(crate) async fn has_read_all(self) {
        if !self.is_unix() {
            return self.has_received_all().await;
        }
        /// Less than the kernel accounts for the smallest message. While the kernel frees a
        /// message, one byte of it is still accounted for.
        const NOTHING: u64 = 64;
        let Ok(socket) = self.register(Interest::WRITABLE) else {
            return;
        };
        // Every read of the client makes the socket writable again.
        while let Ok(mut guard) = socket.ready(Interest::WRITABLE).await {
            let unread = whelk_sys::net::unread_by_peer(socket.get_ref().socket.as_fd());
            if guard.ready().is_write_closed() || unread.is_ok_and(|unread| unread < NOTHING) {
                return;
            }
            guard.clear_ready();
        }
    }

    async fn has_received_all(self) {
        /// The kernel wakes no waiter for an acknowledgment, so it has to be polled.
        const POLL: Duration = Duration::from_millis(1);
        while whelk_sys::net::unread_by_peer(self.socket.as_fd()).is_ok_and(|unread| unread > 0) {
            tokio::time::sleep(POLL).await;
        }
    }
}

impl AsRawFd for Peer {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Aborts a response of unknown length when its client disconnects. The producer of the body
/// notices that the body is dropped.
pub(crate) fn end_with(response: Response, peer: &Peer) -> Response {
    use hyper::body::Body as _;
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| {
        Body::new(WhilePresent {
            body,
            left: Box::pin(peer.clone().left()),
        })
    })
}

struct WhilePresent {
    body: Body,
    left: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl hyper::body::Body for WhilePresent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        ready!(self.left.as_mut().poll(context));
        Poll::Ready(Some(Err(axum::Error::new("the client has left"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    /// Timeout for events that are expected.
    const LONG: Duration = Duration::from_secs(20);
    /// How long to wait to see that an event does not occur.
    const SHORT: Duration = Duration::from_millis(100);

    fn connection() -> (UnixStream, UnixStream, Peer) {
        let (server, client) = UnixStream::pair().unwrap();
        let peer = Peer::of(&server).unwrap();
        (server, client, peer)
    }

    #[tokio::test]
    async fn a_client_has_left_when_it_has_closed_both_directions() {
        let (server, mut client, peer) = connection();
        let mut left = Box::pin(peer.clone().left());
        assert!(timeout(SHORT, &mut left).await.is_err(), "it is there");
        client.write_all(b"data that nobody reads").await.unwrap();
        assert!(
            timeout(SHORT, &mut left).await.is_err(),
            "sending is not leaving"
        );
        client.shutdown().await.unwrap();
        assert!(
            timeout(SHORT, &mut left).await.is_err(),
            "who has closed one half waits for an answer"
        );
        drop(client);
        timeout(LONG, &mut left).await.unwrap();
        // A later call returns as well.
        timeout(LONG, peer.left()).await.unwrap();
        drop(server);
    }

    #[tokio::test]
    async fn a_client_has_read_all_when_nothing_is_left_in_its_socket() {
        let (mut server, mut client, peer) = connection();
        timeout(LONG, peer.clone().has_read_all()).await.unwrap();
        server.write_all(&[7; 3000]).await.unwrap();
        server.write_all(&[7; 1000]).await.unwrap();
        let mut read_all = Box::pin(peer.clone().has_read_all());
        assert!(
            timeout(SHORT, &mut read_all).await.is_err(),
            "nothing of it"
        );
        client.read_exact(&mut [0; 3000]).await.unwrap();
        assert!(timeout(SHORT, &mut read_all).await.is_err(), "a part of it");
        client.read_exact(&mut [0; 1000]).await.unwrap();
        timeout(LONG, read_all).await.unwrap();
        // A client that has disconnected is not waited for.
        server.write_all(&[7; 3000]).await.unwrap();
        let read_all = tokio::spawn(peer.has_read_all());
        tokio::time::sleep(SHORT).await;
        drop(client);
        timeout(LONG, read_all).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_answer_without_a_length_breaks_off_when_its_client_leaves() {
        use hyper::body::Body as _;
        let (server, client, peer) = connection();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let response = end_with(Response::new(crate::stream::from_channel(receiver)), &peer);
        let mut body = response.into_body().into_data_stream();
        let next = async |body: &mut axum::body::BodyDataStream| {
            timeout(LONG, futures_util::StreamExt::next(body))
                .await
                .unwrap()
                .map(|piece| piece.map_err(|error| error.to_string()))
        };
        sender.send(Ok(Bytes::from_static(b"one"))).await.unwrap();
        assert_eq!(next(&mut body).await, Some(Ok(Bytes::from_static(b"one"))));
        drop(client);
        assert_eq!(
            next(&mut body).await,
            Some(Err("the client has left".into()))
        );
        drop(body);
        timeout(LONG, sender.closed()).await.unwrap();
        // A response of known length is sent completely, or fails when it is written.
        let whole = end_with(Response::new(Body::from("whole")), &peer);
        assert_eq!(whole.body().size_hint().exact(), Some(5));
        assert_eq!(
            next(&mut whole.into_body().into_data_stream()).await,
            Some(Ok(Bytes::from_static(b"whole")))
        );
        drop(server);
    }
}
