//! Accepts connections.
//!
//! Every listener has an accept loop of its own: clients that cannot be served on one of them do
//! not delay those of another.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use whelk_build::Builder;
use whelk_engine::Engine;
use whelk_sys::process::descriptors_are_scarce;

use crate::exchange::{HEAD_TIMEOUT, PREFACE_TIMEOUT, Stream, exchange};
use crate::grpc::Buildkit;
use crate::handshakes::{Failures, Handshakes};
use crate::listener::{Accepted, Listener};
use crate::peer::{Identity, Peer};
use crate::protocol::{Protocol, detect};
use crate::routes;
use crate::tls::Tls;

/// How long a client may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of descriptors reserved for files that requests open, and for containers that are
/// restarted.
const RESERVE: u64 = 96;

/// Delays a client, and all that connect after it, while other connections use almost all
/// descriptors of the limit. Idle connections are closed after
/// [`HEAD_TIMEOUT`](crate::exchange::HEAD_TIMEOUT).
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

/// What is served on a connection.
#[derive(Clone)]
enum Service {
    Api(Router),
    /// BuildKit's protocol alone.
    BuildKit(Arc<Buildkit>),
}

impl Service {
    async fn serve(self, stream: Stream, peer: Peer) {
        match self {
            Self::Api(routes) => exchange(stream, peer, routes).await,
            Self::BuildKit(buildkit) => {
                if let Err(error) = call(buildkit, stream).await {
                    tracing::debug!("connection of {}: {error}", peer.identity());
                }
            }
        }
    }
}

/// Serves the calls of a connection of BuildKit's protocol.
async fn call(buildkit: Arc<Buildkit>, stream: Stream) -> std::io::Result<()> {
    const NOT_THE_API: &[u8] =
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
        this socket serves BuildKit's protocol (gRPC) only: use another one for the API\n";
    const REST_TIMEOUT: Duration = Duration::from_secs(2);
    let (protocol, mut stream) = detect(stream, HEAD_TIMEOUT, PREFACE_TIMEOUT).await?;
    match protocol {
        Protocol::Http2 => buildkit.serve(TokioIo::new(stream)).await,
        Protocol::Http1 => {
            stream.write_all(NOT_THE_API).await?;
            stream.shutdown().await?;
            // With a request that was not read, the client would get an error in place of the text.
            let mut nowhere = tokio::io::sink();
            let rest = tokio::io::copy(&mut stream, &mut nowhere);
            let _ = tokio::time::timeout(REST_TIMEOUT, rest).await;
        }
    }
    Ok(())
}

/// The services of an engine.
#[derive(Debug)]
pub struct Api {
    routes: Router,
    buildkit: Arc<Buildkit>,
}

impl Api {
    /// Removes what builds of another boot have left, and reads the history of builds. Blocking.
    pub fn open(engine: Arc<Engine>, builder: Arc<Builder>) -> Self {
        let buildkit = Buildkit::new(engine.clone(), builder.clone());
        let routes = routes::router(engine, builder, buildkit.clone());
        Self { routes, buildkit }
    }

    /// Serves the API, and BuildKit's protocol alone on sockets of its own, until the future is dropped.
    pub async fn serve(self, api: &[Listener], buildkit: &[Listener]) {
        let Self {
            routes,
            buildkit: services,
        } = self;
        let api = api.iter().zip(std::iter::repeat(Service::Api(routes)));
        let buildkit = buildkit
            .iter()
            .zip(std::iter::repeat(Service::BuildKit(services)));
        let loops = api
            .chain(buildkit)
            .map(|(listener, service)| accept(listener, service));
        futures_util::future::join_all(loops).await;
    }
}

/// Accepts the connections of one listener until the future is dropped.
async fn accept(listener: &Listener, service: Service) {
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
        let service = service.clone();
        match accepted {
            Accepted::Unix(stream) => match Peer::of(&stream) {
                Ok(peer) => drop(tokio::spawn(service.serve(Box::new(stream), peer))),
                Err(error) => tracing::warn!("accept: {error}"),
            },
            Accepted::Tcp {
                stream,
                client,
                tls: None,
            } => match identified(&stream, client, None) {
                Ok(peer) => drop(tokio::spawn(service.serve(Box::new(stream), peer))),
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
                        Ok((stream, peer)) => service.serve(stream, peer).await,
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
