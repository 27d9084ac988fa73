//! Signals to a container whose shim does not answer, because it is stopped, hangs in a system call
//! or waits for a slow disk: the engine sends them itself.
//!
//! After SIGKILL the shim has [`PATIENCE`] to report the container's end with its exit code and last
//! output; then it is killed too, and the container's monitor processes the container's end as it
//! does when a shim was killed.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use whelk_runtime::cgroup::Cgroup;
use whelk_sys::{fs, signal};

use super::kill::KILL_TIMEOUT;
use super::{Container, Containers, ExitWatch};
use crate::error::{Error, Result};
use crate::shims::{self, PING_TIMEOUT, ShimProcess};

/// How long a shim may take to report the end of a container that the engine has killed.
const PATIENCE: Duration = Duration::from_secs(10);

impl Containers {
    /// Sends a signal to a container's first process. Succeeds if that, or the container's `run`, has
    /// ended.
    pub(super) async fn signal_directly(
        &self,
        container: &Container,
        number: i32,
        run: &ExitWatch,
    ) -> Result<()> {
        let (path, pid) = (self.cgroup_path(container), container.record().state.pid);
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

    /// Kills a container's processes, and its shim if that does not report their end. Does nothing
    /// if the container's `run` has ended.
    ///
    /// # Errors
    /// Returns an error if its shim is not found.
    pub(super) async fn kill_directly(&self, container: &Container, run: &ExitWatch) -> Result<()> {
        // Found before its children are killed.
        let shim = self.find_shim(container).await;
        let still = run.clone();
        self.kill_processes(container, move || !still.has_ended())
            .await?;
        let mut end = run.clone();
        if tokio::time::timeout(PATIENCE, end.exited()).await.is_ok() {
            return Ok(());
        }
        self.kill_shim(container, shim).await
    }

    async fn kill_processes(
        &self,
        container: &Container,
        is_wanted: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<()> {
        let path = self.cgroup_path(container);
        blocking(move || {
            let cgroup = Cgroup::at(&path)?;
            if cgroup.exists() && is_wanted() {
                cgroup.kill_all()?;
            }
            Ok(())
        })
        .await
    }

    /// Returns the shim of a container's current run.
    async fn find_shim(&self, container: &Container) -> Option<ShimProcess> {
        if let Some(shim) = container.shim_process() {
            return Some(shim);
        }
        if let Some(shim) = shims::listener(&self.instance, &container.id).await {
            return Some(shim);
        }
        let (path, shims) = (self.cgroup_path(container), self.instance.shims_cgroup());
        let parent = blocking(move || Ok(parent_in(&Cgroup::at(&path)?, &shims))).await;
        parent.ok().flatten()
    }

    async fn kill_shim(&self, container: &Container, shim: Option<ShimProcess>) -> Result<()> {
        let shim = shim.ok_or_else(|| {
            Error::internal(format!(
                "the shim of container {} does not answer, and its process is not found",
                container.id
            ))
        })?;
        tracing::warn!(
            container = container.id,
            "the shim (pid {}) does not answer; killing it",
            shim.pid
        );
        let shims = self.instance.shims_cgroup();
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
    /// and cgroup. Kills a shim that does not answer. The caller holds the operation lock.
    ///
    /// # Errors
    /// Returns an error if such a shim is not found or does not end.
    pub(super) async fn await_shim_exit(&self, container: &Container) -> Result<()> {
        let exited = |limit| tokio::time::timeout(limit, container.wait_for_shim_exit());
        let alive = || shims::check_alive(&self.instance, &container.id);
        while exited(PING_TIMEOUT).await.is_err() {
            if alive().await.is_ok() || !container.has_shim() {
                continue;
            }
            let shim = self.find_shim(container).await;
            self.kill_processes(container, || true).await?;
            self.kill_shim(container, shim).await?;
            return exited(KILL_TIMEOUT).await.map_err(|_| {
                Error::Unavailable(format!(
                    "the shim of container {} does not end after SIGKILL",
                    container.id
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

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(error.to_string()))?
}

/// Returns the parent of a container's process, if the parent is in the cgroup of shims.
fn parent_in(container: &Cgroup, shims: &str) -> Option<ShimProcess> {
    let shims = Cgroup::at(shims).ok()?.processes().ok()?;
    container.processes().ok()?.into_iter().find_map(|child| {
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
