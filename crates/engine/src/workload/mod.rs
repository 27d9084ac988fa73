//! Workloads: OCI configurations that run under a shim.
//!
//! ```text
//!        start              exit             shim exits
//! idle ────────► running ─────────► ended ─────────────► idle
//!                   ▲ adopt, by the next engine
//! ```
//! A workload has an id, a run directory and a cgroup, but no record: those of containers are kept
//! by `containers`, and [`Workloads`] runs workloads that need none. A [`Monitor`] follows each run to
//! its end.

mod recordless;
mod silent;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use whelk_runtime::cgroup::{Cgroup, remove_hybrid};
use whelk_shim::protocol::{ContainerLaunch, Event, Exit, Reply, Request};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;
use whelk_text::signal;

pub(crate) use recordless::WORKLOAD_PREFIX;
pub use recordless::{Bundle, ExecEnd, Started, StartedExec, WorkloadNetwork, Workloads};
pub(crate) use silent::blocking;

use crate::error::{Error, Result};
use crate::events::now;
use crate::instance::Instance;
use crate::shims::{
    self, ANSWER_TIMEOUT, LaunchError, Running, ShimAddress, ShimProcess, ShimStatus, WarmPool,
};

/// How long the kernel may take to end a killed process before an operation gives up.
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// Time limit for a shim's answer before the engine sends a signal itself.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The exit code of a workload that was killed.
const KILLED: i32 = 137;

/// A configuration that runs, has run or is to run under a shim.
#[derive(Debug)]
pub struct Workload {
    address: ShimAddress,
    cgroup: String,
    /// The cgroup of the instance's shims.
    shims: String,
    run: watch::Sender<Run>,
    /// The shim of the current run, until it has exited.
    shim: Mutex<Option<ShimProcess>>,
}

/// The current run, or the last one.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// Runs are counted, so that a request to one never reaches the next.
    number: u64,
    stage: Stage,
    /// Of the first process.
    pid: i32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// There is no shim.
    #[default]
    Idle,
    Running,
    /// The processes have ended; the shim may still be writing the last output to clients.
    Ended,
}

/// A subscription to the end of a run.
#[derive(Clone, Debug)]
pub(crate) struct RunWatch {
    run: watch::Receiver<Run>,
    number: u64,
}

impl RunWatch {
    /// Returns whether the run has ended; another one may have begun since.
    fn has_ended(&self) -> bool {
        let now = self.run.borrow();
        now.stage != Stage::Running || now.number != self.number
    }

    /// Waits until the run has ended.
    async fn ended(&mut self) {
        let number = self.number;
        let is_over = |now: &Run| now.stage != Stage::Running || now.number != number;
        // Closed if the workload was dropped: then nothing reports the end any more.
        let _ = self.run.wait_for(is_over).await;
    }
}

/// How a workload ended whose shim is gone.
#[derive(Debug)]
pub(crate) struct Reaped {
    pub(crate) exit: Exit,
    /// The shim has recorded no exit: it was killed, and the workload's processes with it.
    pub(crate) was_lost: bool,
    /// Why processes of the workload may be left.
    pub(crate) left: Option<Error>,
}

/// A run that has begun.
#[derive(Debug)]
pub(crate) struct Begun {
    /// The first process.
    pub(crate) pid: i32,
    /// In nanoseconds since the epoch.
    pub(crate) started_at: i64,
    pub(crate) monitor: Monitor,
}

impl Workload {
    /// Describes a workload with this cgroup.
    pub(crate) fn new(instance: &Instance, address: ShimAddress, cgroup: String) -> Self {
        Self {
            address,
            cgroup,
            shims: instance.shims_cgroup(),
            run: watch::Sender::default(),
            shim: Mutex::default(),
        }
    }

    /// The directory of the shim's socket and exit record.
    pub(crate) fn directory(&self) -> &Path {
        &self.address.directory
    }

    /// Where its shim is found.
    pub(crate) fn address(&self) -> &ShimAddress {
        &self.address
    }

    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Creates the run directory for a start. That of a shim that was killed may still exist.
    pub(crate) fn make_directory(&self) -> Result<()> {
        fs::remove_tree(self.directory())?;
        Ok(fs::create_dir(self.directory(), 0o700)?)
    }

    /// Deletes the run directory, when there is no shim.
    pub(crate) fn delete_directory(&self) {
        let _ = fs::remove_tree(self.directory());
    }

    /// Starts the workload in a shim. `descriptors` are those that the launch message refers to.
    ///
    /// # Errors
    /// Returns the reason why it did not start.
    pub(crate) async fn start(
        self: &Arc<Self>,
        pool: &Arc<WarmPool>,
        launch: &ContainerLaunch,
        descriptors: Vec<OwnedFd>,
    ) -> std::result::Result<Begun, LaunchError> {
        let Running {
            pid,
            started_at,
            shim,
            events,
        } = pool.launch(launch, descriptors).await?;
        self.begin(pid, shim);
        let monitor = Monitor {
            workload: self.clone(),
            events: Some(events),
        };
        Ok(Begun {
            pid,
            started_at,
            monitor,
        })
    }

    /// Takes over a run that an earlier engine has started. Without `events` the monitor connects to
    /// the shim first.
    pub(crate) fn adopt(self: &Arc<Self>, pid: i32, events: Option<UnixStream>) -> Monitor {
        self.begin(pid, events.as_ref().and_then(ShimProcess::of_peer));
        Monitor {
            workload: self.clone(),
            events,
        }
    }

    fn begin(&self, pid: i32, shim: Option<ShimProcess>) {
        self.set_shim(shim);
        self.run.send_modify(|run| {
            *run = Run {
                number: run.number + 1,
                stage: Stage::Running,
                pid,
            };
        });
    }

    fn set_stage(&self, stage: Stage) {
        self.run.send_modify(|run| run.stage = stage);
    }

    /// Asks the shim for the state, for at most `patience`.
    pub(crate) async fn probe(&self, patience: Duration) -> ShimStatus {
        shims::probe(&self.address, patience).await
    }

    /// Subscribes to the end of the current run.
    pub(crate) fn watch_run(&self) -> RunWatch {
        let run = self.run.subscribe();
        let number = run.borrow().number;
        RunWatch { run, number }
    }

    /// Returns whether a shim is alive.
    pub(crate) fn has_shim(&self) -> bool {
        self.run.borrow().stage != Stage::Idle
    }

    fn shim(&self) -> Option<ShimProcess> {
        *self.shim.lock().ignore_poison()
    }

    fn set_shim(&self, shim: Option<ShimProcess>) {
        *self.shim.lock().ignore_poison() = shim;
    }

    /// Sends a request to the shim, and returns the reply and the connection.
    ///
    /// # Errors
    /// As [`shims::request`].
    pub(crate) async fn request(&self, request: &Request) -> Result<(Reply, UnixStream)> {
        shims::request(&self.address, request).await
    }

    /// Like [`Workload::request`], for a request whose duration depends on the workload's processes,
    /// such as an exec.
    pub(crate) async fn request_while_alive(
        &self,
        request: &Request,
    ) -> Result<(Reply, UnixStream)> {
        shims::request_while_alive(&self.address, request).await
    }

    /// Sends a signal to the first process. Succeeds if the `run` has ended. If the shim does
    /// not answer within [`SIGNAL_TIMEOUT`], the engine sends the signal itself.
    ///
    /// # Errors
    /// Returns [`Error::Unavailable`] if the engine lacks the descriptors or memory for it.
    pub(crate) async fn signal(&self, number: i32, run: &RunWatch) -> Result<()> {
        if run.has_ended() {
            return Ok(());
        }
        let request = Request::Signal {
            exec: None,
            signal: number,
        };
        match shims::request_within(&self.address, &request, SIGNAL_TIMEOUT).await {
            Ok((Reply::Failed(whelk_runtime::Error::State(_)), _)) => Ok(()),
            Ok((Reply::Failed(error), _)) => Err(Error::internal(error.to_string())),
            Ok(_) => Ok(()),
            Err(Error::ShimSilent(text)) => self.signal_without_shim(number, run, &text).await,
            Err(_) if self.is_ending().await => Ok(()),
            // Somebody has removed its socket.
            Err(error) if !fs::exists(self.directory().join("shim.sock")) => {
                let text = error.to_string();
                self.signal_without_shim(number, run, &text).await
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a signal to the first process, though the shim cannot be asked to.
    async fn signal_without_shim(&self, number: i32, run: &RunWatch, why: &str) -> Result<()> {
        tracing::warn!("send signal {number}: {why}");
        if number == signal::KILL {
            self.kill_directly(run).await
        } else {
            self.signal_directly(number, run).await
        }
    }

    /// Returns whether a shim that does not answer is exiting: the engine may not have seen its end
    /// yet.
    pub(crate) async fn is_ending(&self) -> bool {
        const PATIENCE: Duration = Duration::from_secs(2);
        tokio::time::timeout(PATIENCE, self.wait_until_idle())
            .await
            .is_ok()
    }

    /// Waits until the shim of the last run has exited. [`Workload::await_shim_exit`] ends one that
    /// never does.
    async fn wait_until_idle(&self) {
        let mut run = self.run.subscribe();
        // Never closed: `self` owns the sender.
        let _ = run.wait_for(|run| run.stage == Stage::Idle).await;
    }

    /// Returns the exit record that the shim has written, if there is one.
    pub(crate) fn exit_record(&self) -> Option<Exit> {
        serde_json::from_slice(&fs::read(self.directory().join("exit.json")).ok()?).ok()
    }

    /// Returns how the workload ended, when its shim is gone. Without an exit record its processes
    /// are killed now, because nothing reads their output or reaps them any more.
    pub(crate) async fn reap(&self) -> Reaped {
        if let Some(exit) = self.exit_record() {
            self.end();
            return Reaped {
                exit,
                was_lost: false,
                left: None,
            };
        }
        let path = self.cgroup.clone();
        let left = blocking(move || end_processes(&path)).await.err();
        if let Some(error) = &left {
            tracing::warn!(
                "kill the processes of {} without a shim: {error}",
                self.address
            );
        }
        self.end();
        Reaped {
            exit: killed(),
            was_lost: true,
            left,
        }
    }

    /// Kills the processes that are left of a start whose shim has ended. Blocking.
    ///
    /// # Errors
    /// Returns an error if processes may be left.
    pub(crate) fn end_processes(&self) -> Result<()> {
        end_processes(&self.cgroup)
    }

    /// Like [`Workload::end_processes`]; an error is logged.
    pub(crate) async fn kill_left(&self) {
        let path = self.cgroup.clone();
        if let Err(error) = blocking(move || end_processes(&path)).await {
            tracing::warn!("kill what is left of {}: {error}", self.address);
        }
    }

    /// Notes that the processes of the run have ended.
    fn end(&self) {
        self.run.send_if_modified(|run| {
            let is_running = run.stage == Stage::Running;
            if is_running {
                run.stage = Stage::Ended;
            }
            is_running
        });
    }

    /// Returns when the shim has begun, in nanoseconds since the epoch: the modification time of its
    /// socket, or the current time.
    pub(crate) fn shim_started_at(&self) -> i64 {
        let made = fs::metadata(self.directory().join("shim.sock"))
            .ok()
            .and_then(|found| found.modified().ok());
        let since = made.and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
        since
            .and_then(|since| i64::try_from(since.as_nanos()).ok())
            .unwrap_or_else(now)
    }
}

/// Kills the processes of a workload that has no shim, and removes its cgroup.
pub(crate) fn end_processes(path: &str) -> Result<()> {
    let cgroup = Cgroup::at(path)?;
    if cgroup.exists() {
        let _ = cgroup.freeze(false);
        cgroup.kill_all()?;
        cgroup.remove()?;
    }
    Ok(remove_hybrid(path)?)
}

/// Returns the exit of a workload that SIGKILL has ended now.
fn killed() -> Exit {
    Exit {
        code: KILLED,
        signal: Some(signal::KILL),
        at: now(),
        ..Exit::default()
    }
}

/// Follows a run: receives the shim's events, and connects to the shim again when the connection is
/// lost.
#[derive(Debug)]
pub(crate) struct Monitor {
    workload: Arc<Workload>,
    events: Option<UnixStream>,
}

impl Monitor {
    /// Returns the next event; [`Event::Exited`] is the last. Returns `None` if the shim is gone
    /// without having sent it: [`Workload::reap`] says how the run ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        /// Delay before an unresponsive shim is probed again.
        const RETRY_DELAY: Duration = Duration::from_secs(1);
        let workload = &self.workload;
        loop {
            if let Some(events) = &mut self.events
                && let Ok(event) = shims::read_event(events).await
            {
                return Some(self.received(event));
            }
            match workload.probe(ANSWER_TIMEOUT).await {
                ShimStatus::Running { state, events } => {
                    if workload.shim().is_none() {
                        workload.set_shim(ShimProcess::of_peer(&events));
                    }
                    self.events = Some(events);
                    return Some(self.received(state));
                }
                ShimStatus::Gone => return None,
                ShimStatus::Unresponsive => {
                    if workload.shim().is_none() {
                        workload.set_shim(shims::listener(&workload.address).await);
                    }
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    fn received(&self, event: Event) -> Event {
        match &event {
            Event::State { pid, .. } => {
                let pid = *pid;
                self.workload.run.send_modify(|run| run.pid = pid);
            }
            Event::Exited(_) => self.workload.end(),
            _ => {}
        }
        event
    }

    /// Waits until the shim has exited, and deletes the run directory. The shim needs it until then:
    /// it may still be writing the last output to clients.
    pub(crate) async fn finish(self) {
        if let Some(mut events) = self.events {
            while shims::read_event(&mut events).await.is_ok() {}
        }
        self.workload.delete_directory();
        self.workload.set_shim(None);
        self.workload.set_stage(Stage::Idle);
    }
}
