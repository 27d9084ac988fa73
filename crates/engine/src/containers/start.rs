//! Starting a container.
//!
//! ```text
//! start ─► start_for_user ─► try_start ─► acquire_and_run ─┬─► acquire_resources ─► prepare_launch
//!                                ▲                         └─► run_in_shim
//!        restart policy ─────────┘
//! ```
//! `start_for_user` resets the restart counters; `try_start` checks the status and records a
//! failure; `acquire_resources` changes the host (endpoints, mounts, files) and pushes how to undo
//! it, `run_in_shim` starts the process, and `acquire_and_run` undoes the former if the latter fails.

use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use whelk_image::Digest;
use whelk_runtime::spec::Spec;
use whelk_runtime::user::UserRequest;
use whelk_runtime::{Overlay, Rootfs};
use whelk_shim::protocol::{Attach, ContainerLaunch};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use super::devices::{device_number, devices};
use super::donors::Shared;
use super::{Container, Containers, files, monitor, to_its_end};
use crate::error::{Error, Result};
use crate::logging;
use crate::model::{ContainerRecord, HostConfig, LogDriver, Status};
use crate::networks::SandboxConfig;
use crate::rollback::{BlockingRollback, Rollback};
use crate::security::{Options, Seccomp};
use crate::shims::{LaunchError, is_disconnected};
use crate::spec::{self, SpecContext};
use crate::workload::Begun;

/// Docker's prefixes of a runtime's errors. Docker's CLI derives exit codes from these texts.
const CREATE_FAILED: &str = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init";
const LOGGING_FAILED: &str =
    "failed to create task for container: failed to initialize logging driver";
const REFUSED: &str = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed";

impl Containers {
    /// Starts a container.
    ///
    /// # Errors
    /// Returns [`Error::NotModified`] if it runs already, and [`Error::Invalid`] if its command
    /// cannot be executed.
    pub async fn start(self: &Arc<Self>, name: &str) -> Result<()> {
        let (containers, name) = (self.clone(), name.to_owned());
        to_its_end(async move { containers.start_now(&name).await }).await
    }

    async fn start_now(self: &Arc<Self>, name: &str) -> Result<()> {
        let container = self.find(name)?;
        let _operation = container.lock_operation(name).await?;
        self.start_for_user(&container).await
    }

    /// Starts a container on a user's request: resets the restart counters of earlier runs.
    pub(super) async fn start_for_user(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        {
            let mut record = container.record();
            // A running container may be being stopped; that must remain recorded.
            if matches!(
                record.state.status,
                Status::Created | Status::Exited | Status::Restarting
            ) {
                record.state.stopped_by_user = false;
                record.state.restart_count = 0;
                container.short_runs.store(0, Ordering::Relaxed);
            }
        }
        self.try_start(container).await
    }

    /// Tries to start a container once, and records a failure. The caller holds the operation lock.
    pub(super) async fn try_start(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        match container.status() {
            Status::Running => {
                return Err(Error::NotModified(format!(
                    "container {} is already running",
                    container.id
                )));
            }
            Status::Paused => {
                return Err(Error::conflict(
                    "cannot start a paused container, try unpause instead",
                ));
            }
            Status::Removing => {
                return Err(Error::conflict(
                    "container is marked for removal and cannot be started",
                ));
            }
            Status::Dead => {
                return Err(Error::conflict(
                    "container is marked for removal and cannot be started",
                ));
            }
            Status::Created | Status::Exited | Status::Restarting => {}
        }
        container.workload.await_shim_exit().await?;
        let _views = container.views.close_for_start().await?;
        let mut attached = std::mem::take(&mut *container.waiting_clients.lock().ignore_poison());
        attached.retain(|(_, stream)| !is_disconnected(stream));
        match self.acquire_and_run(container, attached).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.start_failed(container, &error);
                Err(error.error)
            }
        }
    }

    /// Acquires a container's resources and runs it in a shim. Releases the resources on an error,
    /// and if this future is dropped before the shim is called.
    async fn acquire_and_run(
        self: &Arc<Self>,
        container: &Arc<Container>,
        attached: Vec<(Attach, OwnedFd)>,
    ) -> std::result::Result<(), StartError> {
        let (wanted, streams): (Vec<Attach>, Vec<OwnedFd>) = attached.into_iter().unzip();
        // Until a check sees that it runs.
        let _layers = self.hold_layers(container);
        let (containers, target) = (self.clone(), container.clone());
        let acquired =
            tokio::task::spawn_blocking(move || containers.acquire_resources(&target, wanted))
                .await;
        let Acquired {
            launch,
            mut descriptors,
            resources,
        } = acquired
            .map_err(|error| Error::internal(error.to_string()))
            .flatten()?;
        descriptors.extend(streams);
        // Not released if this future is dropped while the shim is called, when the runtime ends: the
        // container may run then. The next engine finds out.
        let resources = ManuallyDrop::new(resources);
        let started = self.run_in_shim(container, &launch, descriptors).await;
        let resources = ManuallyDrop::into_inner(resources);
        if started.is_ok() {
            resources.commit();
        } else {
            resources.undo().await;
        }
        started
    }

    /// Creates the container's endpoints, mounts its volumes, and writes its files. Blocking.
    fn acquire_resources(
        self: &Arc<Self>,
        container: &Arc<Container>,
        attached: Vec<Attach>,
    ) -> Result<Acquired> {
        let mut resources = Rollback::new(
            "start",
            Start {
                containers: self.clone(),
                container: container.clone(),
            },
        );
        let mut record = container.record().clone();
        let links = self.link_environment(&record)?;
        let (sandbox, namespace) = self
            .sandboxes
            .attach(&SandboxConfig::of(&record), &record.networks)
            .map_err(|error| error.prefixed("failed to set up container networking"))?;
        resources.push_undo("release the endpoints", |start| {
            start.containers.release_endpoints(&start.container);
            Ok(())
        });
        container.keep_sandbox(sandbox.clone());
        sandbox.keep_in(&mut record);
        // Saved before the process runs: the addresses in use must be known after a crash of the
        // engine.
        if namespace.is_some() {
            self.save(container)?;
        }
        // The directory exists while anything is mounted: recovery looks for it.
        resources.push_undo("delete the run directory", |start| {
            start.container.workload.delete_directory();
            Ok(())
        });
        container.workload.make_directory()?;
        resources.push_undo("release the mounts", |start| {
            start.containers.release_mounts(&start.container);
            Ok(())
        });
        self.acquire_mounts(&record)?;
        // If the shim ends during the start, the container may have been created.
        resources.push_undo("kill the processes", |start| {
            start.container.workload.end_processes()
        });
        let mut launch = self.prepare_launch(container, &record, attached, &links)?;
        launch.network = namespace.is_some();
        // The remaining descriptors of the message are the namespace and up to 40 clients;
        // SCM_MAX_FD is 253.
        const MAX_SHARED: usize = 200;
        let ports = self.sandboxes.share_listeners(&record.id, MAX_SHARED);
        launch.ports = ports.len();
        // What is not passed on is mounted by the shim.
        let layers = self.mounted_layers(&launch.rootfs, MAX_SHARED - ports.len())?;
        let (indices, mounts): (Vec<usize>, Vec<OwnedFd>) = layers.into_iter().unzip();
        launch.mounted_layers = indices;
        Ok(Acquired {
            launch,
            descriptors: namespace.into_iter().chain(ports).chain(mounts).collect(),
            resources: resources.into(),
        })
    }

    /// Hands the launch message to a shim, and records that the container runs.
    async fn run_in_shim(
        self: &Arc<Self>,
        container: &Arc<Container>,
        launch: &ContainerLaunch,
        descriptors: Vec<OwnedFd>,
    ) -> std::result::Result<(), StartError> {
        let Begun {
            pid,
            started_at,
            monitor,
        } = container
            .workload
            .start(&self.shims, launch, descriptors)
            .await
            .map_err(StartError::from)?;
        // Before the status changes: a client that sees the container running can wait for its
        // exit.
        container
            .progress
            .send_modify(|progress| progress.running = true);
        {
            let mut record = container.record();
            record.state.status = Status::Running;
            record.state.pid = pid;
            record.state.started_at = started_at;
            record.state.error.clear();
            record.state.exit_code = 0;
            record.state.oom_killed = false;
        }
        self.begin_health(container);
        // Not fatal if this fails or the engine ends here: recovery finds the shim.
        self.save_or_log(container);
        let endpoints = container.record().networks.clone();
        self.sandboxes
            .publish_connects(&container.id, endpoints.values());
        self.update_linkers(&container.id);
        self.publish(container, "start", &[]);
        monitor::spawn(self, container, monitor);
        Ok(())
    }

    /// Writes the container's files, and returns the launch message.
    fn prepare_launch(
        &self,
        container: &Container,
        record: &ContainerRecord,
        attached: Vec<Attach>,
        links: &[String],
    ) -> Result<ContainerLaunch> {
        let host = &self.apply_defaults(container, &record.host)?;
        let config = &record.config;
        let directory = self.instance.container_dir(&record.id);
        files::write(container, &directory, record, self)?;
        let mut spec = self.spec(record, host, &directory)?;
        let hostname = spec.hostname.clone();
        let capabilities = spec
            .process
            .as_ref()
            .and_then(|process| process.capabilities.clone())
            .unwrap_or_default()
            .bounding;
        if let Some(process) = &mut spec.process {
            process.env = spec::environment(
                config,
                if hostname.is_empty() {
                    &config.hostname
                } else {
                    &hostname
                },
                links,
                &[],
            );
        }
        let requested = self.add_requested_devices(host, &mut spec)?;
        let runtime = self.instance.live.get().runtimes.find(&host.runtime)?;
        if runtime.is_some() {
            spec.linux.seccomp = seccomp_rules(host, &capabilities)?;
        }
        let mut log = logging::config(&host.log_config, &directory, &record.id)?;
        if host.log_config.driver != Some(LogDriver::None) {
            let failed = |error: Error| error.prefixed(LOGGING_FAILED);
            log.attributes = logging::attributes(record).map_err(failed)?;
            log.forwarding = logging::forwarding(record).map_err(failed)?;
        }
        Ok(ContainerLaunch {
            id: record.id.clone(),
            rootfs: self.rootfs(record, &directory)?,
            user: UserRequest {
                user: config.user.clone(),
                groups: host
                    .group_add
                    .iter()
                    .flatten()
                    .cloned()
                    .chain(requested.groups.iter().map(u32::to_string))
                    .collect(),
            },
            filter: self.filter(host, &capabilities)?,
            log,
            spec,
            run_dir: container.workload.directory().to_owned(),
            scratch: self.instance.scratch(),
            stdin: config.open_stdin,
            stdin_once: config.stdin_once,
            attached,
            network: false,
            ports: 0,
            mounted_layers: Vec::new(),
            nodes_of_user: requested.of_user,
            runtime,
        })
    }

    /// Generates the container's OCI configuration.
    fn spec(&self, record: &ContainerRecord, host: &HostConfig, directory: &Path) -> Result<Spec> {
        let network_of = self.donor(Shared::Network, host.network_mode.container())?;
        let names = self.names_dir(record)?;
        let context = SpecContext {
            id: &record.id,
            names: &names,
            cgroup_parent: &self.instance.cgroup_parent(),
            network_of,
            pid_of: self.donor(Shared::Pid, host.pid_mode.container())?,
            ipc_of: self.donor(Shared::Ipc, host.ipc_mode.container())?,
            devices: devices(host)?,
            device_number: &device_number,
            executable: &self.executable,
            open_files: self.instance.open_files,
            mounts: &self.mounts_of(record, directory)?,
            apparmor: self.host.apparmor,
        };
        spec::generate(&record.config, host, &context)
    }

    /// Returns the overlay of a container's root file system.
    pub(super) fn rootfs(&self, record: &ContainerRecord, directory: &Path) -> Result<Rootfs> {
        let work = directory.join("work");
        // The kernel refuses to mount the upper layer of an earlier volatile mount again, because
        // it may be incomplete after a crash. Here it is complete: a `--rm` container is restarted.
        fs::remove_tree(work.join("work/incompat"))?;
        let lower = self.root_layers(&record.image, directory)?;
        Ok(Rootfs::Overlay(Overlay {
            lower,
            upper: directory.join("upper"),
            work,
            volatile: record.host.auto_remove,
        }))
    }

    /// Returns the mounts of up to `most` lower layers that are images, with their indices.
    fn mounted_layers(&self, rootfs: &Rootfs, most: usize) -> Result<Vec<(usize, OwnedFd)>> {
        match rootfs {
            Rootfs::Overlay(overlay) => {
                let mounts = &self.images.store().snapshots.mounts;
                Ok(mounts.of(&overlay.lower, most)?)
            }
            Rootfs::Directory(_) => Ok(Vec::new()),
        }
    }

    /// Returns the layers below a container's writable one, the topmost first: the init layer and
    /// the image's.
    pub(super) fn root_layers(&self, image: &str, directory: &Path) -> Result<Vec<PathBuf>> {
        let store = self.images.store();
        if image.is_empty() {
            return Ok(store.snapshots.root(&[], directory)?);
        }
        let image = self.images.get(&image.parse::<Digest>()?)?;
        Ok(store
            .snapshots
            .root(&image.config.rootfs.diff_ids, directory)?)
    }

    /// Returns the directories of an image's layers, the topmost first.
    pub(super) fn layers(&self, image: &str) -> Result<Vec<PathBuf>> {
        if image.is_empty() {
            return Ok(Vec::new());
        }
        let id: Digest = image.parse()?;
        let image = self.images.get(&id)?;
        Ok(self
            .images
            .store()
            .snapshots
            .lower(&image.config.rootfs.diff_ids))
    }

    /// Returns the path of the seccomp filter for these settings, compiled at its first use; `None`
    /// if unconfined.
    pub(super) fn filter(
        &self,
        host: &HostConfig,
        capabilities: &[String],
    ) -> Result<Option<PathBuf>> {
        let Some(profile) = seccomp_profile(host)? else {
            return Ok(None);
        };
        let mut key = capabilities.to_vec();
        key.sort();
        let key = Digest::of(format!("{profile}\0{}", key.join(",")).as_bytes())
            .hex()
            .to_owned();
        let mut filters = self.filters.lock().ignore_poison();
        // A cleaner of /run may have deleted the file.
        if let Some(path) = filters.get(&key).filter(|path| fs::exists(path)) {
            return Ok(Some(path.clone()));
        }
        let rules = rules_of(&profile, capabilities)?;
        let filter = whelk_runtime::seccomp::compile(&rules).map_err(invalid)?;
        if filter.listener.is_some() {
            return Err(Error::Unsupported(
                "seccomp: SCMP_ACT_NOTIFY is not available for containers of the engine".into(),
            ));
        }
        let path = self.instance.filter_path(&key);
        fs::replace(&path, whelk_shim::filter::encode(&filter), 0o600)?;
        filters.insert(key, path.clone());
        Ok(Some(path))
    }

    /// Records why a container did not start, and ends or continues its restart policy.
    fn start_failed(self: &Arc<Self>, container: &Arc<Container>, failure: &StartError) {
        {
            let mut record = container.record();
            record.state.error = failure.error.to_string();
            record.state.exit_code = failure.exit_code;
            let policy = record.host.restart_policy;
            let is_last = policy.is_last(record.state.restart_count);
            if record.state.status == Status::Restarting && (!failure.is_temporary || is_last) {
                record.state.status = Status::Exited;
            }
        }
        self.save_or_log(container);
        container.progress.send_modify(|progress| {
            progress.exits += 1;
            progress.exit_code = failure.exit_code;
        });
        if container.record().host.auto_remove {
            self.remove_or_log(container, true);
        }
    }
}

/// A container that is being started.
struct Start {
    containers: Arc<Containers>,
    container: Arc<Container>,
}

/// What a container needs to run.
struct Acquired {
    launch: ContainerLaunch,
    /// The first descriptors of the launch message: the network namespace and the listeners of
    /// published ports.
    descriptors: Vec<OwnedFd>,
    /// What is to be released if the container does not run.
    resources: BlockingRollback<Start>,
}

/// A failed start: the error for the client, and the exit code to record.
struct StartError {
    error: Error,
    exit_code: i32,
    /// Whether the error is [`Error::Unavailable`] or [`Error::Restarting`]: then the restart policy
    /// tries again. All other errors end the restarts. (With Docker every error does.)
    is_temporary: bool,
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        const NOT_STARTED: i32 = 128;
        let is_temporary = matches!(error, Error::Unavailable(_) | Error::Restarting(_));
        Self {
            error,
            exit_code: NOT_STARTED,
            is_temporary,
        }
    }
}

impl From<LaunchError> for StartError {
    fn from(error: LaunchError) -> Self {
        use whelk_runtime::Error as Runtime;
        let with = |error: Error, exit_code: i32| Self {
            error,
            exit_code,
            is_temporary: false,
        };
        match error {
            LaunchError::Engine(error) => error.into(),
            LaunchError::Runtime(Runtime::CommandNotFound(text)) => {
                with(Error::invalid(format!("{CREATE_FAILED}: {text}")), 127)
            }
            LaunchError::Runtime(Runtime::NotExecutable(text)) => {
                with(Error::invalid(format!("{CREATE_FAILED}: {text}")), 126)
            }
            LaunchError::Runtime(Runtime::ProgramIsDirectory(text)) => with(
                Error::invalid(format!("{CREATE_FAILED}: {text}: permission denied")),
                126,
            ),
            LaunchError::Runtime(Runtime::Refused(text)) => {
                with(Error::internal(format!("{REFUSED}: {text}")), 128)
            }
            LaunchError::Runtime(Runtime::Logging(text)) => {
                with(Error::internal(format!("{LOGGING_FAILED}: {text}")), 128)
            }
            LaunchError::Runtime(Runtime::NoSuchUser(text)) => with(Error::internal(text), 128),
            LaunchError::Runtime(Runtime::Invalid(text)) => {
                with(Error::invalid(format!("{CREATE_FAILED}: {text}")), 128)
            }
            LaunchError::Runtime(Runtime::NotADirectory(text)) => with(Error::internal(text), 128),
            LaunchError::Runtime(other) => Error::from(other).prefixed(CREATE_FAILED).into(),
        }
    }
}

fn invalid(error: whelk_runtime::Error) -> Error {
    Error::invalid(error.to_string())
}

/// Returns a container's seccomp profile as JSON, empty for the default one; `None` if unconfined.
fn seccomp_profile(host: &HostConfig) -> Result<Option<String>> {
    Ok(match Options::parse(host)?.seccomp {
        Seccomp::Unconfined => None,
        Seccomp::Default => Some(String::new()),
        Seccomp::Custom(profile) => Some(profile),
    })
}

fn rules_of(profile: &str, capabilities: &[String]) -> Result<whelk_runtime::spec::Seccomp> {
    if profile.is_empty() {
        Ok(whelk_runtime::seccomp::default_profile(capabilities))
    } else {
        whelk_runtime::seccomp::from_json(profile, capabilities).map_err(invalid)
    }
}

/// Returns the rules of a container's seccomp profile, for a runtime that compiles them itself.
fn seccomp_rules(
    host: &HostConfig,
    capabilities: &[String],
) -> Result<Option<whelk_runtime::spec::Seccomp>> {
    let profile = seccomp_profile(host)?;
    profile
        .map(|profile| rules_of(&profile, capabilities))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_retried_only_if_a_resource_is_exhausted() {
        use rustix::io::Errno;
        for (errno, is_temporary) in [
            (Errno::NOENT, false),
            (Errno::ACCESS, false),
            (Errno::MFILE, true),
            (Errno::NOMEM, true),
            (Errno::NOSPC, true),
        ] {
            let failed = || fs::PathError::new("open", "/file", errno);
            assert_eq!(
                StartError::from(Error::from(failed())).is_temporary,
                is_temporary,
                "{errno:?}"
            );
            let failure = StartError::from(LaunchError::Runtime(failed().into()));
            assert_eq!(
                (failure.is_temporary, failure.exit_code),
                (is_temporary, 128),
                "{errno:?}"
            );
            assert!(
                failure.error.to_string().starts_with(CREATE_FAILED),
                "{}",
                failure.error
            );
        }
    }
}
