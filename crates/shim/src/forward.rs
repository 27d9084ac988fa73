//! Passing lines of the log on to the process that sends them to a collector ([`sender`]).
//!
//! ```text
//! shim ──records of the `local` format──► sender ──► collector
//!      ◄─────────── Report ──────────────
//! ```
//! What the sender has not taken yet waits in the shim. If the container is to wait for the collector, its
//! output is not read meanwhile; otherwise lines beyond the buffer's size are lost and counted.

mod outbox;
pub(crate) mod sender;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use serde::{Deserialize, Serialize};
use whelk_runtime::{Error, Result};
use whelk_sys::process::{CloneFlags, Cloned, clone_process, run_isolated};

use crate::container::{INIT, Shim, pid_number, set_nonblocking};
use crate::logs::{Forwarding, Outgoing};
use crate::losses::Losses;
use crate::poll::{Poll, Token};
use crate::protocol;

use outbox::{Outbox, records};

/// How long the first connection to a collector may take.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// Minimum time between two starts of the sender, and between two of its reports.
const INTERVAL: Duration = Duration::from_secs(1);

/// The input of a sender.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub id: String,
    pub forwarding: Forwarding,
    /// The shim's pid: when it is not the sender's parent any more, the container has ended.
    pub parent: i32,
    /// Whether the first connection is reported.
    pub is_first: bool,
    /// Number of lines that earlier senders of the container have got.
    pub passed: u64,
}

/// What a sender reports.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Ready,
    /// The first connection has failed.
    Failed(String),
    /// Lines were lost since the last report. `handled` counts all lines so far that were sent or lost.
    Progress {
        lost: u64,
        cause: String,
        handled: u64,
    },
}

pub(crate) struct Forward {
    id: String,
    config: Forwarding,
    /// `None` while there is no sender.
    socket: Option<OwnedFd>,
    outbox: Outbox,
    /// Whether it is waited for the sender to take more.
    is_waiting: bool,
    inbox: Vec<u8>,
    /// Number of records that this sender has got, and has reported as handled.
    passed: u64,
    handled: u64,
    /// Number of records that earlier senders have got.
    passed_before: u64,
    /// Lines that were lost on the way to the collector.
    pub(crate) losses: Losses,
    /// When to start another sender.
    restart_at: Option<Instant>,
}

impl Forward {
    /// Starts the sender and waits for its first connection.
    ///
    /// # Errors
    /// Returns the sender's error if the collector cannot be reached.
    pub(crate) fn start(id: &str, config: Forwarding, poll: &Poll) -> Result<Self> {
        let mut forward = Self {
            id: id.to_owned(),
            losses: Losses::new(config.destination.driver()),
            config,
            socket: None,
            outbox: Outbox::default(),
            is_waiting: false,
            inbox: Vec::new(),
            passed: 0,
            handled: 0,
            passed_before: 0,
            restart_at: None,
        };
        let failed = Error::Logging;
        let socket = forward
            .spawn(true)
            .map_err(|error| failed(whelk_sys::errno_text(&error)))?;
        match forward.first_report(&socket) {
            Some(Report::Failed(text)) => return Err(failed(text)),
            Some(_) => {}
            None => return Err(failed("the process that sends the log has ended".into())),
        }
        poll.add(&socket, Token::Sender, EventFlags::IN)
            .map_err(|error| failed(error.to_string()))?;
        forward.socket = Some(socket);
        Ok(forward)
    }

    /// Forks a sender, and returns the socket to it.
    fn spawn(&self, is_first: bool) -> std::io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        set_nonblocking(&ours)?;
        let start = Start {
            id: self.id.clone(),
            forwarding: self.config.clone(),
            parent: pid_number(rustix::process::getpid()),
            is_first,
            passed: self.passed_before,
        };
        fork_with(theirs, &serde_json::to_vec(&start)?, sender::run)?;
        Ok(ours)
    }

    fn first_report(&mut self, socket: &OwnedFd) -> Option<Report> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(Some(report)) = protocol::take::<Report>(&mut self.inbox) {
                return Some(report);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(Report::Failed("i/o timeout".into()));
            }
            let timeout = Timespec::try_from(left).ok();
            let mut polled = [PollFd::new(socket, PollFlags::IN)];
            let _ = poll(&mut polled, timeout.as_ref());
            self.receive(socket)?;
        }
    }

    /// Reads what the sender has sent. Returns `None` if it has ended.
    fn receive(&mut self, socket: &OwnedFd) -> Option<()> {
        let mut buffer = [0; 4096];
        match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => Some(()),
            Ok((count, _)) if count > 0 => {
                self.inbox.extend(&buffer[..count]);
                Some(())
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// Whether the container has to wait for the collector.
    fn is_behind(&self) -> bool {
        self.config.buffer.is_none() && !self.outbox.is_empty()
    }

    /// Queues records, and passes on what the sender takes.
    fn push(&mut self, outgoing: &Outgoing, poll: &Poll) {
        let limit = self.config.buffer.unwrap_or(u64::MAX);
        let mut was_flushed = false;
        for record in records(&outgoing.bytes) {
            let is_full = |outbox: &Outbox| {
                !outbox.is_empty() && (outbox.size() + record.len()) as u64 > limit
            };
            if is_full(&self.outbox) && !std::mem::replace(&mut was_flushed, true) {
                self.flush(poll);
            }
            if is_full(&self.outbox) {
                self.losses.add(1, "the buffer for the collector is full");
            } else {
                self.outbox.push(record);
            }
        }
        self.flush(poll);
    }

    fn flush(&mut self, poll: &Poll) {
        let Some(socket) = &self.socket else { return };
        while !self.outbox.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match send(socket, self.outbox.unsent(), flags) {
                Ok(count) => self.passed += self.outbox.take(count),
                Err(Errno::INTR) => {}
                // That the sender has ended is noticed when its socket is read.
                Err(_) => break,
            }
        }
        let waits = !self.outbox.is_empty();
        if std::mem::replace(&mut self.is_waiting, waits) != waits {
            let writing = if waits {
                EventFlags::OUT
            } else {
                EventFlags::empty()
            };
            let _ = poll.modify(socket, Token::Sender, EventFlags::IN | writing);
        }
    }

    /// Handles the socket's events.
    fn ready(&mut self, poll: &Poll) {
        let Some(socket) = self.socket.take() else {
            return;
        };
        let is_alive = self.receive(&socket).is_some();
        if self.take_reports() && is_alive {
            self.socket = Some(socket);
            return self.flush(poll);
        }
        // A sender that sends what it must not ends when its socket is closed.
        poll.remove(&socket);
        let unknown = self.passed.saturating_sub(self.handled);
        self.losses.add(
            unknown,
            "the process that sends the log was killed; up to as many lines are lost",
        );
        self.passed_before += self.passed;
        (self.passed, self.handled) = (0, 0);
        self.is_waiting = false;
        self.outbox.rewind();
        self.inbox.clear();
        self.restart_at = Some(Instant::now() + INTERVAL);
    }

    /// Handles the sender's reports. Returns false if one of them is malformed.
    fn take_reports(&mut self) -> bool {
        loop {
            match protocol::take::<Report>(&mut self.inbox) {
                Ok(Some(Report::Progress {
                    lost,
                    cause,
                    handled,
                })) => {
                    self.losses.add(lost, &cause);
                    self.handled = handled;
                }
                Ok(Some(Report::Ready | Report::Failed(_))) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    fn restart(&mut self, poll: &Poll) {
        self.restart_at = None;
        let started = self.spawn(false).and_then(|socket| {
            poll.add(&socket, Token::Sender, EventFlags::IN)?;
            Ok(socket)
        });
        match started {
            Ok(socket) => {
                self.socket = Some(socket);
                self.flush(poll);
            }
            Err(_) => self.restart_at = Some(Instant::now() + INTERVAL),
        }
    }
}

impl Shim {
    /// Passes on the lines that the log has got since the last call.
    pub(crate) fn forward_log(&mut self) {
        let outgoing = self.log.take_outgoing();
        if let Some(forward) = &mut self.forward
            && outgoing.count > 0
        {
            forward.push(&outgoing, &self.poll);
        }
    }

    /// Whether the container has to wait for the collector.
    pub(crate) fn is_collector_behind(&self) -> bool {
        self.forward.as_ref().is_some_and(Forward::is_behind)
    }

    pub(crate) fn sender_ready(&mut self) {
        if let Some(forward) = &mut self.forward {
            forward.ready(&self.poll);
        }
        self.release_output(INIT);
    }

    /// Returns when [`Shim::tend_forward`] has something to do.
    pub(crate) fn forward_deadline(&self) -> Option<Instant> {
        self.forward.as_ref()?.restart_at
    }

    /// Starts another sender for one that was killed.
    pub(crate) fn tend_forward(&mut self) {
        let now = Instant::now();
        let Some(forward) = &mut self.forward else {
            return;
        };
        if forward.restart_at.is_some_and(|at| at <= now) {
            forward.restart(&self.poll);
            self.release_output(INIT);
        }
    }

    /// Gives the sender the last lines. It goes on for a while after the shim has exited.
    pub(crate) fn end_forward(&mut self) {
        self.forward_log();
        let Some(forward) = self.forward.as_mut() else {
            return;
        };
        if forward.socket.is_none() {
            forward.restart(&self.poll);
        }
        forward.flush(&self.poll);
        let socket = forward.socket.take();
        if let Some(socket) = &socket {
            // What it has reported until now is not known otherwise: for it, that is told.
            let mut before = None;
            while before != Some(forward.inbox.len()) {
                before = Some(forward.inbox.len());
                if forward.receive(socket).is_none() {
                    break;
                }
            }
            let _ = forward.take_reports();
        }
        if !forward.outbox.is_empty() {
            // The shim does not wait for the sender: a process of its own does.
            let passed = match socket {
                Some(socket) => fork_with(socket, &forward.outbox.encode(), sender::pass_on)
                    .map_err(|error| whelk_sys::errno_text(&error)),
                None => Err("no process to send them".to_owned()),
            };
            if let Err(text) = passed {
                let lines = forward.outbox.records();
                let cause = format!("the last lines are lost: fork: {text}");
                forward.losses.add(lines, &cause);
            }
        }
    }
}

/// Runs `work` in a child process that has the standard streams and `kept`.
fn fork_with(kept: OwnedFd, input: &[u8], work: fn(&[u8], OwnedFd) -> i32) -> std::io::Result<()> {
    const FIRST_AFTER_STREAMS: u32 = 3;
    match clone_process(CloneFlags::default(), None)? {
        Cloned::Parent { .. } => Ok(()),
        Cloned::Child => run_isolated(FIRST_AFTER_STREAMS, kept, input, work),
    }
}
