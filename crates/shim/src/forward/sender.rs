//! The process that sends a container's log to a collector.
//!
//! It may wait for the collector as long as it likes: it has nothing else to do. It ends when the container has, and
//! tries to send what is left for [`DRAIN`] at most.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use whelk_logsend::{Destination, Part, Record, Retries, Sink};

use super::outbox::Outbox;
use super::{INTERVAL, Report, Start};
use crate::logs::{LogRecord, PIECE, Stream, decode_record, record_length};
use crate::protocol;

/// How long after the container's end the collector may take for the last lines.
const DRAIN: Duration = Duration::from_secs(10);

/// Interval at which a wait for the collector checks whether the container has ended.
const STEP: Duration = Duration::from_millis(100);

/// Maximum number of bytes that are read from the shim at a time.
const BATCH: usize = 256 << 10;

struct Sender {
    id: String,
    destination: Destination,
    sink: Sink,
    socket: OwnedFd,
    end: End,
    retries: Retries,
    /// Until when lines are lost at once, because the collector was given up.
    down_until: Option<Instant>,
    pending: Vec<u8>,
    /// The parts of long lines that go on, with the time of the first.
    parts: [Option<(Part, i64)>; 2],
    handled: u64,
    /// Number of lines before the ones that this sender has handled.
    passed: u64,
    lost: u64,
    cause: String,
    reported_at: Instant,
    reported: u64,
}

/// Knows when to give up after the container's end.
struct End {
    parent: i32,
    deadline: Cell<Option<Instant>>,
}

impl End {
    fn is_over(&self) -> bool {
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        if self.deadline.get().is_none() && parent != self.parent {
            self.deadline.set(Some(Instant::now() + DRAIN));
        }
        self.deadline.get().is_some_and(|at| Instant::now() >= at)
    }
}

/// Runs a sender until its container has ended.
pub(super) fn run(input: &[u8], socket: OwnedFd) -> i32 {
    let _ = rustix::thread::set_name(c"whelk-log");
    let Ok(start) = serde_json::from_slice::<Start>(input) else {
        return 1;
    };
    let destination = start.forwarding.destination;
    let mut retries = destination.retries();
    if start.forwarding.buffer.is_some()
        && matches!(destination, Destination::Syslog(_) | Destination::Journald)
    {
        // The container does not wait, and the buffer is bounded.
        retries.limit = u32::MAX;
    }
    let mut sender = Sender {
        id: start.id,
        sink: Sink::new(destination.clone(), start.forwarding.identity),
        destination,
        socket,
        end: End {
            parent: start.parent,
            deadline: Cell::new(None),
        },
        retries,
        down_until: None,
        pending: Vec::new(),
        parts: [None, None],
        handled: 0,
        passed: start.passed,
        lost: 0,
        cause: String::new(),
        reported_at: Instant::now(),
        reported: 0,
    };
    if start.is_first {
        let end = &sender.end;
        if !sender.destination.connects_later()
            && let Err(error) = sender.sink.connect(&|| end.is_over())
        {
            let _ = sender.tell(&Report::Failed(whelk_sys::errno_text(&error)));
            return 1;
        }
        let _ = sender.tell(&Report::Ready);
    }
    sender.serve();
    0
}

impl Sender {
    fn serve(mut self) {
        let mut buffer = vec![0; BATCH];
        loop {
            // Without news, nothing but lines or the end wakes it up.
            let timeout = self
                .has_news()
                .then(|| Timespec::try_from(INTERVAL).ok())
                .flatten();
            let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
            let _ = poll(&mut polled, timeout.as_ref());
            match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Ok((count, _)) if count > 0 => {
                    self.pending.extend(&buffer[..count]);
                    self.deliver_pending();
                }
                Ok(_) | Err(_) => break,
            }
            self.report();
        }
        if self.lost > 0 {
            crate::log_error(&format!(
                "container {}: {} lines of the log were not sent to {}: {}",
                self.id,
                self.lost,
                self.destination.driver(),
                self.cause
            ));
        }
        self.sink.finish();
    }

    fn deliver_pending(&mut self) {
        let mut records = Vec::new();
        let mut at = 0;
        while let Some(length) = record_length(&self.pending[at..])
            && at + length <= self.pending.len()
        {
            let record = decode_record(&self.pending[at..at + length]);
            records.extend(record.map(|record| self.record(record)));
            at += length;
        }
        self.pending.drain(..at);
        self.deliver(&records);
        self.handled += records.len() as u64;
    }

    /// Removes the newline, and numbers the parts of a long line.
    fn record(&mut self, record: LogRecord) -> Record {
        let LogRecord {
            time,
            stream,
            data: mut line,
            ..
        } = record;
        let ends = line.last() == Some(&b'\n');
        if ends {
            line.pop();
        }
        let slot = &mut self.parts[stream as usize - 1];
        // As in Docker all parts have the time of the first: some collectors join them by it.
        let mut time = time;
        let part = match slot.take() {
            Some((before, begin)) => {
                time = begin;
                Some(Part {
                    ordinal: before.ordinal + 1,
                    last: ends,
                    ..before
                })
            }
            None if !ends && line.len() == PIECE => {
                let mut id = [0; 16];
                let _ = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty());
                let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
                Some(Part {
                    id,
                    ordinal: 1,
                    last: false,
                })
            }
            None => None,
        };
        *slot = part
            .clone()
            .filter(|part| !part.last)
            .map(|part| (part, time));
        self.passed += 1;
        Record {
            ordinal: self.passed,
            time,
            is_error: stream == Stream::Stderr,
            line,
            part,
        }
    }

    /// Sends records, or counts them as lost.
    fn deliver(&mut self, records: &[Record]) {
        if self.down_until.is_some_and(|until| Instant::now() < until) || self.end.is_over() {
            return self.lose(records.len(), None);
        }
        let (mut done, mut failures, mut delay) = (0, 0, self.retries.delay);
        while done < records.len() {
            let before = done;
            let outcome = self
                .sink
                .send(&records[done..], &mut done, &|| self.end.is_over());
            let unread = self.sink.take_lost();
            self.lost += unread;
            if unread > 0 {
                self.cause = match &outcome {
                    Ok(()) => "connection refused".to_owned(),
                    Err(error) => whelk_sys::errno_text(error),
                };
            }
            let Err(error) = outcome else { break };
            if error.raw_os_error() == Some(Errno::MSGSIZE.raw_os_error()) {
                // A datagram cannot be that long.
                done += 1;
                self.lose(1, Some(&error));
                continue;
            }
            if done > before {
                (failures, delay) = (0, self.retries.delay);
            }
            let limit = if self.down_until.is_some() {
                0
            } else {
                self.retries.limit
            };
            if failures >= limit || self.end.is_over() {
                self.lose(records.len() - done, Some(&error));
                self.down_until = Some(Instant::now() + INTERVAL);
                self.report();
                return;
            }
            failures += 1;
            // The first failure may be that of a connection that was lost long ago.
            if failures > 1 {
                self.wait(delay);
                if self.retries.grows {
                    const LONGEST: Duration = Duration::from_secs(60);
                    delay = (delay * 3 / 2).min(LONGEST);
                }
            }
        }
        self.down_until = None;
    }

    fn lose(&mut self, lines: usize, error: Option<&std::io::Error>) {
        self.lost += lines as u64;
        if let Some(error) = error {
            self.cause = whelk_sys::errno_text(error);
        }
    }

    fn wait(&self, delay: Duration) {
        let until = Instant::now() + delay;
        while Instant::now() < until && !self.end.is_over() {
            std::thread::sleep(STEP.min(until.saturating_duration_since(Instant::now())));
        }
    }

    fn has_news(&self) -> bool {
        self.lost > 0 || self.handled > self.reported
    }

    /// Tells the shim about losses and progress, at most once in [`INTERVAL`].
    fn report(&mut self) {
        if !self.has_news()
            || self.reported_at.elapsed() < INTERVAL
            || self.end.deadline.get().is_some()
        {
            return;
        }
        let report = Report::Progress {
            lost: self.lost,
            cause: self.cause.clone(),
            handled: self.handled,
        };
        self.reported_at = Instant::now();
        if self.tell(&report) {
            self.lost = 0;
            self.reported = self.handled;
        }
    }

    /// Sends a report to the shim. Returns false if it cannot take it now.
    fn tell(&self, report: &Report) -> bool {
        let Ok(bytes) = protocol::encode(report) else {
            return false;
        };
        send(
            &self.socket,
            &bytes,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )
        .is_ok_and(|count| count == bytes.len())
    }
}

/// Writes the last records of a container to its sender.
pub(super) fn pass_on(input: &[u8], socket: OwnedFd) -> i32 {
    let deadline = Instant::now() + DRAIN + INTERVAL;
    let mut outbox = Outbox::decode(input);
    while !outbox.is_empty() && Instant::now() < deadline {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match send(&socket, outbox.unsent(), flags) {
            Ok(count) => drop(outbox.take(count)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let timeout = Timespec::try_from(STEP).ok();
                let _ = poll(
                    &mut [PollFd::new(&socket, PollFlags::OUT)],
                    timeout.as_ref(),
                );
            }
            Err(_) => break,
        }
    }
    if !outbox.is_empty() {
        crate::log_error(&format!(
            "the last {} lines of a log were not sent: the collector takes no more data",
            outbox.records()
        ));
    }
    0
}
