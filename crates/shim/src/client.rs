//! One connection to the shim: what it asked for, and what still waits to be sent to it.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::protocol::Attach;

/// Above this many waiting bytes, the output that feeds a client is not read any more: the program
/// waits for its slowest reader, and memory stays bounded (CVE-2022-31030).
pub(crate) const HIGH_WATER: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Client {
    pub stream: OwnedFd,
    pub role: Role,
    /// Bytes of a request that is not complete.
    pub inbox: Vec<u8>,
    outbox: Vec<u8>,
    sent: usize,
    /// Close once everything is sent.
    pub closing: bool,
}

#[derive(Debug)]
pub(crate) enum Role {
    /// Has not said yet what it wants.
    Asking,
    Subscriber,
    Attached(Attached),
}

#[derive(Debug)]
pub(crate) struct Attached {
    /// The number of the process it is attached to.
    pub process: u64,
    pub wants: Attach,
    /// It gets output without frames.
    pub raw: bool,
    detach: DetachKeys,
}

impl Attached {
    pub(crate) fn new(process: u64, wants: Attach, terminal: bool) -> Self {
        let keys = if terminal {
            wants.detach_keys.clone()
        } else {
            Vec::new()
        };
        let raw = wants.raw.unwrap_or(terminal);
        Self {
            process,
            wants,
            raw,
            detach: DetachKeys { keys, matched: 0 },
        }
    }

    /// Input as the program shall see it, and whether the client typed the keys to detach.
    pub(crate) fn filter_input(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        self.detach.filter(input)
    }
}

/// Finds a key sequence in typed input. Keys of a sequence that is not completed are passed on
/// late, not lost.
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

/// What became of an attempt to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    All,
    /// The socket is full; more when it is writable.
    Partly,
    /// The other side is gone.
    Gone,
}

impl Client {
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

    pub(crate) fn waiting(&self) -> usize {
        self.outbox.len() - self.sent
    }

    /// Sends `parts` after what is waiting already, as much as the socket takes.
    pub(crate) fn send(&mut self, parts: &[&[u8]]) -> Sent {
        for part in parts {
            self.outbox.extend_from_slice(part);
        }
        self.flush()
    }

    pub(crate) fn flush(&mut self) -> Sent {
        while self.waiting() > 0 {
            match send(
                &self.stream,
                &self.outbox[self.sent..],
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // Give back what was sent, so that a slow client's backlog does not grow its
                    // buffer for ever.
                    self.outbox.drain(..self.sent);
                    self.sent = 0;
                    return Sent::Partly;
                }
                Err(_) => return Sent::Gone,
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
    fn keys_are_found_across_reads_and_others_pass() {
        let keys = &[16, 17];
        check(keys, &[b"abc"], b"abc", false);
        check(keys, &[b"a", &[16], &[17], b"b"], b"a", true);
        check(keys, &[&[16, b'x']], &[16, b'x'], false);
        check(keys, &[&[16, 16, 17]], &[16], true);
        check(&[], &[&[16, 17]], &[16, 17], false);
    }
}
