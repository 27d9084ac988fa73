//! epoll with typed tokens.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, Result};

/// Identifies what became ready. The numbers are those of the shim's processes and clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Listener,
    Signals,
    OutOfMemory,
    Output(u64),
    ErrorOutput(u64),
    /// Master end of a terminal: readable for output, writable for input.
    Terminal(u64),
    Input(u64),
    Client(u64),
    /// The socket of an exec that is being started.
    Starting(u64),
    /// The socket of the process that sends the log.
    Sender,
    /// The log of a command of another runtime.
    Call(u64),
}

/// Bits from here on hold the kind of a token, those below the number.
const KIND_SHIFT: u32 = 56;

impl Token {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::Signals => (1, 0),
            Self::OutOfMemory => (2, 0),
            Self::Output(n) => (3, n),
            Self::ErrorOutput(n) => (4, n),
            Self::Terminal(n) => (5, n),
            Self::Input(n) => (6, n),
            Self::Client(n) => (7, n),
            Self::Starting(n) => (8, n),
            Self::Sender => (9, 0),
            Self::Call(n) => (10, n),
        };
        kind << KIND_SHIFT | number
    }

    fn decode(data: u64) -> Self {
        let number = data & ((1 << KIND_SHIFT) - 1);
        match data >> KIND_SHIFT {
            0 => Self::Listener,
            1 => Self::Signals,
            2 => Self::OutOfMemory,
            3 => Self::Output(number),
            4 => Self::ErrorOutput(number),
            5 => Self::Terminal(number),
            6 => Self::Input(number),
            7 => Self::Client(number),
            8 => Self::Starting(number),
            9 => Self::Sender,
            _ => Self::Call(number),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Poll(OwnedFd);

impl Poll {
    pub(crate) fn new() -> Result<Self> {
        epoll::create(CreateFlags::CLOEXEC).map(Self)
    }

    /// Watches `fd` for `interest`; errors and hang-ups are always reported.
    pub(crate) fn add(&self, fd: impl AsFd, token: Token, interest: EventFlags) -> Result<()> {
        epoll::add(&self.0, fd, EventData::new_u64(token.encode()), interest)
    }

    pub(crate) fn modify(&self, fd: impl AsFd, token: Token, interest: EventFlags) -> Result<()> {
        epoll::modify(&self.0, fd, EventData::new_u64(token.encode()), interest)
    }

    pub(crate) fn remove(&self, fd: impl AsFd) {
        // Closing the descriptor may have removed it already.
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits until a descriptor is ready, at most for `timeout`. Returns an empty list on a timeout
    /// or a signal.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<Vec<(Token, EventFlags)>> {
        let timeout = timeout.map(|timeout| {
            Timespec::try_from(timeout).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            })
        });
        let mut events = Vec::<Event>::with_capacity(32);
        match epoll::wait(
            &self.0,
            rustix::buffer::spare_capacity(&mut events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(events
            .iter()
            .map(|event| (Token::decode(event.data.u64()), event.flags))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        for token in [
            Token::Listener,
            Token::Signals,
            Token::OutOfMemory,
            Token::Output(1),
            Token::ErrorOutput(2),
            Token::Terminal(3),
            Token::Input(4),
            Token::Client(1 << 40),
            Token::Starting(5),
            Token::Sender,
            Token::Call(6),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
