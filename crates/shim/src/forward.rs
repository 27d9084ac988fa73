//! Passing lines of the log on to the process that sends them to a collector ([`sender`]).
//!
//! ```text
//! shim ──records of the `local` format──► sender ──► collector
//!      ◄─────────── Report ──────────────
//! ```
//! What the sender has not taken yet waits in the shim. If the container is to wait for the collector, its
//! output is not read meanwhile; otherwise lines beyond the buffer's size are lost and counted.

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

use crate::client::Role;
use crate::container::{INIT, Shim, pid_number, set_nonblocking};
use crate::logs::{Forwarding, Outgoing, record_length};
use crate::poll::{Poll, Token};
use crate::protocol::{self, Event};

/// How long the first connection to a collector may take.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// Minimum time between two reports of lost lines, and between two starts of the sender.
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
    /// Complete records that the sender does not have completely.
    outbox: Vec<u8>,
    /// How many bytes of `outbox` the sender has: a part of its first record.
    sent: usize,
    inbox: Vec<u8>,
    /// Number of records that this sender has got, and has reported as handled.
    passed: u64,
    handled: u64,
    /// Lines that were lost and not published yet, and why the last of them was.
    lost: u64,
    cause: String,
    /// When to start another sender, and when to publish losses.
    restart_at: Option<Instant>,
    publish_at: Instant,
}

impl Forward {
    /// Starts the sender and waits for its first connection.
    ///
    /// # Errors
    /// Returns the sender's error if the collector cannot be reached.
    pub(crate) fn start(id: &str, config: Forwarding, poll: &Poll) -> Result<Self> {
        let mut forward = Self {
            id: id.to_owned(),
            config,
            socket: None,
            outbox: Vec::new(),
            sent: 0,
            inbox: Vec::new(),
            passed: 0,
            handled: 0,
            lost: 0,
            cause: String::new(),
            restart_at: None,
            publish_at: Instant::now(),
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
    fn push(&mut self, records: Outgoing, poll: &Poll) {
        let limit = self.config.buffer.unwrap_or(u64::MAX);
        if !self.outbox.is_empty() && (self.outbox.len() + records.bytes.len()) as u64 > limit {
            self.lose(records.count, "the buffer for the collector is full");
        } else {
            self.outbox.extend(records.bytes);
        }
        self.flush(poll);
    }

    fn lose(&mut self, lines: u64, cause: &str) {
        if lines > 0 {
            self.lost += lines;
            cause.clone_into(&mut self.cause);
        }
    }

    fn flush(&mut self, poll: &Poll) {
        let Some(socket) = &self.socket else { return };
        while self.sent < self.outbox.len() {
            let rest = &self.outbox[self.sent..];
            match send(socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                // That the sender has ended is noticed when its socket is read.
                Err(_) => break,
            }
        }
        let mut complete = 0;
        while let Some(length) = record_length(&self.outbox[complete..])
            && complete + length <= self.sent
        {
            complete += length;
            self.passed += 1;
        }
        self.outbox.drain(..complete);
        self.sent -= complete;
        let writing = if self.outbox.is_empty() {
            EventFlags::empty()
        } else {
            EventFlags::OUT
        };
        let _ = poll.modify(socket, Token::Sender, EventFlags::IN | writing);
    }

    /// Handles the socket's events.
    fn ready(&mut self, poll: &Poll) {
        let Some(socket) = self.socket.take() else {
            return;
        };
        let alive = self.receive(&socket).is_some();
        while let Ok(Some(report)) = protocol::take::<Report>(&mut self.inbox) {
            if let Report::Progress {
                lost,
                cause,
                handled,
            } = report
            {
                self.lose(lost, &cause);
                self.handled = handled;
            }
        }
        if alive {
            self.socket = Some(socket);
            return self.flush(poll);
        }
        poll.remove(&socket);
        let unknown = self.passed.saturating_sub(self.handled);
        self.lose(
            unknown,
            "the process that sends the log was killed; up to as many lines are lost",
        );
        (self.passed, self.handled, self.sent) = (0, 0, 0);
        self.inbox.clear();
        self.restart_at = Some(Instant::now() + INTERVAL);
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
            forward.push(outgoing, &self.poll);
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
        let forward = self.forward.as_ref()?;
        let publish = (forward.lost > 0 && self.has_subscriber()).then_some(forward.publish_at);
        [publish, forward.restart_at].into_iter().flatten().min()
    }

    /// Starts another sender for one that was killed, and publishes losses.
    pub(crate) fn tend_forward(&mut self) {
        let now = Instant::now();
        let Some(forward) = &mut self.forward else {
            return;
        };
        if forward.restart_at.is_some_and(|at| at <= now) {
            forward.restart(&self.poll);
            self.release_output(INIT);
        }
        if self
            .forward
            .as_ref()
            .is_some_and(|forward| forward.publish_at <= now)
        {
            self.publish_lost();
        }
    }

    fn has_subscriber(&self) -> bool {
        let mut roles = self.clients.values().map(|client| &client.role);
        roles.any(|role| matches!(role, Role::Subscriber))
    }

    fn publish_lost(&mut self) {
        if !self.has_subscriber() {
            return;
        }
        let Some(forward) = self.forward.as_mut().filter(|forward| forward.lost > 0) else {
            return;
        };
        forward.publish_at = Instant::now() + INTERVAL;
        let event = Event::LogLost {
            lines: std::mem::take(&mut forward.lost),
            driver: forward.config.destination.driver().to_owned(),
            cause: forward.cause.clone(),
        };
        self.publish(&event);
    }

    /// Gives the sender the last lines. It goes on for a while after the shim has exited.
    pub(crate) fn end_forward(&mut self) {
        self.forward_log();
        let Some(forward) = &mut self.forward else {
            return;
        };
        if forward.socket.is_none() {
            forward.restart(&self.poll);
        }
        forward.flush(&self.poll);
        let socket = forward.socket.take();
        if !forward.outbox.is_empty()
            && let Some(socket) = socket
        {
            // The shim does not wait for the sender: a process of its own does.
            let rest = &forward.outbox[forward.sent..];
            if let Err(error) = fork_with(socket, rest, sender::pass_on) {
                let text = whelk_sys::errno_text(&error);
                forward.lose(1, &format!("the last lines are lost: fork: {text}"));
            }
        }
        self.publish_lost();
        self.forward = None;
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
