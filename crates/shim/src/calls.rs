//! Commands of another runtime while the container runs: execs and signals. The event loop does not wait
//! for them, because the container's processes can delay them: they are part of it for a moment.
//!
//! ```text
//! request ─► Call::begin ─┬─ it ends ─────────────────────────► reply; an exec's process is taken over
//!                         └─ its time is over ─► SIGKILL ─────► reply: failed; a signal is sent without it
//! ```

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, waitpid};
use whelk_runtime::{Error, Result};
use whelk_sys::signal;

use crate::call::Call;
use crate::console::Console;
use crate::container::Shim;
use crate::external::{External, Made, set_size};
use crate::poll::Token;
use crate::process::{PipeEnds, Process};
use crate::protocol::{ExecLaunch, Reply};

/// A command that is under way, and the client that waits for it.
#[derive(Debug)]
pub(crate) struct PendingCall {
    call: Call,
    client: u64,
    then: Then,
}

/// What the command is for.
#[derive(Debug)]
enum Then {
    Exec(Box<ExternalExec>),
    /// A signal to the first process.
    Signal(i32),
}

#[derive(Debug)]
struct ExternalExec {
    request: ExecLaunch,
    console: Option<Console>,
    streams: Option<PipeEnds>,
    /// Whether its client has disconnected, to which it is bound.
    is_cancelled: bool,
}

impl PendingCall {
    pub(crate) fn deadline(&self) -> Instant {
        self.call.deadline()
    }
}

impl Shim {
    fn external(&self) -> Result<External<'_>> {
        External::of(&self.launch)
            .ok_or_else(|| Error::State("the container has no other runtime".into()))
    }

    /// Begins an exec. `theirs` are the program's streams, `streams` the other ends.
    pub(crate) fn exec_by_runtime(
        &mut self,
        client: u64,
        request: ExecLaunch,
        theirs: Option<[OwnedFd; 3]>,
        streams: Option<PipeEnds>,
    ) -> Result<()> {
        let (init, number) = (self.find(None)?.pid, self.next + 1);
        let (call, console) = self.external()?.exec(init, number, &request, theirs)?;
        let exec = ExternalExec {
            request,
            console,
            streams,
            is_cancelled: false,
        };
        self.add_call(number, call, client, Then::Exec(Box::new(exec)));
        Ok(())
    }

    /// Sends a signal to the first process.
    pub(crate) fn signal_by_runtime(&mut self, client: u64, number: i32) {
        let begun = self
            .find(None)
            .and_then(|_| self.external()?.kill(self.next + 1, number));
        match begun {
            Ok(call) => self.add_call(self.next + 1, call, client, Then::Signal(number)),
            Err(error) => self.signal_without_runtime(client, number, &error),
        }
    }

    fn add_call(&mut self, number: u64, call: Call, client: u64, then: Then) {
        self.next = number;
        // Without it, a command that logs much is killed when its time is over.
        let _ = self
            .poll
            .add(call.log(), Token::Call(number), EventFlags::IN);
        let pending = PendingCall { call, client, then };
        self.calls.insert(number, pending);
    }

    /// Reads the log of a command.
    pub(crate) fn call_logged(&mut self, number: u64) {
        if let Some(pending) = self.calls.get_mut(&number) {
            pending.call.read_log();
        }
    }

    /// Reaps the commands that have ended.
    pub(crate) fn reap_calls(&mut self) {
        let pids: Vec<(u64, Pid)> = self
            .calls
            .iter()
            .map(|(&number, pending)| (number, pending.call.pid()))
            .collect();
        for (number, pid) in pids {
            if let Ok(Some((_, status))) = waitpid(Some(pid), WaitOptions::NOHANG) {
                self.call_ended(number, Some(status));
            }
        }
    }

    /// Returns whether a process was created for an exec by a command that has not been reaped. The
    /// kernel gives such a process to the shim before it reports the end of the command.
    pub(crate) fn is_being_created(&self, pid: Pid) -> bool {
        let launch = &self.launch;
        let made = |&number: &u64| {
            External::of(launch).and_then(|external| external.made_pid(number)) == Some(pid)
        };
        let execs = self
            .calls
            .iter()
            .filter(|(_, pending)| matches!(pending.then, Then::Exec(_)));
        execs.map(|(number, _)| number).any(made)
    }

    /// Kills the commands whose time is over.
    pub(crate) fn end_overdue_calls(&mut self) {
        if self.calls.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut stuck = Vec::new();
        for (&number, pending) in &mut self.calls {
            if pending.call.deadline() <= now && !pending.call.expire() {
                stuck.push(number);
            }
        }
        for &number in &stuck {
            self.call_ended(number, None);
        }
        if !stuck.is_empty() {
            // What they have created was not reaped before.
            self.reap();
        }
    }

    /// Kills the execs that are being created for a client who has disconnected, if they are bound to it.
    pub(crate) fn cancel_bound_calls(&mut self, client: u64) {
        for pending in self.calls.values_mut() {
            if let Then::Exec(exec) = &mut pending.then
                && pending.client == client
                && exec.request.bound
            {
                exec.is_cancelled = true;
                pending.call.kill();
            }
        }
    }

    /// Kills all commands: the container has ended.
    pub(crate) fn kill_calls(&self) {
        for pending in self.calls.values() {
            pending.call.kill();
        }
    }

    /// Finishes a command that has ended, or cannot end.
    fn call_ended(&mut self, number: u64, status: Option<WaitStatus>) {
        let Some(PendingCall { call, client, then }) = self.calls.remove(&number) else {
            return;
        };
        self.poll.remove(call.log());
        let outcome = match status {
            Some(status) => call.outcome(status),
            None => Err(call.overdue()),
        };
        match (then, outcome) {
            (Then::Signal(_), Ok(())) => self.reply(client, &Reply::Done),
            (Then::Signal(signal), Err(error)) => {
                self.signal_without_runtime(client, signal, &error);
            }
            (Then::Exec(exec), outcome) => {
                let started = self.finish_exec(number, client, *exec, outcome);
                if let Err(error) = started {
                    self.reply(client, &Reply::Failed(error));
                }
            }
        }
    }

    fn signal_without_runtime(&mut self, client: u64, number: i32, why: &Error) {
        let sent = self.signal(None, number);
        if sent.is_ok() {
            crate::log_error(&format!(
                "container {}: signal {number} was sent without the runtime: {why}",
                self.launch.id
            ));
        }
        self.reply(client, &sent.unwrap_or_else(Reply::Failed));
    }

    /// Takes over the process that an exec has created, or ends it if the exec has failed.
    fn finish_exec(
        &mut self,
        number: u64,
        client: u64,
        exec: ExternalExec,
        outcome: Result<()>,
    ) -> Result<()> {
        let outcome = match exec.is_cancelled {
            true => Err(Error::State("the client has disconnected".into())),
            false => outcome,
        };
        let made = self.external()?.made(number, &self.cgroup);
        let made = made.and_then(|made| {
            match self.processes.values().any(|known| known.pid == made.pid) {
                true => Err(Error::Os(
                    "the runtime has reported the pid of another process".into(),
                )),
                false => Ok(made),
            }
        });
        if let Err(error) = outcome {
            // It may have created the process before it failed.
            if let Ok(made) = made {
                made.kill();
            }
            return Err(error);
        }
        let made: Made = made?;
        let mut process = Process::new(number, Some(exec.request.id), made.pid, made.pidfd);
        process.bound = exec.request.bound;
        process.tells_exit = exec.request.tells_exit;
        let terminal = exec.console.map(Console::receive).transpose();
        let connected = terminal.and_then(|terminal| {
            set_size(terminal.as_ref(), &exec.request.process);
            let connected = process.connect(terminal, exec.streams, &self.poll);
            connected.map_err(|error| Error::Os(format!("watch streams: {error}")))
        });
        connected.inspect_err(|_| {
            let _ = signal::pidfd_send(&process.pidfd, Signal::KILL.as_raw());
        })?;
        self.exec_started(process, client, exec.request.attach);
        Ok(())
    }
}
