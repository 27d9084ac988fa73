//! Information about the engine and its host, for `GET /info`.

use std::path::PathBuf;

use whelk_sys::fs;

use crate::Engine;
use crate::host::Limits;
use crate::model::Status;

/// The engine's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version of the OCI runtime specification that containers are run by.
pub const RUNTIME_SPEC: &str = whelk_runtime::spec::VERSION;

#[derive(Clone, Debug)]
pub struct Info {
    pub id: String,
    pub running: usize,
    pub paused: usize,
    pub stopped: usize,
    pub images: usize,
    pub root: String,
    pub name: String,
    pub kernel: String,
    pub architecture: String,
    pub operating_system: String,
    pub os_version: String,
    pub cpus: usize,
    pub memory: u64,
    pub cgroup_version: u8,
    pub backing_file_system: &'static str,
    pub event_listeners: usize,
    pub open_files: usize,
    pub apparmor: bool,
    pub ipv4_forwarding: bool,
    pub limits: Limits,
    pub has_swap_limit: bool,
    /// Limits that the host does not have, and other reasons why something does not work as it could.
    pub warnings: Vec<String>,
    /// See [`crate::host::HostInfo::bridge_filter`].
    pub bridge_filter: (bool, bool),
    /// What is wrong with the engine's store.
    pub problems: Vec<String>,
}

/// The CDI devices that containers can request.
#[derive(Clone, Debug)]
pub struct CdiDevices {
    /// Their qualified names.
    pub names: Vec<String>,
    /// Files that cannot be used, and why.
    pub errors: Vec<(PathBuf, String)>,
}

impl Engine {
    /// Reads the CDI specifications. Blocking.
    pub fn cdi_devices(&self) -> CdiDevices {
        let registry = self.containers.cdi();
        let errors = registry.errors().iter();
        CdiDevices {
            names: registry.devices().map(str::to_owned).collect(),
            errors: errors
                .map(|error| (error.path.clone(), error.text.clone()))
                .collect(),
        }
    }

    pub fn info(&self) -> Info {
        let statuses: Vec<Status> = self
            .containers
            .all()
            .iter()
            .map(|container| container.status())
            .collect();
        let count = |wanted: &[Status]| {
            statuses
                .iter()
                .filter(|status| wanted.contains(status))
                .count()
        };
        let host = &self.containers.host;
        let uname = rustix::system::uname();
        let machine = rustix::system::sysinfo();
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let of_release = |key: &str| {
            release
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map_or_else(String::new, |value| value.trim_matches('"').to_owned())
        };
        Info {
            id: self.id.clone(),
            running: count(&[Status::Running, Status::Restarting]),
            paused: count(&[Status::Paused]),
            stopped: count(&[
                Status::Created,
                Status::Exited,
                Status::Dead,
                Status::Removing,
            ]),
            images: self.images.count(),
            root: self.instance.root.to_string_lossy().into_owned(),
            name: uname.nodename().to_string_lossy().into_owned(),
            kernel: host.kernel.clone(),
            architecture: host.architecture.clone(),
            operating_system: of_release("PRETTY_NAME"),
            os_version: of_release("VERSION_ID"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: machine.totalram * u64::from(machine.mem_unit),
            cgroup_version: if host.cgroup_v2 { 2 } else { 1 },
            backing_file_system: host.backing_file_system,
            event_listeners: self.events.listeners(),
            open_files: fs::list("/proc/self/fd").map_or(0, |list| list.len()),
            apparmor: host.apparmor,
            ipv4_forwarding: host.ipv4_forwarding,
            limits: host.limits,
            has_swap_limit: host.has_swap_limit,
            warnings: host.warnings(),
            bridge_filter: host.bridge_filter,
            problems: self.durability.0.problems(),
        }
    }
}
