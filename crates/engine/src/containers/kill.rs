//! Sending signals to a container.

use std::sync::Arc;

use whelk_text::signal;

use super::{Container, Containers, ExitWatch, to_its_end};
use crate::error::{Error, Result};
use crate::model::Status;
use crate::workload::KILL_TIMEOUT;

impl Containers {
    /// Sends a signal to a container; waits for its exit if the signal is SIGKILL, the default.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if it does not run, and an error if SIGKILL does not end it within
    /// [`KILL_TIMEOUT`].
    pub async fn kill(self: &Arc<Self>, name: &str, signal: &str) -> Result<()> {
        let (containers, name, signal) = (self.clone(), name.to_owned(), signal.to_owned());
        to_its_end(async move { containers.kill_now(&name, &signal).await }).await
    }

    /// Like [`Containers::kill`], for callers that run to their end.
    pub(super) async fn kill_now(&self, name: &str, signal: &str) -> Result<()> {
        let signal = if signal.is_empty() {
            signal::KILL
        } else {
            signal::parse(signal).map_err(|error| {
                Error::invalid(format!("cannot kill container: {name}: {error}"))
            })?
        };
        let container = self
            .find(name)
            .map_err(|error| error.prefixed(&format!("cannot kill container: {name}")))?;
        if container.status() == Status::Restarting && self.cancel_restart(&container, name).await?
        {
            return Ok(());
        }
        let mut end = container.watch_exit();
        if !container.status().is_running() {
            return Err(Error::conflict(format!(
                "cannot kill container: {name}: container {} is not running",
                container.id
            )));
        }
        let stop_signal = {
            let record = container.record();
            if record.config.stop_signal.is_empty() {
                signal::TERM
            } else {
                signal::parse(&record.config.stop_signal).unwrap_or(signal::TERM)
            }
        };
        if signal == signal::KILL || signal == stop_signal {
            container.record().state.stopped_by_user = true;
            self.save_or_log(&container);
        }
        self.send_signal(&container, signal, &end).await?;
        if container.status() == Status::Paused && (signal == signal::KILL || signal == stop_signal)
        {
            // With SIGKILL an error is ignored: the container may already be dead.
            let resumed = self.resume_for_signal(&container).await;
            if signal != signal::KILL {
                resumed?;
            }
        }
        if signal == signal::KILL {
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

    /// Publishes the event of a signal and sends the signal. Succeeds if the container's `run` ends
    /// meanwhile.
    ///
    /// # Errors
    /// Returns [`Error::Unavailable`] if the engine lacks the descriptors or memory for it.
    pub(super) async fn send_signal(
        &self,
        container: &Container,
        signal: i32,
        run: &ExitWatch,
    ) -> Result<()> {
        // Subscribed to before `run` is looked at, so that it is the same one.
        let run_of_workload = container.workload.watch_run();
        {
            let record = container.record();
            if !record.state.status.is_running() || run.has_ended() {
                return Ok(());
            }
            // Published under the record's lock, so that it comes before the exit's event.
            self.publish_of(&record, "kill", &[("signal", signal.to_string())]);
        }
        let sent = container.workload.signal(signal, &run_of_workload).await;
        sent.map_err(|error| error.prefixed(&format!("cannot kill container: {}", container.id)))
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
