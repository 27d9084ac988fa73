//! Accepts connections and serves HTTP/1.1 on them.
//!
//! Every listener has an accept loop of its own: clients that cannot be served on one of them do
//! not delay those of another. A response with status 101 turns a connection into a raw stream
//! ([`crate::hijack`]), whatever the protocol's name in the request and whatever the transport.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tracing::Instrument;
use whelk_engine::Engine;
use whelk_sys::process::descriptors_are_scarce;

use crate::handshakes::{Failures, Handshakes};
use crate::listener::{Accepted, Listener};
use crate::peer::{Identity, Peer, end_with};
use crate::routes;
use crate::stream::DrainedBody;
use crate::tls::Tls;

/// How long a client may take to send a request's head. Limits slow-loris attacks.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of a request's head in bytes.
const MAX_HEAD_SIZE: usize = 64 << 10;
/// How long a client may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of descriptors reserved for files that requests open, and for containers that are
/// restarted.
const RESERVE: u64 = 96;

/// Delays a client, and all that connect after it, while other connections use almost all
/// descriptors of the limit. Idle connections are closed after [`HEAD_TIMEOUT`].
async fn wait_for_descriptors(stream: &impl AsFd) {
    const POLL: Duration = Duration::from_millis(20);
    let is_scarce = || {
        stream
            .as_fd()
            .try_clone_to_owned()
            .is_ok_and(|newest| descriptors_are_scarce(newest.as_fd(), RESERVE))
    };
    if !is_scarce() {
        return;
    }
    tracing::warn!(
        "new connections are delayed: too many open connections for the limit of open files (LimitNOFILE, ulimit -n)"
    );
    while is_scarce() {
        tokio::time::sleep(POLL).await;
    }
}

/// Serves the API on all listeners until the future is dropped.
pub async fn serve(engine: Arc<Engine>, listeners: &[Listener]) {
    let routes = routes::router(engine);
    let loops = listeners
        .iter()
        .map(|listener| accept(listener, routes.clone()));
    futures_util::future::join_all(loops).await;
}

/// Accepts the connections of one listener until the future is dropped.
async fn accept(listener: &Listener, routes: Router) {
    let mut handshakes = Handshakes::default();
    let failures = Failures::default();
    loop {
        let accepted = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely out of descriptors: wait instead of spinning.
                tracing::warn!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        wait_for_descriptors(&accepted).await;
        let routes = routes.clone();
        match accepted {
            Accepted::Unix(stream) => match Peer::of(&stream) {
                Ok(peer) => drop(tokio::spawn(exchange(Box::new(stream), peer, routes))),
                Err(error) => tracing::warn!("accept: {error}"),
            },
            Accepted::Tcp {
                stream,
                client,
                tls: None,
            } => match identified(&stream, client, None) {
                Ok(peer) => drop(tokio::spawn(exchange(Box::new(stream), peer, routes))),
                Err(error) => tracing::warn!("accept: {error}"),
            },
            Accepted::Tcp {
                stream,
                client,
                tls: Some(tls),
            } => {
                let (turn, failures) = (handshakes.begin(client.ip()), failures.clone());
                tokio::spawn(async move {
                    match handshake(&tls, stream, client, turn).await {
                        Ok((stream, peer)) => exchange(stream, peer, routes).await,
                        Err(error) => failures.log(client, &error),
                    }
                });
            }
        }
    }
}

fn identified(
    socket: &TcpStream,
    address: SocketAddr,
    subject: Option<String>,
) -> std::io::Result<Peer> {
    Peer::new(socket, Identity::Tcp { address, subject })
}

async fn handshake(
    tls: &Tls,
    stream: TcpStream,
    client: SocketAddr,
    aborted: oneshot::Receiver<()>,
) -> std::io::Result<(Stream, Peer)> {
    let refused = |text: &str| std::io::Error::other(text.to_owned());
    let (stream, subject) = tokio::select! {
        accepted = tls.accept(stream) => accepted?,
        () = tokio::time::sleep(HANDSHAKE_TIMEOUT) => return Err(refused("not completed in time")),
        _ = aborted => return Err(refused("too many clients that do not complete it")),
    };
    let peer = identified(stream.get_ref().0, client, subject)?;
    Ok((Box::new(stream), peer))
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Stream = Box<dyn Io>;

/// Serves the requests of one connection.
async fn exchange(stream: Stream, peer: Peer, routes: Router) {
    let client = peer.clone();
    let service =
        hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let peer = peer.clone();
            let span = tracing::error_span!("request", client = %peer.identity());
            let (head, body) = request.into_parts();
            let body = axum::body::Body::new(DrainedBody::new(body, &head.headers));
            let mut request = hyper::Request::from_parts(head, body);
            request.extensions_mut().insert(peer.clone());
            let response = tower_service::Service::call(&mut routes.clone(), request);
            async move { response.await.map(|response| end_with(response, &peer)) }.instrument(span)
        });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_SIZE)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // Disconnecting during a request is normal.
    if let Err(error) = connection.await {
        tracing::debug!("connection of {}: {error}", client.identity());
    }
}
