//! A process of the container that the shim has started: its streams and its exit status.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use crate::poll::{Poll, Token};
use crate::protocol::Exit;

/// Limit of pending input in bytes, above which clients' input is no longer read.
const MAX_INPUT: usize = 256 << 10;

#[derive(Debug)]
pub(crate) struct Process {
    pub number: u64,
    /// The exec's id; `None` for the container's first process.
    pub exec: Option<String>,
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub terminal: Option<OwnedFd>,
    pub outputs: [Option<OwnedFd>; 2],
    pub input: Input,
    pub exit: Option<Exit>,
    /// Set when the process has exited: until when to wait for the end of its output.
    pub deadline: Option<Instant>,
    /// Whether reading output is suspended because a client is behind.
    pub held: bool,
    /// Whether it is killed when its client disconnects ([`crate::protocol::ExecLaunch::bound`]).
    pub bound: bool,
    /// Whether its client is told its exit ([`crate::protocol::ExecLaunch::tells_exit`]).
    pub tells_exit: bool,
}

/// The write end of a program's standard input, if it is a pipe, and the data still to be written
/// to it.
#[derive(Debug, Default)]
pub(crate) struct Input {
    pipe: Option<OwnedFd>,
    pending: Vec<u8>,
    /// Whether to close the pipe once everything is written.
    end: bool,
    watched: bool,
}

/// The shim's ends of a process's pipes: for its input, and for its output and errors.
pub(crate) type PipeEnds = (Option<OwnedFd>, [Option<OwnedFd>; 2]);

/// Creates the pipes of a process without a terminal: for output, and for input if `stdin`;
/// otherwise the program reads from `/dev/null`. Returns the program's ends and the shim's.
pub(crate) fn open_pipes(stdin: bool) -> rustix::io::Result<([OwnedFd; 3], PipeEnds)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let (their_input, input) = if stdin {
        let (theirs, ours) = pipe()?;
        (theirs, Some(ours))
    } else {
        (
            rustix::fs::open(
                "/dev/null",
                OFlags::RDONLY | OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )?,
            None,
        )
    };
    let (output, their_output) = pipe()?;
    let (error, their_error) = pipe()?;
    for ours in [Some(&output), Some(&error), input.as_ref()]
        .into_iter()
        .flatten()
    {
        rustix::fs::fcntl_setfl(ours, OFlags::NONBLOCK)?;
    }
    let theirs = [their_input, their_output, their_error];
    Ok((theirs, (input, [Some(output), Some(error)])))
}

impl Process {
    pub(crate) fn new(number: u64, exec: Option<String>, pid: Pid, pidfd: OwnedFd) -> Self {
        Self {
            number,
            exec,
            pid,
            pidfd,
            terminal: None,
            outputs: [None, None],
            input: Input::default(),
            exit: None,
            deadline: None,
            held: false,
            bound: false,
            tells_exit: false,
        }
    }

    /// Takes the shim's ends of the streams and watches them.
    pub(crate) fn connect(
        &mut self,
        terminal: Option<OwnedFd>,
        pipes: Option<PipeEnds>,
        poll: &Poll,
    ) -> rustix::io::Result<()> {
        if let Some(terminal) = terminal {
            rustix::fs::fcntl_setfl(&terminal, OFlags::NONBLOCK)?;
            poll.add(&terminal, Token::Terminal(self.number), EventFlags::IN)?;
            self.terminal = Some(terminal);
        } else if let Some((input, outputs)) = pipes {
            self.input.pipe = input;
            for (output, token) in outputs
                .iter()
                .zip([Token::Output(self.number), Token::ErrorOutput(self.number)])
            {
                if let Some(output) = output {
                    poll.add(output, token, EventFlags::IN)?;
                }
            }
            self.outputs = outputs;
        }
        Ok(())
    }

    /// Suspends or resumes reading output.
    pub(crate) fn hold(&mut self, held: bool, poll: &Poll) {
        if std::mem::replace(&mut self.held, held) == held {
            return;
        }
        let interest = if held {
            EventFlags::empty()
        } else {
            EventFlags::IN
        };
        for (output, token) in self
            .outputs
            .iter()
            .zip([Token::Output(self.number), Token::ErrorOutput(self.number)])
        {
            if let Some(output) = output {
                let _ = poll.modify(output, token, interest);
            }
        }
        if let Some(terminal) = &self.terminal {
            let _ = poll.modify(
                terminal,
                Token::Terminal(self.number),
                interest | self.input.interest(),
            );
        }
    }

    /// Writes input to the program, or queues it until the program accepts it.
    pub(crate) fn write_input(&mut self, data: &[u8], poll: &Poll) {
        self.input.pending.extend_from_slice(data);
        self.pump_input(poll);
    }

    /// Closes the program's standard input once everything is written. No effect on a terminal.
    pub(crate) fn end_input(&mut self, poll: &Poll) {
        self.input.end = true;
        self.pump_input(poll);
    }

    /// Whether the queue has room for more input.
    pub(crate) fn takes_input(&self) -> bool {
        self.input.pending.len() < MAX_INPUT
    }

    /// Writes queued input as far as the program accepts it.
    pub(crate) fn pump_input(&mut self, poll: &Poll) {
        let Some(fd) = self.terminal.as_ref().or(self.input.pipe.as_ref()) else {
            self.input.pending.clear();
            return;
        };
        let mut closed = false;
        while !self.input.pending.is_empty() {
            match rustix::io::write(fd, &self.input.pending) {
                Ok(count) => drop(self.input.pending.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    closed = true;
                    self.input.pending.clear();
                }
            }
        }
        self.watch_input(poll);
        if self.input.pending.is_empty() && (self.input.end || closed) {
            self.input.pipe = None;
        }
    }

    fn watch_input(&mut self, poll: &Poll) {
        let wanted = !self.input.pending.is_empty();
        if std::mem::replace(&mut self.input.watched, wanted) == wanted {
            return;
        }
        if let Some(terminal) = &self.terminal {
            let reading = if self.held {
                EventFlags::empty()
            } else {
                EventFlags::IN
            };
            let _ = poll.modify(
                terminal,
                Token::Terminal(self.number),
                reading | self.input.interest(),
            );
        } else if let Some(pipe) = &self.input.pipe {
            if wanted {
                let _ = poll.add(pipe, Token::Input(self.number), EventFlags::OUT);
            } else {
                poll.remove(pipe);
            }
        }
    }

    /// Returns the descriptor that output of `stream` (1 or 2) is read from.
    pub(crate) fn output(&self, stream: u8) -> Option<&OwnedFd> {
        if self.terminal.is_some() {
            self.terminal.as_ref().filter(|_| stream == 1)
        } else {
            self.outputs[usize::from(stream == 2)].as_ref()
        }
    }

    /// Whether all outputs have been closed by their writers.
    pub(crate) fn output_has_ended(&self) -> bool {
        self.terminal.is_none() && self.outputs.iter().all(Option::is_none)
    }

    /// Closes an output that has ended.
    pub(crate) fn close_output(&mut self, stream: u8, poll: &Poll) {
        if let Some(fd) = self.output(stream) {
            poll.remove(fd.as_fd());
        }
        if self.terminal.is_some() {
            self.terminal = None;
        } else {
            self.outputs[usize::from(stream == 2)] = None;
        }
    }
}

impl Input {
    fn interest(&self) -> EventFlags {
        if self.pending.is_empty() {
            EventFlags::empty()
        } else {
            EventFlags::OUT
        }
    }
}
