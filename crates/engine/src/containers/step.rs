//! Steps of builds: processes with a container's confinement, files and network, but without its record.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use whelk_runtime::spec::Mount;
use whelk_runtime::user::UserRequest;
use whelk_runtime::{Overlay, Rootfs};
use whelk_shim::logs::{Driver, LogConfig};
use whelk_shim::protocol::Attach;
use whelk_sys::fs;

use super::donors::Shared;
use super::{Containers, files};
use crate::error::{Error, Result};
use crate::model::{Config, ContainerRecord, ContainerState, HostConfig, NetworkMode};
use crate::networks::{Endpoint, SandboxConfig};
use crate::spec::{self, SpecContext};
use crate::validate;
use crate::workload::{Bundle, Started, WorkloadNetwork, Workloads, blocking};

/// A process to run.
pub struct Step {
    /// Unique among the steps and workloads that run; a file name.
    pub id: String,
    /// Where `hosts`, `hostname` and `resolv.conf` are written.
    pub directory: PathBuf,
    /// The command, environment, user, directory and host name.
    pub config: Config,
    /// The network, limits and additional hosts.
    pub host: HostConfig,
    pub mounts: Vec<Mount>,
    /// The mount points of `hosts`, `hostname` and `resolv.conf` exist in one of its layers.
    pub root: Overlay,
    /// Gets the output, in frames.
    pub output: OwnedFd,
    /// Whether `output` is the standard input, too, which ends when its other side is shut down.
    pub stdin: bool,
    /// The standard input and output, if they are a connection. `output` gets the standard error then.
    pub connection: Option<OwnedFd>,
}

/// Without the environment, which may have secrets.
impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A step that was started. It is killed when this is dropped.
#[derive(Debug)]
pub struct RunningStep {
    pub started: Started,
    /// What further processes have of the first one: all but its environment.
    pub(super) config: Config,
    pub(super) host: HostConfig,
}

impl Containers {
    /// Checks the limits of steps, whether any of them is executed or not.
    ///
    /// # Errors
    /// Returns an error for a limit that is invalid, or that this host does not have.
    pub fn check_limits_of_steps(&self, limits: &HostConfig) -> Result<()> {
        validate::limits(&mut limits.clone(), &self.host, &mut Vec::new())
    }

    /// Starts a step.
    ///
    /// # Errors
    /// Returns an error if its network does not exist, or is that of a container that does not run or is on the
    /// host's, and the reason why it did not start; nothing is left of it then.
    pub async fn start_step(
        self: &Arc<Self>,
        workloads: &Workloads,
        step: Step,
    ) -> Result<RunningStep> {
        let containers = self.clone();
        let (bundle, config, host) = blocking(move || containers.prepare_step(step)).await?;
        let started = workloads.start(bundle).await?;
        Ok(RunningStep {
            started,
            config,
            host,
        })
    }

    /// Creates the network of a step, and writes its files. Returns what further processes need besides.
    fn prepare_step(&self, step: Step) -> Result<(Bundle, Config, HostConfig)> {
        let Step {
            id,
            directory,
            mut config,
            mut host,
            mounts,
            root,
            output,
            stdin,
            connection,
        } = step;
        let settings = self.instance.live.get();
        let defaults = &settings.containers;
        if host.network_mode.container().is_some() {
            // It has the container's name, as a container that shares the network of another one.
            config.hostname.clear();
            self.resolve_donors(&mut host)?;
        }
        for warning in validate::settings(&mut config, &mut host, &self.host, defaults)? {
            tracing::warn!("step {id}: {warning}");
        }
        // An init process would be one more program in each step.
        host.init = Some(false);
        let host = defaults.complete(&host);
        config.hostname = self.hostname(&config, &host, &id);
        let network_of = self.donor_of_step(&host)?;
        let mut record = ContainerRecord {
            name: id.clone(),
            id,
            created_at: 0,
            image: String::new(),
            config,
            host,
            state: ContainerState::default(),
            networks: BTreeMap::new(),
            mounts: Vec::new(),
            ports: Vec::new(),
        };
        let network = self.network_of_step(&mut record)?;
        let names = match network_of {
            Some(_) => self.names_dir(&record)?,
            None => self.write_names_of_step(&record, directory)?,
        };
        let context = SpecContext {
            id: &record.id,
            names: &names,
            cgroup_parent: &self.instance.cgroup_parent(),
            network_of,
            pid_of: None,
            ipc_of: None,
            devices: super::devices::devices(&record.host)?,
            device_number: &super::devices::device_number,
            executable: &self.executable,
            open_files: self.instance.open_files,
            mounts: &mounts,
            apparmor: self.host.apparmor,
        };
        let mut spec = spec::generate(&record.config, &record.host, &context)?;
        let mut capabilities = Vec::new();
        if let Some(process) = &mut spec.process {
            process.env = spec::environment(&record.config, &record.config.hostname, &[], &[]);
            if let Some(sets) = &process.capabilities {
                capabilities.clone_from(&sets.bounding);
            }
        }
        let requested = self.add_requested_devices(&record.host, &mut spec)?;
        /// The remaining descriptors of the message are the namespace and the output.
        const MAX_SHARED: usize = 200;
        let layers = &self.images.store().snapshots.mounts;
        let bundle = Bundle {
            layers: layers.of(&root.lower, MAX_SHARED)?,
            filter: self.filter(&record.host, &capabilities)?,
            id: record.id,
            spec,
            cgroup_parent: record.host.cgroup_parent.clone(),
            rootfs: Rootfs::Overlay(root),
            user: UserRequest {
                user: record.config.user.clone(),
                groups: requested.groups.iter().map(u32::to_string).collect(),
            },
            log: LogConfig {
                driver: Driver::None,
                ..LogConfig::default()
            },
            stdin: stdin || connection.is_some(),
            nodes_of_user: requested.of_user,
            attached: attached(output, stdin, connection),
            network,
        };
        let config = Config {
            env: None,
            ..record.config
        };
        Ok((bundle, config, record.host))
    }

    /// Returns the pid of the container whose network a step shares, if it does.
    fn donor_of_step(&self, host: &HostConfig) -> Result<Option<i32>> {
        let Some(name) = host.network_mode.container() else {
            return Ok(None);
        };
        // The host's network is a right of its own.
        if self.owner_of_network(name)?.record().host.network_mode == NetworkMode::Host {
            return Err(Error::Denied(format!(
                "container {name} has the network of the host, which builds cannot share: use the network mode host"
            )));
        }
        self.donor(Shared::Network, Some(name))
    }

    /// Writes the files of a step that has a network of its own. Returns their directory.
    fn write_names_of_step(&self, record: &ContainerRecord, directory: PathBuf) -> Result<PathBuf> {
        let hostname = format!("{}\n", record.config.hostname);
        for (file, content) in [
            ("hostname", hostname),
            ("hosts", files::hosts(record, &[], self)),
            (
                "resolv.conf",
                files::resolv_conf(record, &self.instance.networks),
            ),
        ] {
            fs::write_with_mode(directory.join(file), content, files::MODE)?;
        }
        Ok(directory)
    }

    fn network_of_step(&self, record: &mut ContainerRecord) -> Result<WorkloadNetwork> {
        let name = match &record.host.network_mode {
            NetworkMode::Container(_) => return Ok(WorkloadNetwork::Configured),
            NetworkMode::Host => return Ok(WorkloadNetwork::Host),
            NetworkMode::None => return Ok(WorkloadNetwork::None),
            mode => mode.network().unwrap_or("bridge").to_owned(),
        };
        let endpoints = BTreeMap::from([(name, Endpoint::default())]);
        let config = SandboxConfig::of(record);
        let sandbox = self.sandboxes.open(&config, &endpoints)?;
        record.networks = sandbox.state().endpoints.clone();
        Ok(WorkloadNetwork::Sandbox(Arc::new(sandbox)))
    }
}

/// Returns the streams of a step.
fn attached(output: OwnedFd, stdin: bool, connection: Option<OwnedFd>) -> Vec<(Attach, OwnedFd)> {
    let output = (
        Attach {
            stdin,
            stdout: connection.is_none(),
            stderr: true,
            raw: Some(false),
            ..Attach::default()
        },
        output,
    );
    let connection = connection.map(|connection| {
        let both = Attach {
            stdin: true,
            stdout: true,
            raw: Some(true),
            ..Attach::default()
        };
        (both, connection)
    });
    std::iter::once(output).chain(connection).collect()
}
