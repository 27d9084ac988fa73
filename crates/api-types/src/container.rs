//! Containers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Serialize};

use crate::{
    DeviceMapping, DeviceRequest, DriverData, EndpointSettings, HostConfig, NetworkingConfig,
    PortMap, RestartPolicy, Set, ThrottleDevice, Ulimit, WeightDevice, is_default, is_empty_list,
};

/// The settings of a container that do not depend on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    pub hostname: String,
    pub domainname: String,
    pub user: String,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    #[serde(skip_serializing_if = "Set::is_empty")]
    pub exposed_ports: Set,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub env: Option<Vec<String>>,
    #[serde(deserialize_with = "one_or_many")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    #[serde(skip_serializing_if = "is_default")]
    pub args_escaped: bool,
    pub image: String,
    pub volumes: Option<Set>,
    pub working_dir: String,
    #[serde(deserialize_with = "one_or_many")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_default")]
    pub network_disabled: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub mac_address: String,
    /// Omitted if empty in version 1.52 and later, `null` before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_build: Option<Option<Vec<String>>>,
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_default")]
    pub stop_signal: String,
    /// In seconds; -1 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    #[serde(
        deserialize_with = "one_or_many",
        skip_serializing_if = "is_empty_list"
    )]
    pub shell: Option<Vec<String>>,
}

/// Deserializes a list for which clients may also send a single string: commands and capabilities.
pub(crate) fn one_or_many<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    struct OneOrMany;

    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Option<Vec<String>>;

        /// Docker's decoder expects a string where the value is not a list of strings; the error
        /// says the same.
        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("string")
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(vec![text.to_owned()]))
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(list))
                .map(Some)
                .map_err(|_| de::Error::invalid_type(de::Unexpected::Seq, &self))
        }
    }

    deserializer.deserialize_any(OneOrMany)
}

/// A health check. Durations are in nanoseconds; 0 means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthConfig {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", command]`; empty to take the image's.
    #[serde(skip_serializing_if = "is_empty_list")]
    pub test: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_default")]
    pub interval: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub timeout: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub start_period: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub start_interval: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub retries: i64,
    /// Not in Docker: what to do with a container that is unhealthy: `none`, `kill`, `restart` or
    /// `stop`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub on_failure: String,
}

/// The response of `GET /containers/{id}/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerInspectResponse {
    pub id: String,
    pub created: String,
    pub path: String,
    pub args: Vec<String>,
    pub state: ContainerState,
    pub image: String,
    pub resolv_conf_path: String,
    pub hostname_path: String,
    pub hosts_path: String,
    pub log_path: String,
    pub name: String,
    pub restart_count: u32,
    pub driver: String,
    pub platform: String,
    pub mount_label: String,
    pub process_label: String,
    pub app_armor_profile: String,
    #[serde(rename = "ExecIDs")]
    pub exec_ids: Option<Vec<String>>,
    pub host_config: HostConfig,
    pub graph_driver: DriverData,
    pub mounts: Vec<MountPoint>,
    pub config: ContainerConfig,
    pub network_settings: NetworkSettings,
    /// The size of the writable layer in bytes, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_rw: Option<u64>,
    /// The size of all layers in bytes, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_root_fs: Option<u64>,
}

/// The state of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerState {
    pub status: String,
    pub running: bool,
    pub paused: bool,
    pub restarting: bool,
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    pub dead: bool,
    pub pid: i32,
    pub exit_code: i32,
    pub error: String,
    /// Go's zero time if it has not been started.
    pub started_at: String,
    pub finished_at: String,
    /// Absent without a health check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// The signal of a stop that waits for the container, if its main process has no handler for it. Only whelk
    /// has this.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unhandled_signal: String,
}

/// The health of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Health {
    /// `starting`, `healthy` or `unhealthy`.
    pub status: String,
    /// Number of consecutive failures.
    pub failing_streak: u32,
    /// The last results, the oldest first.
    pub log: Vec<HealthcheckResult>,
}

/// The result of a health check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthcheckResult {
    pub start: String,
    pub end: String,
    pub exit_code: i32,
    pub output: String,
}

/// A mount of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MountPoint {
    #[serde(rename = "Type")]
    pub kind: String,
    pub source: String,
    pub destination: String,
    pub mode: String,
    #[serde(rename = "RW")]
    pub rw: bool,
    pub propagation: String,
    /// The volume's name; empty for other kinds.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub driver: String,
}

/// The network settings of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    #[serde(flatten)]
    pub default_network: Option<DefaultNetworkSettings>,
    #[serde(rename = "SandboxID")]
    pub sandbox_id: String,
    pub sandbox_key: String,
    pub ports: PortMap,
    pub networks: BTreeMap<String, EndpointSettings>,
}

/// The fields that [`NetworkSettings`] has before version 1.52: those of the endpoint on the
/// default network, and some that are always empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DefaultNetworkSettings {
    pub bridge: String,
    pub hairpin_mode: bool,
    #[serde(rename = "LinkLocalIPv6Address")]
    pub link_local_ipv6_address: String,
    #[serde(rename = "LinkLocalIPv6PrefixLen")]
    pub link_local_ipv6_prefix_len: u8,
    #[serde(rename = "SecondaryIPAddresses")]
    pub secondary_ip_addresses: Option<Vec<Address>>,
    #[serde(rename = "SecondaryIPv6Addresses")]
    pub secondary_ipv6_addresses: Option<Vec<Address>>,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    pub gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: u8,
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: String,
    pub mac_address: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Address {
    pub addr: String,
    pub prefix_len: u8,
}

/// An element of the response of `GET /containers/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSummary {
    pub id: String,
    /// With a leading slash; links to it have more than one.
    pub names: Vec<String>,
    pub image: String,
    #[serde(rename = "ImageID")]
    pub image_id: String,
    pub command: String,
    /// Seconds since the epoch.
    pub created: i64,
    pub ports: Vec<PortSummary>,
    pub labels: BTreeMap<String, String>,
    pub state: String,
    /// For people: `Up 3 minutes`.
    pub status: String,
    pub host_config: ContainerSummaryHostConfig,
    pub network_settings: ContainerSummaryNetworkSettings,
    pub mounts: Vec<MountPoint>,
    /// Since version 1.52.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSummary>,
    /// The size of the writable layer in bytes, if requested and not 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_rw: Option<u64>,
    /// The size of all layers in bytes, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_root_fs: Option<u64>,
}

/// The health of a listed container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthSummary {
    /// `none`, `starting`, `healthy` or `unhealthy`.
    pub status: String,
    pub failing_streak: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSummaryHostConfig {
    pub network_mode: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSummaryNetworkSettings {
    pub networks: BTreeMap<String, EndpointSettings>,
}

/// A port of a listed container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortSummary {
    #[serde(
        rename = "IP",
        deserialize_with = "address",
        skip_serializing_if = "Option::is_none"
    )]
    pub ip: Option<IpAddr>,
    pub private_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_port: Option<u16>,
    #[serde(rename = "Type")]
    pub kind: String,
}

/// Deserializes an address that may be empty.
fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| text.parse().ok()))
}

/// The body of `POST /containers/create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerCreateRequest {
    #[serde(flatten)]
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    pub networking_config: NetworkingConfig,
}

/// The response of `POST /containers/create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerCreateResponse {
    pub id: String,
    pub warnings: Vec<String>,
}

/// The body of `POST /containers/{id}/update`. Zero, empty and absent fields are left unchanged, except
/// that an empty list removes the limits of all devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateConfig {
    pub cpu_shares: i64,
    pub memory: i64,
    pub nano_cpus: i64,
    pub blkio_weight: u16,
    pub blkio_weight_device: Option<Vec<WeightDevice>>,
    pub blkio_device_read_bps: Option<Vec<ThrottleDevice>>,
    pub blkio_device_write_bps: Option<Vec<ThrottleDevice>>,
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub blkio_device_read_iops: Option<Vec<ThrottleDevice>>,
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub blkio_device_write_iops: Option<Vec<ThrottleDevice>>,
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub cpu_realtime_period: i64,
    pub cpu_realtime_runtime: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub memory_reservation: i64,
    pub memory_swap: i64,
    pub pids_limit: Option<i64>,
    pub restart_policy: RestartPolicy,
    // The following are checked only: an update cannot change them.
    #[serde(skip_serializing_if = "is_default")]
    pub cgroup_parent: String,
    #[serde(skip_serializing_if = "is_empty_list")]
    pub devices: Option<Vec<DeviceMapping>>,
    #[serde(skip_serializing_if = "is_empty_list")]
    pub device_cgroup_rules: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_empty_list")]
    pub device_requests: Option<Vec<DeviceRequest>>,
    #[serde(skip_serializing_if = "is_default")]
    pub memory_swappiness: Option<i64>,
    #[serde(skip_serializing_if = "is_default")]
    pub oom_kill_disable: Option<bool>,
    #[serde(skip_serializing_if = "is_empty_list")]
    pub ulimits: Option<Vec<Ulimit>>,
    #[serde(skip_serializing_if = "is_default")]
    pub init: Option<bool>,
    #[serde(skip_serializing_if = "is_default")]
    pub cpu_count: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub cpu_percent: i64,
    #[serde(rename = "IOMaximumIOps", skip_serializing_if = "is_default")]
    pub io_maximum_iops: u64,
    #[serde(rename = "IOMaximumBandwidth", skip_serializing_if = "is_default")]
    pub io_maximum_bandwidth: u64,
}

/// The response of `POST /containers/{id}/update`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerUpdateResponse {
    pub warnings: Option<Vec<String>>,
}

/// The response of `GET /containers/{id}/top`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerTopResponse {
    pub processes: Vec<Vec<String>>,
    pub titles: Vec<String>,
}

/// The response of `POST /containers/{id}/wait`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerWaitResponse {
    pub status_code: i64,
}

/// The response of `POST /containers/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerPruneResponse {
    pub containers_deleted: Option<Vec<String>>,
    /// In bytes.
    pub space_reclaimed: u64,
}

/// The body of `POST /containers/{id}/checkpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CheckpointCreateRequest {
    #[serde(rename = "CheckpointID")]
    pub checkpoint_id: String,
    pub checkpoint_dir: String,
    /// Whether the container ends.
    pub exit: bool,
}

/// An element of the response of `GET /containers/{id}/checkpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CheckpointSummary {
    pub name: String,
}
