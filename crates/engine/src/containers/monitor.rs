//! Following what shims tell: out of memory, an exec's end, the container's end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::UnixStream;
use whelk_runtime::cgroup::Cgroup;
use whelk_shim::protocol::{Event, Exit};
use whelk_sys::fs;

use super::{Container, Containers};
use crate::events::now;
use crate::instance::Instance;
use crate::model::Status;
use crate::shims::{ANSWER, Contact, contact, read_event};

/// The restart policy waits this long after the first end, and twice as long after each further
/// one.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A run of this length counts as a success: the delay starts anew.
const LONG_RUN: i64 = 10_000_000_000;

/// Follows a shim over the connection on which it tells its events, or one that could not be talked
/// to yet.
pub(super) fn spawn(
    containers: &Arc<Containers>,
    container: &Arc<Container>,
    events: Option<UnixStream>,
) {
    // A monitor must not keep an engine alive that is shutting down.
    let (instance, containers) = (containers.instance.clone(), Arc::downgrade(containers));
    tokio::spawn(follow(instance, containers, container.clone(), events));
}

async fn follow(
    instance: Instance,
    containers: Weak<Containers>,
    container: Arc<Container>,
    mut events: Option<UnixStream>,
) {
    /// How long to wait before a shim is asked again that has not answered.
    const AGAIN: Duration = Duration::from_secs(1);
    let exit = loop {
        if let Some(events) = &mut events
            && let Some(exit) = follow_events(&containers, &container, events).await
        {
            break Some(exit);
        }
        match contact(&instance, &container.id, ANSWER).await {
            Contact::Running {
                state,
                events: renewed,
            } => {
                let Some(containers) = containers.upgrade() else {
                    return;
                };
                containers.take_note(&container, state).await;
                events = Some(renewed);
            }
            Contact::Gone => break None,
            Contact::Silent => tokio::time::sleep(AGAIN).await,
        }
    };
    let Some(containers) = containers.upgrade() else {
        return;
    };
    let exit = match exit {
        Some(exit) => exit,
        None => containers.after_lost_shim(&container).await,
    };
    containers.ended(&container, &exit).await;
    // The shim may still be handing out the last output.
    if let Some(mut events) = events {
        while read_event(&mut events).await.is_ok() {}
    }
    let _ = fs::remove_tree(containers.instance.run_dir(&container.id));
    container.shim.send_replace(false);
}

/// Follows events until the container's end, or until the connection ends without it.
async fn follow_events(
    containers: &Weak<Containers>,
    container: &Arc<Container>,
    events: &mut UnixStream,
) -> Option<Exit> {
    while let Ok(event) = read_event(events).await {
        if let Event::Exited(exit) = event {
            return Some(exit);
        }
        containers.upgrade()?.take_note(container, event).await;
    }
    None
}

impl Containers {
    async fn take_note(self: &Arc<Self>, container: &Arc<Container>, event: Event) {
        match event {
            Event::State {
                pid,
                paused,
                execs: _,
            } => {
                let mut record = container.record();
                record.state.pid = pid;
                record.state.status = if paused {
                    Status::Paused
                } else {
                    Status::Running
                };
            }
            Event::OutOfMemory => {
                container.record().state.oom_killed = true;
                self.save_or_complain(container);
                self.publish(container, "oom", &[]);
            }
            Event::Detached { exec } => self.detached(container, exec.as_deref()),
            Event::ExecExited { id, exit } => self.exec_ended(container, &id, &exit),
            Event::Exited(exit) => self.ended(container, &exit).await,
        }
    }

    /// How a container ended whose shim did not live to tell: by its record, or else it is ended
    /// now. Without its shim it has nobody to read its output or collect its end.
    pub(super) async fn after_lost_shim(&self, container: &Container) -> Exit {
        const KILLED: i32 = 137;
        if let Some(exit) = self.exit_record(&container.id) {
            return exit;
        }
        let path = self.cgroup_path(container);
        let killed = tokio::task::spawn_blocking(move || {
            let cgroup = Cgroup::at(&path)?;
            let _ = cgroup.freeze(false);
            cgroup.kill_all()?;
            cgroup.remove()
        });
        if let Ok(Err(error)) = killed.await {
            tracing::warn!(
                container = container.id,
                "clean up after a lost shim: {error}"
            );
        }
        container.record().state.error = "the container's shim was killed".into();
        Exit {
            code: KILLED,
            signal: Some(9),
            oom_killed: false,
            at: now(),
        }
    }

    pub(super) fn exit_record(&self, id: &str) -> Option<Exit> {
        serde_json::from_slice(&fs::read(self.instance.run_dir(id).join("exit.json")).ok()?).ok()
    }

    pub(super) fn cgroup_path(&self, container: &Container) -> String {
        crate::spec::cgroup_path(
            &container.record().host,
            &self.instance.cgroup_parent(),
            &container.id,
        )
    }

    /// Takes note of a container's end, and does what its settings say about it.
    pub(super) async fn ended(self: &Arc<Self>, container: &Arc<Container>, exit: &Exit) {
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
            let policy = &record.host.restart_policy;
            let wanted = match policy.name.as_str() {
                "always" | "unless-stopped" => true,
                "on-failure" => {
                    exit.code != 0
                        && (policy.maximum_retry_count == 0
                            || i64::from(record.state.restart_count) < policy.maximum_retry_count)
                }
                _ => false,
            };
            let restart = wanted && !record.state.stopped_by_user;
            if restart {
                record.state.status = Status::Restarting;
            }
            (ran, restart)
        };
        // Before anybody hears of the end: who does may want the same port.
        let left = self.give_back(container).await;
        let auto_remove =
            container.record().host.auto_remove && container.restarts.load(Ordering::Relaxed) == 0;
        if !auto_remove && let Err(error) = self.save_with_copy(container) {
            tracing::error!(container = container.id, "{error}");
        }
        self.execs_of_ended(container);
        self.publish(
            container,
            "die",
            &[
                ("exitCode", exit.code.to_string()),
                ("execDuration", (ran.max(0) / 1_000_000_000).to_string()),
            ],
        );
        self.networks.announce_left(&container.id, &left);
        container.progress.send_modify(|progress| {
            progress.running = false;
            progress.exits += 1;
            progress.exit_code = exit.code;
        });
        if auto_remove {
            self.keep_exit_code(&container.id, exit.code);
            self.remove_or_complain(container, true);
        } else if restart {
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
    /// How long its restart policy waits this time.
    fn next_delay(&self) -> Duration {
        let before = self.short_runs.fetch_add(1, Ordering::Relaxed);
        FIRST_DELAY
            .saturating_mul(1u32.checked_shl(before).unwrap_or(u32::MAX))
            .min(LONGEST_DELAY)
    }
}

/// Starts a container as its restart policy wants it. A start that fails with
/// [`crate::error::Error::Unavailable`] (descriptors, memory or room on a disk are used up) is
/// tried again after a longer delay, unless `on-failure` allows no further one. Any other error
/// ends the restarts, as with Docker: a device or file to mount that is gone, or a port that is
/// taken.
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
        // Stopped, removed or started by somebody while this was waiting.
        if container.status() != Status::Restarting {
            return;
        }
        if !delay.is_zero() {
            container.record().state.restart_count += 1;
        }
        let Err(error) = containers.start_locked(&container).await else {
            return;
        };
        tracing::warn!(container = container.id, "restart: {error}");
        delay = container.next_delay();
    }
}
