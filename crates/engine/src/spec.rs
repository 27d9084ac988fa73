//! Generates the OCI runtime configuration from a container's settings. Pure: everything that
//! depends on the host is passed in [`SpecContext`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use whelk_runtime::cgroup::DEFAULT_RULES;
use whelk_runtime::spec::{
    BlockIo, Capabilities, ConsoleSize, Cpu, Device, DeviceKind, DeviceRule, Linux, Memory, Mount,
    Namespace, NamespaceKind, Pids, Process, Resources, Rlimit, Root, Spec, ThrottleDevice,
    VERSION, WeightDevice,
};

use crate::error::{Error, Result};
use crate::instance::OpenFiles;
use crate::model::{
    CgroupnsMode, Config, DeviceMapping, HostConfig, IpcMode, NetworkMode, PidMode, UtsMode,
};
use crate::security::{self, Options};
use crate::validate::quota_of;

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

pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The path of the init process of `--init` in the container.
const INIT: &str = "/sbin/docker-init";

/// Generates the OCI configuration of a container.
///
/// # Errors
/// Returns an error if settings are invalid that validation does not check, such as a block I/O
/// limit of a device that does not exist.
pub fn generate(config: &Config, host: &HostConfig, context: &SpecContext<'_>) -> Result<Spec> {
    let options = Options::parse(host)?;
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

/// Returns the resource limits of a container's processes. `RLIMIT_NOFILE` is always set: the
/// engine raises its own limit, which the container must not inherit.
pub(crate) fn rlimits(host: &HostConfig, open_files: OpenFiles) -> Vec<Rlimit> {
    const OPEN_FILES: &str = "RLIMIT_NOFILE";
    let limit = |limit: &crate::model::Ulimit| Rlimit {
        kind: format!("RLIMIT_{}", limit.name.to_uppercase()),
        soft: limit_value(limit.soft),
        hard: limit_value(limit.hard),
    };
    let mut limits: Vec<Rlimit> = host.ulimits.iter().flatten().map(limit).collect();
    if limits.iter().all(|limit| limit.kind != OPEN_FILES) {
        limits.push(Rlimit {
            kind: OPEN_FILES.into(),
            soft: open_files.soft,
            hard: open_files.hard,
        });
    }
    limits
}

fn process(
    config: &Config,
    host: &HostConfig,
    options: &Options,
    open_files: OpenFiles,
) -> Result<Process> {
    let mut args: Vec<String> = Vec::new();
    if host.init == Some(true) {
        args.extend([INIT.to_owned(), "--".to_owned()]);
    }
    args.extend(command(config));
    Ok(Process {
        terminal: config.tty,
        console_size: (config.tty && host.console_size != [0, 0]).then_some(ConsoleSize {
            height: host.console_size[0],
            width: host.console_size[1],
        }),
        args,
        cwd: if config.working_dir.is_empty() {
            "/".into()
        } else {
            config.working_dir.clone()
        },
        capabilities: Some(capability_sets(security::capabilities(host)?)),
        rlimits: rlimits(host, open_files),
        no_new_privileges: options.no_new_privileges,
        apparmor_profile: options.apparmor.clone(),
        oom_score_adj: Some(host.oom_score_adj),
        ..Process::default()
    })
}

/// Converts an ulimit value; -1 is unlimited.
fn limit_value(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Returns the command line: the entrypoint and its arguments.
pub fn command(config: &Config) -> impl Iterator<Item = String> {
    let entrypoint = config.entrypoint.clone().unwrap_or_default();
    // `--entrypoint ""` arrives as one empty word and means none.
    let entrypoint = if entrypoint == [""] {
        Vec::new()
    } else {
        entrypoint
    };
    entrypoint
        .into_iter()
        .chain(config.cmd.clone().unwrap_or_default())
}

/// Returns a process's capability sets. The inheritable and ambient sets are empty
/// (CVE-2022-24769).
pub fn capability_sets(names: Vec<String>) -> Capabilities {
    Capabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        ..Capabilities::default()
    }
}

/// Returns the environment of a process: defaults, then the variables of `links`, of the image and
/// the user, and `extra`. A later entry replaces an earlier one of the same name; an entry without
/// `=` removes it.
pub fn environment(
    config: &Config,
    hostname: &str,
    links: &[String],
    extra: &[String],
) -> Vec<String> {
    let mut defaults = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if config.tty {
        defaults.push("TERM=xterm".into());
    }
    let mut environment: Vec<Option<&String>> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for entry in defaults
        .iter()
        .chain(links)
        .chain(config.env.iter().flatten())
        .chain(extra)
    {
        match entry.split_once('=') {
            Some((name, _)) => match places.get(name) {
                Some(place) => environment[*place] = Some(entry),
                None => {
                    places.insert(name, environment.len());
                    environment.push(Some(entry));
                }
            },
            // An entry without a value removes the variable.
            None => {
                if let Some(place) = places.remove(entry.as_str()) {
                    environment[place] = None;
                }
            }
        }
    }
    environment.into_iter().flatten().cloned().collect()
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

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Mount::default()
    }
}

fn mounts(host: &HostConfig, options: &Options, context: &SpecContext<'_>) -> Vec<Mount> {
    let writable_kernel = host.privileged;
    let sys: &[&str] = if writable_kernel {
        &["nosuid", "noexec", "nodev"]
    } else {
        &["nosuid", "noexec", "nodev", "ro"]
    };
    let cgroup: &[&str] = if writable_kernel || options.writable_cgroups {
        &["nosuid", "noexec", "nodev"]
    } else {
        &["ro", "nosuid", "noexec", "nodev"]
    };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/sys", "sysfs", "sysfs", sys),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", cgroup),
    ];
    // With the host's IPC namespace this shows the host's queues.
    mounts.push(mount(
        "/dev/mqueue",
        "mqueue",
        "mqueue",
        &["nosuid", "noexec", "nodev"],
    ));
    // A user's mount replaces the default mount with the same target; one on /dev replaces all
    // default mounts below it too.
    mounts.retain(|default| {
        let replaces = |target: &str| {
            target == default.destination
                || target == "/dev" && default.destination.starts_with("/dev/")
        };
        !context
            .mounts
            .iter()
            .any(|mount| replaces(&mount.destination))
    });
    mounts.extend(by_depth(engine_mounts(host, context), context.mounts));
    mounts
}

/// Returns the mounts that the engine adds: /dev/shm, `hosts`, `hostname` and `resolv.conf`, and
/// the init process of `--init`.
fn engine_mounts(host: &HostConfig, context: &SpecContext<'_>) -> Vec<Mount> {
    let shm = match (&host.ipc_mode, context.ipc_of) {
        (IpcMode::Host, _) => Some(mount(
            "/dev/shm",
            "bind",
            "/dev/shm",
            &["rbind", "rprivate"],
        )),
        (_, Some(pid)) => Some(mount(
            "/dev/shm",
            "bind",
            &format!("/proc/{pid}/root/dev/shm"),
            &["rbind", "rprivate"],
        )),
        (IpcMode::None, None) => None,
        (_, None) => {
            let size = format!("size={}", host.shm_size);
            Some(mount(
                "/dev/shm",
                "tmpfs",
                "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", &size],
            ))
        }
    };
    let read_only: &[&str] = if host.readonly_rootfs {
        &["rbind", "rprivate", "ro"]
    } else {
        &["rbind", "rprivate"]
    };
    let names = ["resolv.conf", "hostname", "hosts"].map(|file| {
        mount(
            &format!("/etc/{file}"),
            "bind",
            &context.names.join(file).to_string_lossy(),
            read_only,
        )
    });
    let init = (host.init == Some(true)).then(|| init(context.executable));
    shm.into_iter().chain(names).chain(init).collect()
}

/// Returns the engine's and the user's mounts in mount order: parents before children, so that a
/// volume on `/etc` does not hide `/etc/hosts`. A user's mount replaces the engine's with the same
/// target.
fn by_depth(mut mounts: Vec<Mount>, of_user: &[Mount]) -> Vec<Mount> {
    mounts.retain(|mount| {
        !of_user
            .iter()
            .any(|other| other.destination == mount.destination)
    });
    mounts.extend_from_slice(of_user);
    mounts.sort_by_key(|mount| crate::mounts::depth(&mount.destination));
    mounts
}

/// Returns the mount of the engine's own program as the container's init process. It is an overlay
/// without an upper layer, so that a container with the right to remount it read-write cannot write
/// to the host's file.
fn init(executable: &Path) -> Mount {
    let (directory, name) = (
        executable.parent().unwrap_or(Path::new("/")),
        executable.file_name().unwrap_or_default(),
    );
    let layers =
        whelk_sys::program::layers(directory).map(|layer| format!("lowerdir+={}", layer.display()));
    let subdirectory = format!("X-mount.subdir={}", name.to_string_lossy());
    Mount {
        destination: INIT.into(),
        kind: "overlay".into(),
        source: executable.to_string_lossy().into_owned(),
        options: layers
            .into_iter()
            .chain([subdirectory, "private".into(), "ro".into()])
            .collect(),
        ..Mount::default()
    }
}

/// Returns the root mount's propagation: shared or slave if a mount needs it to propagate to or
/// from the host, else empty.
fn rootfs_propagation(mounts: &[Mount]) -> String {
    let any = |kind: &str| {
        mounts
            .iter()
            .flat_map(|mount| &mount.options)
            .any(|word| word.strip_prefix('r').unwrap_or(word) == kind)
    };
    if any("shared") {
        "shared"
    } else if any("slave") {
        "slave"
    } else {
        ""
    }
    .into()
}

fn device_rules(host: &HostConfig, context: &SpecContext<'_>) -> Result<Vec<DeviceRule>> {
    let mut rules = vec![DeviceRule {
        allow: false,
        access: "rwm".into(),
        ..DeviceRule::default()
    }];
    if host.privileged {
        rules.push(DeviceRule {
            allow: true,
            access: "rwm".into(),
            ..DeviceRule::default()
        });
        return Ok(rules);
    }
    rules.extend(
        DEFAULT_RULES
            .iter()
            .map(|&(kind, major, minor, access)| DeviceRule {
                allow: true,
                kind: Some(kind),
                major,
                minor,
                access: access.into(),
            }),
    );
    rules.extend(context.devices.iter().map(|(device, access)| DeviceRule {
        allow: true,
        kind: Some(device.kind),
        major: Some(device.major),
        minor: Some(device.minor),
        access: access.clone(),
    }));
    for rule in host.device_cgroup_rules.iter().flatten() {
        rules.push(parse_rule(rule)?);
    }
    Ok(rules)
}

/// Parses a device cgroup rule such as `c 1:3 rwm`; `*` stands for any number.
fn parse_rule(text: &str) -> Result<DeviceRule> {
    let invalid = || Error::invalid(format!("invalid device cgroup rule format: '{text}'"));
    let words: Vec<&str> = text.split_whitespace().collect();
    let [kind, numbers, access] = words.as_slice() else {
        return Err(invalid());
    };
    let kind = match *kind {
        "a" => DeviceKind::All,
        "b" => DeviceKind::Block,
        "c" => DeviceKind::Char,
        _ => return Err(invalid()),
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(invalid)?;
    let number = |text: &str| {
        if text == "*" {
            Ok(None)
        } else {
            text.parse::<u32>()
                .map(|n| Some(n.into()))
                .map_err(|_| invalid())
        }
    };
    if access.is_empty() || access.len() > 3 || !access.chars().all(|letter| "rwm".contains(letter))
    {
        return Err(invalid());
    }
    Ok(DeviceRule {
        allow: true,
        kind: Some(kind),
        major: number(major)?,
        minor: number(minor)?,
        access: (*access).to_owned(),
    })
}

/// Returns the cgroup access of a `--device` mapping; the default is `rwm`.
pub fn device_access(mapping: &DeviceMapping) -> Result<String> {
    let access = if mapping.cgroup_permissions.is_empty() {
        "rwm"
    } else {
        &mapping.cgroup_permissions
    };
    if access.chars().all(|letter| "rwm".contains(letter)) {
        Ok(access.to_owned())
    } else {
        Err(Error::invalid(format!("invalid device mode: {access}")))
    }
}

fn resources(host: &HostConfig, context: &SpecContext<'_>) -> Result<Resources> {
    Ok(Resources {
        devices: device_rules(host, context)?,
        ..limits(host, context.device_number)?
    })
}

/// Returns the cgroup limits of a container, without device rules. Used by start and `update`.
pub fn limits(
    host: &HostConfig,
    device_number: &dyn Fn(&str) -> Result<(i64, i64)>,
) -> Result<Resources> {
    let some = |value: i64| (value != 0).then_some(value);
    let unsigned = |value: i64| u64::try_from(value).ok().filter(|value| *value != 0);
    let (quota, period) = if host.nano_cpus > 0 {
        let (quota, period) = quota_of(host.nano_cpus);
        (Some(quota), Some(period))
    } else {
        (some(host.cpu_quota), some(host.cpu_period))
    };
    let throttle =
        |list: &Option<Vec<crate::model::ThrottleDevice>>| -> Result<Vec<ThrottleDevice>> {
            list.iter()
                .flatten()
                .map(|device| {
                    device_number(&device.path).map(|(major, minor)| ThrottleDevice {
                        major,
                        minor,
                        rate: device.rate,
                    })
                })
                .collect()
        };
    let weights = host.blkio_weight_device.iter().flatten();
    Ok(Resources {
        memory: Memory {
            limit: some(host.memory),
            swap: some(host.memory_swap),
            reservation: some(host.memory_reservation),
            swappiness: host
                .memory_swappiness
                .and_then(|value| u64::try_from(value).ok()),
            disable_oom_killer: host.oom_kill_disable.filter(|disable| *disable),
            ..Memory::default()
        },
        cpu: Cpu {
            shares: unsigned(host.cpu_shares),
            quota,
            period: period.and_then(|period| u64::try_from(period).ok()),
            realtime_period: unsigned(host.cpu_realtime_period),
            realtime_runtime: some(host.cpu_realtime_runtime),
            cpus: host.cpuset_cpus.clone(),
            mems: host.cpuset_mems.clone(),
            ..Cpu::default()
        },
        pids: host.pids_limit.map(|limit| Pids { limit }),
        block_io: BlockIo {
            weight: (host.blkio_weight != 0).then_some(host.blkio_weight),
            weight_device: weights
                .map(|device| {
                    device_number(&device.path).map(|(major, minor)| WeightDevice {
                        major,
                        minor,
                        weight: Some(device.weight),
                        leaf_weight: None,
                    })
                })
                .collect::<Result<_>>()?,
            throttle_read_bps_device: throttle(&host.blkio_device_read_bps)?,
            throttle_write_bps_device: throttle(&host.blkio_device_write_bps)?,
            throttle_read_iops_device: throttle(&host.blkio_device_read_iops)?,
            throttle_write_iops_device: throttle(&host.blkio_device_write_iops)?,
            ..BlockIo::default()
        },
        ..Resources::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(change: impl FnOnce(&mut Config, &mut HostConfig)) -> Spec {
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

    #[test]
    fn the_environment_has_each_variable_once() {
        let config = Config {
            env: Some(vec!["PATH=/x".into(), "A=1".into()]),
            tty: true,
            ..Config::default()
        };
        assert_eq!(
            environment(&config, "h", &[], &["A=2".into()]),
            ["PATH=/x", "HOSTNAME=h", "TERM=xterm", "A=2"]
        );
        let extra = ["A", "HOSTNAME", "B=1", "NOSUCH", "A=3"].map(str::to_owned);
        assert_eq!(
            environment(&config, "h", &[], &extra),
            ["PATH=/x", "TERM=xterm", "B=1", "A=3"]
        );
    }

    #[test]
    fn rejects_malformed_device_rules() {
        assert!(parse_rule("c 1:3 rwm").is_ok() && parse_rule("b *:* r").is_ok());
        for text in ["", "c 1:3", "x 1:3 r", "c 1 r", "c 1:x r", "c 1:3 q"] {
            let error = parse_rule(text).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("invalid device cgroup rule format: '{text}'")
            );
        }
    }
}
