//! A client's connection to the shim: its request, and the output that has not been sent yet.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::protocol::Attach;

/// Above this many pending bytes, the output for a client is no longer read: the program waits for
/// its slowest reader, and memory use stays bounded (CVE-2022-31030).
pub(crate) const HIGH_WATER: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Client {
    pub stream: OwnedFd,
    pub role: Role,
    /// Bytes of an incomplete request.
    pub inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// How many bytes of `outbox` have been sent.
    sent: usize,
    /// Whether to close the connection once everything is sent.
    pub closing: bool,
}

#[derive(Debug)]
pub(crate) enum Role {
    /// Has not sent its request yet.
    AwaitingRequest,
    /// Receives events.
    Subscriber,
    Attached(Attached),
}

#[derive(Debug)]
pub(crate) struct Attached {
    /// Number of the process that the client is attached to.
    pub process: u64,
    pub request: Attach,
    /// Whether it receives output without frames.
    pub raw: bool,
    detach: DetachKeys,
}

impl Attached {
    pub(crate) fn new(process: u64, request: Attach, terminal: bool) -> Self {
        let keys = if terminal {
            request.detach_keys.clone()
        } else {
            Vec::new()
        };
        let raw = request.raw.unwrap_or(terminal);
        Self {
            process,
            request,
            raw,
            detach: DetachKeys { keys, matched: 0 },
        }
    }

    /// Returns the input to pass on to the program, and whether it contains the complete detach
    /// sequence.
    pub(crate) fn filter_input(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        self.detach.filter(input)
    }
}

/// Finds a key sequence in input. The keys of an incomplete sequence are held back and passed on
/// later.
#[derive(Debug)]
struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (input.to_vec(), false);
        }
        let mut passed = Vec::with_capacity(input.len());
        for &byte in input {
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(&self.keys[..self.matched]);
            self.matched = usize::from(byte == self.keys[0]);
            if self.matched == 0 {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

/// Result of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    All,
    /// The socket is full; the rest is sent when it is writable.
    Partly,
    /// The other side has closed the connection.
    Closed,
}

impl Client {
    /// Whether the other side has closed the connection completely, not only for its input.
    pub(crate) fn has_hung_up(&self) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // POLLHUP is always reported.
        let mut polled = [PollFd::new(&self.stream, PollFlags::empty())];
        poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
    }

    pub(crate) fn new(stream: OwnedFd, role: Role) -> Self {
        Self {
            stream,
            role,
            inbox: Vec::new(),
            outbox: Vec::new(),
            sent: 0,
            closing: false,
        }
    }

    /// Returns the number of bytes that have not been sent yet.
    pub(crate) fn pending(&self) -> usize {
        self.outbox.len() - self.sent
    }

    /// Queues `parts` and sends as much as the socket accepts.
    pub(crate) fn send(&mut self, parts: &[&[u8]]) -> Sent {
        for part in parts {
            self.outbox.extend_from_slice(part);
        }
        self.flush()
    }

    /// Sends as much of the queue as the socket accepts.
    pub(crate) fn flush(&mut self) -> Sent {
        while self.pending() > 0 {
            match send(
                &self.stream,
                &self.outbox[self.sent..],
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // Remove what was sent, so that the buffer of a slow client does not grow
                    // without bound.
                    self.outbox.drain(..self.sent);
                    self.sent = 0;
                    return Sent::Partly;
                }
                Err(_) => return Sent::Closed,
            }
        }
        self.outbox.clear();
        self.outbox.shrink_to(64 << 10);
        self.sent = 0;
        Sent::All
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &[u8], inputs: &[&[u8]], passed: &[u8], detached: bool) {
        let mut detach = DetachKeys {
            keys: keys.to_vec(),
            matched: 0,
        };
        let mut all = Vec::new();
        let mut ended = false;
        for input in inputs {
            let (out, done) = detach.filter(input);
            all.extend(out);
            ended = done;
            if done {
                break;
            }
        }
        assert_eq!(
            (all.as_slice(), ended),
            (passed, detached),
            "{keys:?} in {inputs:?}"
        );
    }

    #[test]
    fn finds_detach_keys_across_reads_and_passes_on_other_input() {
        let keys = &[16, 17];
        check(keys, &[b"abc"], b"abc", false);
        check(keys, &[b"a", &[16], &[17], b"b"], b"a", true);
        check(keys, &[&[16, b'x']], &[16, b'x'], false);
        check(keys, &[&[16, 16, 17]], &[16], true);
        check(&[], &[&[16, 17]], &[16, 17], false);
    }
}
