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
    /// Number of bytes of lines that were accepted.
    accepted: u64,
    /// Number of encrypted bytes of them that the kernel has taken.
    sent: u64,
    /// Number of encrypted bytes that it has not taken yet.
    waiting: u64,
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
            accepted: 0,
            sent: 0,
            waiting: 0,
        };
        stream.tcp.set_read_timeout(Some(STEP))?;
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        while stream.session.is_handshaking() || stream.session.wants_write() {
            // A collector may send a byte at a time.
            if Instant::now() >= deadline || give_up() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "TLS handshake timeout",
                ));
            }
            match stream.shake_hands() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(tls_problem(&error).map_or(error, io::Error::other)),
                Ok(()) => {}
            }
        }
        stream.sent = 0;
        Ok(stream)
    }

    /// Sends what the handshake needs next, and reads once.
    ///
    /// # Errors
    /// Returns an error of kind `WouldBlock` if the collector takes or sends nothing for a while.
    fn shake_hands(&mut self) -> io::Result<()> {
        self.flush()?;
        if !self.session.is_handshaking() {
            return Ok(());
        }
        match self.session.read_tls(&mut self.tcp) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        self.session.process_new_packets().map_err(|error| {
            // The collector learns why.
            let _ = self.flush();
            io::Error::new(io::ErrorKind::InvalidData, error)
        })?;
        Ok(())
    }

    /// Accepts some bytes and sends what the collector takes within the socket's time limit. What was accepted
    /// before the connection broke counts: the next call fails.
    ///
    /// # Errors
    /// Returns an error of kind `WouldBlock` if nothing was accepted and not all is sent.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        let count = self.session.writer().write(bytes)?;
        self.accepted += count as u64;
        match self.flush() {
            Err(error) if count == 0 => Err(error),
            _ => Ok(count),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = loop {
            if !self.session.wants_write() {
                break Ok(());
            }
            match self.session.write_tls(&mut self.tcp) {
                Ok(count) => self.sent += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.waiting = match self.session.process_new_packets() {
            Ok(state) => state.tls_bytes_to_write() as u64,
            Err(_) if flushed.is_ok() => 0,
            Err(_) => self.waiting,
        };
        flushed
    }

    /// Returns whether something is accepted, but not with the kernel.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Returns how many bytes of lines are in the encrypted ones that are not with the kernel, or are among the
    /// last `unacknowledged` ones that it has taken.
    pub(crate) fn unacknowledged(&self, unacknowledged: u64) -> u64 {
        let (all, left) = (self.sent + self.waiting, unacknowledged + self.waiting);
        // Short lines become considerably longer.
        let lines = u128::from(left) * u128::from(self.accepted);
        let lines = lines.div_ceil(u128::from(all.max(1)));
        u64::try_from(lines).map_or(self.accepted, |lines| lines.min(self.accepted))
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::TcpListener;
    use std::sync::Arc;

    use rcgen::generate_simple_self_signed;
    use rustls::ServerConnection;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;
    use crate::stream::Stream;

    /// Accepts TLS connections.
    struct Collector {
        listener: TcpListener,
        config: Arc<rustls::ServerConfig>,
    }

    impl Collector {
        fn new() -> Self {
            let made = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap();
            Self {
                listener: TcpListener::bind("127.0.0.1:0").unwrap(),
                config: Arc::new(config),
            }
        }

        /// Connects to it.
        fn connect(&self, give_up: &dyn Fn() -> bool) -> io::Result<Stream> {
            let tls = Tls {
                accepts_anyone: true,
                ..Tls::default()
            };
            Stream::tls(&self.listener.local_addr()?.to_string(), &tls, give_up)
        }

        fn accept(&self) -> (ServerConnection, TcpStream) {
            let mut session = ServerConnection::new(self.config.clone()).unwrap();
            let (mut tcp, _) = self.listener.accept().unwrap();
            while session.is_handshaking() || session.wants_write() {
                session.complete_io(&mut tcp).unwrap();
            }
            (session, tcp)
        }

        /// Connects both sides.
        fn pair(&self) -> (Stream, ServerConnection, TcpStream) {
            std::thread::scope(|scope| {
                let accepted = scope.spawn(|| self.accept());
                let stream = self.connect(&|| false).unwrap();
                let (session, tcp) = accepted.join().unwrap();
                (stream, session, tcp)
            })
        }
    }

    #[test]
    fn a_collector_that_ends_the_session_gets_nothing_more() {
        let (mut stream, mut session, mut tcp) = Collector::new().pair();
        stream.write(b"line\n", &mut 0, &|| false).unwrap();
        session.send_close_notify();
        session.write_tls(&mut tcp).unwrap();
        // The connection stays open, with bytes that belong to no session.
        tcp.write_all(b"x").unwrap();
        let (sender, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let failed = loop {
                match stream.write(b"line\n", &mut 0, &|| false) {
                    Ok(()) => std::thread::sleep(Duration::from_millis(20)),
                    Err(error) => break error,
                }
            };
            sender.send(failed.to_string()).unwrap();
        });
        let error = ended.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(error, "the collector has closed the connection");
    }

    #[test]
    fn a_handshake_in_small_pieces_can_be_given_up() {
        let collector = Collector::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut tcp, _) = collector.listener.accept().unwrap();
                // The beginning of a record with a long message.
                let _ = tcp.write_all(&[0x16, 3, 3, 0x40, 0]);
                while tcp.write_all(&[0]).is_ok() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
            // At its time limit, the handshake would end in the same way.
            let asked = Cell::new(0);
            let give_up = || asked.replace(asked.get() + 1) > 5;
            let error = collector.connect(&give_up).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(asked.get() > 6, "asked {} times", asked.get());
        });
    }

    #[test]
    fn what_the_collectors_host_has_not_acknowledged_is_counted_once() {
        let (mut stream, _session, tcp) = Collector::new().pair();
        // Of short lines, as a container that writes few of them sends them.
        let line = [b'x'; 100];
        let (mut written, waits) = (0, Cell::new(0));
        let give_up = || waits.replace(waits.get() + 1) > 1;
        loop {
            let mut count = 0;
            let outcome = stream.write(&line, &mut count, &give_up);
            written += count as u64;
            if outcome.is_err() {
                break;
            }
        }
        // More at a time, so that the session keeps some of it.
        let mut count = 0;
        waits.set(0);
        stream
            .write(&[b'x'; 200_000], &mut count, &give_up)
            .unwrap_err();
        written += count as u64;
        let there = rustix::io::ioctl_fionread(&tcp).unwrap();
        let left = stream.unacknowledged();
        let Stream::Tls(tls) = &stream else {
            panic!("no TLS");
        };
        assert!(tls.is_waiting());
        let all = tls.sent + tls.waiting;
        let expected = written - there * written / all;
        assert!(
            left.abs_diff(expected) < 2000,
            "{left} instead of {expected} of {written} bytes, of which the host has {there}"
        );
        drop(tcp);
        let mut more = 0;
        while stream.write(&line, &mut more, &|| false).is_ok() {}
        assert!(stream.unacknowledged() <= written + more as u64);
    }
}
