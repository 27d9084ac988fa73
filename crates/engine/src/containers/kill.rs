//! Sending signals to a container.

use std::sync::Arc;
use std::time::Duration;

use whelk_runtime::cgroup::Cgroup;
use whelk_shim::protocol::{Reply, Request};

use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::model::Status;
use crate::{shims, signals};

/// How long the kernel may take to end a killed process before an operation gives up.
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(20);

impl Containers {
    /// Sends a signal to a container; waits for its exit if the signal is SIGKILL, the default.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if it does not run, and an error if SIGKILL does not end it within
    /// [`KILL_TIMEOUT`].
    pub async fn kill(self: &Arc<Self>, name: &str, signal: &str) -> Result<()> {
        let signal = if signal.is_empty() {
            signals::KILL
        } else {
            signals::parse(signal)
                .map_err(|error| error.prefixed(&format!("cannot kill container: {name}")))?
        };
        let container = self
            .find(name)
            .map_err(|error| error.prefixed(&format!("cannot kill container: {name}")))?;
        if container.status() == Status::Restarting && self.cancel_restart(&container, name).await?
        {
            return Ok(());
        }
        let mut end = container.watch_exit();
        let status = container.status();
        if !status.is_running() {
            return Err(Error::conflict(format!(
                "cannot kill container: {name}: container {} is not running",
                container.id
            )));
        }
        let stop_signal = {
            let record = container.record();
            if record.config.stop_signal.is_empty() {
                signals::TERM
            } else {
                signals::parse(&record.config.stop_signal).unwrap_or(signals::TERM)
            }
        };
        if signal == signals::KILL || signal == stop_signal {
            container.record().state.stopped_by_user = true;
            self.save_or_log(&container);
        }
        self.send_signal(&container, signal).await?;
        if status == Status::Paused && (signal == signals::KILL || signal == stop_signal) {
            // With SIGKILL an error is ignored: the container may already be dead.
            let resumed = self.resume_locked(&container).await;
            if signal != signals::KILL {
                resumed?;
            }
        }
        if signal == signals::KILL {
            // Clients expect the container to be dead when the request returns.
            if tokio::time::timeout(KILL_TIMEOUT, end.exited())
                .await
                .is_err()
            {
                return Err(Error::internal(format!(
                    "cannot kill container: {name}: no exit after SIGKILL"
                )));
            }
        }
        Ok(())
    }

    /// Publishes the event of a signal and sends the signal. Succeeds if the container ends meanwhile.
    /// SIGKILL is sent by the cgroup if the shim does not answer.
    pub(super) async fn send_signal(&self, container: &Container, signal: i32) -> Result<()> {
        {
            let record = container.record();
            if !record.state.status.is_running() {
                return Ok(());
            }
            // Published under the record's lock, so that it comes before the exit's event.
            self.publish_of(&record, "kill", &[("signal", signal.to_string())]);
        }
        let reply = shims::request(
            &self.instance,
            &container.id,
            &Request::Signal { exec: None, signal },
        )
        .await;
        match reply {
            Ok((Reply::Failed(whelk_runtime::Error::State(_)), _)) | Err(_)
                if !container.status().is_running() || !container.has_shim() =>
            {
                return Ok(());
            }
            Ok((Reply::Failed(whelk_runtime::Error::State(_)), _)) => return Ok(()),
            Err(error) => {
                if container.is_ending().await {
                    return Ok(());
                }
                if signal != signals::KILL {
                    return Err(error);
                }
                // Without the shim, by the container's cgroup.
                let path = self.cgroup_path(container);
                let killed = tokio::task::spawn_blocking(move || {
                    Cgroup::at(&path).and_then(|cgroup| cgroup.kill_all())
                })
                .await;
                let killed = killed
                    .map_err(|error| error.to_string())
                    .and_then(|killed| killed.map_err(|error| error.to_string()));
                killed.map_err(|error| {
                    Error::internal(format!("cannot kill container: {}: {error}", container.id))
                })?;
            }
            Ok((Reply::Failed(error), _)) => {
                return Err(Error::internal(format!(
                    "cannot kill container: {}: {error}",
                    container.id
                )));
            }
            Ok(_) => {}
        }
        Ok(())
    }

    /// Cancels a pending restart by the restart policy. Returns false if there is none any more.
    async fn cancel_restart(&self, container: &Container, name: &str) -> Result<bool> {
        let _operation = container.lock_operation(name).await?;
        {
            let mut record = container.record();
            if record.state.status != Status::Restarting {
                return Ok(false);
            }
            record.state.status = Status::Exited;
            record.state.stopped_by_user = true;
        }
        self.save(container)?;
        Ok(true)
    }
}
