//! The host's properties: its kernel, processors, cgroup controllers and sysctls, read once.
//!
//! As with Docker, a change of these is seen by the next engine; the host's name, release, memory
//! and number of processors are read at each `info` ([`crate::system`]).

use std::path::Path;

use whelk_runtime::cgroup::{Layout, layout};
use whelk_sys::fs;

use crate::model::LogConfig;

/// The properties of the host that decide which settings of a container are valid, and that `info`
/// shows.
#[derive(Clone, Debug)]
pub struct HostInfo {
    pub kernel: String,
    pub architecture: String,
    pub cpus: u32,
    /// The online NUMA nodes, in the kernel's list format (`0-1,3`).
    pub memory_nodes: String,
    pub cgroup_v2: bool,
    pub has_blkio_weight: bool,
    pub has_swap_limit: bool,
    pub has_real_time: bool,
    pub limits: Limits,
    pub apparmor: bool,
    pub ipv4_forwarding: bool,
    /// The sysctls `bridge-nf-call-iptables` and `bridge-nf-call-ip6tables`: whether packets
    /// forwarded by bridges pass the host's netfilter rules.
    pub bridge_filter: (bool, bool),
    /// The type of the file system that the engine's root directory is on.
    pub backing_file_system: &'static str,
    /// The log configuration of containers that do not give one.
    pub default_log: LogConfig,
}

/// The limits that the host's cgroups have, beside those above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory: bool,
    pub oom_kill_disable: bool,
    pub cpu_period: bool,
    pub cpu_quota: bool,
    pub cpu_shares: bool,
    pub cpuset: bool,
    pub pids: bool,
}

impl Limits {
    fn detect() -> Self {
        match layout() {
            Ok(Layout::V2(root)) => {
                let text = fs::read_to_string(root.join("cgroup.controllers"));
                let text = text.unwrap_or_default();
                let has = |name: &str| text.split_whitespace().any(|controller| controller == name);
                Self {
                    memory: has("memory"),
                    oom_kill_disable: false,
                    cpu_period: has("cpu"),
                    cpu_quota: has("cpu"),
                    cpu_shares: has("cpu"),
                    cpuset: has("cpuset"),
                    pids: has("pids"),
                }
            }
            Ok(Layout::V1(trees)) => {
                let root = |controller: &str| {
                    let mut trees = trees.iter();
                    let tree =
                        trees.find(|tree| tree.controllers.iter().any(|name| name == controller));
                    tree.map(|tree| &tree.root)
                };
                let has = |controller: &str, file: &str| {
                    root(controller).is_some_and(|root| fs::exists(root.join(file)))
                };
                Self {
                    memory: has("memory", "memory.limit_in_bytes"),
                    oom_kill_disable: has("memory", "memory.oom_control"),
                    cpu_period: has("cpu", "cpu.cfs_period_us"),
                    cpu_quota: has("cpu", "cpu.cfs_quota_us"),
                    cpu_shares: has("cpu", "cpu.shares"),
                    cpuset: has("cpuset", "cpuset.cpus"),
                    pids: root("pids").is_some(),
                }
            }
            Err(_) => Self::default(),
        }
    }

    /// Returns Docker's warnings about those that are missing.
    pub(crate) fn warnings(self, has_swap_limit: bool, cgroup_v2: bool) -> Vec<String> {
        let missing = [
            ("memory limit", self.memory),
            ("swap limit", has_swap_limit),
            // Cgroups of version 2 never have it.
            ("oom kill disable", self.oom_kill_disable || cgroup_v2),
            ("cpu cfs period", self.cpu_period),
            ("cpu cfs quota", self.cpu_quota),
            ("cpu shares", self.cpu_shares),
            ("cpuset", self.cpuset),
        ];
        let missing = missing.iter().filter(|(_, has)| !has);
        missing
            .map(|(what, _)| format!("No {what} support"))
            .collect()
    }
}

impl HostInfo {
    /// Reads the host's properties from /proc, /sys and the cgroup file systems. Called when the
    /// networks are set up, which enables forwarding.
    pub(crate) fn detect(root: &Path, default_log: LogConfig) -> Self {
        let uname = rustix::system::uname();
        let is_on = |path: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
        let cgroup_v2 = matches!(layout(), Ok(Layout::V2(_)));
        let tree = |controller: &str| match layout() {
            Ok(Layout::V1(trees)) => trees
                .iter()
                .find(|tree| tree.controllers.iter().any(|name| name == controller))
                .map(|tree| tree.root.clone()),
            _ => None,
        };
        // The root cgroup of v2 has no limit files; its children have those that are supported.
        let in_v2 = |files: &[&str]| match layout() {
            Ok(Layout::V2(root)) => {
                let children = fs::list(root).unwrap_or_default();
                Some(
                    children
                        .iter()
                        .any(|child| files.iter().any(|file| fs::exists(child.path().join(file)))),
                )
            }
            _ => None,
        };
        Self {
            kernel: uname.release().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
            cpus: std::thread::available_parallelism()
                .map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
            memory_nodes: fs::read_to_string("/sys/devices/system/node/online")
                .map_or_else(|_| "0".into(), |text| text.trim().to_owned()),
            cgroup_v2,
            has_blkio_weight: in_v2(&["io.weight", "io.bfq.weight"]).unwrap_or_else(|| {
                tree("blkio").is_some_and(|root| {
                    fs::exists(root.join("blkio.weight"))
                        || fs::exists(root.join("blkio.bfq.weight"))
                })
            }),
            has_swap_limit: in_v2(&["memory.swap.max"]).unwrap_or_else(|| {
                tree("memory")
                    .is_some_and(|root| fs::exists(root.join("memory.memsw.limit_in_bytes")))
            }),
            // Of v1 only.
            has_real_time: tree("cpu")
                .is_some_and(|root| fs::exists(root.join("cpu.rt_runtime_us"))),
            limits: Limits::detect(),
            apparmor: fs::read_to_string("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|text| text.starts_with('Y')),
            ipv4_forwarding: is_on("/proc/sys/net/ipv4/ip_forward"),
            bridge_filter: (
                is_on("/proc/sys/net/bridge/bridge-nf-call-iptables"),
                is_on("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
            ),
            backing_file_system: backing(root),
            default_log,
        }
    }
}

impl HostInfo {
    /// Returns Docker's warnings about what the host does not have.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.limits.warnings(self.has_swap_limit, self.cgroup_v2);
        if !self.ipv4_forwarding {
            warnings.push("IPv4 forwarding is disabled".into());
        }
        warnings
    }
}

/// Returns the type of the file system that a directory is on, by the magic number of statfs(2).
fn backing(path: &Path) -> &'static str {
    match rustix::fs::statfs(path).map(|stat| stat.f_type) {
        Ok(0xef53) => "extfs",
        Ok(0x5846_5342) => "xfs",
        Ok(0x9123_683e) => "btrfs",
        Ok(0x0102_1994) => "tmpfs",
        Ok(0x794c_7630) => "overlayfs",
        Ok(0x2fc1_2fc1) => "zfs",
        Ok(0xf2f5_2010) => "f2fs",
        _ => "<unknown>",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_limits_have_dockers_warnings() {
        let all = Limits {
            memory: true,
            oom_kill_disable: true,
            cpu_period: true,
            cpu_quota: true,
            cpu_shares: true,
            cpuset: true,
            pids: true,
        };
        assert!(all.warnings(true, false).is_empty());
        assert_eq!(all.warnings(false, false), ["No swap limit support"]);
        let without = Limits {
            oom_kill_disable: false,
            cpuset: false,
            ..all
        };
        assert_eq!(without.warnings(true, true), ["No cpuset support"]);
        assert_eq!(
            without.warnings(true, false),
            ["No oom kill disable support", "No cpuset support"]
        );
    }
}
