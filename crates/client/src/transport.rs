//! Byte streams to a server. A transport is a variant of [`Address`] and of [`Connection`].

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::program::{self, Program};
use crate::tls::Tls;

/// How long connecting over TCP may take, for all addresses of a name together. The same as Docker's.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time without a byte after which the server's machine is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The path of a unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`
    Tcp(String),
    /// `HOST:PORT`, over TLS
    Tls(String, Tls),
    /// A program that passes the bytes on.
    Program(Program),
}

impl Address {
    /// Opens a connection.
    ///
    /// # Errors
    /// Returns an error if nothing listens there, if access is denied, or if the TLS handshake
    /// fails ([`tls_reason`](crate::tls_reason)).
    pub async fn connect(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).await.map(Connection::Unix),
            Self::Tcp(address) => tcp(address).await.map(Connection::Tcp),
            Self::Tls(address, tls) => tls
                .connect(address)
                .await
                .map(|stream| Connection::Tls(Box::new(stream))),
            Self::Program(program) => program
                .start()
                .map(|stream| Connection::Program(Box::new(stream))),
        }
    }
}

/// Opens a connection that sends small writes at once, as Go does for Docker, and that ends if the
/// server's machine disappears: commands wait for hours without a byte (`wait`, `events`).
///
/// # Errors
/// Returns an error if no address of the host can be reached within a time limit.
pub async fn tcp(address: &str) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(late("i/o timeout")))?;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE)?;
    Ok(stream)
}

pub(crate) fn late(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// An open connection.
#[derive(Debug)]
pub enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// TLS inside another connection, such as one through a proxy.
    Nested(Box<TlsStream<Connection>>),
    Program(Box<program::Stream>),
}

macro_rules! delegate {
    ($self:ident, $method:ident, $($argument:expr),*) => {
        match $self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).$method($($argument),*),
            Connection::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Connection::Tls(stream) => Pin::new(stream).$method($($argument),*),
            Connection::Nested(stream) => Pin::new(stream).$method($($argument),*),
            Connection::Program(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, poll_read, cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write, cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush, cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown, cx)
    }
}
