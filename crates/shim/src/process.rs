//! One process of the container that the shim started: its streams and how it ended.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use crate::poll::{Poll, Token};
use crate::protocol::Exit;

/// Input that clients have sent and the program has not read yet is bounded like output is.
const MOST_INPUT: usize = 256 << 10;

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
    /// Until when its output is waited for: it has ended, and not everybody has been told.
    pub deadline: Option<Instant>,
    /// Output is not read while a client is behind.
    pub held: bool,
}

/// The writing end of a program's standard input, when it is a pipe, and what waits to be written
/// to it.
#[derive(Debug, Default)]
pub(crate) struct Input {
    pipe: Option<OwnedFd>,
    waiting: Vec<u8>,
    end: bool,
    watched: bool,
}

/// The ends of the pipes of a process without a terminal: the program's, and the shim's.
pub(crate) struct Pipes {
    pub theirs: [OwnedFd; 3],
    pub input: Option<OwnedFd>,
    pub outputs: [Option<OwnedFd>; 2],
}

impl Pipes {
    /// Pipes for output, and for input if `stdin`; else the program reads from the null device.
    pub(crate) fn open(stdin: bool) -> rustix::io::Result<Self> {
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
        Ok(Self {
            theirs: [their_input, their_output, their_error],
            input,
            outputs: [Some(output), Some(error)],
        })
    }
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
        }
    }

    /// Takes over the shim's ends of the streams and watches them.
    pub(crate) fn connect(
        &mut self,
        terminal: Option<OwnedFd>,
        pipes: Option<(Option<OwnedFd>, [Option<OwnedFd>; 2])>,
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

    /// Stops or goes on reading output.
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

    /// Gives input to the program, or keeps it until the program takes it.
    pub(crate) fn write_input(&mut self, data: &[u8], poll: &Poll) {
        self.input.waiting.extend_from_slice(data);
        self.pump_input(poll);
    }

    /// Ends the program's input once all of it is written. A terminal's input has no end.
    pub(crate) fn end_input(&mut self, poll: &Poll) {
        self.input.end = true;
        self.pump_input(poll);
    }

    /// Whether the program can take more input.
    pub(crate) fn takes_input(&self) -> bool {
        self.input.waiting.len() < MOST_INPUT
    }

    /// Writes waiting input as far as the program takes it.
    pub(crate) fn pump_input(&mut self, poll: &Poll) {
        let Some(fd) = self.terminal.as_ref().or(self.input.pipe.as_ref()) else {
            self.input.waiting.clear();
            return;
        };
        let mut gone = false;
        while !self.input.waiting.is_empty() {
            match rustix::io::write(fd, &self.input.waiting) {
                Ok(count) => drop(self.input.waiting.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    gone = true;
                    self.input.waiting.clear();
                }
            }
        }
        self.watch_input(poll);
        if self.input.waiting.is_empty() && (self.input.end || gone) {
            self.input.pipe = None;
        }
    }

    fn watch_input(&mut self, poll: &Poll) {
        let wanted = !self.input.waiting.is_empty();
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

    /// The descriptor that output of `stream` (1 or 2) comes from.
    pub(crate) fn output(&self, stream: u8) -> Option<&OwnedFd> {
        if self.terminal.is_some() {
            self.terminal.as_ref().filter(|_| stream == 1)
        } else {
            self.outputs[usize::from(stream == 2)].as_ref()
        }
    }

    /// Whether nobody has its output open any more.
    pub(crate) fn output_has_ended(&self) -> bool {
        self.terminal.is_none() && self.outputs.iter().all(Option::is_none)
    }

    /// Lets go of an output that has ended.
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
        if self.waiting.is_empty() {
            EventFlags::empty()
        } else {
            EventFlags::OUT
        }
    }
}
