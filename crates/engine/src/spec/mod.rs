//! Generates the OCI runtime configuration from a container's settings. Pure: everything that
//! depends on the host is passed in [`SpecContext`].

mod devices;
mod mounts;
mod process;
mod resources;

use std::path::{Path, PathBuf};

use whelk_runtime::spec::{Device, Linux, Mount, Namespace, NamespaceKind, Root, Spec, VERSION};

use crate::error::Result;
use crate::instance::OpenFiles;
use crate::model::{CgroupnsMode, Config, HostConfig, IpcMode, NetworkMode, PidMode, UtsMode};
use crate::security::Options;

pub use devices::device_access;
pub(crate) use process::rlimits;
pub use process::{capability_sets, command, environment};
pub use resources::changed_limits;

use mounts::{mounts, rootfs_propagation};
use process::process;
use resources::resources;

/// The inputs of [`generate`] besides the container's settings.
pub struct SpecContext<'a> {
    pub id: &'a str,
    /// The directory of `hosts`, `hostname` and `resolv.conf`: that of the container whose network
    /// is shared, if any.
    pub names: &'a Path,
    pub cgroup_parent: &'a str,
    /// The pids of the init processes of the containers whose namespaces are shared.
    pub network_of: Option<i32>,
    pub pid_of: Option<i32>,
    pub ipc_of: Option<i32>,
    /// The device nodes to create, with their cgroup access: those requested, and for a privileged
    /// container all of the host's.
    pub devices: Vec<(Device, String)>,
    /// Returns the major and minor number of a device that a block I/O limit names.
    pub device_number: &'a dyn Fn(&str) -> Result<(i64, i64)>,
    pub executable: &'a Path,
    /// The default `RLIMIT_NOFILE`.
    pub open_files: OpenFiles,
    /// The user's mounts.
    pub mounts: &'a [Mount],
    /// Whether the host has AppArmor. As with Docker, profiles are ignored without it.
    pub apparmor: bool,
}

pub const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
pub const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Generates the OCI configuration of a container.
///
/// # Errors
/// Returns an error if settings are invalid that validation does not check, such as a block I/O
/// limit of a device that does not exist.
pub fn generate(config: &Config, host: &HostConfig, context: &SpecContext<'_>) -> Result<Spec> {
    let mut options = Options::parse(host)?;
    if !context.apparmor {
        options.apparmor.clear();
    }
    let strings = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let paths = |given: &Option<Vec<String>>, default: &[&str]| {
        given.clone().unwrap_or_else(|| {
            if host.privileged {
                Vec::new()
            } else {
                strings(default)
            }
        })
    };
    let mut sysctl = host.sysctls.clone();
    // In a shared UTS namespace the container must not set the host name.
    let shares_names = host.uts_mode == UtsMode::Host || context.network_of.is_some();
    if !config.domainname.is_empty() && context.network_of.is_none() {
        // Passed on as Docker does; the runtime refuses it in the host's UTS namespace.
        sysctl
            .entry("kernel.domainname".into())
            .or_insert_with(|| config.domainname.clone());
    }
    if host.network_mode != NetworkMode::Host && host.network_mode.container().is_none() {
        // Containers without capabilities can use ping and ports below 1024, as with Docker: the
        // sysctls only affect the container's network namespace.
        sysctl
            .entry("net.ipv4.ip_unprivileged_port_start".into())
            .or_insert_with(|| "0".into());
        sysctl
            .entry("net.ipv4.ping_group_range".into())
            .or_insert_with(|| "0 2147483647".into());
    }
    Ok(Spec {
        oci_version: VERSION.into(),
        process: Some(process(config, host, &options, context.open_files)?),
        root: Some(Root {
            path: PathBuf::from("/"),
            readonly: host.readonly_rootfs,
        }),
        hostname: if shares_names {
            String::new()
        } else {
            hostname(config, context.id)
        },
        mounts: mounts(host, &options, context),
        annotations: host.annotations.clone(),
        linux: Linux {
            namespaces: namespaces(host, context),
            devices: context
                .devices
                .iter()
                .map(|(device, _)| device.clone())
                .collect(),
            cgroups_path: cgroup_path(host, context.cgroup_parent, context.id),
            resources: resources(host, context)?,
            sysctl,
            masked_paths: paths(&host.masked_paths, &MASKED_PATHS),
            readonly_paths: paths(&host.readonly_paths, &READONLY_PATHS),
            rootfs_propagation: rootfs_propagation(context.mounts),
            ..Linux::default()
        },
        ..Spec::default()
    })
}

/// Returns a container's host name: as configured, or the short id.
pub fn hostname(config: &Config, id: &str) -> String {
    if config.hostname.is_empty() {
        id.chars().take(12).collect()
    } else {
        config.hostname.clone()
    }
}

/// Returns the path of a container's cgroup, in its `cgroup_parent` or in the engine's default.
pub(crate) fn cgroup_path(host: &HostConfig, default_parent: &str, id: &str) -> String {
    let parent = if host.cgroup_parent.is_empty() {
        default_parent
    } else {
        &host.cgroup_parent
    };
    crate::mounts::clean(&format!("{parent}/{id}"))
}

fn namespaces(host: &HostConfig, context: &SpecContext<'_>) -> Vec<Namespace> {
    let of = |pid: i32, name: &str| Some(PathBuf::from(format!("/proc/{pid}/ns/{name}")));
    let new = |kind| Namespace { kind, path: None };
    let mut namespaces = vec![new(NamespaceKind::Mount)];
    if host.network_mode != NetworkMode::Host {
        namespaces.push(Namespace {
            kind: NamespaceKind::Network,
            path: context.network_of.and_then(|pid| of(pid, "net")),
        });
    }
    if host.uts_mode != UtsMode::Host {
        // A container that shares a network namespace shares the UTS namespace too.
        namespaces.push(Namespace {
            kind: NamespaceKind::Uts,
            path: context.network_of.and_then(|pid| of(pid, "uts")),
        });
    }
    if host.pid_mode != PidMode::Host {
        namespaces.push(Namespace {
            kind: NamespaceKind::Pid,
            path: context.pid_of.and_then(|pid| of(pid, "pid")),
        });
    }
    if host.ipc_mode != IpcMode::Host {
        namespaces.push(Namespace {
            kind: NamespaceKind::Ipc,
            path: context.ipc_of.and_then(|pid| of(pid, "ipc")),
        });
    }
    if host.cgroupns_mode == CgroupnsMode::Private {
        namespaces.push(new(NamespaceKind::Cgroup));
    }
    namespaces
}

#[cfg(test)]
mod tests {
    use whelk_runtime::spec::Rlimit;

    use super::mounts::mount;
    use super::*;

    fn spec(change: impl FnOnce(&mut Config, &mut HostConfig)) -> Spec {
        spec_on(true, change)
    }

    fn spec_on(apparmor: bool, change: impl FnOnce(&mut Config, &mut HostConfig)) -> Spec {
        let mut config = Config {
            cmd: Some(vec!["sh".into()]),
            ..Config::default()
        };
        let mut host = HostConfig {
            network_mode: NetworkMode::None,
            ipc_mode: IpcMode::Private,
            shm_size: 1,
            ..HostConfig::default()
        };
        change(&mut config, &mut host);
        let context = SpecContext {
            id: "0123456789abcdef",
            names: Path::new("/d"),
            cgroup_parent: "/whelk",
            network_of: None,
            pid_of: None,
            ipc_of: None,
            devices: Vec::new(),
            device_number: &|_| Ok((8, 0)),
            executable: Path::new("/whelk"),
            open_files: OpenFiles {
                soft: 1024,
                hard: 4096,
            },
            mounts: &[mount("/dev/shm", "bind", "/x", &["rbind", "rslave"])],
            apparmor,
        };
        generate(&config, &host, &context).expect("valid")
    }

    #[test]
    fn default_settings_confine_the_container() {
        let spec = spec(|_, _| {});
        let process = spec.process.expect("a process");
        assert_eq!(process.capabilities.expect("sets").bounding.len(), 14);
        assert_eq!(spec.linux.masked_paths.len(), 12);
        assert_eq!(spec.linux.cgroups_path, "/whelk/0123456789abcdef");
        assert_eq!(spec.hostname, "0123456789ab");
        assert!(
            spec.linux.has_new(NamespaceKind::Network) && spec.linux.has_new(NamespaceKind::Pid)
        );
        assert!(
            spec.mounts.iter().any(
                |mount| mount.destination == "/sys" && mount.options.contains(&"ro".to_owned())
            )
        );
    }

    #[test]
    fn apparmor_profiles_are_for_hosts_that_have_it() {
        for (has_it, expected) in [(true, "mine"), (false, "")] {
            let spec = spec_on(has_it, |_, host| {
                host.security_opt = Some(vec!["apparmor=mine".into()]);
            });
            assert_eq!(spec.process.expect("a process").apparmor_profile, expected);
        }
    }

    #[test]
    fn a_cgroup_parent_cannot_escape_the_hierarchy() {
        let path = |parent: &str| {
            spec(|_, host| host.cgroup_parent = parent.into())
                .linux
                .cgroups_path
        };
        for (parent, expected) in [
            ("/a/b/", "/a/b"),
            ("x/y", "/x/y"),
            ("../../x", "/x"),
            ("/a/../../b", "/b"),
            ("..", ""),
            ("/", ""),
        ] {
            assert_eq!(
                path(parent),
                format!("{expected}/0123456789abcdef"),
                "{parent}"
            );
        }
    }

    #[test]
    fn containers_do_not_inherit_the_engines_open_files_limit() {
        let limits = |change: fn(&mut HostConfig)| {
            spec(|_, host| change(host))
                .process
                .expect("a process")
                .rlimits
        };
        let of = |soft, hard| {
            vec![Rlimit {
                kind: "RLIMIT_NOFILE".into(),
                soft,
                hard,
            }]
        };
        assert_eq!(limits(|_| {}), of(1024, 4096));
        let own = |host: &mut HostConfig| {
            host.ulimits = Some(vec![crate::model::Ulimit {
                name: "nofile".into(),
                soft: 5,
                hard: -1,
            }])
        };
        assert_eq!(limits(own), of(5, u64::MAX));
    }

    #[test]
    fn sets_the_domain_name_by_sysctl() {
        let name = |uts: UtsMode| {
            let spec = spec(|config, host| (config.domainname, host.uts_mode) = ("d".into(), uts));
            spec.linux.sysctl.get("kernel.domainname").cloned()
        };
        assert_eq!(name(UtsMode::Private).as_deref(), Some("d"));
        assert_eq!(
            name(UtsMode::Host).as_deref(),
            Some("d"),
            "refused by the runtime, not here"
        );
    }

    #[test]
    fn privileged_lifts_masked_paths_and_device_rules() {
        let spec = spec(|_, host| host.privileged = true);
        assert!(spec.linux.masked_paths.is_empty() && spec.linux.readonly_paths.is_empty());
        assert!(
            spec.linux
                .resources
                .devices
                .iter()
                .any(|rule| rule.allow && rule.kind.is_none())
        );
    }

    #[test]
    fn user_mounts_replace_default_mounts() {
        let spec = spec(|_, _| {});
        let shm: Vec<_> = spec
            .mounts
            .iter()
            .filter(|mount| mount.destination == "/dev/shm")
            .collect();
        assert_eq!(shm.len(), 1);
        assert_eq!(
            (
                shm[0].source.as_str(),
                spec.linux.rootfs_propagation.as_str()
            ),
            ("/x", "slave")
        );
    }
}
