//! TLS connections to collectors.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use serde::{Deserialize, Serialize};
use whelk_tls::{Trust, server_name, system_authorities, tls_problem};

/// How long the handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval at which a handshake that waits checks whether to give up.
const STEP: Duration = Duration::from_millis(500);

/// Maximum size of a file with certificates or a key, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Which collectors are trusted, and who the client is. The files are read when a connection is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// The certificates of the authorities; those of the host if there is none.
    pub authorities: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Whether every collector is accepted.
    pub accepts_anyone: bool,
}

impl Tls {
    fn config(&self) -> io::Result<std::sync::Arc<rustls::ClientConfig>> {
        let authorities = match &self.authorities {
            _ if self.accepts_anyone => Vec::new(),
            Some(path) => read(path)?,
            None => system_authorities().map_err(io::Error::other)?,
        };
        let trust = if self.accepts_anyone {
            Trust::Anyone
        } else {
            Trust::Authorities(&authorities)
        };
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        let identity = identity.as_ref().map(|(chain, key)| (&chain[..], &key[..]));
        whelk_tls::config(trust, identity)
            .map_err(|error| io::Error::other(format!("TLS to the collector: {error}")))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    whelk_sys::fs::read_at_most(path, MAX_FILE).map_err(|error| io::Error::other(error.to_string()))
}

#[derive(Debug)]
pub(crate) struct TlsStream {
    pub(crate) tcp: TcpStream,
    session: ClientConnection,
    /// Number of bytes that were accepted, but may not have been given to the kernel completely.
    buffered: usize,
}

impl TlsStream {
    /// Begins TLS on a connection to `HOST:PORT`.
    pub(crate) fn start(
        tcp: TcpStream,
        address: &str,
        tls: &Tls,
        give_up: &dyn Fn() -> bool,
    ) -> io::Result<Self> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let session = ClientConnection::new(tls.config()?, server_name(host)?);
        let mut stream = Self {
            tcp,
            session: session.map_err(io::Error::other)?,
            buffered: 0,
        };
        stream.tcp.set_read_timeout(Some(STEP))?;
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        while stream.session.is_handshaking() {
            match stream.session.complete_io(&mut stream.tcp) {
                Ok((0, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline || give_up() {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "TLS handshake timeout",
                        ));
                    }
                }
                Err(error) => {
                    return Err(tls_problem(&error).map_or(error, io::Error::other));
                }
            }
        }
        Ok(stream)
    }

    /// Accepts some bytes and sends what the collector takes within the socket's time limit.
    ///
    /// # Errors
    /// Returns an error of kind `WouldBlock` if nothing was accepted and not all is sent.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        let count = self.session.writer().write(bytes)?;
        self.buffered += count;
        match self.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(count),
            outcome => outcome.map(|()| count),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.tcp) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.buffered = 0;
        Ok(())
    }

    /// Returns the number of bytes that are accepted, but not with the kernel.
    pub(crate) fn buffered(&self) -> usize {
        self.buffered
    }

    /// Decrypts what the collector has sent.
    pub(crate) fn decrypt(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        while !bytes.is_empty() {
            // It takes nothing more after the collector has said that it ends the session.
            if self.session.read_tls(&mut bytes)? == 0 {
                return Err(closed());
            }
            let state = self
                .session
                .process_new_packets()
                .map_err(io::Error::other)?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.session.reader().read_exact(&mut plain)?;
            out.extend(plain);
            if state.peer_has_closed() {
                return Err(closed());
            }
        }
        Ok(())
    }

    /// Ends the session.
    pub(crate) fn close(&mut self) {
        self.session.send_close_notify();
        let _ = self.flush();
    }
}
fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the collector has closed the connection",
    )
}
