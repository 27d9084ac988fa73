//! The OCI runtime: from a configuration to namespaces, mounts, cgroups, confinement and the
//! program itself.
//!
//! Everything happens in process, through system calls; nothing here is asynchronous and no helper
//! program is run. [`launch::create`] makes a container, [`exec::exec`] adds a process to one,
//! [`cgroup::Cgroup`] limits, freezes and counts it. Both must be called from a process with one
//! thread: the shim, or `whelk oci`.
#![forbid(unsafe_code)]

mod affinity;
pub mod caps;
pub mod cgroup;
mod cgroup_mount;
mod child;
mod devices;
pub mod error;
pub mod exec;
pub mod hooks;
pub mod launch;
mod masks;
mod mount_options;
mod mounts;
mod namespaces;
mod process;
mod rootfs;
pub mod seccomp;
pub mod spec;
mod sync;
mod sysctls;
mod terminal;
pub mod user;

use std::collections::BTreeMap;
use std::path::Path;

pub use error::{Error, Result};
pub use rootfs::{Overlay, Rootfs};

/// A container's state in the form of the OCI specification.
pub fn state_json(
    id: &str,
    status: &str,
    pid: i32,
    bundle: &Path,
    annotations: &BTreeMap<String, String>,
) -> serde_json::Value {
    serde_json::json!({"ociVersion": spec::VERSION, "id": id, "status": status, "pid": pid, "bundle": bundle, "annotations": annotations})
}
