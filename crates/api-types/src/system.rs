//! The engine and the machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ContainerSummary, ImageSummary, Volume, is_default};

/// The response of `GET /version`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SystemVersion {
    pub platform: SystemVersionPlatform,
    pub components: Vec<ComponentVersion>,
    pub version: String,
    pub api_version: String,
    #[serde(rename = "MinAPIVersion")]
    pub min_api_version: String,
    pub git_commit: String,
    pub go_version: String,
    pub os: String,
    pub arch: String,
    pub kernel_version: String,
    /// Whether the engine's experimental features are switched on. Ours has none.
    #[serde(skip_serializing_if = "is_default")]
    pub experimental: bool,
    pub build_time: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SystemVersionPlatform {
    pub name: String,
}

/// The version of a part of the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ComponentVersion {
    pub name: String,
    pub version: String,
    pub details: BTreeMap<String, String>,
}

/// The response of `GET /system/df`. Object types that were not requested are omitted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SystemDataUsageResponse {
    /// Not before version 1.52, as the three others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_usage: Option<DiskUsage<ImageSummary>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_usage: Option<DiskUsage<ContainerSummary>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_usage: Option<DiskUsage<Volume>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_cache_usage: Option<DiskUsage<BuildCache>>,
    /// The size of all layers in bytes. Version 1.52 and later have it and the lists below only
    /// if the details of the usage (`verbose`) were not requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<ImageSummary>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub containers: Option<Vec<ContainerSummary>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<Volume>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_cache: Option<Vec<BuildCache>>,
    /// The size of the build cache in bytes, if there is one. Before version 1.42 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builder_size: Option<u64>,
    /// The size in bytes of what was removed but is not deleted yet. Not of Docker's API: only if it was
    /// requested, as the type `trash`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trash_size: Option<u64>,
    /// The sizes of containers' logs. Not of Docker's API: only if they were requested, as the type `logs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_usage: Option<DiskUsage<LogUsage>>,
}

/// The space that the log of a container takes, with its rotated files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LogUsage {
    pub id: String,
    /// The container's name.
    pub name: String,
    pub size: i64,
}

/// The response of `POST /system/stop-containers`, which Docker's API does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SystemContainersStopped {
    /// The names of the containers that were stopped.
    pub stopped: Vec<String>,
    /// Why others were not.
    pub errors: Vec<String>,
}

/// A message of the response of `POST /system/check`, which Docker's API does not have: a problem, or at the
/// end the result or the error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SystemCheckMessage {
    #[serde(skip_serializing_if = "is_default")]
    pub problem: String,
    /// What was done about it.
    #[serde(skip_serializing_if = "is_default")]
    pub repaired: String,
    /// Why the problem was not repaired, or why the check has ended without a result.
    #[serde(skip_serializing_if = "is_default")]
    pub error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked: Option<SystemChecked>,
}

/// The numbers of objects that were verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SystemChecked {
    pub containers: usize,
    pub images: usize,
    pub layers: usize,
    pub blobs: usize,
    /// Of the content whose digest was verified.
    pub bytes: u64,
    pub volumes: usize,
    pub networks: usize,
    pub problems: usize,
}

/// The disk usage of the objects of one type. Fields that are 0 are omitted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DiskUsage<T> {
    #[serde(skip_serializing_if = "is_default")]
    pub active_count: i64,
    /// The objects, if details were requested.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<T>,
    /// The size in bytes of the objects that are not in use.
    #[serde(skip_serializing_if = "is_default")]
    pub reclaimable: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub total_count: i64,
    /// In bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub total_size: i64,
}

impl<T> DiskUsage<T> {
    /// Returns the objects and leaves their number and size only.
    pub fn take_items(&mut self) -> Vec<T> {
        std::mem::take(&mut self.items)
    }
}

/// A record of the build cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BuildCache {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<String>,
    #[serde(rename = "Type")]
    pub kind: String,
    pub description: String,
    pub in_use: bool,
    pub shared: bool,
    /// In bytes.
    pub size: u64,
    pub created_at: String,
    pub last_used_at: Option<String>,
    pub usage_count: u64,
}

/// The response of `GET /info`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SystemInfo {
    #[serde(rename = "ID")]
    pub id: String,
    pub containers: usize,
    pub containers_running: usize,
    pub containers_paused: usize,
    pub containers_stopped: usize,
    pub images: usize,
    pub driver: String,
    pub driver_status: Vec<[String; 2]>,
    pub plugins: PluginsInfo,
    pub memory_limit: bool,
    pub swap_limit: bool,
    /// Not in version 1.42 and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_memory: Option<bool>,
    pub cpu_cfs_period: bool,
    pub cpu_cfs_quota: bool,
    #[serde(rename = "CPUShares")]
    pub cpu_shares: bool,
    #[serde(rename = "CPUSet")]
    pub cpu_set: bool,
    pub pids_limit: bool,
    #[serde(rename = "IPv4Forwarding")]
    pub ipv4_forwarding: bool,
    /// Whether the kernel's iptables rules apply to packets that bridges forward. Removed in API
    /// version 1.50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge_nf_iptables: Option<bool>,
    /// Whether the kernel's ip6tables rules apply to packets that bridges forward. Removed in API
    /// version 1.50.
    #[serde(rename = "BridgeNfIp6tables", skip_serializing_if = "Option::is_none")]
    pub bridge_nf_ip6tables: Option<bool>,
    pub debug: bool,
    pub n_fd: usize,
    pub oom_kill_disable: bool,
    pub n_goroutines: usize,
    pub system_time: String,
    pub logging_driver: String,
    pub cgroup_driver: String,
    pub cgroup_version: String,
    pub n_events_listener: usize,
    pub kernel_version: String,
    pub operating_system: String,
    #[serde(rename = "OSVersion")]
    pub os_version: String,
    #[serde(rename = "OSType")]
    pub os_type: String,
    pub architecture: String,
    pub index_server_address: String,
    pub registry_config: RegistryServiceConfig,
    #[serde(rename = "NCPU")]
    pub n_cpu: usize,
    /// In bytes.
    pub mem_total: u64,
    pub generic_resources: Option<Vec<serde_json::Value>>,
    pub docker_root_dir: String,
    pub http_proxy: String,
    pub https_proxy: String,
    pub no_proxy: String,
    pub name: String,
    pub labels: Vec<String>,
    pub experimental_build: bool,
    pub server_version: String,
    pub runtimes: BTreeMap<String, Runtime>,
    pub default_runtime: String,
    pub swarm: SwarmInfo,
    pub live_restore_enabled: bool,
    pub isolation: String,
    pub init_binary: String,
    pub containerd_commit: Commit,
    pub runc_commit: Commit,
    pub init_commit: Commit,
    /// Not before version 1.49.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewall_backend: Option<FirewallInfo>,
    pub security_options: Vec<String>,
    /// Of Docker's enterprise edition only.
    #[serde(skip_serializing_if = "is_default")]
    pub product_license: String,
    /// Docker's engine sends them if they are configured. Ours does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub default_address_pools: Vec<NetworkAddressPool>,
    pub warnings: Option<Vec<String>>,
    /// Empty if CDI devices are not supported.
    #[serde(rename = "CDISpecDirs")]
    pub cdi_spec_dirs: Vec<String>,
    /// Not before version 1.50.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub discovered_devices: Vec<DeviceInfo>,
}

/// A device that containers can request by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceInfo {
    /// The driver that knows it: `cdi`.
    pub source: String,
    #[serde(rename = "ID")]
    pub id: String,
}

/// The drivers by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PluginsInfo {
    pub volume: Vec<String>,
    pub network: Vec<String>,
    pub authorization: Option<Vec<String>>,
    pub log: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegistryServiceConfig {
    /// Not in version 1.47 and later.
    #[serde(
        rename = "AllowNondistributableArtifactsCIDRs",
        skip_serializing_if = "Option::is_none"
    )]
    pub allow_nondistributable_artifacts_cidrs: Option<Option<Vec<String>>>,
    /// Not in version 1.47 and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_nondistributable_artifacts_hostnames: Option<Option<Vec<String>>>,
    #[serde(rename = "InsecureRegistryCIDRs")]
    pub insecure_registry_cidrs: Vec<String>,
    pub index_configs: BTreeMap<String, IndexInfo>,
    pub mirrors: Option<Vec<String>>,
}

/// A registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IndexInfo {
    pub name: String,
    pub mirrors: Vec<String>,
    pub secure: bool,
    pub official: bool,
}

/// An OCI runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Runtime {
    pub path: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runtime_args: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SwarmInfo {
    #[serde(rename = "NodeID")]
    pub node_id: String,
    pub node_addr: String,
    pub local_node_state: String,
    pub control_available: bool,
    pub error: String,
    pub remote_managers: Option<Vec<serde_json::Value>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Commit {
    #[serde(rename = "ID")]
    pub id: String,
    /// The same as `id`. Not in version 1.49 and later.
    #[serde(rename = "Expected", skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FirewallInfo {
    pub driver: String,
    /// Labels and values that describe the driver. Ours has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub info: Vec<[String; 2]>,
}

/// Subnets that networks without one get.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkAddressPool {
    pub base: String,
    /// The prefix length of each network's subnet.
    pub size: i64,
}
