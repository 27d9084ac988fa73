//! Statistics of containers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::is_default;

/// An element of `GET /containers/{id}/stats`. Fields that only Windows has are zero or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatsResponse {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// With a leading slash.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub os_type: String,
    /// When the sample was taken.
    pub read: String,
    pub cpu_stats: ContainerCpuStats,
    pub memory_stats: ContainerMemoryStats,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, ContainerNetworkStats>,
    pub pids_stats: ContainerPidsStats,
    pub blkio_stats: ContainerBlkioStats,
    pub num_procs: u32,
    pub storage_stats: ContainerStorageStats,
    /// When the sample before was taken.
    pub preread: String,
    pub precpu_stats: ContainerCpuStats,
}

/// Times are in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerCpuStats {
    pub cpu_usage: ContainerCpuUsage,
    #[serde(skip_serializing_if = "is_default")]
    pub system_cpu_usage: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub online_cpus: u32,
    pub throttling_data: ContainerThrottlingData,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerCpuUsage {
    pub total_usage: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_usage: Vec<u64>,
    pub usage_in_kernelmode: u64,
    pub usage_in_usermode: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerThrottlingData {
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_time: u64,
}

/// Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerMemoryStats {
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub max_usage: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stats: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "is_default")]
    pub failcnt: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub limit: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerNetworkStats {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerPidsStats {
    #[serde(skip_serializing_if = "is_default")]
    pub current: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub limit: u64,
}

/// Only the first list exists with cgroup v2.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerBlkioStats {
    pub io_service_bytes_recursive: Option<Vec<ContainerBlkioStatEntry>>,
    pub io_serviced_recursive: Option<Vec<ContainerBlkioStatEntry>>,
    pub io_queue_recursive: Option<Vec<ContainerBlkioStatEntry>>,
    pub io_service_time_recursive: Option<Vec<ContainerBlkioStatEntry>>,
    pub io_wait_time_recursive: Option<Vec<ContainerBlkioStatEntry>>,
    pub io_merged_recursive: Option<Vec<ContainerBlkioStatEntry>>,
    pub io_time_recursive: Option<Vec<ContainerBlkioStatEntry>>,
    pub sectors_recursive: Option<Vec<ContainerBlkioStatEntry>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerBlkioStatEntry {
    pub major: u64,
    pub minor: u64,
    pub op: String,
    pub value: u64,
}

/// Has fields on Windows only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStorageStats {}
