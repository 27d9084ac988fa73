//! The end of the container's processes: their last output, how they ended, and who is told.
//!
//! ```text
//! running ──wait(2)──► exit known ──all output read to its end, or LINGER over──► finished: event, connections closed
//! ```
//! Others may hold a process's streams open after it has ended. What they write for a while still
//! belongs to it.

use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, WaitStatus};
use whelk_runtime::Error;
use whelk_runtime::spec::NamespaceKind;
use whelk_sys::fs;

use crate::client::Role;
use crate::container::{INIT, Shim};
use crate::logs::{compress_rotated, now};
use crate::protocol::{Event, Exit, Launch, Reply};

/// How long output is waited for after its process has ended, as with Docker.
const LINGER: Duration = Duration::from_secs(2);

impl Shim {
    /// Collects every child that has ended: started processes, and orphans that the kernel gave to
    /// this subreaper. While one is on its way, only those that are known: it may be among the
    /// others, and its end must not be lost.
    pub(crate) fn reap(&mut self) {
        if self.starting.is_empty() {
            while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                self.child_ended(pid, status);
            }
            return;
        }
        let running = self
            .processes
            .values()
            .filter(|process| process.exit.is_none())
            .map(|process| process.pid);
        for pid in running.chain(self.compressor).collect::<Vec<_>>() {
            if let Ok(Some((_, status))) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG)
            {
                self.child_ended(pid, status);
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
                // What was rotated meanwhile. After a failure the next rotation is soon enough.
                if status.exit_status() == Some(0) {
                    self.compress_logs();
                }
            }
            None => {}
        }
    }

    fn process_ended(&mut self, number: u64, status: WaitStatus) {
        if number == INIT && !self.linux().has_new(NamespaceKind::Pid) {
            // The kernel ends the others only when the pid namespace was the container's own.
            let _ = self.cgroup.kill_all();
        }
        let Some(process) = self.processes.get_mut(&number) else {
            return;
        };
        process.exit = Some(exit_of(status));
        process.deadline = Some(Instant::now() + LINGER);
        self.drain(number);
        self.finish_if_over(number);
    }

    /// Finishes a process that has ended once its output has. Output of an exec that nobody sees is
    /// not waited for.
    pub(crate) fn finish_if_over(&mut self, number: u64) {
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

    /// Finishes processes whose output has not ended in time.
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
        // The end first: a client that sees its stream close asks at once how the exec ended.
        self.publish(&Event::ExecExited { id, exit });
        self.close_clients_of(number);
        self.processes.remove(&number);
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
        self.log.finish();
        self.compress_logs();
        // Before anybody hears of the end: who does may want them.
        self.ports.clear();
        let exit = Exit {
            oom_killed: self.cgroup.oom_kills() > 0,
            ..exit
        };
        record(&self.launch, &exit);
        if exit.oom_killed && !std::mem::replace(&mut self.oom_told, true) {
            self.publish(&Event::OutOfMemory);
        }
        self.publish(&Event::Exited(exit));
        self.close_clients_of(INIT);
        self.finished = true;
    }

    /// Reads what is in a dead process's pipes now.
    fn drain(&mut self, number: u64) {
        if let Some(process) = self.processes.get_mut(&number) {
            process.hold(false, &self.poll);
        }
        // A pipe and a terminal hold less.
        const MOST_LEFT: usize = 1 << 20;
        for stream in [1, 2] {
            for _ in 0..MOST_LEFT.div_ceil(self.buffer.len()) {
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

    /// Ends the connections of a process's clients once they have everything.
    fn close_clients_of(&mut self, number: u64) {
        for client in self.clients_of(number).collect::<Vec<_>>() {
            if let Some(client) = self.clients.get_mut(&client) {
                client.closing = true;
            }
            self.send(client, &[]);
        }
    }

    /// Starts to compress log files that were rotated, in a process of its own: the loop here must
    /// go on, and a second thread would keep this process from starting others. A child that runs
    /// already finds what comes meanwhile, or its end leads here again.
    pub(crate) fn compress_logs(&mut self) {
        if self.compressor.is_some() || !self.log.take_rotated() {
            return;
        }
        let compress = |config: &crate::logs::LogConfig| {
            // Whatever the container does comes first.
            const NICENESS: i32 = 10;
            let _ = rustix::process::nice(NICENESS);
            match compress_rotated(config) {
                Ok(()) => 0,
                Err(error) => {
                    crate::complain(&format!("{error}; the file stays as it is"));
                    1
                }
            }
        };
        match whelk_sys::process::fork_apart(&self.launch.log, compress) {
            Ok(pid) => self.compressor = Some(pid),
            Err(error) => crate::complain(&format!(
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
    }
}

/// Writes the exit record before anybody is told. Complete or absent, but not flushed: the run
/// directory does not outlive the machine, and neither does the container.
fn record(launch: &Launch, exit: &Exit) {
    let content = serde_json::to_vec(exit).unwrap_or_default();
    if let Err(error) = fs::replace(launch.run_dir.join("exit.json"), content, 0o600) {
        crate::complain(&format!("container {}: {error}", launch.id));
    }
}
