//! The OCI runtime configuration (`config.json`), version 1.2 with those fields of 1.3 that apply
//! to Linux.
//!
//! Plain structs with public fields: the engine fills them, `whelk oci` reads them from a bundle. A
//! missing field is equivalent to an empty one, so lists are not wrapped in `Option`. Capabilities
//! and rlimits stay strings: the specification requires unknown names to be reported by the
//! runtime, not rejected by the parser.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The version of the specification that this runtime implements.
pub const VERSION: &str = "1.2.1";

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Declares a JSON struct: camelCase names, every field optional, default values omitted.
macro_rules! wire {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $($(#[$field_meta])* #[serde(skip_serializing_if = "is_default")] pub $field: $type,)*
        }
    )*};
}

wire! {
    pub struct Spec {
        pub oci_version: String,
        pub process: Option<Process>,
        pub root: Option<Root>,
        pub hostname: String,
        pub domainname: String,
        pub mounts: Vec<Mount>,
        pub hooks: Hooks,
        pub annotations: BTreeMap<String, String>,
        pub linux: Linux,
    }

    pub struct Root {
        pub path: PathBuf,
        pub readonly: bool,
    }

    pub struct Process {
        pub terminal: bool,
        pub console_size: Option<ConsoleSize>,
        pub user: User,
        pub args: Vec<String>,
        pub env: Vec<String>,
        pub cwd: String,
        pub capabilities: Option<Capabilities>,
        pub rlimits: Vec<Rlimit>,
        pub no_new_privileges: bool,
        pub apparmor_profile: String,
        pub selinux_label: String,
        pub oom_score_adj: Option<i32>,
        #[serde(rename = "execCPUAffinity")]
        pub exec_cpu_affinity: Option<CpuAffinity>,
        pub scheduler: Option<Scheduler>,
        #[serde(rename = "ioPriority")]
        pub io_priority: Option<IoPriority>,
    }

    pub struct CpuAffinity {
        pub initial: Option<String>,
        #[serde(rename = "final")]
        pub finally: Option<String>,
    }

    pub struct ConsoleSize {
        pub height: u16,
        pub width: u16,
    }

    pub struct User {
        pub uid: u32,
        pub gid: u32,
        pub umask: Option<u32>,
        pub additional_gids: Vec<u32>,
    }

    pub struct Capabilities {
        pub bounding: Vec<String>,
        pub effective: Vec<String>,
        pub inheritable: Vec<String>,
        pub permitted: Vec<String>,
        pub ambient: Vec<String>,
    }

    pub struct Rlimit {
        #[serde(rename = "type")]
        pub kind: String,
        pub soft: u64,
        pub hard: u64,
    }

    pub struct Scheduler {
        pub policy: String,
        pub nice: i32,
        pub priority: u32,
        pub flags: Vec<String>,
        pub runtime: u64,
        pub deadline: u64,
        pub period: u64,
    }

    pub struct IoPriority {
        pub class: String,
        pub priority: u32,
    }

    pub struct Mount {
        pub destination: String,
        #[serde(rename = "type")]
        pub kind: String,
        pub source: String,
        pub options: Vec<String>,
        pub uid_mappings: Vec<IdMapping>,
        pub gid_mappings: Vec<IdMapping>,
    }

    pub struct Hooks {
        pub prestart: Vec<Hook>,
        pub create_runtime: Vec<Hook>,
        pub create_container: Vec<Hook>,
        pub start_container: Vec<Hook>,
        pub poststart: Vec<Hook>,
        pub poststop: Vec<Hook>,
    }

    pub struct Hook {
        pub path: PathBuf,
        pub args: Vec<String>,
        pub env: Vec<String>,
        /// Seconds; none means no limit.
        pub timeout: Option<u64>,
    }

    pub struct Linux {
        pub namespaces: Vec<Namespace>,
        pub uid_mappings: Vec<IdMapping>,
        pub gid_mappings: Vec<IdMapping>,
        pub time_offsets: BTreeMap<String, TimeOffset>,
        pub devices: Vec<Device>,
        pub cgroups_path: String,
        pub resources: Resources,
        pub rootfs_propagation: String,
        pub seccomp: Option<Seccomp>,
        pub sysctl: BTreeMap<String, String>,
        pub masked_paths: Vec<String>,
        pub readonly_paths: Vec<String>,
        pub mount_label: String,
        pub personality: Option<Personality>,
        pub intel_rdt: Option<serde_json::Value>,
        pub net_devices: Option<serde_json::Value>,
        pub memory_policy: Option<serde_json::Value>,
    }

    pub struct IdMapping {
        #[serde(rename = "containerID")]
        pub container_id: u32,
        #[serde(rename = "hostID")]
        pub host_id: u32,
        pub size: u32,
    }

    pub struct TimeOffset {
        pub secs: i64,
        pub nanosecs: u32,
    }

    pub struct Personality {
        pub domain: String,
        pub flags: Vec<String>,
    }

    pub struct Resources {
        pub devices: Vec<DeviceRule>,
        pub memory: Memory,
        pub cpu: Cpu,
        pub pids: Option<Pids>,
        #[serde(rename = "blockIO")]
        pub block_io: BlockIo,
        pub hugepage_limits: Vec<HugepageLimit>,
        pub network: Network,
        pub rdma: BTreeMap<String, Rdma>,
        pub unified: BTreeMap<String, String>,
    }

    pub struct DeviceRule {
        pub allow: bool,
        #[serde(rename = "type")]
        pub kind: Option<DeviceKind>,
        pub major: Option<i64>,
        pub minor: Option<i64>,
        pub access: String,
    }

    /// Bytes; -1 means unlimited.
    pub struct Memory {
        pub limit: Option<i64>,
        pub reservation: Option<i64>,
        /// Memory and swap together.
        pub swap: Option<i64>,
        pub kernel: Option<i64>,
        #[serde(rename = "kernelTCP")]
        pub kernel_tcp: Option<i64>,
        pub swappiness: Option<u64>,
        #[serde(rename = "disableOOMKiller")]
        pub disable_oom_killer: Option<bool>,
        pub use_hierarchy: Option<bool>,
        pub check_before_update: bool,
    }

    /// Quota, burst and periods in microseconds.
    pub struct Cpu {
        pub shares: Option<u64>,
        pub quota: Option<i64>,
        pub burst: Option<u64>,
        pub period: Option<u64>,
        pub realtime_runtime: Option<i64>,
        pub realtime_period: Option<u64>,
        pub cpus: String,
        pub mems: String,
        pub idle: Option<i64>,
    }

    pub struct Pids {
        pub limit: i64,
    }

    pub struct BlockIo {
        pub weight: Option<u16>,
        pub leaf_weight: Option<u16>,
        pub weight_device: Vec<WeightDevice>,
        pub throttle_read_bps_device: Vec<ThrottleDevice>,
        pub throttle_write_bps_device: Vec<ThrottleDevice>,
        #[serde(rename = "throttleReadIOPSDevice")]
        pub throttle_read_iops_device: Vec<ThrottleDevice>,
        #[serde(rename = "throttleWriteIOPSDevice")]
        pub throttle_write_iops_device: Vec<ThrottleDevice>,
    }

    pub struct WeightDevice {
        pub major: i64,
        pub minor: i64,
        pub weight: Option<u16>,
        pub leaf_weight: Option<u16>,
    }

    pub struct ThrottleDevice {
        pub major: i64,
        pub minor: i64,
        pub rate: u64,
    }

    pub struct HugepageLimit {
        pub page_size: String,
        pub limit: u64,
    }

    pub struct Network {
        #[serde(rename = "classID")]
        pub class_id: Option<u32>,
        pub priorities: Vec<NetworkPriority>,
    }

    pub struct NetworkPriority {
        pub name: String,
        pub priority: u32,
    }

    pub struct Rdma {
        pub hca_handles: Option<u32>,
        pub hca_objects: Option<u32>,
    }

    pub struct Seccomp {
        pub default_action: String,
        pub default_errno_ret: Option<u32>,
        pub architectures: Vec<String>,
        pub flags: Vec<String>,
        pub listener_path: String,
        pub listener_metadata: String,
        pub syscalls: Vec<Syscall>,
    }

    pub struct Syscall {
        pub names: Vec<String>,
        pub action: String,
        pub errno_ret: Option<u32>,
        pub args: Vec<SyscallArg>,
    }

    pub struct SyscallArg {
        pub index: usize,
        pub value: u64,
        pub value_two: u64,
        pub op: String,
    }
}

/// A namespace. Its type is written in any case: other runtimes have no default for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    #[serde(skip_serializing_if = "is_default")]
    pub path: Option<PathBuf>,
}

/// A device node. Its type is written in any case: other runtimes have no default for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    pub path: String,
    #[serde(rename = "type")]
    pub kind: DeviceKind,
    pub major: i64,
    pub minor: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub file_mode: Option<u32>,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    #[default]
    Mount,
    Pid,
    Network,
    Ipc,
    Uts,
    User,
    Cgroup,
    Time,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeviceKind {
    /// All kinds; only valid in device rules.
    #[serde(rename = "a")]
    All,
    #[default]
    #[serde(rename = "c", alias = "u")]
    Char,
    #[serde(rename = "b")]
    Block,
    #[serde(rename = "p")]
    Fifo,
}

impl DeviceKind {
    /// Returns the letter for the kind in device rules and `type` fields.
    pub fn letter(self) -> char {
        match self {
            Self::All => 'a',
            Self::Char => 'c',
            Self::Block => 'b',
            Self::Fifo => 'p',
        }
    }
}

impl Linux {
    /// Returns the configured namespace of this kind; `None` means that the container shares the
    /// caller's.
    pub fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.namespaces
            .iter()
            .find(|namespace| namespace.kind == kind)
    }

    /// Whether the container gets a new namespace of this kind.
    pub fn has_new(&self, kind: NamespaceKind) -> bool {
        self.namespace(kind)
            .is_some_and(|namespace| namespace.path.is_none())
    }

    /// Makes the container join an existing namespace instead of a new one, if it has one of this
    /// kind.
    pub fn join(&mut self, kind: NamespaceKind, path: PathBuf) {
        for namespace in self
            .namespaces
            .iter_mut()
            .filter(|namespace| namespace.kind == kind)
        {
            namespace.path = Some(path.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_bundle_round_trips() {
        let text = r#"{"ociVersion":"1.2.0","process":{"user":{"uid":5},"args":["sh"],"cwd":"/"},"root":{"path":"rootfs"},
            "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/proc/1/ns/net"}],"resources":{"blockIO":{"weight":10}}}}"#;
        let spec: Spec = serde_json::from_str(text).expect("parses");
        assert!(spec.linux.has_new(NamespaceKind::Pid));
        assert!(!spec.linux.has_new(NamespaceKind::Network));
        assert_eq!(spec.linux.resources.block_io.weight, Some(10));
        let again: Spec = serde_json::from_str(&serde_json::to_string(&spec).expect("serialises"))
            .expect("parses");
        assert_eq!(again, spec);
    }
}
