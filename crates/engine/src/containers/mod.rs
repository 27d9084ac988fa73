//! Containers and their life cycle.
//!
//! ```text
//!            start              pause
//! created ──────────► running ◄───────► paused
//!    │                 │   ▲ restart policy
//!    │            exit ▼   │
//!    │               exited ──(restarting)
//!    └──── rm ──► removing ◄┘ ──► gone (or dead, if files could not be removed)
//! ```
//! Each operation on a container holds its `operation` lock, so that two never interleave. The
//! record has its own lock, which is held only briefly: a stuck container never blocks a list.

mod applied;
mod attach;
mod audit;
mod check;
mod commit;
mod copy;
mod create;
mod device_requests;
mod devices;
mod diff;
mod donors;
mod exec;
mod files;
mod health;
mod inspect;
mod kill;
mod links;
mod list;
mod log_usage;
mod log_watch;
mod logs;
mod monitor;
mod network;
mod pause;
mod readers;
mod recover;
mod remove;
mod rename;
mod resize;
mod restart;
mod sandbox;
mod shutdown;
mod start;
mod stats;
mod step;
mod stop;
mod top;
mod update;
mod volumes;
mod wait;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};
use std::task::{Context, Poll};
use tracing::Instrument as _;
use whelk_sys::sync::IgnorePoison as _;

use tokio::sync::{OwnedMutexGuard, watch};
use whelk_shim::protocol::{Attach, Reply, Request};

pub use attach::{AttachRequest, Attached};
pub(crate) use audit::audit;
pub use commit::CommitRequest;
pub use copy::{ArchivedPath, ExtractRequest, ExtractTarget, PathStat};
pub use create::{CreateRequest, Created};
pub use diff::{Change, ChangeKind};
pub use exec::{ExecConfig, ExecSession, ExecStart, ExecState};
pub(crate) use health::start_checks;
pub use inspect::{Exported, Inspected, MountPoint};
pub use list::{ContainerSummary, FILTERS, ListRequest, ListedPort};
pub use log_usage::LogUsage;
pub use logs::{LogChunk, LogsRequest};
pub use remove::RemoveRequest;
pub use stats::{
    BlockIoCount, BlockIoUsage, CpuSample, InterfaceCounts, Sample, Stats, StatsStream,
};
pub use step::{RunningStep, Step};
pub use top::Top;
pub use update::{FixedResources, UpdateRequest};
pub use volumes::CopyVolume;
pub use wait::{WaitCondition, Waited};

use self::log_watch::LogWatch;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::host::HostInfo;
use crate::images::Images;
use crate::instance::Instance;
use crate::model::{ContainerRecord, ContainerState, Status};
use crate::networks::{Networks, Sandboxes};
use crate::shims::{ANSWER_TIMEOUT, ShimAddress, WarmPool, WorkloadKind};
use crate::spec;
use crate::store::RecordStore;
use crate::volumes::Volumes;
use crate::workload::Workload;

/// Returns whether a name has the form of a container's id.
pub(crate) fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// All containers of an engine.
#[derive(Debug)]
pub struct Containers {
    pub(crate) instance: Instance,
    pub(crate) store: Arc<RecordStore>,
    pub(crate) images: Arc<Images>,
    pub(crate) networks: Arc<Networks>,
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) events: Arc<Events>,
    pub(crate) shims: Arc<WarmPool>,
    pub(crate) host: HostInfo,
    /// The path of the engine's own program, which `--init` mounts into containers.
    pub(crate) executable: PathBuf,
    index: RwLock<Index>,
    execs: Mutex<HashMap<String, Arc<ExecSession>>>,
    /// Exit codes of `--rm` containers that are removed, for later `wait` requests.
    exits: Mutex<wait::Exits>,
    /// Created when the first log is followed; `None` if inotify is not available.
    log_watch: OnceLock<Option<Arc<LogWatch>>>,
    /// Whether the host shuts down, so that restart policies start nothing until the next engine.
    is_shutting_down: AtomicBool,
    /// When the health of which container is checked next.
    pub(crate) health_checks: Arc<health::Schedule>,
    /// The containers that have a stream of statistics.
    watched: stats::Watched,
    /// Paths of compiled seccomp filters, by a hash of profile and capabilities.
    filters: Mutex<HashMap<String, PathBuf>>,
}

#[derive(Debug, Default)]
struct Index {
    by_id: BTreeMap<String, Arc<Container>>,
    by_name: HashMap<String, String>,
}

/// One container.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    record: Mutex<ContainerRecord>,
    /// Held from the copy of the record until the store has it, so that an older copy never
    /// replaces a newer one.
    saving: Mutex<()>,
    operation: Arc<tokio::sync::Mutex<()>>,
    /// Held while its endpoints change; the container's exit changes them too.
    networking: Mutex<()>,
    progress: watch::Sender<Progress>,
    /// Number of consecutive short runs, which determines the restart policy's delay.
    short_runs: AtomicU32,
    /// Number of `restart` operations that are stopping it. Its exit does not remove a `--rm`
    /// container then.
    restarts: AtomicU32,
    /// The `resolv.conf` that this engine wrote last; empty until then. A file that differs was
    /// edited, and is not overwritten.
    resolver_file: Mutex<String>,
    /// Clients that attached before the start, with their streams.
    waiting_clients: Mutex<Vec<(Attach, OwnedFd)>>,
    /// Number of readers of its log.
    log_readers: watch::Sender<usize>,
    /// Number of operations that read its writable layer by itself, not in a view.
    layer_readers: watch::Sender<usize>,
    /// The engine's own pauses of it.
    pauses: Mutex<pause::Pauses>,
    /// The views of its files that copies use.
    views: copy::view::Views,
    /// Held by the one thread that accesses the files and memory of the container's processes,
    /// which may block it for ever.
    process_access: Arc<tokio::sync::Mutex<()>>,
    /// The health checks of its current run.
    health: Mutex<health::Checks>,
    /// The signal of the stop that waits for it, if its main process has no handler for it; 0 if there is none.
    unhandled_signal: AtomicI32,
    /// The CPU time that a client was told last.
    last_sample: Mutex<Option<stats::CpuSample>>,
    /// Its shim and its processes.
    workload: Arc<Workload>,
}

/// The state that waiters for a container observe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub running: bool,
    /// Number of exits and failed starts.
    pub exits: u64,
    pub exit_code: i32,
    pub removed: bool,
}

/// A subscription to the end of a container's current run.
#[derive(Clone)]
struct ExitWatch {
    progress: watch::Receiver<Progress>,
    /// The number of exits before.
    exits: u64,
}

impl ExitWatch {
    /// Waits until the run has ended.
    async fn exited(&mut self) {
        let exits = self.exits;
        // Never closed: the container owns the sender.
        let _ = self
            .progress
            .wait_for(|now| !now.running || now.exits > exits)
            .await;
    }

    /// Returns whether the run has ended; another one may have begun since.
    fn has_ended(&self) -> bool {
        let now = self.progress.borrow();
        !now.running || now.exits > self.exits
    }
}

/// The arguments of [`Containers::new`].
#[derive(Debug)]
pub struct Parts {
    pub instance: Instance,
    pub store: Arc<RecordStore>,
    pub images: Arc<Images>,
    pub networks: Arc<Networks>,
    pub sandboxes: Arc<Sandboxes>,
    pub volumes: Arc<Volumes>,
    pub events: Arc<Events>,
    pub shims: Arc<WarmPool>,
    pub host: HostInfo,
    pub executable: PathBuf,
}

impl Containers {
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            instance,
            store,
            images,
            networks,
            sandboxes,
            volumes,
            events,
            shims,
            host,
            executable,
        } = parts;
        Arc::new(Self {
            instance,
            store,
            images,
            networks,
            sandboxes,
            volumes,
            events,
            shims,
            host,
            executable,
            index: RwLock::default(),
            execs: Mutex::default(),
            exits: Mutex::default(),
            log_watch: OnceLock::new(),
            is_shutting_down: AtomicBool::default(),
            health_checks: Arc::default(),
            watched: stats::Watched::default(),
            filters: Mutex::default(),
        })
    }

    /// Returns whether the host has cgroups of version 2.
    pub fn host_has_cgroup_v2(&self) -> bool {
        self.host.cgroup_v2
    }

    /// Finds a container by id, name, unique prefix of the id, or link name (`LINKER/ALIAS`).
    ///
    /// # Errors
    /// Returns an error if there is none, or if the prefix is ambiguous.
    pub fn find(&self, name: &str) -> Result<Arc<Container>> {
        let index = self.index.read().ignore_poison();
        let plain = name.strip_prefix('/').unwrap_or(name);
        if let Some(container) = index
            .by_id
            .get(plain)
            .or_else(|| index.by_name.get(plain).and_then(|id| index.by_id.get(id)))
        {
            return Ok(container.clone());
        }
        if plain.is_empty() {
            return Err(Error::no_such_container(name));
        }
        if let Some((linker, alias)) = plain.split_once('/') {
            drop(index);
            let linked = self
                .find(linker)
                .ok()
                .and_then(|linker| self.linked(&linker, alias));
            return linked.ok_or_else(|| Error::no_such_container(name));
        }
        let mut matches = index
            .by_id
            .range(plain.to_owned()..)
            .take_while(|(id, _)| id.starts_with(plain));
        match (matches.next(), matches.next()) {
            (Some((_, container)), None) => Ok(container.clone()),
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "multiple IDs found with provided prefix: {name}"
            ))),
            (None, _) => Err(Error::no_such_container(name)),
        }
    }

    fn by_id(&self, id: &str) -> Option<Arc<Container>> {
        self.index.read().ignore_poison().by_id.get(id).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Container>> {
        self.index
            .read()
            .ignore_poison()
            .by_id
            .values()
            .cloned()
            .collect()
    }

    fn add(&self, container: Arc<Container>) {
        let name = container.record().name.clone();
        let mut index = self.index.write().ignore_poison();
        index.by_name.insert(name, container.id.clone());
        index.by_id.insert(container.id.clone(), container);
    }

    /// Removes a container from the index.
    fn remove_from_index(&self, container: &Container) {
        let mut index = self.index.write().ignore_poison();
        // By its id: during a rename it has two names, and its record may have either.
        index.by_name.retain(|_, id| *id != container.id);
        index.by_id.remove(&container.id);
    }

    /// Writes a container's record to the store.
    fn save(&self, container: &Container) -> Result<()> {
        let _saving = container.saving();
        let record = container.record().clone();
        self.store.update_container(&record)
    }

    /// Like [`Containers::save`], and also writes the copy in the container's directory. Used when
    /// settings have changed or a run has ended.
    fn save_with_copy(&self, container: &Container) -> Result<()> {
        let _saving = container.saving();
        let record = container.record().clone();
        self.store.update_container_and_copy(&record)
    }

    /// Sends a request to a running container's shim.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if the container has ended meanwhile.
    async fn request_shim(&self, container: &Container, request: &Request) -> Result<Reply> {
        match container.workload.request(request).await {
            Ok((reply, _)) => Ok(reply),
            Err(_) if container.workload.is_ending().await => Err(Error::conflict(format!(
                "container {} is not running",
                container.id
            ))),
            Err(error) => Err(error),
        }
    }

    /// Writes a container's record, and logs an error. Used where no client waits for the result.
    fn save_or_log(&self, container: &Container) {
        if let Err(error) = self.save(container) {
            tracing::error!(container = container.id, "save the record: {error}");
        }
    }

    /// Publishes an event of a container, with `more` attributes.
    fn publish(&self, container: &Container, action: &str, more: &[(&str, String)]) {
        self.publish_of(&container.record(), action, more);
    }

    /// Like [`Containers::publish`], for callers that hold the record's lock.
    fn publish_of(&self, record: &ContainerRecord, action: &str, more: &[(&str, String)]) {
        let (id, attributes) = Self::actor_of(record, more);
        self.events.publish("container", action, id, attributes);
    }

    /// Returns the id and the attributes of a container's event.
    fn actor_of(
        record: &ContainerRecord,
        more: &[(&str, String)],
    ) -> (String, BTreeMap<String, String>) {
        let mut attributes = record.config.labels.clone();
        attributes.insert("image".into(), record.config.image.clone());
        attributes.insert("name".into(), record.name.clone());
        attributes.extend(
            more.iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone())),
        );
        (record.id.clone(), attributes)
    }
}

/// Runs an operation of several steps to its end, even if the future of the request is dropped in the
/// middle: then it moves to a task of its own. It does not begin in one, because that would wake
/// another thread for each operation.
///
/// # Errors
/// Returns the operation's errors, and an error if it panics.
async fn to_its_end<T: Send + 'static>(
    operation: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    // Its logs name the client, as those of the request do.
    ToItsEnd(Some(Box::pin(operation.in_current_span()))).await
}

/// `None` when it has ended.
struct ToItsEnd<T: Send + 'static>(Option<Pin<Box<dyn Future<Output = Result<T>> + Send>>>);

impl<T: Send + 'static> Future for ToItsEnd<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let Some(mut operation) = self.0.take() else {
            return Poll::Pending;
        };
        // A future that has panicked must not be polled again.
        let polled = catch_unwind(AssertUnwindSafe(|| operation.as_mut().poll(context)));
        let Ok(outcome) = polled else {
            return Poll::Ready(Err(Error::internal("the operation has panicked")));
        };
        if outcome.is_pending() {
            self.0 = Some(operation);
        }
        outcome
    }
}

impl<T: Send + 'static> Drop for ToItsEnd<T> {
    fn drop(&mut self) {
        if let Some(operation) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            drop(runtime.spawn(async {
                if let Err(error) = operation.await {
                    tracing::warn!("an operation whose client has left failed: {error}");
                }
            }));
        }
    }
}

impl Container {
    fn new(record: ContainerRecord, instance: &Instance) -> Arc<Self> {
        let id = &record.id;
        let cgroup = spec::cgroup_path(&record.host, &instance.cgroup_parent(), id);
        let address = ShimAddress {
            kind: WorkloadKind::Container,
            id: id.clone(),
            directory: instance.run_dir(id),
        };
        let workload = Workload::new(instance, address, cgroup);
        let progress = Progress {
            exit_code: record.state.exit_code,
            ..Progress::default()
        };
        Arc::new(Self {
            id: record.id.clone(),
            record: Mutex::new(record),
            saving: Mutex::default(),
            operation: Arc::default(),
            networking: Mutex::default(),
            resolver_file: Mutex::default(),
            progress: watch::Sender::new(progress),
            short_runs: AtomicU32::default(),
            restarts: AtomicU32::default(),
            waiting_clients: Mutex::default(),
            log_readers: watch::Sender::default(),
            layer_readers: watch::Sender::default(),
            pauses: Mutex::default(),
            views: copy::view::Views::default(),
            process_access: Arc::default(),
            health: Mutex::default(),
            unhandled_signal: AtomicI32::default(),
            last_sample: Mutex::default(),
            workload: Arc::new(workload),
        })
    }

    /// Locks and returns the record. The lock must be held only briefly, and never across an
    /// `await`.
    pub fn record(&self) -> MutexGuard<'_, ContainerRecord> {
        self.record.lock().ignore_poison()
    }

    fn saving(&self) -> MutexGuard<'_, ()> {
        self.saving.lock().ignore_poison()
    }

    fn networking(&self) -> MutexGuard<'_, ()> {
        self.networking.lock().ignore_poison()
    }

    fn resolver_file(&self) -> MutexGuard<'_, String> {
        self.resolver_file.lock().ignore_poison()
    }

    pub fn state(&self) -> ContainerState {
        self.record().state.clone()
    }

    pub fn status(&self) -> Status {
        self.record().state.status
    }

    pub fn name(&self) -> String {
        self.record().name.clone()
    }

    /// Returns the pid of the running container's init process.
    ///
    /// # Errors
    /// Returns an error, with Docker's text, if it does not run.
    pub(crate) fn running_pid(&self) -> Result<i32> {
        let record = self.record();
        if record.state.status.is_running() {
            Ok(record.state.pid)
        } else {
            Err(Error::conflict(format!(
                "container {} is not running",
                self.id
            )))
        }
    }

    /// Waits for a start that is under way, so that a request during it finds the container
    /// running, as with Docker.
    async fn wait_for_start(&self) {
        if !self.status().is_running() {
            drop(self.operation.lock().await);
        }
    }

    /// Runs `work`, which accesses the container's files or its processes' memory, on a blocking
    /// thread: a file system that the container itself serves (FUSE) may never answer. Only one
    /// such thread per container runs at a time, so that a container cannot block all threads.
    ///
    /// # Errors
    /// Returns an error if it takes longer than [`ANSWER_TIMEOUT`].
    async fn with_process_access<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let access = self.process_access.clone();
        let result = async {
            let turn = access.lock_owned().await;
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work()
            })
            .await
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, result).await {
            Ok(result) => result.map_err(|error| Error::internal(error.to_string())),
            Err(_) => Err(Error::internal(format!(
                "access to the files of container {} timed out",
                self.id
            ))),
        }
    }

    /// Waits for the container's operation lock, which can be handed to a task or thread with the
    /// operation. `name` is what the container was found by.
    ///
    /// # Errors
    /// Returns an error if the container was removed meanwhile.
    pub(crate) async fn lock_operation(&self, name: &str) -> Result<OwnedMutexGuard<()>> {
        let operation = self.operation.clone().lock_owned().await;
        if self.progress.borrow().removed {
            return Err(Error::no_such_container(name));
        }
        Ok(operation)
    }

    /// Returns the error of an operation on the container's files, which is another if they have been
    /// removed meanwhile.
    fn explain(&self, error: Error) -> Error {
        if self.progress.borrow().removed || self.status() == Status::Removing {
            return Error::no_such_container(&self.id);
        }
        error
    }

    /// Subscribes to the container's exit. Called before the status is checked, it misses none.
    fn watch_exit(&self) -> ExitWatch {
        let mut progress = self.progress.subscribe();
        let exits = progress.borrow_and_update().exits;
        ExitWatch { progress, exits }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[tokio::test]
    async fn an_operation_goes_on_without_its_request() {
        let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
        let (done, is_done) = tokio::sync::oneshot::channel();
        let mut request = Box::pin(to_its_end(async move {
            let _ = wait.await;
            let _ = done.send(());
            Ok(())
        }));
        let mut context = Context::from_waker(Waker::noop());
        assert!(request.as_mut().poll(&mut context).is_pending());
        drop(request);
        go_on.send(()).unwrap();
        is_done.await.unwrap();
    }

    #[tokio::test]
    async fn an_operation_that_panics_has_failed() {
        let operation = to_its_end::<()>(async {
            tokio::task::yield_now().await;
            panic!("this is the test's");
        });
        let error = operation.await.unwrap_err();
        assert_eq!(error.to_string(), "the operation has panicked");
    }

    #[tokio::test]
    async fn an_operation_stays_in_the_task_of_its_request() {
        let request = tokio::spawn(async {
            let operation = to_its_end(async {
                tokio::task::yield_now().await;
                Ok(tokio::task::id())
            });
            (tokio::task::id(), operation.await.unwrap())
        });
        let (request, operation) = request.await.unwrap();
        assert_eq!(request, operation);
    }
}
