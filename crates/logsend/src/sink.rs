//! A connection to a collector.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::datagram::Datagrams;
use crate::stream::Stream;
use crate::{Address, Destination, Gelf, Identity, Record, fluentd, journald};

/// Sends records to a collector. It connects when it has no connection.
#[derive(Debug)]
pub struct Sink {
    destination: Destination,
    identity: Identity,
    wire: Option<Wire>,
    connected_at: Instant,
    encoded: Vec<u8>,
    recent: Recent,
    /// Number of records that were lost after they had counted as sent.
    lost: u64,
    /// What the collector has sent.
    inbox: Vec<u8>,
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
            connected_at: Instant::now(),
            encoded: Vec::new(),
            recent: Recent::default(),
            lost: 0,
            inbox: Vec::new(),
        }
    }

    /// Connects, if there is no connection, unless `give_up` returns true before.
    ///
    /// # Errors
    /// Returns an error with the text of Docker's driver.
    pub fn connect(&mut self, give_up: &dyn Fn() -> bool) -> io::Result<()> {
        let interval = match &self.destination {
            Destination::Fluentd(fluentd) if fluentd.is_async => fluentd.reconnect_interval,
            _ => None,
        };
        let is_old =
            interval.is_some_and(|most| self.connected_at.elapsed() > Duration::from_millis(most));
        if is_old {
            // What was written is sent before the connection ends.
            self.wire = None;
        }
        if self.wire.is_some() {
            return Ok(());
        }
        self.recent = Recent::default();
        self.inbox.clear();
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
            Address::LocalSyslog => local_syslog(give_up),
            Address::Unix(path) => Stream::unix(path, give_up).map(Wire::Stream),
            Address::UnixDatagram(path) => Datagrams::unix(path).map(Wire::Datagrams),
            Address::Tcp(address) => Stream::tcp(address, give_up).map(Wire::Stream),
            Address::Tls(address, tls) => Stream::tls(address, tls, give_up).map(Wire::Stream),
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
        self.connected_at = Instant::now();
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
        self.connect(give_up)?;
        let outcome = match self.wire.take() {
            Some(Wire::Stream(mut stream)) => {
                let outcome = self.send_stream(&mut stream, records, done, give_up);
                if outcome.is_err() {
                    self.lost += self.recent.within(stream.unacknowledged());
                }
                outcome.map(|()| Wire::Stream(stream))
            }
            Some(Wire::Datagrams(datagrams)) => {
                let outcome = self.send_datagrams(&datagrams, records, done, give_up);
                self.lost += datagrams.take_refused();
                outcome.map(|()| Wire::Datagrams(datagrams))
            }
            None => return Err(io::ErrorKind::NotConnected.into()),
        };
        self.wire = Some(outcome?);
        Ok(())
    }

    /// Returns the number of records since the last call that had counted as sent, but did not reach the
    /// collector's host: refused datagrams, and what a host has not acknowledged before a connection broke.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
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
        let mut first = 0;
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
            if matches!(&self.destination, Destination::Fluentd(fluentd) if fluentd.wants_acknowledgement)
            {
                let complete = ends.iter().filter(|end| **end <= written).count();
                let (sent, _) = records[first..].split_at(complete);
                let acknowledged = self.await_acknowledgements(stream, sent, done, give_up);
                outcome = outcome.and(acknowledged);
                first += complete;
                continue;
            }
            let mut begin = 0;
            for end in ends.into_iter().filter(|end| *end <= written) {
                self.recent.add(end - begin);
                begin = end;
                *done += 1;
            }
            // The record that was not written completely is sent again.
            self.recent.partial = written - begin;
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

    /// Returns the id of a record that the collector acknowledges it by.
    fn chunk(&self, record: &Record) -> String {
        let run = self.identity.epoch.get(..16).unwrap_or_default();
        format!("{run}{:016x}", record.ordinal)
    }

    /// Waits until the collector has acknowledged records, in any order, and counts those of them at the
    /// front that it has.
    fn await_acknowledgements(
        &mut self,
        stream: &mut Stream,
        records: &[Record],
        done: &mut usize,
        give_up: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        let mut expected: Vec<Option<String>> = records
            .iter()
            .map(|record| Some(self.chunk(record)))
            .collect();
        let mut first = 0;
        while first < expected.len() {
            match fluentd::take_acknowledgement(&mut self.inbox)? {
                Some(chunk) => {
                    let found = expected.iter_mut().find(|one| one.as_ref() == Some(&chunk));
                    // One of an earlier connection's does no harm.
                    if let Some(found) = found {
                        *found = None;
                    }
                    while expected.get(first).is_some_and(Option::is_none) {
                        first += 1;
                        *done += 1;
                    }
                }
                None => stream.wait_for_answer(&mut self.inbox, give_up)?,
            }
        }
        Ok(())
    }

    /// Appends a record's message. As with Docker, syslog and GELF get no empty lines.
    fn encode(&self, record: &Record, out: &mut Vec<u8>) {
        let identity = &self.identity;
        match &self.destination {
            Destination::Syslog(_) | Destination::Gelf(_) if record.line.is_empty() => {}
            Destination::Syslog(syslog) => syslog.encode(identity, record, out),
            Destination::Gelf(_) => Gelf::encode(identity, record, out),
            Destination::Fluentd(fluentd) => {
                let chunk = fluentd.wants_acknowledgement.then(|| self.chunk(record));
                fluentd.encode(identity, record, chunk.as_deref(), out);
            }
            Destination::Journald => journald::encode(identity, record, out),
        }
    }
}

/// The sizes of the last messages on a connection.
#[derive(Debug, Default)]
struct Recent {
    sizes: VecDeque<usize>,
    total: usize,
    /// What was written after them.
    partial: usize,
}

impl Recent {
    /// More than the kernel keeps of a connection, in bytes.
    const MOST: usize = 8 << 20;

    fn add(&mut self, size: usize) {
        // Nothing is sent of an empty line: it cannot be lost, and would stay in the list.
        if size == 0 {
            return;
        }
        self.sizes.push_back(size);
        self.total += size;
        while self.total > Self::MOST
            && let Some(oldest) = self.sizes.pop_front()
        {
            self.total -= oldest;
        }
    }

    /// Returns how many messages are in the last bytes that were written, completely or in part.
    fn within(&self, bytes: u64) -> u64 {
        let mut left = bytes.saturating_sub(self.partial as u64);
        let mut count = 0;
        for size in self.sizes.iter().rev() {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(*size as u64);
            count += 1;
        }
        count
    }
}

/// Connects to the host's syslog daemon.
fn local_syslog(give_up: &dyn Fn() -> bool) -> io::Result<Wire> {
    for path in ["/dev/log", "/var/run/syslog", "/var/run/log"].map(Path::new) {
        if let Ok(socket) = Datagrams::unix(path) {
            return Ok(Wire::Datagrams(socket));
        }
        if let Ok(stream) = Stream::unix(path, give_up) {
            return Ok(Wire::Stream(stream));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "Unix syslog delivery error",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_in_the_last_bytes_are_counted() {
        let mut recent = Recent::default();
        assert_eq!(recent.within(100), 0);
        // Empty lines are not sent.
        for size in [10, 20, 0, 30, 0] {
            recent.add(size);
        }
        assert_eq!(
            [0, 1, 30, 31, 50, 51, 60, 1000].map(|bytes| recent.within(bytes)),
            [0, 1, 1, 2, 2, 3, 3, 3]
        );
        recent.partial = 5;
        assert_eq!([5, 6, 36].map(|bytes| recent.within(bytes)), [0, 1, 2]);
        recent.add(Recent::MOST);
        assert_eq!(recent.within(u64::MAX), 1);
    }
}
