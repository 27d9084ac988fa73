//! A container: its settings, state, endpoints and mounts. Their form on disk is in
//! [`crate::records`].
//!
//! A list that was not given is `None`: clients distinguish `null` from `[]`.

use std::collections::{BTreeMap, BTreeSet};

use whelk_network::port::PortMapping;

use mount::MountPlan;
use network::Endpoint;

mod health;
mod kind;
mod mode;
pub mod mount;
pub mod network;
mod port;
mod restart;
pub mod volume;

pub use health::{Health, HealthAction, HealthResult, HealthStatus, HealthTest, Healthcheck};
pub use kind::{Isolation, LogDriver, MountKind};
pub use mode::{CgroupnsMode, IpcMode, NetworkMode, PidMode, UsernsMode, UtsMode};
pub use port::{ContainerPort, PortBinding, PortRange};
pub use restart::RestartPolicy;

/// The settings that do not depend on the host (the API's `ContainerConfig`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub hostname: String,
    pub domainname: String,
    pub user: String,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    pub exposed_ports: BTreeSet<ContainerPort>,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub env: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub healthcheck: Option<Healthcheck>,
    pub args_escaped: bool,
    pub image: String,
    pub volumes: Option<BTreeSet<String>>,
    pub working_dir: String,
    pub entrypoint: Option<Vec<String>>,
    pub network_disabled: bool,
    pub mac_address: String,
    pub on_build: Option<Vec<String>>,
    pub labels: BTreeMap<String, String>,
    pub stop_signal: String,
    /// In seconds; -1 for no limit.
    pub stop_timeout: Option<i64>,
    pub shell: Option<Vec<String>>,
}

/// The settings that depend on the host (the API's `HostConfig`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostConfig {
    pub binds: Option<Vec<String>>,
    pub container_id_file: String,
    pub log_config: LogConfig,
    pub network_mode: NetworkMode,
    pub port_bindings: Option<PortBindings>,
    pub restart_policy: RestartPolicy,
    pub auto_remove: bool,
    pub volume_driver: String,
    pub volumes_from: Option<Vec<String>>,
    pub console_size: [u16; 2],
    pub annotations: BTreeMap<String, String>,
    pub cap_add: Option<Vec<String>>,
    pub cap_drop: Option<Vec<String>>,
    pub cgroupns_mode: CgroupnsMode,
    pub dns: Option<Vec<String>>,
    pub dns_options: Option<Vec<String>>,
    pub dns_search: Option<Vec<String>>,
    pub extra_hosts: Option<Vec<String>>,
    pub group_add: Option<Vec<String>>,
    pub ipc_mode: IpcMode,
    pub cgroup: String,
    pub links: Option<Vec<String>>,
    pub oom_score_adj: i32,
    pub pid_mode: PidMode,
    pub privileged: bool,
    pub publish_all_ports: bool,
    pub readonly_rootfs: bool,
    pub security_opt: Option<Vec<String>>,
    pub storage_opt: BTreeMap<String, String>,
    pub tmpfs: BTreeMap<String, String>,
    pub uts_mode: UtsMode,
    pub userns_mode: UsernsMode,
    pub shm_size: i64,
    pub sysctls: BTreeMap<String, String>,
    pub runtime: String,
    pub isolation: Isolation,
    pub cpu_shares: i64,
    pub memory: i64,
    pub nano_cpus: i64,
    pub cgroup_parent: String,
    pub blkio_weight: u16,
    pub blkio_weight_device: Option<Vec<WeightDevice>>,
    pub blkio_device_read_bps: Option<Vec<ThrottleDevice>>,
    pub blkio_device_write_bps: Option<Vec<ThrottleDevice>>,
    pub blkio_device_read_iops: Option<Vec<ThrottleDevice>>,
    pub blkio_device_write_iops: Option<Vec<ThrottleDevice>>,
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub cpu_realtime_period: i64,
    pub cpu_realtime_runtime: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub devices: Option<Vec<DeviceMapping>>,
    pub device_cgroup_rules: Option<Vec<String>>,
    pub device_requests: Option<Vec<DeviceRequest>>,
    pub memory_reservation: i64,
    pub memory_swap: i64,
    pub memory_swappiness: Option<i64>,
    pub oom_kill_disable: Option<bool>,
    pub pids_limit: Option<i64>,
    pub ulimits: Option<Vec<Ulimit>>,
    pub cpu_count: i64,
    pub cpu_percent: i64,
    pub io_maximum_iops: u64,
    pub io_maximum_bandwidth: u64,
    pub mounts: Option<Vec<Mount>>,
    pub masked_paths: Option<Vec<String>>,
    pub readonly_paths: Option<Vec<String>>,
    pub init: Option<bool>,
}

impl HostConfig {
    /// Returns the ports of `port_bindings` with their bindings.
    pub fn bound_ports(&self) -> impl Iterator<Item = (&ContainerPort, &Option<Vec<PortBinding>>)> {
        self.port_bindings.iter().flatten()
    }

    /// Returns whether the container publishes ports.
    pub fn publishes(&self) -> bool {
        self.publish_all_ports || self.bound_ports().next().is_some()
    }
}

/// Where a container's ports are to be published. A port without bindings is published at one that
/// the kernel chooses.
pub type PortBindings = BTreeMap<ContainerPort, Option<Vec<PortBinding>>>;

/// Collects ports with their bindings. A port can be given more than once, as `80` and `80/tcp`: it
/// gets the bindings of all.
pub fn collect_bindings(
    given: impl IntoIterator<Item = (ContainerPort, Option<Vec<PortBinding>>)>,
) -> PortBindings {
    let mut collected = PortBindings::new();
    for (port, bindings) in given {
        let known = collected.entry(port).or_default();
        if let Some(bindings) = bindings {
            known.get_or_insert_default().extend(bindings);
        }
    }
    collected
}

/// A request for devices of a kind, such as GPUs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceRequest {
    pub driver: String,
    /// -1 for all.
    pub count: i64,
    pub device_ids: Option<Vec<String>>,
    /// Alternatives, each a list of capabilities that a device must have together.
    pub capabilities: Option<Vec<Vec<String>>>,
    pub options: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogConfig {
    /// `None` for the engine's default.
    pub driver: Option<LogDriver>,
    pub options: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightDevice {
    pub path: String,
    pub weight: u16,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ThrottleDevice {
    pub path: String,
    pub rate: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceMapping {
    pub path_on_host: String,
    pub path_in_container: String,
    pub cgroup_permissions: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ulimit {
    pub name: String,
    pub hard: i64,
    pub soft: i64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mount {
    pub kind: MountKind,
    pub source: String,
    pub target: String,
    pub read_only: bool,
    pub consistency: String,
    pub bind_options: Option<BindOptions>,
    pub volume_options: Option<VolumeOptions>,
    pub image_options: Option<ImageOptions>,
    pub tmpfs_options: Option<TmpfsOptions>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct BindOptions {
    pub propagation: String,
    pub non_recursive: bool,
    pub create_mountpoint: bool,
    pub read_only_non_recursive: bool,
    pub read_only_force_recursive: bool,
    /// Not in Docker: with `auto` the mount is id-mapped, so that files of the source's owner
    /// appear as the container user's, and files that this user creates belong to the owner.
    pub map_user: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageOptions {
    pub subpath: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct VolumeOptions {
    pub no_copy: bool,
    pub labels: BTreeMap<String, String>,
    pub subpath: String,
    pub driver_config: Option<DriverConfig>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DriverConfig {
    pub name: String,
    pub options: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct TmpfsOptions {
    pub size_bytes: i64,
    pub mode: u32,
    pub options: Option<Vec<Vec<String>>>,
}

/// The status of a container in its life cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    #[default]
    Created,
    Running,
    Paused,
    /// Exited, and waiting to be started again by its restart policy.
    Restarting,
    Exited,
    Removing,
    /// A removal has failed.
    Dead,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Removing => "removing",
            Self::Dead => "dead",
        }
    }

    /// Returns whether the container has a process, running or paused.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// The state of a container. Times are nanoseconds since the epoch, 0 for never.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerState {
    pub status: Status,
    pub pid: i32,
    pub exit_code: i32,
    pub oom_killed: bool,
    pub error: String,
    pub started_at: i64,
    pub finished_at: i64,
    pub restart_count: u32,
    /// `None` for a container that has no health check or was never started.
    pub health: Option<Health>,
    /// The container was stopped by a user: no restart policy starts it again, except `always`
    /// after a restart of the engine.
    pub stopped_by_user: bool,
    /// The engine has paused the container for an operation of its own. If it ends during that, the
    /// next engine resumes the container.
    pub paused_by_engine: bool,
}

impl ContainerState {
    /// Returns the status of the container's health; `none` without a check.
    pub fn health_text(&self) -> &'static str {
        self.health
            .as_ref()
            .map_or("none", |health| health.status.as_str())
    }
}

/// A container's record: its settings and state.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerRecord {
    pub id: String,
    pub name: String,
    pub created_at: i64,
    /// The image's id; empty for a container without one.
    pub image: String,
    pub config: Config,
    pub host: HostConfig,
    pub state: ContainerState,
    /// Its endpoints, by the network's name.
    pub networks: BTreeMap<String, Endpoint>,
    /// Its mounts, with the volumes that were found or created for them.
    pub mounts: Vec<MountPlan>,
    /// Its published ports while it runs.
    pub ports: Vec<PortMapping>,
}

impl ContainerRecord {
    /// Returns the id of the container's network namespace (`SandboxID`); empty if it has none of
    /// its own.
    pub fn sandbox_id(&self) -> &str {
        self.networks
            .values()
            .find_map(|endpoint| endpoint.assigned.as_ref())
            .map_or("", |assigned| &assigned.endpoint_id)
    }

    /// Returns the path of the network namespace of the container's process; empty if it does not
    /// run.
    pub fn sandbox_key(&self) -> String {
        if self.state.pid > 0 {
            format!("/proc/{}/ns/net", self.state.pid)
        } else {
            String::new()
        }
    }
}
