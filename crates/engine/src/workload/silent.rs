//! Signals to a workload whose shim does not answer, because it is stopped, hangs in a system call
//! or waits for a slow disk: the engine sends them itself.
//!
//! After SIGKILL the shim has [`PATIENCE`] to report the workload's end with its exit code and last
//! output; then it is killed too, and the workload's monitor ends as it does when a shim was killed.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use whelk_runtime::cgroup::Cgroup;
use whelk_sys::{fs, signal};

use super::{KILL_TIMEOUT, RunWatch, Workload};
use crate::error::{Error, Result};
use crate::shims::{self, PING_TIMEOUT, ShimProcess};

/// How long a shim may take to report the end of processes that the engine has killed.
const PATIENCE: Duration = Duration::from_secs(10);

impl Workload {
    /// Sends a signal to the first process. Succeeds if that, or the `run`, has ended.
    pub(super) async fn signal_directly(&self, number: i32, run: &RunWatch) -> Result<()> {
        let (path, pid) = (self.cgroup.clone(), self.run.borrow().pid);
        let run = run.clone();
        blocking(move || {
            let Some(pid_of_init) = Pid::from_raw(pid) else {
                return Ok(());
            };
            let init = match pidfd_open(pid_of_init, PidfdFlags::empty()) {
                Err(Errno::SRCH) => return Ok(()),
                opened => opened.map_err(failed("open a pidfd"))?,
            };
            // Read after the pidfd was opened: the pid is this process's, not that of a later one.
            // A process that has ended is not listed.
            if run.has_ended() || !Cgroup::at(&path)?.processes()?.contains(&pid) {
                return Ok(());
            }
            send(&init, number)
        })
        .await
    }

    /// Kills the processes, and the shim if that does not report their end. Does nothing if the
    /// `run` has ended.
    ///
    /// # Errors
    /// Returns an error if its shim is not found.
    pub(super) async fn kill_directly(&self, run: &RunWatch) -> Result<()> {
        // Found before its children are killed.
        let shim = self.find_shim().await;
        let still = run.clone();
        self.kill_processes(move || !still.has_ended()).await?;
        let mut end = run.clone();
        if tokio::time::timeout(PATIENCE, end.ended()).await.is_ok() {
            return Ok(());
        }
        self.kill_shim(shim).await
    }

    async fn kill_processes(
        &self,
        is_wanted: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<()> {
        let path = self.cgroup.clone();
        blocking(move || {
            let cgroup = Cgroup::at(&path)?;
            if cgroup.exists() && is_wanted() {
                cgroup.kill_all()?;
            }
            Ok(())
        })
        .await
    }

    /// Returns the shim of the current run.
    async fn find_shim(&self) -> Option<ShimProcess> {
        if let Some(shim) = self.shim() {
            return Some(shim);
        }
        if let Some(shim) = shims::listener(&self.address).await {
            return Some(shim);
        }
        let (path, shims) = (self.cgroup.clone(), self.shims.clone());
        let parent = blocking(move || Ok(parent_in(&Cgroup::at(&path)?, &shims))).await;
        parent.ok().flatten()
    }

    async fn kill_shim(&self, shim: Option<ShimProcess>) -> Result<()> {
        let shim = shim.ok_or_else(|| {
            Error::internal(format!(
                "the shim of {} does not answer, and its process is not found",
                self.address
            ))
        })?;
        tracing::warn!(
            "{}: the shim (pid {}) does not answer; killing it",
            self.address,
            shim.pid
        );
        let shims = self.shims.clone();
        blocking(move || {
            let Some(pidfd) = shim.open().map_err(failed("open a pidfd"))? else {
                return Ok(());
            };
            if Cgroup::at(&shims)?.processes()?.contains(&shim.pid) {
                return send(&pidfd, Signal::KILL.as_raw());
            }
            // pidfd_open(2): readable when the process has terminated.
            if shims::is_ready(&pidfd, PollFlags::IN) {
                return Ok(());
            }
            let text = format!("process {} is not in the cgroup of shims", shim.pid);
            Err(Error::internal(text))
        })
        .await
    }

    /// Waits until the shim of the last run has exited: only then can the next one use its directory
    /// and cgroup. Kills a shim that does not answer. The caller lets no other run begin meanwhile.
    ///
    /// # Errors
    /// Returns an error if such a shim is not found or does not end.
    pub(crate) async fn await_shim_exit(&self) -> Result<()> {
        let exited = |limit| tokio::time::timeout(limit, self.wait_until_idle());
        let alive = || shims::check_alive(&self.address);
        while exited(PING_TIMEOUT).await.is_err() {
            if alive().await.is_ok() || !self.has_shim() {
                continue;
            }
            let shim = self.find_shim().await;
            self.kill_processes(|| true).await?;
            self.kill_shim(shim).await?;
            return exited(KILL_TIMEOUT).await.map_err(|_| {
                Error::Unavailable(format!(
                    "the shim of {} does not end after SIGKILL",
                    self.address
                ))
            });
        }
        Ok(())
    }
}

/// Sends a signal to a process; that it has ended is no error.
fn send(process: &OwnedFd, number: i32) -> Result<()> {
    match signal::pidfd_send(process, number) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => Ok(()),
        sent => sent.map_err(failed("send a signal")),
    }
}

fn failed<E: Into<std::io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |error| {
        let error = error.into();
        Error::kernel(format!("{step}: {}", whelk_sys::errno_text(&error)), &error)
    }
}

/// Runs `work` on a thread that may block.
///
/// # Errors
/// Returns its error.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(error.to_string()))?
}

/// Returns the parent of a workload's process, if the parent is in the cgroup of shims.
fn parent_in(workload: &Cgroup, shims: &str) -> Option<ShimProcess> {
    let shims = Cgroup::at(shims).ok()?.processes().ok()?;
    workload.processes().ok()?.into_iter().find_map(|child| {
        let parent = parent_of(child).filter(|parent| shims.contains(parent))?;
        let found = ShimProcess::find(parent)?;
        // Had the parent ended before, the child would have another one.
        (parent_of(child) == Some(parent)).then_some(found)
    })
}

fn parent_of(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_read_from_proc() {
        let own = i32::try_from(std::process::id()).unwrap();
        let child = std::process::Command::new("sleep").arg("60").spawn();
        let mut child = child.unwrap();
        assert_eq!(parent_of(i32::try_from(child.id()).unwrap()), Some(own));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(parent_of(i32::try_from(child.id()).unwrap()), None);
    }
}
