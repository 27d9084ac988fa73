//! Identifies a shim's process by its pid and start time.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;

use super::is_disconnected;

/// A shim's process: its pid, and its start time to recognize it by. (A pidfd would cost a file
/// descriptor for each container.)
#[derive(Clone, Copy, Debug)]
pub struct ShimProcess {
    pub pid: i32,
    started: u64,
}

impl ShimProcess {
    /// Returns the shim at the other end of a connection.
    pub(super) fn at_end_of(pid: i32, connection: &UnixStream) -> Option<Self> {
        let shim = Self::find(pid)?;
        // If it had ended before it was found, the kernel would have closed the connection.
        (!is_disconnected(connection)).then_some(shim)
    }

    /// Returns the process that has a pid now.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        let started = start_time(pid)?;
        Some(Self { pid, started })
    }

    /// Opens a pidfd. Returns `None` if the process has ended.
    ///
    /// # Errors
    /// Returns an error if the engine lacks a descriptor.
    pub(crate) fn open(self) -> std::io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => Ok(None),
            // Compared after the pidfd was opened: the pid may be that of another process by now.
            opened => {
                let is_same = start_time(self.pid) == Some(self.started);
                Ok(Some(opened?).filter(|_| is_same))
            }
        }
    }

    /// Opens a pidfd of the process that listens on the socket that was connected to.
    pub(crate) fn of_peer(connection: &UnixStream) -> Option<Self> {
        Self::at_end_of(connection.peer_cred().ok()?.pid()?, connection)
    }
}

/// Returns when a process was started, in clock ticks since the boot (field 22 of
/// `/proc/PID/stat`).
fn start_time(pid: i32) -> Option<u64> {
    let stat = whelk_sys::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name in parentheses, may contain spaces; the third one follows it.
    const AFTER_NAME: usize = 22 - 3;
    let rest = stat.rsplit_once(") ")?.1;
    rest.split(' ').nth(AFTER_NAME)?.parse().ok()
}
