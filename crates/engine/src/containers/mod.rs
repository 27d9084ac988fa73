//! Containers and their lives.
//!
//! ```text
//!            start              pause
//! created ──────────► running ◄───────► paused
//!    │                 │   ▲ restart policy
//!    │            exit ▼   │
//!    │               exited ──(restarting)
//!    └──── rm ──► removing ◄┘ ──► gone (or dead, if files could not be removed)
//! ```
//! Each operation on a container holds its `operation` lock, so that two never interleave. What
//! others see is the record behind a lock of its own, held only for moments: a stuck container
//! never blocks a list.

mod attach;
mod audit;
mod create;
mod donors;
mod exec;
mod files;
mod inspect;
mod links;
mod list;
mod log_watch;
mod logs;
mod monitor;
mod network;
mod recover;
mod remove;
mod start;
mod stop;
mod top;
mod update;
mod volumes;
mod wait;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use whelk_shim::protocol::{Attach, Reply, Request};

pub use attach::{AttachRequest, Attached};
pub(crate) use audit::audit;
pub use create::{CreateRequest, Created};
pub use exec::{Exec, ExecConfig, ExecStart, ExecState};
pub use inspect::{Exported, Inspected, MountPoint};
pub use list::{FILTERS, ListRequest, Listed, ListedPort};
pub use logs::{LogChunk, LogsRequest};
pub use remove::RemoveRequest;
pub use top::Top;
pub use update::UpdateRequest;
pub use volumes::CopyVolume;
pub use wait::{WaitCondition, Waited};

use self::log_watch::LogWatch;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::images::Images;
use crate::instance::Instance;
use crate::model::{Record, State, Status};
use crate::networks::Networks;
use crate::shims::{ANSWER, Shims, ask};
use crate::store::Store;
use crate::validate::Host;
use crate::volumes::Volumes;

/// All containers of an engine.
#[derive(Debug)]
pub struct Containers {
    pub(crate) instance: Instance,
    pub(crate) store: Arc<Store>,
    pub(crate) images: Arc<Images>,
    pub(crate) networks: Arc<Networks>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) events: Arc<Events>,
    pub(crate) shims: Arc<Shims>,
    pub(crate) host: Host,
    /// The engine's own program, for `--init`.
    pub(crate) executable: PathBuf,
    index: RwLock<Index>,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    /// How `--rm` containers ended that are gone, for those who ask late.
    exits: Mutex<wait::Exits>,
    /// Made when the first log is followed; `None` if the kernel refuses.
    log_watch: OnceLock<Option<Arc<LogWatch>>>,
    /// Files of compiled seccomp filters by profile and capabilities.
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
    record: Mutex<Record>,
    /// Held from the copy of the record until the store has it, so that an older copy never
    /// replaces a newer one.
    saving: Mutex<()>,
    operation: tokio::sync::Mutex<()>,
    /// Held while its places in networks change, which its end does as well.
    networking: Mutex<()>,
    progress: watch::Sender<Progress>,
    /// How often it has ended soon after its start in a row: the restart policy waits longer each
    /// time.
    short_runs: AtomicU32,
    /// How many are stopping it in order to start it again.
    restarts: AtomicU32,
    /// The `resolv.conf` that this engine wrote last: one that differs was edited, and is left
    /// alone. Empty until then.
    resolver_file: Mutex<String>,
    /// Clients that attached before the start.
    waiting: Mutex<Vec<(Attach, OwnedFd)>>,
    /// How many read its log.
    readers: watch::Sender<usize>,
    /// Held by the one thread that looks at what the container's processes have: their files and
    /// memory may keep it for ever.
    looking: Arc<tokio::sync::Mutex<()>>,
    /// Takes a shim's last sign of life from its monitor to whoever wants to start the container
    /// again.
    shim: watch::Sender<bool>,
}

/// What those who wait for a container look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub running: bool,
    /// How often it has ended (or failed to start).
    pub exits: u64,
    pub exit_code: i32,
    pub removed: bool,
}

/// The end of a container's run.
struct End {
    progress: watch::Receiver<Progress>,
    /// How often it had ended before.
    exits: u64,
}

impl End {
    /// Waits until it has come.
    async fn come(&mut self) {
        let exits = self.exits;
        // The container, which has the sender, outlives whatever is done to it.
        let _ = self
            .progress
            .wait_for(|now| !now.running || now.exits > exits)
            .await;
    }
}

/// What a new set of containers is made with.
#[derive(Debug)]
pub struct Parts {
    pub instance: Instance,
    pub store: Arc<Store>,
    pub images: Arc<Images>,
    pub networks: Arc<Networks>,
    pub volumes: Arc<Volumes>,
    pub events: Arc<Events>,
    pub shims: Arc<Shims>,
    pub host: Host,
    pub executable: PathBuf,
}

impl Containers {
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            instance,
            store,
            images,
            networks,
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
            volumes,
            events,
            shims,
            host,
            executable,
            index: RwLock::default(),
            execs: Mutex::default(),
            exits: Mutex::default(),
            log_watch: OnceLock::new(),
            filters: Mutex::default(),
        })
    }

    /// Finds a container by id, name, or a beginning of the id that no other has.
    ///
    /// # Errors
    /// None, or several.
    pub fn find(&self, name: &str) -> Result<Arc<Container>> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
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
        self.index
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_id
            .get(id)
            .cloned()
    }

    pub fn all(&self) -> Vec<Arc<Container>> {
        self.index
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_id
            .values()
            .cloned()
            .collect()
    }

    fn add(&self, container: Arc<Container>) {
        let name = container.record().name.clone();
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.by_name.insert(name, container.id.clone());
        index.by_id.insert(container.id.clone(), container);
    }

    fn forget(&self, container: &Container) {
        let name = container.record().name.clone();
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        if index.by_name.get(&name) == Some(&container.id) {
            index.by_name.remove(&name);
        }
        index.by_id.remove(&container.id);
    }

    /// Writes a container's record to the store.
    fn save(&self, container: &Container) -> Result<()> {
        let _saving = container.saving();
        let record = container.record().clone();
        self.store.update_container(&record)
    }

    /// The same where its settings have changed, or its run is over.
    fn save_with_copy(&self, container: &Container) -> Result<()> {
        let _saving = container.saving();
        let record = container.record().clone();
        self.store.update_container_and_copy(&record)
    }

    /// Asks the shim of a container that runs.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the container has ended meanwhile.
    async fn ask(&self, container: &Container, request: &Request) -> Result<Reply> {
        match ask(&self.instance, &container.id, request).await {
            Ok((reply, _)) => Ok(reply),
            Err(_) if container.is_ending().await => Err(Error::conflict(format!(
                "container {} is not running",
                container.id
            ))),
            Err(error) => Err(error),
        }
    }

    /// Writes the record where there is nobody to report a failure to.
    fn save_or_complain(&self, container: &Container) {
        if let Err(error) = self.save(container) {
            tracing::error!(container = container.id, "{error}");
        }
    }

    /// Tells the bus what happened to a container.
    fn publish(&self, container: &Container, action: &str, more: &[(&str, String)]) {
        self.publish_of(&container.record().clone(), action, more);
    }

    fn publish_of(&self, record: &Record, action: &str, more: &[(&str, String)]) {
        let mut attributes = record.config.labels.clone();
        attributes.insert("image".into(), record.config.image.clone());
        attributes.insert("name".into(), record.name.clone());
        attributes.extend(
            more.iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone())),
        );
        self.events
            .publish("container", action, record.id.clone(), attributes);
    }
}

impl Container {
    fn new(record: Record) -> Arc<Self> {
        let progress = Progress {
            exit_code: record.state.exit_code,
            ..Progress::default()
        };
        Arc::new(Self {
            id: record.id.clone(),
            record: Mutex::new(record),
            saving: Mutex::default(),
            operation: tokio::sync::Mutex::new(()),
            networking: Mutex::default(),
            resolver_file: Mutex::default(),
            progress: watch::Sender::new(progress),
            short_runs: AtomicU32::default(),
            restarts: AtomicU32::default(),
            waiting: Mutex::default(),
            readers: watch::Sender::default(),
            looking: Arc::default(),
            shim: watch::Sender::new(false),
        })
    }

    /// The record as it is now. Hold it for moments only, and never across an `await`.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saving(&self) -> MutexGuard<'_, ()> {
        self.saving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn networking(&self) -> MutexGuard<'_, ()> {
        self.networking
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn resolver_file(&self) -> MutexGuard<'_, String> {
        self.resolver_file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> State {
        self.record().state.clone()
    }

    pub fn status(&self) -> Status {
        self.record().state.status
    }

    pub fn name(&self) -> String {
        self.record().name.clone()
    }

    /// Whether a shim of this container is alive.
    fn has_shim(&self) -> bool {
        *self.shim.borrow()
    }

    /// The running container's first process.
    ///
    /// # Errors
    /// In Docker's words, when it does not run.
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

    /// Waits for a start that is under way, so that what comes meanwhile finds the container
    /// running, as with Docker.
    async fn started(&self) {
        if !self.status().is_running() {
            drop(self.operation.lock().await);
        }
    }

    /// Looks at the container's files or at its processes' memory, on a thread that may block: a
    /// file system that the container serves itself need not answer. One such thread for each
    /// container at a time, so that it cannot take all.
    ///
    /// # Errors
    /// It takes too long.
    async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let looking = self.looking.clone();
        let looked = async {
            let turn = looking.lock_owned().await;
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work()
            })
            .await
        };
        match tokio::time::timeout(ANSWER, looked).await {
            Ok(result) => result.map_err(|error| Error::internal(error.to_string())),
            Err(_) => Err(Error::internal(format!(
                "the files of container {} do not answer",
                self.id
            ))),
        }
    }

    /// Waits for the turn to do something to the container, which was found by `name`.
    ///
    /// # Errors
    /// It was removed meanwhile.
    async fn turn(&self, name: &str) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        let operation = self.operation.lock().await;
        if self.progress.borrow().removed {
            return Err(Error::no_such_container(name));
        }
        Ok(operation)
    }

    /// Begins to watch for the container's end. Taken before the container is seen to run, it
    /// misses none.
    fn end(&self) -> End {
        let mut progress = self.progress.subscribe();
        let exits = progress.borrow_and_update().exits;
        End { progress, exits }
    }

    /// Returns whether the shim, which does not answer, ends just now: the engine may not have seen
    /// that yet.
    async fn is_ending(&self) -> bool {
        const PATIENCE: Duration = Duration::from_secs(2);
        tokio::time::timeout(PATIENCE, self.shim_gone())
            .await
            .is_ok()
    }

    /// Waits until the shim of the last run has ended: only then may the next one use its directory
    /// and cgroup.
    async fn shim_gone(&self) {
        let mut shim = self.shim.subscribe();
        // The sender lives in self: it cannot be gone.
        let _ = shim.wait_for(|alive| !alive).await;
    }
}
