//! Stopping a container: a signal, and after a timeout SIGKILL.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use whelk_sys::fs;
use whelk_text::signal;

use super::{Container, Containers, ExitWatch, to_its_end};
use crate::error::{Error, Result};
use crate::model::Status;
use crate::workload::KILL_TIMEOUT;

/// A container to which the stop signal was sent.
pub(super) struct Stopping {
    end: ExitWatch,
    /// In seconds; negative for no limit.
    timeout: i64,
}

impl Containers {
    /// Stops a container: sends `signal` (default: its stop signal), and SIGKILL if it has not
    /// exited after `timeout` seconds (negative: never).
    ///
    /// # Errors
    /// Returns [`Error::NotModified`] if it does not run.
    pub async fn stop(
        self: &Arc<Self>,
        name: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<()> {
        let (containers, name) = (self.clone(), name.to_owned());
        let signal = signal.map(str::to_owned);
        to_its_end(async move { containers.stop_now(&name, signal.as_deref(), timeout).await })
            .await
    }

    async fn stop_now(
        self: &Arc<Self>,
        name: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<()> {
        let container = self.find(name)?;
        let operation = container.lock_operation(name).await?;
        // As in Docker, the signal is only checked if the container runs, and an invalid one is an
        // internal error.
        let signal = signal
            .filter(|signal| !signal.is_empty() && container.status().is_running())
            .map(signal::parse)
            .transpose()
            .map_err(|error| Error::internal(format!("cannot stop container: {name}: {error}")))?;
        container.record().state.stopped_by_user = true;
        let end = container.watch_exit();
        match container.status() {
            Status::Restarting => {
                container.record().state.status = Status::Exited;
                self.save_or_log(&container);
                return Ok(());
            }
            status if !status.is_running() => {
                self.save_or_log(&container);
                return Err(Error::NotModified(format!(
                    "container {} is not running",
                    container.id
                )));
            }
            // Saved before the stop, so that after a crash of the engine the restart policy does
            // not start it again. An error does not prevent the stop.
            _ => self.save_or_log(&container),
        }
        let stopping = self.begin_stop(&container, end, signal, timeout).await?;
        // Released during the wait, so that other operations, such as a kill, are possible.
        drop(operation);
        self.finish_stop(&container, stopping).await
    }

    /// Sends the stop signal to a container. The caller holds its operation lock.
    pub(super) async fn begin_stop(
        self: &Arc<Self>,
        container: &Arc<Container>,
        end: ExitWatch,
        signal: Option<i32>,
        timeout: Option<i64>,
    ) -> Result<Stopping> {
        let (default_signal, default_timeout) = {
            let record = container.record();
            let signal = if record.config.stop_signal.is_empty() {
                signal::TERM
            } else {
                signal::parse(&record.config.stop_signal)?
            };
            (signal, record.config.stop_timeout)
        };
        let timeout = timeout
            .or(default_timeout)
            .unwrap_or_else(|| self.instance.live.get().containers.stop_timeout);
        if container.status() == Status::Paused {
            // A frozen process cannot handle the signal.
            self.resume_for_signal(container).await?;
        }
        let signal = signal.unwrap_or(default_signal);
        self.note_handler(container, signal, timeout);
        match self.send_signal(container, signal, &end).await {
            // Nothing was sent because of the engine: no reason for SIGKILL.
            Err(error @ Error::Unavailable(_)) => return Err(error),
            Err(error) => tracing::warn!(container = container.id, "stop: {error}"),
            Ok(()) => {}
        }
        Ok(Stopping { end, timeout })
    }

    /// Notes in the container and in the log whether it will not get the signal, so that its stop takes the whole
    /// timeout.
    fn note_handler(&self, container: &Container, signal: i32, timeout: i64) {
        let status = container
            .running_pid()
            .ok()
            .and_then(|pid| fs::read(format!("/proc/{pid}/status")).ok())
            .unwrap_or_default();
        let is_unhandled = is_unhandled(&String::from_utf8_lossy(&status), signal);
        let noted = if is_unhandled { signal } else { 0 };
        container.unhandled_signal.store(noted, Ordering::Relaxed);
        if is_unhandled {
            tracing::info!(
                container = container.id,
                "stop: the main process has no handler for {}, so that it runs until SIGKILL after {timeout} s",
                signal::name(signal)
            );
        }
    }

    /// Waits for the exit of a container, and kills it after the timeout.
    pub(super) async fn finish_stop(
        self: &Arc<Self>,
        container: &Arc<Container>,
        stopping: Stopping,
    ) -> Result<()> {
        let stopped = self.end_in_time(container, stopping).await;
        container.unhandled_signal.store(0, Ordering::Relaxed);
        stopped
    }

    async fn end_in_time(
        self: &Arc<Self>,
        container: &Arc<Container>,
        stopping: Stopping,
    ) -> Result<()> {
        let Stopping { mut end, timeout } = stopping;
        let ended = match u64::try_from(timeout) {
            Ok(seconds) => tokio::time::timeout(Duration::from_secs(seconds), end.exited())
                .await
                .is_ok(),
            // Negative: no limit.
            Err(_) => {
                end.exited().await;
                true
            }
        };
        if !ended {
            self.send_signal(container, signal::KILL, &end).await?;
            if container.status() == Status::Paused {
                // Paused by another client meanwhile. An error is ignored: the container may
                // already be dead.
                let _ = self.resume_for_signal(container).await;
            }
            if tokio::time::timeout(KILL_TIMEOUT, end.exited())
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
}

impl Container {
    /// Returns the signal of the stop that waits for the container, if its main process has no handler for it.
    pub(super) fn unhandled_signal(&self) -> Option<i32> {
        Some(self.unhandled_signal.load(Ordering::Relaxed)).filter(|&signal| signal != 0)
    }
}

/// Returns whether a process, given its /proc/PID/status, does nothing on a signal: it ignores it, or is the first
/// of a pid namespace and has no handler (pid_namespaces(7)). A blocked signal may be waited for (sigwait(3)).
fn is_unhandled(status: &str, signal: i32) -> bool {
    const STOP: i32 = 19;
    if matches!(signal, signal::KILL | STOP) {
        return false;
    }
    let values = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().split_whitespace()
    };
    let contains = |key: &str| {
        let mask = values(key).next().unwrap_or_default();
        let mask = u64::from_str_radix(mask, 16).unwrap_or_default();
        u32::try_from(signal - 1)
            .is_ok_and(|bit| mask.checked_shr(bit).is_some_and(|mask| mask & 1 == 1))
    };
    // One number for each pid namespace, from that of the reader inwards.
    let is_first = values("NSpid:").count() > 1 && values("NSpid:").last() == Some("1");
    let is_awaited = contains("SigCgt:") || contains("SigBlk:");
    contains("SigIgn:") || is_first && !is_awaited
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_needs_a_handler() {
        let check = |pids: &str, masks: [u64; 3], signal: i32| {
            let [blocked, ignored, caught] = masks.map(|mask| format!("{mask:016x}"));
            let status = format!(
                "Name:\tx\nNSpid:\t{pids}\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n"
            );
            is_unhandled(&status, signal)
        };
        const TERM: u64 = 1 << 14;
        assert!(check("70\t1", [0; 3], 15));
        assert!(check("70\t1", [0, 0, TERM], 2));
        assert!(check("70\t1", [0; 3], 64));
        assert!(check("70", [0, TERM, 0], 15));
        // A handler, a signal that is waited for, not the first process, and a signal that needs no handler.
        assert!(!check("70\t1", [0, 0, TERM], 15));
        assert!(!check("70\t1", [TERM, 0, 0], 15));
        assert!(!check("70\t1", [0, 0, 1 << 63], 64));
        assert!(!check("70", [0; 3], 15));
        assert!(!check("70\t6", [0; 3], 15));
        assert!(!check("70\t1", [0; 3], 9));
        assert!(!is_unhandled("", 15));
    }
}
