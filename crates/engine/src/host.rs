//! What this host offers: processors, NUMA nodes and cgroup controllers.

use whelk_runtime::cgroup::{Layout, layout};
use whelk_sys::fs;

use crate::model::LogConfig;

/// The properties of the host that decide which settings of a container are valid.
#[derive(Clone, Debug)]
pub struct HostInfo {
    pub cpus: u32,
    /// The online NUMA nodes, in the kernel's list format (`0-1,3`).
    pub memory_nodes: String,
    pub cgroup_v2: bool,
    pub has_blkio_weight: bool,
    pub has_swap_limit: bool,
    /// The log configuration of containers that do not give one.
    pub default_log: LogConfig,
}

impl HostInfo {
    /// Reads the host's properties from /proc, /sys and the cgroup file systems.
    pub(crate) fn detect(default_log: LogConfig) -> Self {
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
            default_log,
        }
    }
}
