//! Workloads that have no record: a step of a build, a job. A task follows each to its end; whoever
//! has started it waits for that, or drops its [`Started`], which kills it. Those that a killed
//! engine leaves behind are killed when the next one starts.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use whelk_runtime::Rootfs;
use whelk_runtime::cgroup::Cgroup;
use whelk_runtime::launch::NodeOfUser;
use whelk_runtime::spec::{Namespace, NamespaceKind, Spec};
use whelk_runtime::user::UserRequest;
use whelk_shim::logs::LogConfig;
use whelk_shim::protocol::{Attach, ContainerLaunch, Event, ExecLaunch, Exit, Reply, Request};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;
use whelk_text::signal;

use super::{Begun, Monitor, Reaped, RunWatch, Workload, blocking, end_processes, killed};
use crate::error::{Error, Result};
use crate::findings::Findings;
use crate::instance::Instance;
use crate::networks::OwnedSandbox;
use crate::shims::{LaunchError, ShimAddress, ShimStatus, WarmPool, WorkloadKind};

/// The file in a run directory that has the path of the workload's cgroup, if that is not below the engine's.
const CGROUP_FILE: &str = "cgroup";

/// The beginning of the names of workloads' cgroups.
pub(crate) const WORKLOAD_PREFIX: &str = "workload-";

/// A workload to start: an OCI configuration, and settings that it does not have.
#[derive(Debug)]
pub struct Bundle {
    /// Unique among the workloads that run; a file name.
    pub id: String,
    /// Its cgroup is set by [`Workloads::start`].
    pub spec: Spec,
    /// The cgroup above its own; empty for the engine's.
    pub cgroup_parent: String,
    pub rootfs: Rootfs,
    /// Mounts of lower layers of `rootfs` that are images, with their indices. The shim mounts others.
    pub layers: Vec<(usize, OwnedFd)>,
    /// The user to look up inside `rootfs`; without a name the configuration's is used.
    pub user: UserRequest,
    /// The file of a compiled seccomp filter; `None` for none.
    pub filter: Option<PathBuf>,
    pub log: LogConfig,
    /// Whether to keep standard input open for the stream that is attached to it, which ends it.
    pub stdin: bool,
    /// Streams that are connected before the program begins.
    pub attached: Vec<(Attach, OwnedFd)>,
    /// Device nodes that belong to the user of the first process.
    pub nodes_of_user: Vec<NodeOfUser>,
    /// Replaces the network namespace of the configuration.
    pub network: WorkloadNetwork,
}

/// The network namespace of a workload.
#[derive(Clone, Debug)]
pub enum WorkloadNetwork {
    /// The host's.
    Host,
    /// A new one with nothing but a loopback interface.
    None,
    /// That of a sandbox, which several workloads can share. It is kept until nothing is left of
    /// the workload.
    Sandbox(Arc<OwnedSandbox>),
    /// The one that the configuration names, such as that of a container.
    Configured,
}

impl WorkloadNetwork {
    /// Sets this network in an OCI configuration. The descriptor of a sandbox's namespace is not
    /// part of it.
    fn set_in(&self, spec: &mut Spec) {
        if matches!(self, Self::Configured) {
            return;
        }
        let namespaces = &mut spec.linux.namespaces;
        namespaces.retain(|namespace| namespace.kind != NamespaceKind::Network);
        if !matches!(self, Self::Host) {
            namespaces.push(Namespace {
                kind: NamespaceKind::Network,
                path: None,
            });
        }
    }

    fn sandbox(&self) -> Option<&Arc<OwnedSandbox>> {
        match self {
            Self::Sandbox(sandbox) => Some(sandbox),
            Self::Host | Self::None | Self::Configured => None,
        }
    }
}

/// Runs workloads that have no record.
#[derive(Debug)]
pub struct Workloads {
    instance: Instance,
    shims: Arc<WarmPool>,
    /// The ids in use: each has a directory and a cgroup.
    ids: Arc<Mutex<BTreeSet<String>>>,
}

/// An id in use, until this is dropped.
#[derive(Debug)]
struct Claim {
    ids: Arc<Mutex<BTreeSet<String>>>,
    id: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.ids.lock().ignore_poison().remove(&self.id);
    }
}

/// Those who wait for the ends of further processes, by the processes' ids; `None` when the workload has ended.
type Waiters = Arc<Mutex<Option<HashMap<String, oneshot::Sender<Exit>>>>>;

/// A further process of a workload.
#[derive(Debug)]
pub struct StartedExec {
    pub id: String,
    pub pid: i32,
    /// The connection to the streams that it attaches.
    pub streams: UnixStream,
    pub end: ExecEnd,
}

/// The end of a further process.
#[derive(Debug)]
pub struct ExecEnd(oneshot::Receiver<Exit>);

impl ExecEnd {
    /// Waits for it. A process ends with its workload at the latest.
    pub async fn wait(self) -> Exit {
        self.0.await.unwrap_or_else(|_| killed())
    }
}

/// A workload that was started. It is killed when this is dropped.
#[derive(Debug)]
pub struct Started {
    /// The first process.
    pub pid: i32,
    workload: Arc<Workload>,
    run: RunWatch,
    execs: Waiters,
    /// `None` until the workload has ended and nothing is left of it.
    end: watch::Receiver<Option<Exit>>,
}

impl Workloads {
    pub(crate) fn new(instance: Instance, shims: Arc<WarmPool>) -> Self {
        Self {
            instance,
            shims,
            ids: Arc::default(),
        }
    }

    /// Returns a workload that may run, also since another engine has started it.
    fn workload(&self, id: &str) -> Arc<Workload> {
        let known = fs::read_to_string(self.instance.workload_dir(id).join(CGROUP_FILE));
        let cgroup = known.unwrap_or_else(|_| self.cgroup(id, ""));
        self.workload_at(id, cgroup)
    }

    /// Returns the path of a workload's cgroup.
    fn cgroup(&self, id: &str, parent: &str) -> String {
        match parent {
            "" => format!("{}/{WORKLOAD_PREFIX}{id}", self.instance.cgroup_parent()),
            parent => crate::mounts::clean(&format!("{parent}/{WORKLOAD_PREFIX}{id}")),
        }
    }

    fn workload_at(&self, id: &str, cgroup: String) -> Arc<Workload> {
        let address = ShimAddress {
            kind: WorkloadKind::Recordless,
            id: id.to_owned(),
            directory: self.instance.workload_dir(id),
        };
        Arc::new(Workload::new(&self.instance, address, cgroup))
    }

    /// Takes an id. Returns `None` if it is in use.
    fn claim(&self, id: &str) -> Option<Claim> {
        let is_free = self.ids.lock().ignore_poison().insert(id.to_owned());
        is_free.then(|| Claim {
            ids: self.ids.clone(),
            id: id.to_owned(),
        })
    }

    /// Returns the paths of the cgroups of workloads.
    pub(crate) fn cgroups(&self) -> BTreeSet<String> {
        let ids = self.ids.lock().ignore_poison().clone();
        let paths = ids.iter().map(|id| self.workload(id).cgroup().to_owned());
        paths.collect()
    }

    /// Looks for run directories that belong to no workload.
    pub(crate) fn check(self: &Arc<Self>, findings: &mut Findings) -> Result<()> {
        for entry in fs::list(self.instance.run.join("workloads"))? {
            let id = entry.file_name().to_string_lossy().into_owned();
            if self.ids.lock().ignore_poison().contains(&id) {
                continue;
            }
            let workloads = self.clone();
            let problem = format!("{} belongs to no workload", entry.path().display());
            findings.add(problem, move || workloads.end_unknown(&id));
        }
        Ok(())
    }

    /// Removes what is left of a workload that is not known, with its processes. Blocks.
    ///
    /// # Errors
    /// Returns a conflict if a workload has the id now.
    pub(crate) fn end_unknown(&self, id: &str) -> Result<String> {
        let claim = self.claim(id);
        let claim = claim.ok_or_else(|| Error::conflict("it belongs to a workload now"))?;
        let runtime = tokio::runtime::Handle::current();
        runtime.block_on(end_left(self.workload(id), claim))?;
        Ok("removed, with its processes".into())
    }

    /// Kills the processes of all workloads, and waits until nothing is left of them, for some seconds at most: the next
    /// engine ends what is left then.
    pub(crate) async fn close(&self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        const POLL: Duration = Duration::from_millis(10);
        let begin = Instant::now();
        // Workloads that are about to start have their ids, too.
        while !self.ids.lock().ignore_poison().is_empty() {
            let paths = self.cgroups();
            let killed = blocking(move || paths.iter().try_for_each(|path| kill_processes(path)));
            let killed = killed.await;
            if begin.elapsed() > PATIENCE {
                let why = killed.err().map(|error| format!(": {error}"));
                let why = why.unwrap_or_default();
                tracing::warn!("the next engine ends what is left of builds{why}");
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Starts a workload.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if its id is in use, and the reason why it did not start; nothing
    /// is left of it then.
    pub async fn start(&self, bundle: Bundle) -> Result<Started> {
        let mut parts = Path::new(&bundle.id).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(name)), None) if name == bundle.id.as_str())
        {
            return Err(Error::invalid(format!(
                "invalid id of a workload: {:?}: not a file name",
                bundle.id
            )));
        }
        let claim = self.claim(&bundle.id).ok_or_else(|| {
            Error::conflict(format!("a workload with the id {} is running", bundle.id))
        })?;
        let cgroup = self.cgroup(&bundle.id, &bundle.cgroup_parent);
        // The next engine must find it, too.
        let told = (!bundle.cgroup_parent.is_empty()).then(|| cgroup.clone());
        let workload = self.workload_at(&bundle.id, cgroup);
        let (mounted_layers, mounts): (Vec<usize>, Vec<OwnedFd>) =
            bundle.layers.into_iter().unzip();
        let (attached, streams): (Vec<Attach>, Vec<OwnedFd>) = bundle.attached.into_iter().unzip();
        let mut spec = bundle.spec;
        workload.cgroup().clone_into(&mut spec.linux.cgroups_path);
        bundle.network.set_in(&mut spec);
        let namespace = bundle
            .network
            .sandbox()
            .map(|sandbox| sandbox.as_fd().try_clone_to_owned())
            .transpose()
            .map_err(|error| {
                let text = whelk_sys::errno_text(&error);
                Error::kernel(format!("pass a network namespace on: {text}"), &error)
            })?;
        let launch = ContainerLaunch {
            id: bundle.id,
            spec,
            rootfs: bundle.rootfs,
            user: bundle.user,
            run_dir: workload.directory().to_owned(),
            scratch: self.instance.scratch(),
            filter: bundle.filter,
            log: bundle.log,
            stdin: bundle.stdin,
            stdin_once: true,
            attached,
            network: namespace.is_some(),
            ports: 0,
            mounted_layers,
            nodes_of_user: bundle.nodes_of_user,
            runtime: None,
        };
        let descriptors = namespace.into_iter().chain(mounts).chain(streams);
        let descriptors = descriptors.collect();
        let network = bundle.network;
        let shims = self.shims.clone();
        // If the caller is cancelled, the workload is killed as soon as it has started.
        let start = async move {
            let prepared = workload.clone();
            let make = move || {
                prepared.make_directory()?;
                if let Some(cgroup) = told {
                    fs::write(prepared.directory().join(CGROUP_FILE), cgroup)?;
                }
                Ok(())
            };
            blocking(make).await?;
            match workload.start(&shims, &launch, descriptors).await {
                Ok(Begun { pid, monitor, .. }) => Ok(Started::follow(
                    workload,
                    pid,
                    monitor,
                    claim,
                    Some(network),
                )),
                Err(error) => {
                    blocking(move || {
                        workload.delete_directory();
                        Ok(())
                    })
                    .await?;
                    Err(match error {
                        LaunchError::Engine(error) => error,
                        LaunchError::Runtime(error) => error.into(),
                    })
                }
            }
        };
        tokio::spawn(start)
            .await
            .map_err(|error| Error::internal(error.to_string()))?
    }

    /// Kills the workloads of earlier engines in the background: nobody waits for them any more.
    /// Their ids stay in use until nothing is left of them.
    ///
    /// # Errors
    /// Returns an error if they cannot be listed.
    pub(crate) fn kill_left(&self) -> Result<()> {
        for entry in fs::list(self.instance.run.join("workloads"))? {
            let id = entry.file_name().to_string_lossy().into_owned();
            let Some(claim) = self.claim(&id) else {
                continue;
            };
            tracing::info!("kill workload {id} of an earlier engine");
            let workload = self.workload(&id);
            tokio::spawn(async move {
                if let Err(error) = end_left(workload, claim).await {
                    tracing::error!("kill workload {id}: {error}");
                }
            });
        }
        Ok(())
    }
}

/// Kills a workload of an earlier engine, and removes what is left of it.
async fn end_left(workload: Arc<Workload>, claim: Claim) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let (pid, events) = match workload.probe(PATIENCE).await {
        ShimStatus::Gone => {
            let ended = blocking(move || {
                end_processes(workload.cgroup())?;
                fs::remove_tree(workload.directory())?;
                // A shim that was about to listen may have started processes after the first call.
                end_processes(workload.cgroup())
            })
            .await;
            if ended.is_err() {
                // Something is left, which a new workload must not share.
                std::mem::forget(claim);
            }
            return ended;
        }
        ShimStatus::Running {
            state: Event::State { pid, .. },
            events,
        } => (pid, Some(events)),
        ShimStatus::Running { events, .. } => (0, Some(events)),
        ShimStatus::Unresponsive => (0, None),
    };
    let monitor = workload.adopt(pid, events);
    // Dropped, and so killed.
    drop(Started::follow(workload, pid, monitor, claim, None));
    Ok(())
}

/// Kills the processes of a cgroup, if it is there. Blocks.
fn kill_processes(path: &str) -> Result<()> {
    let cgroup = Cgroup::at(path)?;
    if cgroup.exists() {
        cgroup.kill_all()?;
    }
    Ok(())
}

/// Sends SIGKILL until the run has ended: descriptors or memory may be used up for some time.
async fn kill_until_ended(workload: &Workload, run: &RunWatch) {
    const RETRY_DELAY: Duration = Duration::from_secs(1);
    while let Err(error) = workload.signal(signal::KILL, run).await {
        tracing::warn!("kill a workload that nobody waits for: {error}");
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

/// Returns how a workload ended whose shim is gone, when none of its processes is left: its id, which
/// is that of its cgroup, is in use until then.
async fn reap_all(workload: &Workload) -> Exit {
    const RETRY_DELAY: Duration = Duration::from_secs(1);
    loop {
        let Reaped { exit, left, .. } = workload.reap().await;
        if left.is_none() {
            return exit;
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

impl Started {
    /// Follows a run in a task of its own. Its network is kept until it has ended.
    fn follow(
        workload: Arc<Workload>,
        pid: i32,
        mut monitor: Monitor,
        claim: Claim,
        network: Option<WorkloadNetwork>,
    ) -> Self {
        let (ended, end) = watch::channel(None);
        let execs: Waiters = Arc::new(Mutex::new(Some(HashMap::new())));
        let (followed, waiters) = (workload.clone(), execs.clone());
        tokio::spawn(async move {
            let exit = loop {
                match monitor.next().await {
                    Some(Event::Exited(exit)) => break exit,
                    Some(Event::ExecExited { id, exit }) => {
                        let mut waiters = waiters.lock().ignore_poison();
                        let waiter = waiters.as_mut().and_then(|all| all.remove(&id));
                        // Nobody may wait any more.
                        let _ = waiter.map(|waiter| waiter.send(exit));
                    }
                    Some(_) => {}
                    None => break reap_all(&followed).await,
                }
            };
            drop(waiters.lock().ignore_poison().take());
            monitor.finish().await;
            drop((claim, network));
            ended.send_replace(Some(exit));
        });
        Self {
            pid,
            run: workload.watch_run(),
            workload,
            execs,
            end,
        }
    }

    /// Sends a signal to the first process. Succeeds if it has ended.
    ///
    /// # Errors
    /// Returns an error if the signal cannot be sent.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        self.workload.signal(signal, &self.run).await
    }

    /// Kills it, and waits until nothing is left of it. Does nothing if it has ended.
    pub async fn end(&self) {
        if self.end.borrow().is_none() {
            kill_until_ended(&self.workload, &self.run).await;
        }
        self.wait().await;
    }

    /// Starts a further process.
    ///
    /// # Errors
    /// Returns the reason why it did not start.
    pub async fn exec(&self, launch: ExecLaunch) -> Result<StartedExec> {
        let ended = || Error::conflict("the workload has ended");
        // The id may have a new run, which listens at the same place.
        if self.run.has_ended() || self.end.borrow().is_some() {
            return Err(ended());
        }
        let id = launch.id.clone();
        let (told, exit) = oneshot::channel();
        match &mut *self.execs.lock().ignore_poison() {
            Some(waiters) => drop(waiters.insert(id.clone(), told)),
            None => return Err(ended()),
        }
        let request = Request::Exec(Box::new(launch));
        let error: Error = match self.workload.request_while_alive(&request).await {
            Ok((Reply::Started { pid }, streams)) => {
                return Ok(StartedExec {
                    id,
                    pid,
                    streams,
                    end: ExecEnd(exit),
                });
            }
            Ok((Reply::Failed(error), _)) => error.into(),
            Ok(_) => Error::internal("unexpected reply of the shim"),
            Err(error) => error,
        };
        if let Some(waiters) = &mut *self.execs.lock().ignore_poison() {
            waiters.remove(&id);
        }
        Err(error)
    }

    /// Sends a signal to a further process. Succeeds if it has ended.
    ///
    /// # Errors
    /// Returns an error if the signal cannot be sent.
    pub async fn kill_exec(&self, id: &str, signal: i32) -> Result<()> {
        let exec = Some(id.to_owned());
        self.ask(&Request::Signal { exec, signal }).await
    }

    /// Sets the size of the terminal of the first process, or of a further one. Succeeds if it has none, or has ended.
    ///
    /// # Errors
    /// Returns an error if the size cannot be set.
    pub async fn resize(&self, exec: Option<&str>, height: u16, width: u16) -> Result<()> {
        let request = Request::Resize {
            exec: exec.map(str::to_owned),
            height,
            width,
        };
        self.ask(&request).await
    }

    /// Asks the shim for something that a process which has ended does not need.
    async fn ask(&self, request: &Request) -> Result<()> {
        if self.run.has_ended() {
            return Ok(());
        }
        match self.workload.request(request).await {
            Ok((Reply::Failed(whelk_runtime::Error::State(_)), _)) => Ok(()),
            Ok((Reply::Failed(error), _)) => Err(error.into()),
            Ok(_) => Ok(()),
            Err(_) if self.run.has_ended() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits until the workload has ended and nothing is left of it.
    pub async fn wait(&self) -> Exit {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await;
        let exit = ended.ok().and_then(|exit| exit.clone());
        // Nobody follows it any more, because the engine ends: the next one kills it.
        exit.unwrap_or_else(killed)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Without a runtime the engine ends. The next one kills what is left.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.end.borrow().is_none() {
            let (workload, run) = (self.workload.clone(), self.run.clone());
            runtime.spawn(async move { kill_until_ended(&workload, &run).await });
        }
    }
}
