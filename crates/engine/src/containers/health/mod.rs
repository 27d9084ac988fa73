//! Health checks.
//!
//! ```text
//!         start, unpause,            due                 result
//!         engine's start ─► waiting ─────► probe runs ─────────► waiting …
//!                              │               │    └─ state, event, what to do if unhealthy
//!                              └── pause, exit ┴─► off (the probe is killed)
//! ```
//! Containers wait in one list ([`Schedule`]), and one thread runs all checks. The engine's
//! record of the results is written to the store when the status changes, and with whatever else is
//! written of the container.

mod probe;
mod schedule;
mod state;

use std::convert::Infallible;
use std::sync::{Arc, Weak};

use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;
use whelk_shim::protocol::ExecLaunch;
use whelk_sys::sync::IgnorePoison as _;
use whelk_text::signal;

pub(crate) use schedule::Schedule;

use self::schedule::Turn;
use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::events::now;
use crate::model::{Health, HealthAction, HealthResult, HealthStatus, Status};
use crate::shims::ExecChannel;

/// The checks of a container's current run.
#[derive(Debug, Default)]
pub(super) struct Checks {
    /// Counts how often checks have begun, so that the result of an earlier one is recognized.
    period: u64,
    stage: Stage,
    /// What is used for one check after another.
    tools: Tools,
}

#[derive(Debug, Default)]
struct Tools {
    /// The message that starts a check.
    launch: Option<Box<ExecLaunch>>,
    channel: Option<ExecChannel>,
}

#[derive(Debug, Default)]
enum Stage {
    /// The container does not run, is paused, or has no check.
    #[default]
    Off,
    Waiting(Turn),
    /// The sender is dropped to cancel the check.
    Checking {
        _cancel: oneshot::Sender<()>,
    },
}

/// Starts the thread that runs the checks. It ends when what is returned is dropped.
///
/// Its runtime has no other thread: in the engine's, each of a check's events would wake several.
///
/// # Errors
/// Returns an error if the thread cannot be created.
pub(crate) fn start_checks(containers: &Arc<Containers>) -> Result<oneshot::Sender<Infallible>> {
    let failed = |error| Error::internal(format!("start the thread of health checks: {error}"));
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let (keeps_running, ended) = oneshot::channel::<Infallible>();
    let (engine, schedule) = (Handle::current(), containers.health_checks.clone());
    let containers = Arc::downgrade(containers);
    let run = move || {
        // A task, because a wakeup of what is blocked on costs a system call.
        runtime.spawn(run_checks(containers, schedule, engine));
        let _ = runtime.block_on(ended);
    };
    let thread = std::thread::Builder::new().name("whelk-health".into());
    thread.spawn(run).map_err(failed)?;
    Ok(keeps_running)
}

/// Runs checks when they are due, as long as the engine's state exists.
async fn run_checks(containers: Weak<Containers>, schedule: Arc<Schedule>, engine: Handle) {
    loop {
        let (turn, container) = schedule.next().await;
        if containers.strong_count() == 0 {
            return;
        }
        if let Some((period, cancelled)) = container.begin_check(turn) {
            let engine = engine.clone();
            let check = check(containers.clone(), container, period, cancelled, engine);
            tokio::spawn(check);
        }
    }
}

async fn check(
    containers: Weak<Containers>,
    container: Arc<Container>,
    period: u64,
    cancelled: oneshot::Receiver<()>,
    engine: Handle,
) {
    let Some(containers) = containers.upgrade() else {
        return;
    };
    let result = tokio::select! {
        result = containers.probe(&container) => result,
        _ = cancelled => return,
    };
    let Some(result) = result else {
        return containers.await_next(&container, period);
    };
    let action = containers.apply_result(&container, period, result);
    if action == HealthAction::None {
        return;
    }
    tracing::info!(container = container.id, "unhealthy: {action}");
    // Its tasks, such as those of a restart, outlive this thread's runtime.
    engine.spawn(async move {
        if let Err(error) = containers.act(&container, period, action).await {
            tracing::warn!(
                container = container.id,
                "{action} of an unhealthy container: {error}"
            );
        }
        // Tried again after the next failure, if the container still runs.
        containers.await_next(&container, period);
    });
}

impl Container {
    /// Notes that the check of this turn runs. Returns `None` if the turn was given up meanwhile.
    fn begin_check(&self, turn: Turn) -> Option<(u64, oneshot::Receiver<()>)> {
        let mut checks = self.health.lock().ignore_poison();
        if !matches!(checks.stage, Stage::Waiting(waiting) if waiting == turn) {
            return None;
        }
        let (cancel, cancelled) = oneshot::channel();
        checks.stage = Stage::Checking { _cancel: cancel };
        Some((checks.period, cancelled))
    }

    fn take_tools(&self) -> Tools {
        std::mem::take(&mut self.health.lock().ignore_poison().tools)
    }

    /// Keeps the message of a check that was started. With links it is made again each time, because
    /// it has the addresses of other containers.
    fn keep_launch(&self, launch: Box<ExecLaunch>) {
        if self.record().host.links.is_none() {
            self.health.lock().ignore_poison().tools.launch = Some(launch);
        }
    }

    /// Keeps the channel of a check that has ended.
    fn keep_channel(&self, channel: ExecChannel) {
        let mut checks = self.health.lock().ignore_poison();
        if matches!(checks.stage, Stage::Checking { .. }) {
            checks.tools.channel = Some(channel);
        }
    }
}

impl Containers {
    /// Begins the health checks of a container that was started.
    pub(super) fn begin_health(&self, container: &Arc<Container>) {
        drop(container.take_tools());
        {
            let mut record = container.record();
            let before = record.state.health.take();
            if state::effective(record.config.healthcheck.as_ref()).is_some() {
                record.state.health = Some(state::begin(before));
            }
        }
        self.update_health(container);
    }

    /// Begins or ends the checks of a container, as its status says. Called after each change of the
    /// status, and before that is saved.
    pub(super) fn update_health(&self, container: &Arc<Container>) {
        let mut checks = container.health.lock().ignore_poison();
        let delay = {
            let mut record = container.record();
            let is_running = record.state.status == Status::Running;
            let record = &mut *record;
            let check = state::effective(record.config.healthcheck.as_ref());
            match check.filter(|_| is_running) {
                Some(check) => {
                    let health = record.state.health.get_or_insert_default();
                    let age = now() - record.state.started_at;
                    Some(state::delay(check, health.status, age))
                }
                None => {
                    if let Some(health) = &mut record.state.health {
                        // As Docker shows it.
                        health.status = HealthStatus::Unhealthy;
                        if record.state.status == Status::Paused {
                            // Failures before a pause say nothing about the time after it.
                            health.failing_streak = 0;
                        }
                    }
                    None
                }
            }
        };
        match (&checks.stage, delay) {
            (Stage::Off, Some(delay)) => {
                checks.period += 1;
                checks.stage = Stage::Waiting(self.health_checks.add(container, delay));
            }
            (Stage::Waiting(turn), None) => {
                self.health_checks.remove(*turn);
                checks.stage = Stage::Off;
                checks.tools.channel = None;
            }
            (Stage::Checking { .. }, None) => checks.stage = Stage::Off,
            (Stage::Waiting(_) | Stage::Checking { .. }, Some(_)) | (Stage::Off, None) => {}
        }
    }

    /// Applies a check's result, and returns what is to be done. Unless that is something, the
    /// container then waits for its next check.
    fn apply_result(
        &self,
        container: &Arc<Container>,
        period: u64,
        result: HealthResult,
    ) -> HealthAction {
        let (changed, action) = {
            let checks = container.health.lock().ignore_poison();
            if !checks.is_checking(period) {
                return HealthAction::None;
            }
            let mut record = container.record();
            let record = &mut *record;
            let Some(check) = state::effective(record.config.healthcheck.as_ref()) else {
                return HealthAction::None;
            };
            let health: &mut Health = record.state.health.get_or_insert_default();
            let changed = state::apply(health, check, record.state.started_at, result);
            let has_failed = state::has_failed(health, check);
            if let Some(status) = changed {
                self.publish_of(record, &format!("health_status: {}", status.as_str()), &[]);
            }
            let action = if has_failed {
                check.on_failure
            } else {
                HealthAction::None
            };
            (changed, action)
        };
        if changed.is_some() {
            self.save_or_log(container);
        }
        if action == HealthAction::None {
            self.await_next(container, period);
        }
        action
    }

    /// Schedules the check after one that has ended.
    fn await_next(&self, container: &Arc<Container>, period: u64) {
        let mut checks = container.health.lock().ignore_poison();
        if !checks.is_checking(period) {
            return;
        }
        let delay = {
            let record = container.record();
            let check = state::effective(record.config.healthcheck.as_ref());
            let status = record.state.health.as_ref().map(|health| health.status);
            let age = now() - record.state.started_at;
            check.map(|check| state::delay(check, status.unwrap_or_default(), age))
        };
        checks.stage = match delay {
            Some(delay) => Stage::Waiting(self.health_checks.add(container, delay)),
            None => Stage::Off,
        };
    }

    /// Does what a container's settings want if it is unhealthy.
    async fn act(
        self: &Arc<Self>,
        container: &Arc<Container>,
        period: u64,
        action: HealthAction,
    ) -> Result<()> {
        let run = container.watch_exit();
        if !container.health.lock().ignore_poison().is_checking(period) {
            return Ok(());
        }
        match action {
            HealthAction::None => Ok(()),
            // Unlike a user's kill, after which no restart policy applies.
            HealthAction::Kill => self.send_signal(container, signal::KILL, &run).await,
            HealthAction::Restart => self.restart(&container.id, None, None).await,
            HealthAction::Stop => self.stop(&container.id, None, None).await,
        }
    }
}

impl Checks {
    /// Returns whether the check of this period has not been cancelled.
    fn is_checking(&self, period: u64) -> bool {
        self.period == period && matches!(self.stage, Stage::Checking { .. })
    }
}
