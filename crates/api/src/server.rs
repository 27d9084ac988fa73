//! Accepts connections and serves HTTP/1.1 on them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use whelk_engine::Engine;
use whelk_sys::fs;
use whelk_sys::process::descriptors_are_scarce;

use crate::peer::{Peer, end_with};
use crate::routes;
use crate::stream::DrainedBody;

/// How long a client may take to send a request's head. Limits slow-loris attacks.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of a request's head in bytes.
const MAX_HEAD_SIZE: usize = 64 << 10;

/// Whether a process listens on the socket at `path`.
fn is_served(path: &Path) -> bool {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    // A full queue of connections must not block: unix sockets then report EAGAIN.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = SocketAddrUnix::new(path).and_then(|address| {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)
    });
    matches!(connected, Ok(()) | Err(rustix::io::Errno::AGAIN))
}

/// A unix socket on which the API is served.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// The path to remove on drop, and its file, if the socket was bound by this process.
    path: Option<(PathBuf, FileId)>,
    /// Locked while the socket is served, so that a second engine cannot take its path.
    _lock: OwnedFd,
}

impl Listener {
    /// Listens on `path`, replacing a socket that a terminated engine left there. Only root and
    /// `group` may connect.
    ///
    /// # Errors
    /// Returns an error if another engine serves this socket (of kind `ResourceBusy`, see
    /// [`Self::lock_path`]), or if binding fails.
    pub fn bind(path: &Path, group: Option<u32>) -> std::io::Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !fs::exists(parent)) {
            fs::create_dir(parent, 0o755).map_err(described)?;
        }
        let lock = lock(path)?;
        if is_served(path) {
            return Err(std::io::Error::new(
                std::io::ErrorKind::AddrInUse,
                format!(
                    "listen at {}: another program listens there; if it is systemd, for whelk.socket, \
                     start the engine by `systemctl start whelk`",
                    path.display()
                ),
            ));
        }
        fs::remove_if_exists(path).map_err(described)?;
        let socket = UnixListener::bind(path).map_err(|error| {
            std::io::Error::new(
                error.kind(),
                format!("listen at {}: {error}", path.display()),
            )
        })?;
        restrict(path, group)?;
        let file = file_id(path).map_err(described)?;
        Ok(Self {
            socket,
            path: Some((path.to_owned(), file)),
            _lock: lock,
        })
    }

    /// Returns the path of the file that the engine that serves the socket at `path` keeps locked.
    pub fn lock_path(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        name.into()
    }

    /// Serves a listening socket that was passed by a service manager, which keeps it open: clients
    /// can connect, and wait, while no engine accepts. So it does not matter that the descriptor by
    /// which it was passed also stays open ([`whelk_sys::process::listen_fds`]). Only root and
    /// `group` may connect.
    ///
    /// # Errors
    /// Returns an error if the descriptor is not a listening unix socket with a path, or if another
    /// engine serves it.
    pub fn inherit(socket: OwnedFd, group: Option<u32>) -> std::io::Result<Self> {
        use rustix::net::{AddressFamily, SocketType, sockopt};
        let invalid =
            |text: &str| std::io::Error::new(std::io::ErrorKind::InvalidInput, text.to_owned());
        let kind = (
            sockopt::socket_domain(&socket),
            sockopt::socket_type(&socket),
            sockopt::socket_acceptconn(&socket),
        );
        if kind != (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM), Ok(true)) {
            return Err(invalid(
                "the inherited descriptor is not a listening unix stream socket",
            ));
        }
        let socket = std::os::unix::net::UnixListener::from(socket);
        let address = socket.local_addr()?;
        let path = address
            .as_pathname()
            .ok_or_else(|| invalid("the inherited socket has no path"))?;
        let lock = lock(path)?;
        restrict(path, group)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: UnixListener::from_std(socket)?,
            path: None,
            _lock: lock,
        })
    }
}

fn described(error: fs::PathError) -> std::io::Error {
    std::io::Error::other(error.to_string())
}

fn lock(path: &Path) -> std::io::Result<OwnedFd> {
    let lock: OwnedFd = fs::append(Listener::lock_path(path), 0o600)
        .map_err(described)?
        .into();
    rustix::fs::flock(
        lock.as_fd(),
        rustix::fs::FlockOperation::NonBlockingLockExclusive,
    )
    .map_err(|_| {
        std::io::Error::new(
            std::io::ErrorKind::ResourceBusy,
            format!("{} is in use by another engine", path.display()),
        )
    })?;
    Ok(lock)
}

/// Allows only root and `group` to connect.
fn restrict(path: &Path, group: Option<u32>) -> std::io::Result<()> {
    fs::set_mode(path, 0o660).map_err(described)?;
    if let Some(group) = group {
        rustix::fs::chown(path, None, Some(rustix::fs::Gid::from_raw(group)))?;
    }
    Ok(())
}

impl Drop for Listener {
    fn drop(&mut self) {
        // systemd replaces the socket by its own if a socket unit with the same path is started.
        if let Some((path, file)) = &self.path
            && file_id(path).is_ok_and(|found| found == *file)
        {
            let _ = fs::remove_if_exists(path);
        }
    }
}

/// Device and inode.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Result<FileId, fs::PathError> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Number of descriptors reserved for files that requests open, and for containers that are
/// restarted.
const RESERVE: u64 = 96;

/// Delays a client, and all that connect after it, while other connections use almost all
/// descriptors of the limit. Idle connections are closed after [`HEAD_TIMEOUT`].
async fn wait_for_descriptors(stream: &UnixStream) {
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

/// Serves the API until the future is dropped.
pub async fn serve(engine: Arc<Engine>, listener: &Listener) {
    let routes = routes::router(engine);
    loop {
        let stream = match listener.socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most likely out of descriptors: wait instead of spinning.
                tracing::warn!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        wait_for_descriptors(&stream).await;
        let routes = routes.clone();
        let peer = match Peer::of(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!("accept: {error}");
                continue;
            }
        };
        let service =
            hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let peer = peer.clone();
                let (head, body) = request.into_parts();
                let body = axum::body::Body::new(DrainedBody::new(body, &head.headers));
                let mut request = hyper::Request::from_parts(head, body);
                request.extensions_mut().insert(peer.clone());
                let response = tower_service::Service::call(&mut routes.clone(), request);
                async move { response.await.map(|response| end_with(response, &peer)) }
            });
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD_SIZE)
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            // Disconnecting during a request is normal.
            if let Err(error) = connection.await {
                tracing::debug!("connection: {error}");
            }
        });
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_removes_its_own_socket_only() {
        let place = std::env::temp_dir().join(format!("whelk-listener-{}", std::process::id()));
        fs::create_dir(&place, 0o700).unwrap();
        let path = place.join("s.sock");
        drop(Listener::bind(&path, None).unwrap());
        assert!(!fs::exists(&path), "its own");
        let listener = Listener::bind(&path, None).unwrap();
        let text = Listener::bind(&path, None).unwrap_err().to_string();
        assert_eq!(
            text,
            format!("{} is in use by another engine", path.display())
        );
        // As systemd does when it starts a socket unit with the same path.
        fs::remove_if_exists(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(fs::exists(&path), "somebody else's");
        let refused = Listener::bind(&path, None).unwrap_err().to_string();
        assert!(
            refused.contains("another program listens there"),
            "{refused}"
        );
        UnixStream::connect(&path).await.unwrap();
        drop(other);
        std::fs::remove_dir_all(&place).unwrap();
    }
}
