//! The OCI runtime: creates the namespaces, mounts, cgroups and confinement that a configuration
//! asks for and executes the program in them.
//!
//! Everything is done in process with system calls; nothing here is asynchronous and no helper
//! program is run. [`launch::create`] creates a container, [`exec::exec`] adds a process to one,
//! [`cgroup::Cgroup`] limits, freezes and accounts for its processes. The first two must be called
//! from a single-threaded process: the shim, or `whelk oci`.
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
mod view;

use std::collections::BTreeMap;
use std::path::Path;

pub use error::{Error, Result};
pub use mounts::bind_for_others;
pub use rootfs::{Overlay, Rootfs, attach as attach_root};
pub use view::{ViewMount, ViewRoot, view};

/// Returns a container's state as the OCI runtime specification defines it (`state` command,
/// hooks).
pub fn state_json(
    id: &str,
    status: &str,
    pid: i32,
    bundle: &Path,
    annotations: &BTreeMap<String, String>,
) -> serde_json::Value {
    serde_json::json!({"ociVersion": spec::VERSION, "id": id, "status": status, "pid": pid, "bundle": bundle, "annotations": annotations})
}
