//! Accepts connections.
//!
//! Every listener has an accept loop of its own: clients that cannot be served on one of them do
//! not delay those of another.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use whelk_build::Builder;
use whelk_engine::Engine;
use whelk_sys::process::descriptors_are_scarce;

use crate::exchange::{Stream, exchange};
use crate::handshakes::{Failures, Handshakes};
use crate::listener::{Accepted, Listener};
use crate::peer::{Identity, Peer};
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

/// Serves the API on all listeners until the future is dropped.
pub async fn serve(engine: Arc<Engine>, builder: Arc<Builder>, listeners: &[Listener]) {
    let routes = routes::router(engine, builder);
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
