//! Receives the events of shims: out of memory, end of an exec, exit of the container; and applies
//! restart policies.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use whelk_shim::protocol::{Event, Exit, LostLines};

use super::{Container, Containers};
use crate::error::Error;
use crate::model::Status;
use crate::workload::{Monitor, blocking};

/// Delay before the first restart by a restart policy; doubled after each short run.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A run of at least this length, in nanoseconds, resets the delay.
const LONG_RUN: i64 = 10_000_000_000;

/// Spawns the task that follows a container's run to its end.
pub(super) fn spawn(containers: &Arc<Containers>, container: &Arc<Container>, monitor: Monitor) {
    // A weak reference: the task must not keep the engine's state alive during shutdown.
    tokio::spawn(follow(
        Arc::downgrade(containers),
        container.clone(),
        monitor,
    ));
}

async fn follow(containers: Weak<Containers>, container: Arc<Container>, mut monitor: Monitor) {
    let exit = loop {
        match monitor.next().await {
            Some(Event::Exited(exit)) => break Some(exit),
            Some(event) => {
                let Some(containers) = containers.upgrade() else {
                    return;
                };
                containers.apply_event(&container, event);
            }
            None => break None,
        }
    };
    let Some(containers) = containers.upgrade() else {
        return;
    };
    let exit = match exit {
        Some(exit) => exit,
        None => containers.reap(&container).await,
    };
    containers.handle_exit(&container, &exit).await;
    monitor.finish().await;
}

impl Containers {
    /// Applies an event to the container's record.
    fn apply_event(&self, container: &Arc<Container>, event: Event) {
        match event {
            Event::State {
                pid,
                paused,
                execs: _,
            } => {
                {
                    let mut record = container.record();
                    record.state.pid = pid;
                    record.state.status = if paused {
                        Status::Paused
                    } else {
                        Status::Running
                    };
                }
                self.update_health(container);
            }
            Event::OutOfMemory => {
                container.record().state.oom_killed = true;
                self.save_or_log(container);
                self.publish(container, "oom", &[]);
            }
            Event::LogLost(lost) => self.report_lost_lines(container, &lost),
            Event::Detached { exec } => self.record_detach(container, exec.as_deref()),
            Event::ExecExited { id, exit } => self.record_exec_exit(container, &id, &exit),
            // The last one, which ends the run.
            Event::Exited(_) => {}
        }
    }

    fn report_lost_lines(&self, container: &Container, lost: &LostLines) {
        let LostLines {
            lines,
            driver,
            cause,
        } = lost;
        let id = &container.id;
        tracing::warn!(
            container = id,
            "{lines} lines of the log are lost (driver {driver}): {cause}"
        );
        let attributes = [
            ("lines", lines.to_string()),
            ("driver", driver.clone()),
            ("error", cause.clone()),
        ];
        self.publish(container, "log_lost", &attributes);
    }

    /// Returns how a container ended whose shim is gone.
    pub(super) async fn reap(&self, container: &Container) -> Exit {
        let reaped = container.workload.reap().await;
        self.delete_left(container).await;
        if reaped.was_lost {
            let mut error = "the container's shim was killed".to_owned();
            if let Some(left) = reaped.left {
                error += &format!("; its processes may be left: {left}");
            }
            container.record().state.error = error;
        }
        reaped.exit
    }

    /// Lets the runtime of a container whose shim is gone delete it. An error is logged: the container's
    /// processes have ended.
    async fn delete_left(&self, container: &Container) {
        let name = container.record().host.runtime.clone();
        let Ok(Some(runtime)) = self.instance.live.get().runtimes.find(&name) else {
            return;
        };
        let (id, directory) = (
            container.id.clone(),
            container.workload.directory().to_owned(),
        );
        let delete =
            move || whelk_shim::delete_left(&id, &directory, &runtime).map_err(Error::from);
        if let Err(error) = blocking(delete).await {
            let id = &container.id;
            tracing::warn!(
                "delete container {id}, whose shim was killed, with runtime {name}: {error}"
            );
        }
    }

    /// Records a container's exit, releases its resources, publishes the event, and then removes or
    /// restarts the container as its settings say.
    pub(super) async fn handle_exit(self: &Arc<Self>, container: &Arc<Container>, exit: &Exit) {
        container.forget_own_pauses();
        let (ran, restart) = {
            let mut record = container.record();
            let ran = exit.at - record.state.started_at;
            record.state.status = Status::Exited;
            record.state.pid = 0;
            record.state.exit_code = exit.code;
            record.state.oom_killed |= exit.oom_killed;
            record.state.finished_at = exit.at;
            if ran >= LONG_RUN {
                container.short_runs.store(0, Ordering::Relaxed);
            }
            let policy = record.host.restart_policy;
            let restart = policy.applies(exit.code, record.state.restart_count)
                && !record.state.stopped_by_user;
            if restart {
                record.state.status = Status::Restarting;
            }
            (ran, restart)
        };
        self.update_health(container);
        // Before the exit is published: a client that waits for it may use the same port at once.
        let left_networks = self.release_resources(container).await;
        let auto_remove =
            container.record().host.auto_remove && container.restarts.load(Ordering::Relaxed) == 0;
        if !auto_remove && let Err(error) = self.save_with_copy(container) {
            tracing::error!(container = container.id, "save the record: {error}");
        }
        self.end_execs(container);
        for lost in &exit.lost_lines {
            self.report_lost_lines(container, lost);
        }
        self.publish(
            container,
            "die",
            &[
                ("exitCode", exit.code.to_string()),
                ("execDuration", (ran.max(0) / 1_000_000_000).to_string()),
            ],
        );
        self.sandboxes
            .publish_disconnects(&container.id, &left_networks);
        container.progress.send_modify(|progress| {
            progress.running = false;
            progress.exits += 1;
            progress.exit_code = exit.code;
        });
        if auto_remove {
            self.retain_exit_code(&container.id, exit.code);
            let _views = container.views.close().await;
            self.remove_or_log(container, true);
        } else if restart && !self.is_shutting_down() {
            let delay = container.next_delay();
            tokio::spawn(self::restart(
                Arc::downgrade(self),
                container.clone(),
                delay,
            ));
        }
    }
}

impl Container {
    /// Returns the delay before the next restart, and counts a short run.
    fn next_delay(&self) -> Duration {
        let before = self.short_runs.fetch_add(1, Ordering::Relaxed);
        FIRST_DELAY
            .saturating_mul(1u32.checked_shl(before).unwrap_or(u32::MAX))
            .min(LONGEST_DELAY)
    }
}

/// Starts a container as its restart policy wants it. A start that fails with
/// [`crate::error::Error::Unavailable`] (descriptors, memory or room on a disk are used up) or
/// [`crate::error::Error::Restarting`] is tried again after a longer delay, unless `on-failure`
/// allows no further one. Any other error ends the restarts, as with Docker: a device or file to
/// mount that is gone, or a port that is taken.
pub(super) async fn restart(
    containers: Weak<Containers>,
    container: Arc<Container>,
    mut delay: Duration,
) {
    loop {
        tokio::time::sleep(delay).await;
        let Some(containers) = containers.upgrade() else {
            return;
        };
        let _operation = container.operation.lock().await;
        // Stopped, removed or started by a client meanwhile, or left to the next engine.
        if container.status() != Status::Restarting || containers.is_shutting_down() {
            return;
        }
        {
            let mut record = container.record();
            // With the policy `always`, the next engine starts also what a user had stopped.
            record.state.stopped_by_user = false;
            record.state.restart_count += u32::from(!delay.is_zero());
        }
        let Err(error) = containers.try_start(&container).await else {
            return;
        };
        tracing::warn!(container = container.id, "restart: {error}");
        delay = container.next_delay();
    }
}
