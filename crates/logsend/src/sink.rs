//! A connection to a collector.

use std::io;
use std::path::Path;

use crate::datagram::Datagrams;
use crate::stream::Stream;
use crate::{Address, Destination, Gelf, Identity, Record, journald};

/// Sends records to a collector. It connects when it has no connection.
#[derive(Debug)]
pub struct Sink {
    destination: Destination,
    identity: Identity,
    wire: Option<Wire>,
    encoded: Vec<u8>,
}

#[derive(Debug)]
enum Wire {
    Stream(Stream),
    Datagrams(Datagrams),
}

impl Sink {
    pub fn new(destination: Destination, identity: Identity) -> Self {
        Self {
            destination,
            identity,
            wire: None,
            encoded: Vec::new(),
        }
    }

    /// Connects, if there is no connection.
    ///
    /// # Errors
    /// Returns an error with the text of Docker's driver.
    pub fn connect(&mut self) -> io::Result<()> {
        if self.wire.is_some() {
            return Ok(());
        }
        let address = match &self.destination {
            Destination::Syslog(syslog) => &syslog.address,
            Destination::Gelf(gelf) => &gelf.address,
            Destination::Fluentd(fluentd) => &fluentd.address,
            Destination::Journald => {
                let socket = Datagrams::unix(Path::new(journald::SOCKET)).map_err(|error| {
                    io::Error::new(error.kind(), "journald is not enabled on this host")
                })?;
                self.wire = Some(Wire::Datagrams(socket));
                return Ok(());
            }
        };
        let wire = match address {
            Address::LocalSyslog => local_syslog(),
            Address::Unix(path) => Stream::unix(path).map(Wire::Stream),
            Address::UnixDatagram(path) => Datagrams::unix(path).map(Wire::Datagrams),
            Address::Tcp(address) => Stream::tcp(address).map(Wire::Stream),
            Address::Udp(address) => Datagrams::udp(address).map(Wire::Datagrams),
        };
        let wire = wire.map_err(|error| match &self.destination {
            Destination::Gelf(_) => io::Error::new(
                error.kind(),
                format!("gelf: cannot connect to GELF endpoint: {address} {error}"),
            ),
            _ => error,
        });
        self.wire = Some(wire?);
        Ok(())
    }

    /// Sends records; `done` counts those that the kernel has taken completely. It waits for the
    /// collector until `give_up` returns true.
    ///
    /// # Errors
    /// Returns an error if the connection cannot be made or is lost. The next call connects again.
    pub fn send(
        &mut self,
        records: &[Record],
        done: &mut usize,
        give_up: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        self.connect()?;
        let outcome = match self.wire.take() {
            Some(Wire::Stream(mut stream)) => {
                let outcome = self.send_stream(&mut stream, records, done, give_up);
                outcome.map(|()| Wire::Stream(stream))
            }
            Some(Wire::Datagrams(datagrams)) => {
                let outcome = self.send_datagrams(&datagrams, records, done, give_up);
                outcome.map(|()| Wire::Datagrams(datagrams))
            }
            None => return Err(io::ErrorKind::NotConnected.into()),
        };
        self.wire = Some(outcome?);
        Ok(())
    }

    /// Returns the number of datagrams since the last call that the collector's host has refused, as far
    /// as it has said so.
    pub fn take_refused(&self) -> u64 {
        match &self.wire {
            Some(Wire::Datagrams(datagrams)) => datagrams.take_refused(),
            _ => 0,
        }
    }

    /// Ends the connection.
    pub fn finish(self) {
        if let Some(Wire::Stream(stream)) = self.wire {
            stream.finish();
        }
    }

    fn send_stream(
        &mut self,
        stream: &mut Stream,
        records: &[Record],
        done: &mut usize,
        give_up: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        /// In bytes; each record brings the container's identity, of which short lines have much.
        const SLICE: usize = 64 << 10;
        let mut encoded = std::mem::take(&mut self.encoded);
        let (mut rest, mut outcome) = (records.iter(), Ok(()));
        while outcome.is_ok() && !rest.as_slice().is_empty() {
            encoded.clear();
            let mut ends = Vec::new();
            while encoded.len() < SLICE
                && let Some(record) = rest.next()
            {
                self.encode(record, &mut encoded);
                if matches!(self.destination, Destination::Gelf(_)) && !record.line.is_empty() {
                    encoded.push(0);
                }
                ends.push(encoded.len());
            }
            let mut written = 0;
            outcome = stream.write(&encoded, &mut written, give_up);
            *done += ends.iter().filter(|end| **end <= written).count();
        }
        encoded.shrink_to(SLICE);
        self.encoded = encoded;
        outcome
    }

    fn send_datagrams(
        &mut self,
        datagrams: &Datagrams,
        records: &[Record],
        done: &mut usize,
        give_up: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        for record in records {
            let mut encoded = std::mem::take(&mut self.encoded);
            encoded.clear();
            self.encode(record, &mut encoded);
            let outcome = self.send_message(datagrams, &encoded, give_up);
            self.encoded = encoded;
            outcome?;
            *done += 1;
        }
        Ok(())
    }

    fn send_message(
        &self,
        datagrams: &Datagrams,
        message: &[u8],
        give_up: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        if message.is_empty() {
            return Ok(());
        }
        if let Destination::Gelf(gelf) = &self.destination {
            let mut id = [0; 8];
            rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
            let chunks = gelf
                .datagrams(message, id)
                .ok_or(rustix::io::Errno::MSGSIZE)?;
            return chunks
                .iter()
                .try_for_each(|chunk| datagrams.send(chunk, give_up));
        }
        match datagrams.send(message, give_up) {
            Err(error)
                if self.destination == Destination::Journald
                    && error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) =>
            {
                datagrams.send_file(message)
            }
            outcome => outcome,
        }
    }

    /// Appends a record's message. As with Docker, syslog and GELF get no empty lines.
    fn encode(&self, record: &Record, out: &mut Vec<u8>) {
        let identity = &self.identity;
        match &self.destination {
            Destination::Syslog(_) | Destination::Gelf(_) if record.line.is_empty() => {}
            Destination::Syslog(syslog) => syslog.encode(identity, record, out),
            Destination::Gelf(_) => Gelf::encode(identity, record, out),
            Destination::Fluentd(fluentd) => fluentd.encode(identity, record, out),
            Destination::Journald => journald::encode(identity, record, out),
        }
    }
}

/// Connects to the host's syslog daemon.
fn local_syslog() -> io::Result<Wire> {
    for path in ["/dev/log", "/var/run/syslog", "/var/run/log"].map(Path::new) {
        if let Ok(socket) = Datagrams::unix(path) {
            return Ok(Wire::Datagrams(socket));
        }
        if let Ok(stream) = Stream::unix(path) {
            return Ok(Wire::Stream(stream));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "Unix syslog delivery error",
    ))
}
