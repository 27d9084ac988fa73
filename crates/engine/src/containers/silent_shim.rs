//! Signals to a container whose shim does not answer, because it was stopped or hangs in a system
//! call: the engine sends them itself, and ends the shim together with the container.
//!
//! After the shim's end the container's monitor processes the container's end, as it does when a
//! shim was killed.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use whelk_runtime::cgroup::Cgroup;
use whelk_sys::{fs, signal};

use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::shims::{self, PING_TIMEOUT};

/// How a signal was sent.
pub(super) enum Sent {
    ByShim,
    /// By the engine, because the shim does not answer; with a pidfd of the container's first
    /// process, unless that has ended.
    Directly(Option<OwnedFd>),
    /// SIGKILL by the engine, to the container and its shim.
    Killed,
}

impl Containers {
    /// Sends a signal to a container's first process.
    pub(super) async fn signal_directly(
        &self,
        container: &Container,
        number: i32,
    ) -> Result<Option<OwnedFd>> {
        let (path, pid) = (self.cgroup_path(container), container.record().state.pid);
        blocking(move || {
            let Some(init) = Pid::from_raw(pid) else {
                return Ok(None);
            };
            let Ok(init) = pidfd_open(init, PidfdFlags::empty()) else {
                return Ok(None);
            };
            // Read after the pidfd was opened: the pid is this process's, not that of a later one.
            // A process that has ended is not listed.
            if !Cgroup::at(&path)?.processes()?.contains(&pid) {
                return Ok(None);
            }
            signal::pidfd_send(&init, number)
                .map_err(|error| Error::internal(whelk_sys::errno_text(&error)))?;
            Ok(Some(init))
        })
        .await
    }

    /// Kills a container's processes and its shim.
    ///
    /// # Errors
    /// Returns an error if its shim is not found.
    pub(super) async fn kill_with_shim(&self, container: &Container) -> Result<()> {
        let listener = shims::listener(&self.instance, &container.id).await;
        let (path, shims) = (self.cgroup_path(container), self.instance.shims_cgroup());
        tracing::warn!(
            container = container.id,
            "the shim does not answer; killing it and the container"
        );
        blocking(move || {
            let cgroup = Cgroup::at(&path)?;
            // Found before its children are killed.
            let shim = listener.or_else(|| parent_in(&cgroup, &shims));
            if cgroup.exists() {
                cgroup.kill_all()?;
            }
            let shim = shim.ok_or_else(|| Error::internal("its shim is not found"))?;
            signal::pidfd_send(&shim, Signal::KILL.as_raw())
                .map_err(|error| Error::internal(whelk_sys::errno_text(&error)))
        })
        .await
    }

    /// Waits until the shim of the last run has exited: only then can the next one use its directory
    /// and cgroup. Kills a shim that does not answer.
    pub(super) async fn await_shim_exit(&self, container: &Container) {
        let exited = || tokio::time::timeout(PING_TIMEOUT, container.wait_for_shim_exit());
        while exited().await.is_err() {
            if shims::check_alive(&self.instance, &container.id)
                .await
                .is_err()
                && container.has_shim()
                && let Err(error) = self.kill_with_shim(container).await
            {
                tracing::error!(container = container.id, "kill the shim: {error}");
            }
        }
    }
}

/// Waits until the process of a pidfd has ended.
pub(super) async fn process_ended(pidfd: OwnedFd) {
    const POLL: Duration = Duration::from_millis(100);
    // pidfd_open(2): readable when the process has terminated.
    while !shims::is_ready(&pidfd, PollFlags::IN) {
        tokio::time::sleep(POLL).await;
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(error.to_string()))?
}

/// Returns a pidfd of the parent of a container's process, if the parent is in the cgroup of shims.
fn parent_in(container: &Cgroup, shims: &str) -> Option<OwnedFd> {
    let shims = Cgroup::at(shims).ok()?.processes().ok()?;
    container.processes().ok()?.into_iter().find_map(|child| {
        let parent = parent_of(child).filter(|parent| shims.contains(parent))?;
        let pidfd = pidfd_open(Pid::from_raw(parent)?, PidfdFlags::empty()).ok()?;
        // Had the parent ended before, the child would have another one.
        (parent_of(child) == Some(parent)).then_some(pidfd)
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
