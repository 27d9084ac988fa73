//! Accepts connections and serves their requests with HTTP/1.1, within limits.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, timeout};

use crate::auth::Passwords;
use crate::body::Pace;
use crate::garbage::{Keep, Schedule};
use crate::records::Registry;
use crate::rights::Rights;
use crate::routes::{MAX_LISTS, MAX_MANIFESTS, Server, respond};
use crate::tls::Tls;
use crate::tokens::Tokens;
use crate::upstream::Upstream;

/// Maximum number of connections; others wait to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// Time limit for receiving a request's head, and for an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum size of a request's head, and of what is read at a time.
const MAX_BUFFER: usize = 128 << 10;

/// What a registry is, and who may use it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Without them, everyone may do everything.
    pub passwords: Option<Arc<Passwords>>,
    /// Without them, every user may do everything.
    pub rights: Option<Arc<Rights>>,
    /// Without it, connections are not encrypted.
    pub tls: Option<Arc<Tls>>,
    /// The registry that this one is a cache of, and how much it keeps.
    pub upstream: Option<(Arc<Upstream>, Keep)>,
    pub schedule: Schedule,
}

/// Serves a registry until the future is dropped.
pub async fn serve(registry: Arc<Registry>, listener: TcpListener, settings: Settings) {
    let upstream = settings.upstream.as_ref();
    let server = Server {
        registry: registry.clone(),
        passwords: settings.passwords,
        rights: settings.rights,
        tokens: Tokens::default(),
        is_tls: settings.tls.is_some(),
        upstream: upstream.map(|(upstream, _)| upstream.clone()),
        pace: Pace::default(),
        manifests: Semaphore::new(MAX_MANIFESTS),
        lists: Semaphore::new(MAX_LISTS),
    };
    tokio::select! {
        () = accept(Arc::new(server), listener, settings.tls) => {}
        () = collect(registry, settings.schedule, settings.upstream) => {}
    }
}

/// Collects garbage by a schedule and on request, and in a cache also when much has come in.
async fn collect(
    registry: Arc<Registry>,
    schedule: Schedule,
    upstream: Option<(Arc<Upstream>, Keep)>,
) {
    let keep = upstream.as_ref().map(|(_, keep)| *keep);
    let most = keep.and_then(|keep| keep.size);
    loop {
        let registry = registry.clone();
        let work = registry.clone();
        let collection = tokio::task::spawn_blocking(move || {
            if let Err(error) = work.store.staging.empty_trash() {
                tracing::warn!("empty the trash: {error}");
            }
            let collected = match keep {
                Some(keep) => work.collect_cache(keep, schedule.age),
                None => work.collect_garbage(schedule.age),
            };
            if let Err(error) = collected {
                tracing::error!("collect garbage: {error}");
            }
        });
        if let Err(error) = collection.await {
            tracing::error!("collect garbage: {error}");
        }
        let has_grown = async {
            match upstream.as_ref().zip(most) {
                Some(((upstream, _), most)) => {
                    upstream.downloads.wait_for_growth((most / 16).max(1)).await
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(schedule.every) => {}
            () = registry.collection.notified() => {}
            () = has_grown => {}
        }
    }
}

pub(crate) async fn accept(server: Arc<Server>, listener: TcpListener, tls: Option<Arc<Tls>>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connect(server.clone(), stream, tls.clone(), permit));
            }
            Err(error) => {
                // Most likely out of descriptors: wait instead of spinning.
                tracing::warn!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connect(
    server: Arc<Server>,
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    _permit: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => exchange(server, stream).await,
        Some(tls) => match timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => exchange(server, stream).await,
            Ok(Err(error)) => tracing::debug!("TLS handshake: {error}"),
            Err(_) => tracing::debug!("TLS handshake: not completed in time"),
        },
    }
}

async fn exchange(server: Arc<Server>, stream: impl AsyncRead + AsyncWrite + Unpin + Send) {
    let service = service_fn(move |request| respond(server.clone(), request));
    let stream = Impatient {
        stream,
        limit: Box::pin(tokio::time::sleep(WRITE_TIMEOUT)),
        is_blocked: false,
    };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_BUFFER)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // Disconnecting during a request is normal.
    if let Err(error) = served {
        tracing::debug!("connection: {error}");
    }
}

/// A connection that fails if its client takes nothing for [`WRITE_TIMEOUT`].
struct Impatient<S> {
    stream: S,
    limit: Pin<Box<Sleep>>,
    is_blocked: bool,
}

impl<S> Impatient<S> {
    /// Fails if writing has been blocked for too long.
    fn check<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_blocked = false;
            return written;
        }
        if !self.is_blocked {
            self.is_blocked = true;
            self.limit
                .as_mut()
                .reset(tokio::time::Instant::now() + WRITE_TIMEOUT);
        }
        ready!(self.limit.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.check(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.check(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.check(context, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.check(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
