//! Workloads that have no record: a step of a build, a job. Whoever starts one follows it to its
//! end; those that a killed engine leaves behind are removed when the next one starts.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use whelk_runtime::Rootfs;
use whelk_runtime::cgroup::Cgroup;
use whelk_runtime::spec::Spec;
use whelk_runtime::user::UserRequest;
use whelk_shim::logs::LogConfig;
use whelk_shim::protocol::{Attach, ContainerLaunch, Event, ExecLaunch, Exit, Reply, Request};
use whelk_sys::fs;
use whelk_text::signal;

use super::{Begun, KILL_TIMEOUT, Monitor, Workload, blocking};
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::rollback::Errors;
use crate::shims::{LaunchError, ShimStatus, WarmPool};

/// What a workload consists of: an OCI configuration, and what it leaves to the engine.
#[derive(Debug)]
pub struct Bundle {
    /// Unique among the workloads that run; a file name.
    pub id: String,
    /// Its cgroup is set by [`Workloads::start`].
    pub spec: Spec,
    pub rootfs: Rootfs,
    /// The user to look up inside `rootfs`; without a name the configuration's is used.
    pub user: UserRequest,
    /// The file of a compiled seccomp filter; `None` for none.
    pub filter: Option<PathBuf>,
    pub log: LogConfig,
    /// Whether to keep standard input open for clients to write to.
    pub stdin: bool,
    /// Streams that are connected before the program begins.
    pub attached: Vec<(Attach, OwnedFd)>,
    /// The network namespace, if the configuration does not name one.
    pub network: Option<OwnedFd>,
}

/// Runs workloads that have no record.
#[derive(Debug)]
pub struct Workloads {
    instance: Instance,
    shims: Arc<WarmPool>,
}

/// A workload that was started.
#[derive(Debug)]
pub struct Started {
    /// The first process.
    pub pid: i32,
    workload: Arc<Workload>,
    monitor: Monitor,
}

impl Workloads {
    pub(crate) fn new(instance: Instance, shims: Arc<WarmPool>) -> Self {
        Self { instance, shims }
    }

    fn workload(&self, id: &str) -> Arc<Workload> {
        let directory = self.instance.workload_dir(id);
        let cgroup = format!("{}/workload-{id}", self.instance.cgroup_parent());
        Arc::new(Workload::new(&self.instance, id, directory, cgroup))
    }

    /// Starts a workload.
    ///
    /// # Errors
    /// Returns the reason why it did not start; nothing is left of it then.
    pub async fn start(&self, bundle: Bundle) -> Result<Started> {
        let workload = self.workload(&bundle.id);
        let (attached, streams): (Vec<Attach>, Vec<OwnedFd>) = bundle.attached.into_iter().unzip();
        let mut spec = bundle.spec;
        workload.cgroup().clone_into(&mut spec.linux.cgroups_path);
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
            stdin_once: false,
            attached,
            network: bundle.network.is_some(),
            ports: 0,
        };
        let descriptors = bundle.network.into_iter().chain(streams).collect();
        let prepared = workload.clone();
        blocking(move || prepared.make_directory()).await?;
        match workload.start(&self.shims, &launch, descriptors).await {
            Ok(Begun { pid, monitor, .. }) => Ok(Started {
                pid,
                workload,
                monitor,
            }),
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
    }

    /// Ends and removes the workloads of earlier engines: nothing follows them any more.
    ///
    /// # Errors
    /// Returns the errors of those that could not be removed; the others are.
    pub(crate) async fn remove_left(&self) -> Result<()> {
        let mut errors = Errors::default();
        for entry in fs::list(self.instance.run.join("workloads"))? {
            let id = entry.file_name().to_string_lossy().into_owned();
            tracing::info!("end workload {id} of an earlier engine");
            let removed = self.remove(&id).await;
            errors.keep(removed.map_err(|error| error.prefixed(&format!("end workload {id}"))));
        }
        errors.into_result()
    }

    async fn remove(&self, id: &str) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let workload = self.workload(id);
        let (pid, events) = match workload.probe(PATIENCE).await {
            ShimStatus::Gone => {
                return blocking(move || {
                    end_processes(workload.cgroup())?;
                    fs::remove_tree(workload.directory())?;
                    // Of a shim that was just about to listen, which it cannot any more.
                    end_processes(workload.cgroup())
                })
                .await;
            }
            ShimStatus::Running {
                state: Event::State { pid, .. },
                events,
            } => (pid, Some(events)),
            ShimStatus::Running { events, .. } => (0, Some(events)),
            ShimStatus::Unresponsive => (0, None),
        };
        let monitor = workload.adopt(pid, events);
        let left = Started {
            pid,
            workload,
            monitor,
        };
        left.kill(signal::KILL).await?;
        tokio::time::timeout(KILL_TIMEOUT, left.wait())
            .await
            .map_err(|_| Error::Unavailable("it does not end after SIGKILL".into()))?;
        Ok(())
    }
}

/// Kills the processes of a workload that has no shim.
fn end_processes(path: &str) -> Result<()> {
    let cgroup = Cgroup::at(path)?;
    if cgroup.exists() {
        let _ = cgroup.freeze(false);
        cgroup.kill_all()?;
        cgroup.remove()?;
    }
    Ok(())
}

impl Started {
    /// Sends a signal to the first process. Succeeds if it has ended.
    ///
    /// # Errors
    /// Returns an error if the signal cannot be sent.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        let run = self.workload.watch_run();
        self.workload.signal(signal, &run).await
    }

    /// Starts a further process. Returns its pid, and the connection to the streams that it
    /// attaches.
    ///
    /// # Errors
    /// Returns the reason why it did not start.
    pub async fn exec(&self, launch: ExecLaunch) -> Result<(i32, UnixStream)> {
        let request = Request::Exec(Box::new(launch));
        match self.workload.request_while_alive(&request).await? {
            (Reply::Started { pid }, stream) => Ok((pid, stream)),
            (Reply::Failed(error), _) => Err(error.into()),
            _ => Err(Error::internal("unexpected reply of the shim")),
        }
    }

    /// Waits for the end, and removes what is left of the workload.
    pub async fn wait(mut self) -> Exit {
        let exit = loop {
            match self.monitor.next().await {
                Some(Event::Exited(exit)) => break exit,
                Some(_) => {}
                None => break self.workload.reap().await.exit,
            }
        };
        self.monitor.finish().await;
        exit
    }
}
