//! Serves the requests of one connection, with HTTP/1.1 or HTTP/2 ([`crate::protocol`]) and the same
//! routes and limits.
//!
//! With HTTP/1.1, a connection has one request at a time and can be turned into a raw stream
//! ([`crate::hijack`]). With HTTP/2 it has up to [`MAX_STREAMS`], and attach and exec use the bodies of
//! request and response.

mod active;

use std::convert::Infallible;
use std::io::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tracing::Instrument;

use active::{Active, CountedBody, Flushed};

use crate::peer::{Peer, end_with};
use crate::protocol::{Protocol, detect};
use crate::stream::DrainedBody;
use crate::target::Escaped;

/// Time limit for receiving a request's head, and for an idle connection. Limits slow-loris attacks.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for receiving the rest of an HTTP/2 preface after its first byte.
pub(crate) const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a request's head in bytes.
const MAX_HEAD_SIZE: u32 = 64 << 10;
/// Maximum number of concurrent requests of a connection with HTTP/2, and of those in progress, which
/// includes operations that go on after their stream was reset. It bounds what one connection can keep
/// the engine busy with.
///
/// A client may send requests before it has the server's SETTINGS. Until then, Go's `net/http`,
/// grpc-go, hyper, nghttp2 (curl) and .NET assume a limit of 100, which RFC 9113, section 6.5.2,
/// recommends as the least one; a stream beyond the server's limit fails with `REFUSED_STREAM`. The
/// value is that of Go's server, and so of Docker's engine.
const MAX_STREAMS: u32 = 250;

/// The times of an HTTP/2 connection without requests.
#[derive(Clone, Copy, Debug)]
struct IdleTimes {
    /// Until GOAWAY.
    until_shutdown: Duration,
    /// From then until the connection's end.
    until_end: Duration,
}

const IDLE: IdleTimes = IdleTimes {
    until_shutdown: HEAD_TIMEOUT,
    until_end: Duration::from_secs(5),
};

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) type Stream = Box<dyn Io>;

/// Serves the requests of one connection.
pub(crate) async fn exchange(stream: Stream, peer: Peer, routes: Router) {
    let client = peer.clone();
    let served = async {
        match detect(stream, HEAD_TIMEOUT, PREFACE_TIMEOUT).await? {
            (Protocol::Http1, stream) => serve_http1(stream, peer, routes).await,
            (Protocol::Http2, stream) => serve_http2(stream, peer, routes, IDLE).await,
        }
        .map_err(Error::other)
    };
    // Disconnecting during a request is normal.
    if let Err(error) = served.await {
        tracing::debug!("connection of {}: {error}", client.identity());
    }
}

/// Routes a request.
fn respond(
    mut request: Request<Body>,
    peer: &Peer,
    mut routes: Router,
) -> impl Future<Output = Result<Response, Infallible>> + Send + use<> {
    let span = tracing::error_span!("request", client = %peer.identity());
    request.extensions_mut().insert(peer.clone());
    tower_service::Service::call(&mut routes, request).instrument(span)
}

async fn serve_http1(stream: impl Io + 'static, peer: Peer, routes: Router) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        let body = Body::new(DrainedBody::new(body, &head.headers));
        let response = respond(Request::from_parts(head, body), &peer, routes.clone());
        let peer = peer.clone();
        async move { response.await.map(|response| end_with(response, &peer)) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_SIZE as usize)
        .half_close(true)
        .serve_connection(TokioIo::new(Escaped::new(stream)), service)
        .with_upgrades()
        .await
}

async fn serve_http2(
    stream: impl Io + 'static,
    peer: Peer,
    routes: Router,
    times: IdleTimes,
) -> hyper::Result<()> {
    let (active, watched) = Active::new();
    let turns = Arc::new(Semaphore::new(MAX_STREAMS as usize));
    let stream = Flushed {
        stream,
        active: active.clone(),
        unwritten: None,
    };
    let service = service_fn(move |request: Request<Incoming>| {
        // The rest of a body that is not read is not drained: the client is told to end the stream
        // (RFC 9113, section 8.1), and the connection goes on.
        let request = request.map(Body::new);
        let (peer, routes, turns) = (peer.clone(), routes.clone(), Arc::clone(&turns));
        let counted = active.begin();
        async move {
            // Includes what was requested by streams that were reset since then.
            let turn = turns.acquire_owned().await.map_err(Error::other)?;
            let response = respond(request, &peer, routes);
            // In a task of its own: as with HTTP/1.1, an operation is carried out even if the client
            // leaves, for which hyper drops this future.
            let response = tokio::spawn(async move { (response.await, turn) }).await;
            let (Ok(response), turn) = response.map_err(Error::other)?;
            Ok::<_, Error>(response.map(|body| CountedBody {
                body,
                guard: Arc::new((counted, turn)),
            }))
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEAD_SIZE)
        .max_concurrent_streams(MAX_STREAMS)
        // Without pings: a client that waits for its reader, such as a pager, answers none. A host
        // that has disappeared is noticed by TCP.
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = idle(watched.clone(), times.until_shutdown) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        ended = connection => ended,
        () = idle(watched, times.until_end) => Ok(()),
    }
}

/// Waits until there has been no request for some time.
async fn idle(mut active: watch::Receiver<usize>, time: Duration) {
    while active.wait_for(|count| *count == 0).await.is_ok() {
        if tokio::time::timeout(time, active.changed()).await.is_err() {
            return;
        }
    }
    // The connection has ended.
    std::future::pending().await
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::body::Bytes;
    use axum::routing::{get, post};
    use http_body_util::BodyExt;
    use hyper::client::conn::http2::SendRequest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::UnixStream;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Serves one end of a connection, and returns the other.
    fn connected(routes: Router) -> DuplexStream {
        let (client, server) = duplex(1 << 20);
        // The peer's socket stays open on both sides: it is not the connection.
        let (socket, other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&socket).unwrap();
        tokio::spawn(async move {
            exchange(Box::new(server), peer, routes).await;
            drop((socket, other));
        });
        client
    }

    async fn http2(stream: DuplexStream) -> SendRequest<Body> {
        let handshake =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        sender
    }

    fn request(path: &str, body: impl Into<Body>) -> Request<Body> {
        let uri = format!("http://localhost{path}");
        Request::post(uri).body(body.into()).unwrap()
    }

    async fn text(response: hyper::Response<Incoming>) -> String {
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    fn routes() -> Router {
        Router::new()
            .route("/echo", post(async |body: Bytes| body))
            .route("/who", get(who).post(who))
    }

    async fn who(axum::Extension(peer): axum::Extension<Peer>) -> String {
        peer.identity().to_string()
    }

    #[tokio::test]
    async fn both_protocols_have_the_same_routes_and_identity() {
        let mut first = connected(routes());
        first
            .write_all(b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        first.read_to_string(&mut answer).await.unwrap();
        let mut sender = http2(connected(routes())).await;
        let identity = text(sender.send_request(request("/who", "")).await.unwrap()).await;
        assert!(identity.starts_with("uid "), "{identity}");
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(&identity),
            "{answer}"
        );
        // Concurrently on one connection.
        let (mut one, mut two) = (sender.clone(), sender.clone());
        let (one, two) = tokio::join!(
            one.send_request(request("/echo", "one")),
            two.send_request(request("/echo", "two"))
        );
        assert_eq!(text(one.unwrap()).await, "one");
        assert_eq!(text(two.unwrap()).await, "two");
    }

    #[tokio::test]
    async fn a_malformed_preface_is_answered() {
        for head in [
            "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            "PRI * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        ] {
            let mut stream = connected(routes());
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let read = timeout(LONG, stream.read_to_string(&mut answer)).await;
            read.unwrap().unwrap();
            assert!(answer.starts_with("HTTP/1.1 4"), "{head:?}: {answer}");
        }
        // The preface, but no frames.
        let mut stream = connected(routes());
        let head = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let read = timeout(LONG, stream.read_to_end(&mut Vec::new())).await;
        read.unwrap().unwrap();
    }

    #[tokio::test]
    async fn heads_are_limited() {
        let mut sender = http2(connected(routes())).await;
        for (size, is_accepted) in [(60 << 10, true), (70 << 10, false)] {
            let mut request = request("/echo", "x");
            let value = "x".repeat(size).parse().unwrap();
            request.headers_mut().insert("x-large", value);
            let response = timeout(LONG, sender.send_request(request)).await.unwrap();
            let is_success = response.is_ok_and(|response| response.status().is_success());
            assert_eq!(is_success, is_accepted, "{size} bytes");
        }
    }

    /// Serializes the header of an HTTP/2 frame (RFC 9113, section 4.1).
    fn frame_head(length: u32, kind: u8, flags: u8, stream: u32) -> [u8; 9] {
        let mut head = [0; 9];
        head[..3].copy_from_slice(&length.to_be_bytes()[1..]);
        (head[3], head[4]) = (kind, flags);
        head[5..].copy_from_slice(&stream.to_be_bytes());
        head
    }

    #[tokio::test]
    async fn accepts_100_streams_before_the_client_has_read_its_settings() {
        const COUNT: u32 = 100;
        const HEADERS: u8 = 1;
        const RST_STREAM: u8 = 3;
        const SETTINGS: u8 = 4;
        // Each request is answered when all are in progress.
        let all = Arc::new(tokio::sync::Barrier::new(COUNT as usize));
        let routes = Router::new().route(
            "/",
            get(async move || {
                all.wait().await;
            }),
        );
        let mut client = connected(routes);
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        sent.extend(frame_head(0, SETTINGS, 0, 0));
        // `GET http://x/` in HPACK: three indexed fields, and `:authority` with a literal value.
        let head = [0x82, 0x86, 0x84, 0x41, 1, b'x'];
        for number in 0..COUNT {
            // END_STREAM and END_HEADERS
            sent.extend(frame_head(6, HEADERS, 0x1 | 0x4, 2 * number + 1));
            sent.extend(head);
        }
        client.write_all(&sent).await.unwrap();
        let mut answered = 0;
        while answered < COUNT {
            let mut head = [0; 9];
            timeout(LONG, client.read_exact(&mut head))
                .await
                .unwrap()
                .unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            client.read_exact(&mut payload).await.unwrap();
            assert_ne!(head[3], RST_STREAM, "{head:?} {payload:?}");
            answered += u32::from(head[3] == HEADERS);
        }
    }

    #[tokio::test]
    async fn an_operation_is_carried_out_though_its_client_has_left() {
        let (begun, mut begin) = tokio::sync::mpsc::channel::<()>(1);
        let (proceed, proceeds) = tokio::sync::oneshot::channel::<()>();
        let (proceeds, is_done) = (
            Arc::new(std::sync::Mutex::new(Some(proceeds))),
            AtomicBool::new(false),
        );
        let is_done = Arc::new(is_done);
        let done = Arc::clone(&is_done);
        let routes = Router::new().route(
            "/slow",
            post(move || async move {
                begun.send(()).await.unwrap();
                let proceeds = proceeds
                    .lock()
                    .ok()
                    .and_then(|mut proceeds| proceeds.take());
                proceeds.unwrap().await.unwrap();
                done.store(true, Ordering::SeqCst);
            }),
        );
        let mut sender = http2(connected(routes)).await;
        let sent = tokio::spawn(async move { sender.send_request(request("/slow", "")).await });
        timeout(LONG, begin.recv()).await.unwrap().unwrap();
        sent.abort();
        assert!(sent.await.unwrap_err().is_cancelled());
        // Time to notice it.
        tokio::time::sleep(Duration::from_millis(100)).await;
        proceed.send(()).unwrap();
        timeout(LONG, async {
            while !is_done.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    }

    /// Returns a route whose only response sends what the producer gives it.
    fn events() -> (tokio::sync::mpsc::Sender<std::io::Result<Bytes>>, Router) {
        let (producer, pieces) = tokio::sync::mpsc::channel(1);
        let pieces = Arc::new(std::sync::Mutex::new(Some(pieces)));
        let route = post(move || async move {
            let pieces = pieces.lock().ok().and_then(|mut pieces| pieces.take());
            crate::stream::from_channel(pieces.unwrap())
        });
        (producer, Router::new().route("/events", route))
    }

    #[tokio::test]
    async fn a_body_without_an_end_ends_with_its_client() {
        let (producer, routes) = events();
        let mut sender = http2(connected(routes)).await;
        let response = sender.send_request(request("/events", "")).await.unwrap();
        producer
            .send(Ok(Bytes::from_static(b"event")))
            .await
            .unwrap();
        // One stream is reset; the connection stays open.
        drop(response);
        timeout(LONG, producer.closed()).await.unwrap();
        assert!(sender.ready().await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_is_not_read_ends() {
        let routes = Router::new().route("/refuse", post(async || "refused"));
        let mut sender = http2(connected(routes)).await;
        let (producer, pieces) = tokio::sync::mpsc::channel(1);
        let body = crate::stream::from_channel(pieces);
        let response = sender.send_request(request("/refuse", body));
        let response = timeout(LONG, response).await.unwrap().unwrap();
        assert_eq!(text(response).await, "refused");
        timeout(LONG, producer.closed()).await.unwrap();
        let again = sender.send_request(request("/refuse", ""));
        assert_eq!(text(again.await.unwrap()).await, "refused");
    }

    const SHORT: IdleTimes = IdleTimes {
        until_shutdown: Duration::from_millis(200),
        until_end: Duration::from_millis(200),
    };

    #[tokio::test]
    async fn idle_connections_are_closed() {
        let (producer, routes) = events();
        let (client, server) = duplex(1 << 20);
        let (socket, other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&socket).unwrap();
        let served = tokio::spawn(serve_http2(server, peer, routes, SHORT));
        let mut sender = http2(client).await;
        let response = sender.send_request(request("/events", "")).await.unwrap();
        // A request without traffic.
        tokio::time::sleep(SHORT.until_shutdown * 5).await;
        producer
            .send(Ok(Bytes::from_static(b"event")))
            .await
            .unwrap();
        drop(producer);
        assert_eq!(text(response).await, "event");
        // An error if the client closes the connection before everything was sent.
        let _ = timeout(LONG, served).await.unwrap().unwrap();
        let closed = timeout(LONG, sender.ready()).await.unwrap().unwrap_err();
        assert!(closed.is_closed(), "{closed}");
        // A client that does not close the connection by itself.
        let (mut client, server) = duplex(1 << 20);
        let peer = Peer::of(&socket).unwrap();
        tokio::spawn(serve_http2(server, peer, Router::new(), SHORT));
        let frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        client.write_all(frames).await.unwrap();
        let read = timeout(LONG, client.read_to_end(&mut Vec::new())).await;
        read.unwrap().unwrap();
        drop(other);
    }

    /// The sizes of a response's pieces, of the window of each stream, and of the connection's buffer.
    async fn arrives_after_a_pause(pieces: &[usize], window: u32, buffer: usize) {
        let all: usize = pieces.iter().sum();
        let pieces: Vec<_> = pieces.iter().map(|size| vec![b'x'; *size]).collect();
        let routes = Router::new().route(
            "/large",
            post(move || async move {
                let pieces = pieces
                    .into_iter()
                    .map(|piece| Ok::<_, Error>(Bytes::from(piece)));
                Body::from_stream(futures_util::stream::iter(pieces))
            }),
        );
        let (client, server) = duplex(buffer);
        let (socket, other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&socket).unwrap();
        tokio::spawn(serve_http2(server, peer, routes, SHORT));
        let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake(TokioIo::new(client));
        let (mut sender, connection) = timeout(LONG, handshake).await.unwrap().unwrap();
        let mut connection = pin!(async {
            let _ = connection.await;
            std::future::pending().await
        });
        let response = sender.send_request(request("/large", ""));
        let response = tokio::select! {
            response = response => response.unwrap(),
            () = &mut connection => unreachable!("it is pending"),
        };
        // Nobody reads the connection.
        tokio::time::sleep((SHORT.until_shutdown + SHORT.until_end) * 5).await;
        let read = tokio::select! {
            read = text(response) => read,
            () = &mut connection => unreachable!("it is pending"),
        };
        assert_eq!(read.len(), all);
        drop((sender, other));
    }

    #[tokio::test]
    async fn a_client_that_pauses_gets_all_of_a_response() {
        // The pieces wait until the client enlarges the stream's window.
        timeout(LONG, arrives_after_a_pause(&[100_000], 1 << 10, 1 << 20))
            .await
            .unwrap();
        // The pieces wait until the client enlarges the connection's window: small ones, which are copied into
        // frames, and a large one, which is not.
        for pieces in [&[200; 40][..], &[10_000]] {
            timeout(LONG, arrives_after_a_pause(pieces, 1 << 20, 1 << 10))
                .await
                .unwrap();
        }
    }
}
