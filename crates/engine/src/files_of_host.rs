//! What this host offers, read from its files.

use whelk_runtime::cgroup::{Layout, layout};
use whelk_sys::fs;

use crate::model::LogConfig;
use crate::validate::Host;

pub(crate) fn facts(default_log: LogConfig) -> Host {
    let cgroup_v2 = matches!(layout(), Ok(Layout::V2(_)));
    let tree = |controller: &str| match layout() {
        Ok(Layout::V1(trees)) => trees
            .iter()
            .find(|tree| tree.controllers.iter().any(|name| name == controller))
            .map(|tree| tree.root.clone()),
        _ => None,
    };
    // On v2 the root itself has no limits; its children show what there is.
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
    Host {
        cpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        memory_nodes: fs::read_to_string("/sys/devices/system/node/online")
            .map_or_else(|_| "0".into(), |text| text.trim().to_owned()),
        cgroup_v2,
        has_blkio_weight: in_v2(&["io.weight", "io.bfq.weight"]).unwrap_or_else(|| {
            tree("blkio").is_some_and(|root| {
                fs::exists(root.join("blkio.weight")) || fs::exists(root.join("blkio.bfq.weight"))
            })
        }),
        has_swap_limit: in_v2(&["memory.swap.max"]).unwrap_or_else(|| {
            tree("memory").is_some_and(|root| fs::exists(root.join("memory.memsw.limit_in_bytes")))
        }),
        default_log,
    }
}
