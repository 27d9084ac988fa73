//! Information about the engine and its host, for `GET /info`.

use whelk_runtime::cgroup::{Layout, layout};
use whelk_sys::fs;

use crate::Engine;
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
    /// The sysctls `bridge-nf-call-iptables` and `bridge-nf-call-ip6tables`: whether packets
    /// forwarded by bridges pass the host's netfilter rules.
    pub bridge_filter: (bool, bool),
    /// What is wrong with the engine's store.
    pub problems: Vec<String>,
}

impl Engine {
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
        let uname = rustix::system::uname();
        let machine = rustix::system::sysinfo();
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let of_release = |key: &str| {
            release
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map_or_else(String::new, |value| value.trim_matches('"').to_owned())
        };
        let is_on = |path: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
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
            kernel: uname.release().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
            operating_system: of_release("PRETTY_NAME"),
            os_version: of_release("VERSION_ID"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: machine.totalram * u64::from(machine.mem_unit),
            cgroup_version: if matches!(layout(), Ok(Layout::V2(_))) {
                2
            } else {
                1
            },
            backing_file_system: backing(&self.instance.root),
            event_listeners: self.events.listeners(),
            open_files: fs::list("/proc/self/fd").map_or(0, |list| list.len()),
            apparmor: fs::read_to_string("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|text| text.starts_with('Y')),
            ipv4_forwarding: is_on("/proc/sys/net/ipv4/ip_forward"),
            bridge_filter: (
                is_on("/proc/sys/net/bridge/bridge-nf-call-iptables"),
                is_on("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
            ),
            problems: self.durability.0.problems(),
        }
    }
}

/// Returns the type of the file system that a directory is on, by the magic number of statfs(2).
fn backing(path: &std::path::Path) -> &'static str {
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
