//! Ending a container: stop, kill, restart; and stopping it in its tracks: pause.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use whelk_runtime::cgroup::Cgroup;
use whelk_shim::protocol::{Reply, Request};

use super::{Container, Containers, End};
use crate::error::{Error, Result};
use crate::model::Status;
use crate::shims::ask;
use crate::signals;

/// Seconds between the stop signal and the kill, unless the container says otherwise.
const DEFAULT_TIMEOUT: i64 = 10;
/// How long the kernel may take to end a killed process before a stop gives up.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// A container that was asked to end.
struct Stopping {
    end: End,
    /// In seconds; negative for as long as it takes.
    timeout: i64,
}

impl Containers {
    /// # Errors
    /// [`Error::NotModified`] if it does not run.
    pub async fn stop(
        self: &Arc<Self>,
        name: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<()> {
        let signal = signal
            .filter(|signal| !signal.is_empty())
            .map(signals::parse)
            .transpose()?;
        let container = self.find(name)?;
        let operation = container.turn(name).await?;
        container.record().state.stopped_by_user = true;
        let end = container.end();
        match container.status() {
            Status::Restarting => {
                container.record().state.status = Status::Exited;
                self.save_or_complain(&container);
                return Ok(());
            }
            status if !status.is_running() => {
                self.save_or_complain(&container);
                return Err(Error::NotModified(format!(
                    "container {} is not running",
                    container.id
                )));
            }
            // Known whatever happens to this process: nobody is to start it again. But it is
            // stopped whatever the store says.
            _ => self.save_or_complain(&container),
        }
        let stopping = self.begin_stop(&container, end, signal, timeout).await?;
        // Others need not wait until it has ended: not to pause it, and not to give it less time.
        drop(operation);
        self.finish_stop(&container, stopping).await
    }

    /// Asks a container to end. Its operation lock is held.
    async fn begin_stop(
        self: &Arc<Self>,
        container: &Arc<Container>,
        end: End,
        signal: Option<i32>,
        timeout: Option<i64>,
    ) -> Result<Stopping> {
        let (default_signal, default_timeout) = {
            let record = container.record();
            let signal = if record.config.stop_signal.is_empty() {
                signals::TERM
            } else {
                signals::parse(&record.config.stop_signal)?
            };
            (
                signal,
                record.config.stop_timeout.unwrap_or(DEFAULT_TIMEOUT),
            )
        };
        let timeout = timeout.unwrap_or(default_timeout);
        if container.status() == Status::Paused {
            // A frozen process cannot end.
            self.resume_locked(container).await?;
        }
        if let Err(error) = self
            .send_signal(container, signal.unwrap_or(default_signal))
            .await
        {
            tracing::warn!(container = container.id, "stop: {error}");
        }
        Ok(Stopping { end, timeout })
    }

    /// Waits for the end of a container that was asked for it, and kills it when its time is up.
    async fn finish_stop(
        self: &Arc<Self>,
        container: &Arc<Container>,
        stopping: Stopping,
    ) -> Result<()> {
        let Stopping { mut end, timeout } = stopping;
        let ended = match u64::try_from(timeout) {
            Ok(seconds) => tokio::time::timeout(Duration::from_secs(seconds), end.come())
                .await
                .is_ok(),
            // Negative: for as long as it takes.
            Err(_) => {
                end.come().await;
                true
            }
        };
        if !ended {
            self.send_signal(container, signals::KILL).await?;
            if container.status() == Status::Paused {
                // Somebody has paused it meanwhile. What was killed may be gone before it could be
                // let go on.
                let _ = self.resume_locked(container).await;
            }
            if tokio::time::timeout(KILL_TIMEOUT, end.come())
                .await
                .is_err()
            {
                return Err(Error::internal(format!(
                    "cannot stop container: {}: tried to kill container, but did not receive an exit event",
                    container.id
                )));
            }
        }
        self.publish(container, "stop", &[]);
        Ok(())
    }

    /// Tells the bus of a signal and sends it. A container that ended meanwhile is as good as
    /// signalled.
    async fn send_signal(&self, container: &Container, signal: i32) -> Result<()> {
        {
            let record = container.record();
            if !record.state.status.is_running() {
                return Ok(());
            }
            // While its state is held, its end cannot be told yet: that comes after this in any
            // case.
            self.publish_of(&record, "kill", &[("signal", signal.to_string())]);
        }
        let reply = ask(
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
                // The kernel needs no shim for this.
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

    /// # Errors
    /// [`Error::Conflict`] if it does not run.
    pub async fn kill(self: &Arc<Self>, name: &str, signal: &str) -> Result<()> {
        let signal = if signal.is_empty() {
            signals::KILL
        } else {
            signals::parse(signal).map_err(|error| {
                Error::invalid(format!("cannot kill container: {name}: {error}"))
            })?
        };
        let container = self.find(name)?;
        if container.status() == Status::Restarting && self.cancel_restart(&container, name).await?
        {
            return Ok(());
        }
        let mut end = container.end();
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
            self.save_or_complain(&container);
        }
        self.send_signal(&container, signal).await?;
        if status == Status::Paused && (signal == signals::KILL || signal == stop_signal) {
            // What was killed may be gone before it could be let go on.
            let resumed = self.resume_locked(&container).await;
            if signal != signals::KILL {
                resumed?;
            }
        }
        if signal == signals::KILL {
            // Who kills expects it to be dead afterwards.
            if tokio::time::timeout(KILL_TIMEOUT, end.come())
                .await
                .is_err()
            {
                return Err(Error::internal(format!(
                    "cannot kill container: {name}: it did not end"
                )));
            }
        }
        Ok(())
    }

    /// Keeps the restart policy from starting a container that waits for that. Returns whether it
    /// still did.
    async fn cancel_restart(&self, container: &Container, name: &str) -> Result<bool> {
        let _operation = container.turn(name).await?;
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

    pub async fn restart(
        self: &Arc<Self>,
        name: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<()> {
        let signal = signal
            .filter(|signal| !signal.is_empty())
            .map(signals::parse)
            .transpose()?;
        let container = self.find(name)?;
        let operation = container.turn(name).await?;
        container.record().state.stopped_by_user = true;
        // Its end is not that of a --rm run.
        container.restarts.fetch_add(1, Ordering::Relaxed);
        let end = container.end();
        let stopping = if container.status().is_running() {
            Some(self.begin_stop(&container, end, signal, timeout).await)
        } else {
            None
        };
        drop(operation);
        let stopped = match stopping {
            Some(Ok(stopping)) => self.finish_stop(&container, stopping).await,
            Some(Err(error)) => Err(error),
            None => Ok(()),
        };
        container.restarts.fetch_sub(1, Ordering::Relaxed);
        stopped?;
        let _operation = container.turn(name).await?;
        if container.status() == Status::Restarting {
            container.record().state.status = Status::Exited;
        }
        match self.start_anew(&container).await {
            // Somebody else has started it again already.
            Ok(()) | Err(Error::NotModified(_)) => {}
            Err(error) => return Err(error),
        }
        self.publish(&container, "restart", &[]);
        Ok(())
    }

    pub async fn pause(&self, name: &str) -> Result<()> {
        let container = self.find(name)?;
        let _operation = container.turn(name).await?;
        match container.status() {
            Status::Paused => {
                return Err(Error::conflict(format!(
                    "Container {} is already paused",
                    container.id
                )));
            }
            Status::Restarting => {
                return Err(Error::conflict(format!(
                    "container {} is restarting, wait until the container is running",
                    container.id
                )));
            }
            Status::Running => {}
            _ => {
                return Err(Error::conflict(format!(
                    "container {} is not running",
                    container.id
                )));
            }
        }
        expect_done(
            self.ask(&container, &Request::Pause).await?,
            &format!("cannot pause container {}", container.id),
        )?;
        {
            let mut record = container.record();
            if record.state.status != Status::Running {
                // It has ended since.
                return Err(Error::conflict(format!(
                    "container {} is not running",
                    container.id
                )));
            }
            record.state.status = Status::Paused;
        }
        self.save_or_complain(&container);
        self.publish(&container, "pause", &[]);
        Ok(())
    }

    pub async fn unpause(&self, name: &str) -> Result<()> {
        let container = self.find(name)?;
        let _operation = container.turn(name).await?;
        if container.status() != Status::Paused {
            return Err(Error::internal(format!(
                "Container {} is not paused",
                container.id
            )));
        }
        self.resume_locked(&container).await
    }

    async fn resume_locked(&self, container: &Container) -> Result<()> {
        expect_done(
            self.ask(container, &Request::Resume).await?,
            &format!("cannot unpause container {}", container.id),
        )?;
        {
            let mut record = container.record();
            if record.state.status == Status::Paused {
                record.state.status = Status::Running;
            }
        }
        self.save_or_complain(container);
        self.publish(container, "unpause", &[]);
        Ok(())
    }

    pub async fn resize(&self, name: &str, height: u16, width: u16) -> Result<()> {
        let container = self.find(name)?;
        container.started().await;
        container.running_pid()?;
        let reply = ask(
            &self.instance,
            &container.id,
            &Request::Resize {
                exec: None,
                height,
                width,
            },
        )
        .await?
        .0;
        expect_done(reply, "cannot resize the container's terminal")?;
        self.publish(
            &container,
            "resize",
            &[("height", height.to_string()), ("width", width.to_string())],
        );
        Ok(())
    }
}

/// # Errors
/// What the shim could not do.
pub(super) fn expect_done(reply: Reply, step: &str) -> Result<()> {
    match reply {
        Reply::Failed(whelk_runtime::Error::State(text)) => {
            Err(Error::conflict(format!("{step}: {text}")))
        }
        Reply::Failed(error) => Err(Error::internal(format!("{step}: {error}"))),
        _ => Ok(()),
    }
}
