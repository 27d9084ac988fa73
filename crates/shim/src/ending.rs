//! The end of the container's processes: their last output, their exit status, and the events about
//! it.
//!
//! ```text
//! running ──wait(2)──► exit status known ──end of all output, or LINGER over──► finished: event sent, connections closed
//! ```
//! Child processes may keep a process's output open after it has ended. What they write within
//! LINGER is passed on.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};
use whelk_runtime::Error;
use whelk_runtime::spec::NamespaceKind;
use whelk_sys::fs;

use crate::client::Role;
use crate::container::{INIT, Shim};
use crate::logs::{compress_rotated, now};
use crate::protocol::{self, ContainerLaunch, Event, Exit, Reply};

/// How long after the end of a process the end of its output is waited for, as with Docker.
const LINGER: Duration = Duration::from_secs(2);

impl Shim {
    /// Reaps every child that has ended: started processes, the intermediate processes of their
    /// start, and orphans, which the kernel reparents to this subreaper.
    pub(crate) fn reap(&mut self) {
        while let Some(pid) = whelk_sys::process::ended_child() {
            // It may be the process of an exec that is being started. Its message with its pid must
            // be processed before it is reaped: afterwards the pid may be reused.
            for number in self.starting.keys().copied().collect::<Vec<_>>() {
                self.advance_exec(number);
            }
            // Or one that another runtime has created for an exec.
            self.reap_calls();
            if self.is_being_created(pid) {
                // Reaped after its runtime, whose end is the next signal.
                return;
            }
            match rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => self.child_ended(pid, status),
                // Reaped while its message was processed; others may have ended too.
                Err(Errno::CHILD) => {}
                // Would be returned by `ended_child` again and again.
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn child_ended(&mut self, pid: Pid, status: WaitStatus) {
        let ended = self
            .processes
            .values()
            .find(|process| process.pid == pid && process.exit.is_none())
            .map(|process| process.number);
        match ended {
            Some(number) => self.process_ended(number, status),
            None if self.compressor == Some(pid) => {
                self.compressor = None;
                // More files may have been rotated meanwhile. After a failure the next rotation
                // tries again.
                if status.exit_status() == Some(0) {
                    self.compress_logs();
                }
            }
            None => {
                if let Some(exec) = self
                    .starting
                    .values_mut()
                    .filter(|exec| exec.ended.is_none())
                    .find(|exec| exec.starting.process().is_some_and(|(own, _)| *own == pid))
                {
                    exec.ended = Some(status);
                }
            }
        }
    }

    pub(crate) fn process_ended(&mut self, number: u64, status: WaitStatus) {
        if number == INIT && !self.linux().has_new(NamespaceKind::Pid) {
            // The kernel kills the other processes only if the container has a pid namespace of its
            // own.
            let _ = self.cgroup.kill_all();
        }
        let Some(process) = self.processes.get_mut(&number) else {
            return;
        };
        process.exit = Some(exit_of(status));
        process.deadline = Some(Instant::now() + LINGER);
        self.drain(number);
        self.finish_if_complete(number);
    }

    /// Finishes a process that has ended if its output has too. The output of an exec without
    /// clients is not waited for.
    pub(crate) fn finish_if_complete(&mut self, number: u64) {
        let Some(process) = self
            .processes
            .get(&number)
            .filter(|process| process.deadline.is_some())
        else {
            return;
        };
        if process.output_has_ended() || number != INIT && !self.has_clients(number) {
            self.finish(number);
        }
    }

    /// Finishes processes that ended LINGER ago, though their output has not.
    pub(crate) fn finish_overdue(&mut self) {
        if self
            .processes
            .values()
            .all(|process| process.deadline.is_none())
        {
            return;
        }
        let now = Instant::now();
        let is_overdue =
            |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        let overdue: Vec<u64> = self
            .processes
            .values()
            .filter(|process| is_overdue(process.deadline))
            .map(|process| process.number)
            .collect();
        for number in overdue {
            self.drain(number);
            self.finish(number);
        }
    }

    fn finish(&mut self, number: u64) {
        let Some(process) = self.processes.get_mut(&number) else {
            return;
        };
        let Some(exit) = process
            .exit
            .clone()
            .filter(|_| process.deadline.take().is_some())
        else {
            return;
        };
        if number == INIT {
            return self.finish_container(exit);
        }
        let id = process.exec.clone().unwrap_or_default();
        if process.tells_exit && self.tell_exit(number, &exit) {
            self.processes.remove(&number);
            return;
        }
        // The event first: a client whose stream is closed asks the engine at once how the exec
        // ended.
        self.publish(&Event::ExecExited { id, exit });
        self.close_clients_of(number);
        self.processes.remove(&number);
    }

    /// Tells a process's client how it has ended, and takes the client's next request. Returns false if
    /// there is no client.
    fn tell_exit(&mut self, number: u64, exit: &Exit) -> bool {
        let Some(client) = self.clients_of(number).next() else {
            return false;
        };
        if let Some(client) = self.clients.get_mut(&client) {
            client.role = Role::AwaitingRequest;
        }
        let exit = serde_json::to_vec(exit).unwrap_or_default();
        let header = protocol::output_header(protocol::EXIT_STREAM, exit.len());
        self.send(client, &[&header, &exit]);
        true
    }

    fn finish_container(&mut self, exit: Exit) {
        let lingering: Vec<u64> = self
            .processes
            .values()
            .filter(|process| process.deadline.is_some())
            .map(|process| process.number)
            .collect();
        for number in lingering {
            self.drain(number);
            self.finish(number);
        }
        if let Some(freezing) = self.freezing.take() {
            self.reply(
                freezing.client,
                &Reply::Failed(Error::State("the container has ended".into())),
            );
        }
        self.kill_calls();
        self.log.finish();
        self.end_forward();
        let lost_lines = self.end_losses();
        self.compress_logs();
        let exit = Exit {
            // Another runtime may remove the cgroup.
            oom_killed: self.cgroup.oom_kills() > 0,
            lost_lines,
            ..exit
        };
        // Before the hooks, which may take long: the exit must not be lost if this process is killed.
        record(&self.launch, &exit);
        crate::bundle::after_stop(&self.launch, &self.cgroup);
        // Before the event: whoever gets it may start another container with these ports.
        self.ports.clear();
        if exit.oom_killed && !std::mem::replace(&mut self.oom_reported, true) {
            self.publish(&Event::OutOfMemory);
        }
        self.publish(&Event::Exited(exit));
        self.close_clients_of(INIT);
        self.finished = true;
    }

    /// Reads the output that is buffered in the pipes or the terminal of a process that has exited.
    fn drain(&mut self, number: u64) {
        if let Some(process) = self.processes.get_mut(&number) {
            process.hold(false, &self.poll);
        }
        // More than a pipe or a terminal holds, in bytes: another process may go on writing.
        const MAX_LEFT: usize = 1 << 20;
        for stream in [1, 2] {
            for _ in 0..MAX_LEFT.div_ceil(self.buffer.len()) {
                if !self.read_output(number, stream) {
                    break;
                }
            }
        }
    }

    fn clients_of(&self, number: u64) -> impl Iterator<Item = u64> {
        let attached = move |role: &Role| matches!(role, Role::Attached(attached) if attached.process == number);
        self.clients
            .iter()
            .filter(move |(_, client)| attached(&client.role))
            .map(|(&client, _)| client)
    }

    fn has_clients(&self, number: u64) -> bool {
        self.clients_of(number).next().is_some()
    }

    /// Closes the connections of a process's clients, each once all output for it has been sent.
    fn close_clients_of(&mut self, number: u64) {
        for client in self.clients_of(number).collect::<Vec<_>>() {
            if let Some(client) = self.clients.get_mut(&client) {
                client.closing = true;
            }
            self.send(client, &[]);
        }
    }

    /// Starts a child process that compresses rotated log files, unless one runs: what is rotated
    /// meanwhile is compressed by that one or after its end. Not a thread, because a process with
    /// several threads cannot use [`whelk_sys::process::clone_process`].
    pub(crate) fn compress_logs(&mut self) {
        if self.compressor.is_some() || !self.log.take_rotated() {
            return;
        }
        let compress = |config: &[u8]| {
            // The container's processes have priority.
            const NICENESS: i32 = 10;
            let _ = rustix::process::nice(NICENESS);
            let Ok(config) = serde_json::from_slice(config) else {
                return 1;
            };
            match compress_rotated(&config) {
                Ok(()) => 0,
                Err(error) => {
                    crate::log_error(&format!("{error}; the file stays as it is"));
                    1
                }
            }
        };
        let config = serde_json::to_vec(&self.launch.log).unwrap_or_default();
        match whelk_sys::process::fork_isolated(&config, compress) {
            Ok(pid) => self.compressor = Some(pid),
            Err(error) => crate::log_error(&format!(
                "compress the log of container {}: {error}",
                self.launch.id
            )),
        }
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    let signal = status.terminating_signal();
    let code = signal.map_or_else(
        || status.exit_status().unwrap_or(255),
        |signal| 128 + signal,
    );
    Exit {
        code,
        signal,
        oom_killed: false,
        at: now(),
        lost_lines: Vec::new(),
    }
}

/// Writes the exit record atomically. It is not synced to disk, because the run directory is of no
/// use after a reboot.
fn record(launch: &ContainerLaunch, exit: &Exit) {
    let content = serde_json::to_vec(exit).unwrap_or_default();
    if let Err(error) = fs::replace(launch.run_dir.join("exit.json"), content, 0o600) {
        crate::log_error(&format!("container {}: {error}", launch.id));
    }
}
