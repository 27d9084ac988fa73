//! The host settings (`HostConfig`) of a container on disk.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::container::is_default;
use super::set::Key;
use super::stored::{Read, Stored, Written, forms};
use super::{stored, text};
use crate::model;

forms! {
    HostConfig => model::HostConfig,
    DeviceRequest => model::DeviceRequest,
    LogConfig => model::LogConfig,
    WeightDevice => model::WeightDevice,
    ThrottleDevice => model::ThrottleDevice,
    DeviceMapping => model::DeviceMapping,
    Ulimit => model::Ulimit,
    Mount => model::Mount,
    BindOptions => model::BindOptions,
    ImageOptions => model::ImageOptions,
    VolumeOptions => model::VolumeOptions,
    DriverConfig => model::DriverConfig,
    TmpfsOptions => model::TmpfsOptions,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::HostConfig"
)]
struct HostConfig {
    binds: Option<Vec<String>>,
    #[serde(rename = "ContainerIDFile")]
    container_id_file: String,
    #[serde(with = "stored")]
    log_config: model::LogConfig,
    #[serde(with = "text")]
    network_mode: model::NetworkMode,
    #[serde(with = "stored")]
    port_bindings: Option<model::PortBindings>,
    #[serde(with = "stored")]
    restart_policy: model::RestartPolicy,
    auto_remove: bool,
    volume_driver: String,
    volumes_from: Option<Vec<String>>,
    console_size: [u16; 2],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    cap_add: Option<Vec<String>>,
    cap_drop: Option<Vec<String>>,
    #[serde(with = "text")]
    cgroupns_mode: model::CgroupnsMode,
    dns: Option<Vec<String>>,
    dns_options: Option<Vec<String>>,
    dns_search: Option<Vec<String>>,
    extra_hosts: Option<Vec<String>>,
    group_add: Option<Vec<String>>,
    #[serde(with = "text")]
    ipc_mode: model::IpcMode,
    cgroup: String,
    links: Option<Vec<String>>,
    oom_score_adj: i32,
    #[serde(with = "text")]
    pid_mode: model::PidMode,
    privileged: bool,
    publish_all_ports: bool,
    readonly_rootfs: bool,
    security_opt: Option<Vec<String>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    storage_opt: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tmpfs: BTreeMap<String, String>,
    #[serde(rename = "UTSMode", with = "text")]
    uts_mode: model::UtsMode,
    #[serde(with = "text")]
    userns_mode: model::UsernsMode,
    shm_size: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    sysctls: BTreeMap<String, String>,
    runtime: String,
    #[serde(with = "text")]
    isolation: model::Isolation,
    cpu_shares: i64,
    memory: i64,
    nano_cpus: i64,
    cgroup_parent: String,
    blkio_weight: u16,
    #[serde(with = "stored")]
    blkio_weight_device: Option<Vec<model::WeightDevice>>,
    #[serde(with = "stored")]
    blkio_device_read_bps: Option<Vec<model::ThrottleDevice>>,
    #[serde(with = "stored")]
    blkio_device_write_bps: Option<Vec<model::ThrottleDevice>>,
    #[serde(rename = "BlkioDeviceReadIOps", with = "stored")]
    blkio_device_read_iops: Option<Vec<model::ThrottleDevice>>,
    #[serde(rename = "BlkioDeviceWriteIOps", with = "stored")]
    blkio_device_write_iops: Option<Vec<model::ThrottleDevice>>,
    cpu_period: i64,
    cpu_quota: i64,
    cpu_realtime_period: i64,
    cpu_realtime_runtime: i64,
    cpuset_cpus: String,
    cpuset_mems: String,
    #[serde(with = "stored")]
    devices: Option<Vec<model::DeviceMapping>>,
    device_cgroup_rules: Option<Vec<String>>,
    #[serde(with = "stored")]
    device_requests: Option<Vec<model::DeviceRequest>>,
    memory_reservation: i64,
    memory_swap: i64,
    memory_swappiness: Option<i64>,
    oom_kill_disable: Option<bool>,
    pids_limit: Option<i64>,
    #[serde(with = "stored")]
    ulimits: Option<Vec<model::Ulimit>>,
    cpu_count: i64,
    cpu_percent: i64,
    #[serde(rename = "IOMaximumIOps")]
    io_maximum_iops: u64,
    #[serde(rename = "IOMaximumBandwidth")]
    io_maximum_bandwidth: u64,
    #[serde(skip_serializing_if = "Option::is_none", with = "stored")]
    mounts: Option<Vec<model::Mount>>,
    masked_paths: Option<Vec<String>>,
    readonly_paths: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    init: Option<bool>,
}

impl Stored for model::PortBindings {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entries = self.iter();
        serializer.collect_map(entries.map(|(port, bindings)| (Key(port), Written(bindings))))
    }

    /// The first engines have written the names that were given, such as `80` and `80/tcp`.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        type Bindings = Option<Vec<model::PortBinding>>;
        let read = BTreeMap::<String, Read<Bindings>>::deserialize(deserializer)?;
        let given = read
            .into_iter()
            .map(|(port, read)| Ok((port.parse()?, read.0)));
        let given = given.collect::<crate::error::Result<Vec<_>>>();
        given
            .map(model::collect_bindings)
            .map_err(de::Error::custom)
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct PortBinding<'a> {
    host_ip: Cow<'a, str>,
    host_port: Cow<'a, str>,
}

impl Stored for model::PortBinding {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (address, ports) = self.texts();
        let form = PortBinding {
            host_ip: address.into(),
            host_port: ports.into(),
        };
        form.serialize(serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let PortBinding { host_ip, host_port } = PortBinding::deserialize(deserializer)?;
        Self::parse(&host_ip, &host_port).map_err(de::Error::custom)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::DeviceRequest"
)]
struct DeviceRequest {
    driver: String,
    count: i64,
    #[serde(rename = "DeviceIDs")]
    device_ids: Option<Vec<String>>,
    capabilities: Option<Vec<Vec<String>>>,
    options: Option<BTreeMap<String, String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::LogConfig"
)]
struct LogConfig {
    #[serde(rename = "Type", with = "stored")]
    driver: Option<model::LogDriver>,
    #[serde(rename = "Config")]
    options: BTreeMap<String, String>,
}

impl Stored for Option<model::LogDriver> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.map_or("", model::LogDriver::as_str))
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let given = Some(name).filter(|name| !name.is_empty());
        given
            .map(|name| name.parse())
            .transpose()
            .map_err(de::Error::custom)
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RestartPolicy<'a> {
    name: Cow<'a, str>,
    maximum_retry_count: i64,
}

impl Stored for model::RestartPolicy {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let form = RestartPolicy {
            name: self.name().into(),
            maximum_retry_count: self.maximum_retry_count(),
        };
        form.serialize(serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let RestartPolicy {
            name,
            maximum_retry_count,
        } = RestartPolicy::deserialize(deserializer)?;
        Self::parse(&name, maximum_retry_count).map_err(de::Error::custom)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::WeightDevice"
)]
struct WeightDevice {
    path: String,
    weight: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::ThrottleDevice"
)]
struct ThrottleDevice {
    path: String,
    rate: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::DeviceMapping"
)]
struct DeviceMapping {
    path_on_host: String,
    path_in_container: String,
    cgroup_permissions: String,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::Ulimit"
)]
struct Ulimit {
    name: String,
    hard: i64,
    soft: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::Mount"
)]
struct Mount {
    #[serde(rename = "Type", with = "text")]
    kind: model::MountKind,
    #[serde(skip_serializing_if = "is_default")]
    source: String,
    #[serde(skip_serializing_if = "is_default")]
    target: String,
    #[serde(skip_serializing_if = "is_default")]
    read_only: bool,
    #[serde(skip_serializing_if = "is_default")]
    consistency: String,
    #[serde(skip_serializing_if = "Option::is_none", with = "stored")]
    bind_options: Option<model::BindOptions>,
    #[serde(skip_serializing_if = "Option::is_none", with = "stored")]
    volume_options: Option<model::VolumeOptions>,
    #[serde(skip_serializing_if = "Option::is_none", with = "stored")]
    image_options: Option<model::ImageOptions>,
    #[serde(skip_serializing_if = "Option::is_none", with = "stored")]
    tmpfs_options: Option<model::TmpfsOptions>,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::BindOptions"
)]
struct BindOptions {
    #[serde(skip_serializing_if = "is_default")]
    propagation: String,
    #[serde(skip_serializing_if = "is_default")]
    non_recursive: bool,
    #[serde(skip_serializing_if = "is_default")]
    create_mountpoint: bool,
    #[serde(skip_serializing_if = "is_default")]
    read_only_non_recursive: bool,
    #[serde(skip_serializing_if = "is_default")]
    read_only_force_recursive: bool,
    #[serde(skip_serializing_if = "is_default")]
    map_user: String,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::ImageOptions"
)]
struct ImageOptions {
    #[serde(skip_serializing_if = "is_default")]
    subpath: String,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::VolumeOptions"
)]
struct VolumeOptions {
    #[serde(skip_serializing_if = "is_default")]
    no_copy: bool,
    #[serde(skip_serializing_if = "is_default")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_default")]
    subpath: String,
    #[serde(skip_serializing_if = "Option::is_none", with = "stored")]
    driver_config: Option<model::DriverConfig>,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::DriverConfig"
)]
struct DriverConfig {
    #[serde(skip_serializing_if = "is_default")]
    name: String,
    #[serde(skip_serializing_if = "is_default")]
    options: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::TmpfsOptions"
)]
struct TmpfsOptions {
    #[serde(skip_serializing_if = "is_default")]
    size_bytes: i64,
    #[serde(skip_serializing_if = "is_default")]
    mode: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Vec<Vec<String>>>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_port_with_two_names_has_the_bindings_of_both() {
        let binding = |port: &str| json!({"HostIp": "", "HostPort": port});
        let given = json!({"80": [binding("8080")], "80/tcp": [binding("8081")], "81": null});
        let Read(ports): Read<model::PortBindings> = serde_json::from_value(given).unwrap();
        let written: Value = serde_json::to_value(Written(&ports)).unwrap();
        assert_eq!(
            written,
            json!({"80/tcp": [binding("8080"), binding("8081")], "81/tcp": null})
        );
    }
}
