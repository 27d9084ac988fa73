//! Execs that live no longer than the connection of their client ([`ExecLaunch::bound`]): health
//! checks, which must not outlive the engine that waits for them.
//!
//! [`ExecLaunch::bound`]: crate::protocol::ExecLaunch::bound

use rustix::process::{Pid, PidfdFlags, Signal, getsid, pidfd_open, pidfd_send_signal};

use crate::container::Shim;

impl Shim {
    /// Kills the session of a process if that is bound to its client, who has disconnected.
    pub(crate) fn kill_if_bound(&self, number: u64) {
        if self
            .processes
            .get(&number)
            .is_some_and(|process| process.bound)
        {
            self.kill_session(number);
        }
    }

    /// Kills the session of a bound exec, also if only children of its process are left. Returns false
    /// if there is no such exec.
    pub(crate) fn kill_bound(&self, exec: Option<&str>) -> bool {
        let found = self
            .processes
            .values()
            .find(|process| process.bound && process.exec.as_deref() == exec);
        if let Some(process) = found {
            self.kill_session(process.number);
        }
        found.is_some()
    }

    /// Kills a bound exec that is still being started for a client who has disconnected.
    pub(crate) fn cancel_bound_start(&mut self, client: u64) {
        let number = self
            .starting
            .iter()
            .find(|(_, exec)| exec.bound && exec.client == client)
            .map(|(&number, _)| number);
        if let Some(mut exec) = number.and_then(|number| self.starting.remove(&number)) {
            self.poll.remove(exec.starting.descriptor());
            exec.starting.kill();
        }
        self.cancel_bound_calls(client);
    }

    /// Kills a process and the others of its session. Each exec begins a session of its own, which
    /// only processes leave that begin another one.
    fn kill_session(&self, number: u64) {
        /// Processes that fork while they are being killed are found in the next round.
        const ROUNDS: usize = 10;
        let Some(process) = self.processes.get(&number) else {
            return;
        };
        if process.exit.is_none() {
            let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
        }
        // The kernel does not reuse the pid of a session's leader while the session has members.
        let is_member = |pid: Pid| getsid(Some(pid)).is_ok_and(|session| session == process.pid);
        for _ in 0..ROUNDS {
            let mut found = false;
            for pid in self.cgroup.processes().unwrap_or_default() {
                let Some(pid) =
                    Pid::from_raw(pid).filter(|&pid| pid != process.pid && is_member(pid))
                else {
                    continue;
                };
                found = true;
                // The pid may have been reused before the descriptor was opened, but not afterwards.
                if let Ok(member) = pidfd_open(pid, PidfdFlags::empty())
                    && is_member(pid)
                {
                    let _ = pidfd_send_signal(&member, Signal::KILL);
                }
            }
            if !found {
                return;
            }
        }
    }
}
