//! Connections to collectors that are streams of bytes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
    sockopt,
};
use whelk_sys::net::{since_last_acknowledgement, unread_by_peer};

use crate::Tls;
use crate::tls::TlsStream;

/// How long a collector may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a collector may take to acknowledge lines, if it is asked to.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Interval at which a write that waits checks whether to give up.
const STEP: Duration = Duration::from_millis(500);

/// How long a collector's host may acknowledge nothing while data waits for it. The kernel asks a host whose
/// window is closed at least every two minutes, and one that lives acknowledges that.
const SILENCE: Duration = Duration::from_secs(180);

#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
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
    /// Connects to `HOST:PORT`, unless `give_up` returns true before.
    pub(crate) fn tcp(address: &str, give_up: &dyn Fn() -> bool) -> io::Result<Self> {
        let looked_up = address.to_socket_addrs().map_err(|error| {
            io::Error::new(error.kind(), format!("dial tcp: lookup {address}: {error}"))
        })?;
        let mut failed = None;
        for candidate in looked_up {
            match connect_tcp(candidate, give_up) {
                Ok(stream) => return Ok(Self::Tcp(stream)),
                Err(error) => failed = Some(dial("tcp", candidate)(error)),
            }
            if give_up() {
                break;
            }
        }
        Err(failed.unwrap_or_else(|| io::Error::other(format!("dial tcp {address}: no address"))))
    }

    pub(crate) fn tls(address: &str, tls: &Tls, give_up: &dyn Fn() -> bool) -> io::Result<Self> {
        let Self::Tcp(stream) = Self::tcp(address, give_up)? else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let stream = TlsStream::start(stream, address, tls, give_up)?;
        Ok(Self::Tls(Box::new(stream)))
    }

    pub(crate) fn unix(path: &Path, give_up: &dyn Fn() -> bool) -> io::Result<Self> {
        let stream = connect_unix(path, give_up).map_err(dial("unix", path.display()))?;
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
        let mut since = Instant::now();
        while *written < bytes.len() || self.is_waiting() {
            let rest = &bytes[*written..];
            let wrote = match self {
                Self::Tcp(stream) => stream.write(rest),
                Self::Tls(stream) => stream.write(rest),
                Self::Unix(stream) => stream.write(rest),
            };
            match wrote {
                Ok(count) => {
                    *written += count;
                    since = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if give_up() {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the collector takes no more data",
                        ));
                    }
                    self.check_open()?;
                    // An acknowledgement may be old after a time without data.
                    if since.elapsed() > SILENCE {
                        self.check_answers()?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_waiting(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.is_waiting())
    }

    /// Returns an error if the collector has closed the connection. What it sends is discarded.
    fn check_open(&mut self) -> io::Result<()> {
        self.receive(&mut Vec::new())
    }

    /// Waits until the collector has sent something, and appends it to `inbox`.
    ///
    /// # Errors
    /// Returns an error if the connection is lost, or if `give_up` returns true.
    pub(crate) fn wait_for_answer(
        &mut self,
        inbox: &mut Vec<u8>,
        give_up: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        let before = inbox.len();
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            self.receive(inbox)?;
            if inbox.len() > before {
                return Ok(());
            }
            if Instant::now() >= deadline || give_up() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the collector acknowledges nothing",
                ));
            }
            let step = Timespec::try_from(STEP).ok();
            let _ = poll(&mut [PollFd::new(self, PollFlags::IN)], step.as_ref());
        }
    }

    /// Appends what the collector has sent to `inbox`.
    ///
    /// # Errors
    /// Returns an error if the collector has closed the connection.
    fn receive(&mut self, inbox: &mut Vec<u8>) -> io::Result<()> {
        let mut buffer = [0; 512];
        loop {
            match recv(self.as_fd(), &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionReset,
                        "the collector has closed the connection",
                    ));
                }
                Ok((count, _)) => match self {
                    Self::Tls(stream) => stream.decrypt(&buffer[..count], inbox)?,
                    _ => inbox.extend(&buffer[..count]),
                },
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns an error if the collector's host does not respond. One whose collector takes no data does.
    fn check_answers(&self) -> io::Result<()> {
        if !matches!(self, Self::Unix(_)) && since_last_acknowledgement(self.as_fd())? > SILENCE {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the collector's host does not respond",
            ));
        }
        Ok(())
    }

    /// Returns the number of written bytes that the collector's host has not acknowledged, also of a
    /// connection that is lost.
    pub(crate) fn unacknowledged(&self) -> u64 {
        // That of a unix socket is counted in the kernel's memory, and not after its end.
        if matches!(self, Self::Unix(_)) {
            return 0;
        }
        let unread = unread_by_peer(self.as_fd()).unwrap_or(0);
        match self {
            Self::Tls(stream) => stream.unacknowledged(unread),
            Self::Tcp(_) | Self::Unix(_) => unread,
        }
    }

    /// Ends the stream and waits for a moment until the collector has read it.
    pub(crate) fn finish(self) {
        let mut stream = match self {
            Self::Tcp(stream) => stream,
            Self::Tls(mut stream) => {
                stream.close();
                stream.tcp
            }
            Self::Unix(_) => return,
        };
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.set_read_timeout(Some(STEP));
        let _ = stream.read(&mut [0; 512]);
    }
}

/// Connects to an address, and looks at `give_up` meanwhile.
fn connect_tcp(address: SocketAddr, give_up: &dyn Fn() -> bool) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => {
            let deadline = Instant::now() + CONNECT_TIMEOUT;
            let step = Timespec::try_from(STEP).ok();
            while poll(&mut [PollFd::new(&socket, PollFlags::OUT)], step.as_ref()) != Ok(1) {
                if Instant::now() >= deadline || give_up() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            sockopt::socket_error(&socket)??;
        }
        Err(error) => return Err(error.into()),
    }
    // Finds hosts that are gone while there is nothing to send.
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(&socket, 3)?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(STEP))?;
    Ok(stream)
}

/// The same for a unix socket: a connection waits while the listener's backlog is full (unix(7)).
fn connect_unix(path: &Path, give_up: &dyn Fn() -> bool) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(STEP))?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if Instant::now() < deadline && !give_up() => {}
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Tls(stream) => stream.tcp.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A listener that is stopped: its backlog is full.
    #[test]
    fn connecting_to_a_full_backlog_ends() {
        let scratch = whelk_sys::Scratch::temporary("backlog").unwrap();
        let path = scratch.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        // As many as the backlog holds, and those that are not accepted.
        let calls = Cell::new(0);
        let few = || calls.replace(calls.get() + 1) > 1;
        let mut connected = Vec::new();
        let begin = Instant::now();
        let error = loop {
            match Stream::unix(&path, &few) {
                Ok(stream) => connected.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(
            error.to_string(),
            format!("dial unix {}: i/o timeout", path.display())
        );
        assert!(begin.elapsed() < CONNECT_TIMEOUT);
    }

    #[test]
    fn bytes_that_were_not_acknowledged_are_known_after_a_reset() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut stream = Stream::tcp(&address, &|| false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        // More than fits into the collector's window.
        let bytes = vec![0; 64 << 20];
        let (mut written, waits) = (0, Cell::new(0));
        let give_up = || waits.replace(waits.get() + 1) > 0;
        stream.write(&bytes, &mut written, &give_up).unwrap_err();
        assert!(stream.check_answers().is_ok());
        drop(accepted);
        let lost = stream.write(&bytes, &mut 0, &|| false).unwrap_err();
        assert!(
            matches!(
                lost.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ),
            "{lost}"
        );
        let unacknowledged = stream.unacknowledged();
        assert!(
            unacknowledged > 0 && unacknowledged <= written as u64,
            "{unacknowledged} of {written}"
        );
    }
}
