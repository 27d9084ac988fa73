//! Connections to collectors that are streams of bytes.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvFlags, recv, sockopt};

/// How long a collector may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval at which a write that waits checks whether to give up.
const STEP: Duration = Duration::from_millis(500);

/// How long data may be unacknowledged before a connection counts as lost, in milliseconds.
const USER_TIMEOUT: u32 = 30_000;

#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Returns an error with the text that Go has for a connection that cannot be made.
pub(crate) fn dial(
    network: &str,
    address: impl std::fmt::Display,
) -> impl Fn(io::Error) -> io::Error {
    let head = format!("dial {network} {address}");
    move |error| {
        let what = if error.kind() == io::ErrorKind::TimedOut {
            "i/o timeout".to_owned()
        } else {
            format!("connect: {}", whelk_sys::errno_text(&error))
        };
        io::Error::new(error.kind(), format!("{head}: {what}"))
    }
}

impl Stream {
    pub(crate) fn tcp(address: &str) -> io::Result<Self> {
        let looked_up = address.to_socket_addrs().map_err(|error| {
            io::Error::new(error.kind(), format!("dial tcp: lookup {address}: {error}"))
        })?;
        let mut failed = None;
        for candidate in looked_up {
            match TcpStream::connect_timeout(&candidate, CONNECT_TIMEOUT) {
                Ok(stream) => {
                    stream.set_write_timeout(Some(STEP))?;
                    sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT)?;
                    return Ok(Self::Tcp(stream));
                }
                Err(error) => failed = Some(dial("tcp", candidate)(error)),
            }
        }
        Err(failed.unwrap_or_else(|| io::Error::other(format!("dial tcp {address}: no address"))))
    }

    pub(crate) fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).map_err(dial("unix", path.display()))?;
        stream.set_write_timeout(Some(STEP))?;
        Ok(Self::Unix(stream))
    }

    /// Writes as much as the collector takes until `give_up` returns true; `written` counts it.
    ///
    /// # Errors
    /// Returns an error if the connection is lost, also if the collector has closed it: what is
    /// written then is not read any more.
    pub(crate) fn write(
        &mut self,
        bytes: &[u8],
        written: &mut usize,
        give_up: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        self.check_open()?;
        while *written < bytes.len() {
            let rest = &bytes[*written..];
            let wrote = match self {
                Self::Tcp(stream) => stream.write(rest),
                Self::Unix(stream) => stream.write(rest),
            };
            match wrote {
                Ok(count) => *written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if give_up() {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the collector takes no more data",
                        ));
                    }
                    self.check_open()?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns an error if the collector has closed the connection. What it sends is discarded.
    fn check_open(&mut self) -> io::Result<()> {
        let mut buffer = [0; 512];
        loop {
            match recv(self.as_fd(), &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionReset,
                        "the collector has closed the connection",
                    ));
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends the stream and waits for a moment until the collector has read it.
    pub(crate) fn finish(self) {
        let Self::Tcp(mut stream) = self else { return };
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.set_read_timeout(Some(STEP));
        let _ = stream.read(&mut [0; 512]);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}
