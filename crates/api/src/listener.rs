//! The sockets on which the API is served: unix sockets, TCP ports with or without TLS, and sockets
//! of either kind that a service manager passes.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use whelk_sys::{errno_text, fs};

use crate::tls::Tls;

/// A socket on which the API is served.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// `unix:///PATH` or `tcp://ADDRESS:PORT`.
    name: String,
}

#[derive(Debug)]
enum Socket {
    Unix {
        socket: UnixListener,
        /// The path to remove on drop, and its file, if the socket was bound by this process.
        path: Option<(PathBuf, FileId)>,
        /// Locked while the socket is served, so that a second engine cannot take its path.
        _lock: OwnedFd,
    },
    Tcp {
        socket: TcpListener,
        tls: Option<Arc<Tls>>,
    },
}

/// A new connection.
#[derive(Debug)]
pub(crate) enum Accepted {
    Unix(UnixStream),
    Tcp {
        stream: TcpStream,
        client: SocketAddr,
        /// If set, a TLS handshake follows.
        tls: Option<Arc<Tls>>,
    },
}

impl AsFd for Accepted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp { stream, .. } => stream.as_fd(),
        }
    }
}

impl Listener {
    /// Listens on the unix socket `path`, replacing a socket that a terminated engine left there.
    /// Only root and `group` may connect.
    ///
    /// # Errors
    /// Returns an error if another engine serves this socket (of kind `ResourceBusy`, see
    /// [`Self::lock_path`]), if `path` is a file of another kind, or if binding fails.
    pub fn bind(path: &Path, group: Option<u32>) -> std::io::Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !fs::exists(parent)) {
            fs::create_dir(parent, 0o755).map_err(described)?;
        }
        check_replaceable(path)?;
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
        let socket = UnixListener::bind(path)
            .map_err(|error| failed(&error, format_args!("{}", path.display())))?;
        restrict(path, group)?;
        let file = file_id(path).map_err(described)?;
        Ok(Self {
            socket: Socket::Unix {
                socket,
                path: Some((path.to_owned(), file)),
                _lock: lock,
            },
            name: format!("unix://{}", path.display()),
        })
    }

    /// Returns the path of the file that the engine that serves the socket at `path` keeps locked.
    pub fn lock_path(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        name.into()
    }

    /// Listens on a TCP port. Without `tls`, everyone who can reach the address has root's
    /// privileges: the caller decides whether that may be.
    ///
    /// # Errors
    /// Returns an error if the address is in use or does not belong to this host.
    pub async fn bind_tcp(address: SocketAddr, tls: Option<Arc<Tls>>) -> std::io::Result<Self> {
        let socket = TcpListener::bind(address)
            .await
            .map_err(|error| failed(&error, format_args!("tcp://{address}")))?;
        Self::of_tcp(socket, tls)
    }

    fn of_tcp(socket: TcpListener, tls: Option<Arc<Tls>>) -> std::io::Result<Self> {
        let name = format!("tcp://{}", socket.local_addr()?);
        Ok(Self {
            socket: Socket::Tcp { socket, tls },
            name,
        })
    }

    /// Serves a listening unix socket that was passed by a service manager, which keeps it open:
    /// clients can connect, and wait, while no engine accepts. So it does not matter that the
    /// descriptor by which it was passed also stays open ([`whelk_sys::process::listen_fds`]). Only
    /// root and `group` may connect.
    ///
    /// # Errors
    /// Returns an error if the socket has no path, or if another engine serves it.
    pub fn inherit_unix(
        socket: std::os::unix::net::UnixListener,
        group: Option<u32>,
    ) -> std::io::Result<Self> {
        let address = socket.local_addr()?;
        let path = address
            .as_pathname()
            .ok_or_else(|| invalid("the inherited socket has no path"))?;
        let lock = lock(path)?;
        restrict(path, group)?;
        socket.set_nonblocking(true)?;
        let name = format!("unix://{}", path.display());
        Ok(Self {
            socket: Socket::Unix {
                socket: UnixListener::from_std(socket)?,
                path: None,
                _lock: lock,
            },
            name,
        })
    }

    /// Serves a listening TCP socket that was passed by a service manager.
    ///
    /// # Errors
    /// Returns an error if the socket cannot be used.
    pub fn inherit_tcp(
        socket: std::net::TcpListener,
        tls: Option<Arc<Tls>>,
    ) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        Self::of_tcp(TcpListener::from_std(socket)?, tls)
    }

    /// Returns `unix:///PATH` or `tcp://ADDRESS:PORT`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn accept(&self) -> std::io::Result<Accepted> {
        match &self.socket {
            Socket::Unix { socket, .. } => socket
                .accept()
                .await
                .map(|(stream, _)| Accepted::Unix(stream)),
            Socket::Tcp { socket, tls } => {
                let (stream, client) = socket.accept().await?;
                keep_alive(&stream)?;
                Ok(Accepted::Tcp {
                    stream,
                    client,
                    tls: tls.clone(),
                })
            }
        }
    }
}

/// A listening socket that was passed by a service manager.
#[derive(Debug)]
pub enum Inherited {
    Unix(std::os::unix::net::UnixListener),
    Tcp(std::net::TcpListener),
}

impl Inherited {
    /// Returns `unix:///PATH` or `tcp://ADDRESS:PORT`, if the socket has an address of this kind.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Unix(socket) => {
                let address = socket.local_addr().ok()?;
                Some(format!("unix://{}", address.as_pathname()?.display()))
            }
            Self::Tcp(socket) => Some(format!("tcp://{}", socket.local_addr().ok()?)),
        }
    }
}

impl TryFrom<OwnedFd> for Inherited {
    type Error = std::io::Error;

    /// Fails if the descriptor is not a listening unix or TCP socket.
    fn try_from(socket: OwnedFd) -> std::io::Result<Self> {
        let is_listening = (
            sockopt::socket_type(&socket),
            sockopt::socket_acceptconn(&socket),
        ) == (Ok(SocketType::STREAM), Ok(true));
        match sockopt::socket_domain(&socket) {
            Ok(AddressFamily::UNIX) if is_listening => Ok(Self::Unix(socket.into())),
            Ok(AddressFamily::INET | AddressFamily::INET6) if is_listening => {
                Ok(Self::Tcp(socket.into()))
            }
            _ => Err(invalid(
                "the inherited descriptor is not a listening unix stream socket or TCP socket",
            )),
        }
    }
}

/// Detects clients whose machine has disappeared, and sends small writes at once, as Go does for
/// Docker.
fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    const INTERVAL: Duration = Duration::from_secs(15);
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, INTERVAL)?;
    Ok(sockopt::set_tcp_keepintvl(stream, INTERVAL)?)
}

fn invalid(text: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidInput, text.to_owned())
}

fn failed(error: &std::io::Error, place: std::fmt::Arguments<'_>) -> std::io::Error {
    let text = format!("listen at {place}: {}", errno_text(error));
    std::io::Error::new(error.kind(), text)
}

/// Whether a process listens on the socket at `path`.
fn is_served(path: &Path) -> bool {
    use rustix::net::{SocketAddrUnix, SocketFlags};
    // A full queue of connections must not block: unix sockets then report EAGAIN.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = SocketAddrUnix::new(path).and_then(|address| {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)
    });
    matches!(connected, Ok(()) | Err(rustix::io::Errno::AGAIN))
}

/// Checks that nothing but a socket would be replaced: the path may be a mistake.
fn check_replaceable(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match fs::metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            format!(
                "listen at {}: the file there is not a socket; remove it, or listen elsewhere",
                path.display()
            ),
        )),
        Err(error) if !error.is_not_found() => Err(described(error)),
        _ => Ok(()),
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

impl Drop for Socket {
    fn drop(&mut self) {
        // systemd replaces the socket by its own if a socket unit with the same path is started.
        if let Self::Unix {
            path: Some((path, file)),
            ..
        } = self
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
        let scratch = whelk_sys::Scratch::temporary("listener").unwrap();
        let path = scratch.path().join("s.sock");
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
    }
}
