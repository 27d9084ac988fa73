//! From a container's settings to the OCI configuration that the runtime carries out. Pure:
//! everything that depends on the host comes in by [`Surroundings`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use whelk_runtime::cgroup::DEFAULT_RULES;
use whelk_runtime::spec::{
    BlockIo, Capabilities, ConsoleSize, Cpu, Device, DeviceKind, DeviceRule, Linux, Memory, Mount,
    Namespace, NamespaceKind, Pids, Process, Resources, Rlimit, Root, Spec, ThrottleDevice,
    VERSION, WeightDevice,
};

use crate::error::{Error, Result};
use crate::model::{Config, DeviceMapping, HostConfig};
use crate::security::{self, Options};
use crate::validate::quota_of;

/// What the configuration needs to know beside the settings.
pub struct Surroundings<'a> {
    pub id: &'a str,
    /// Where its files of names are: those of the container whose network it shares, if it does.
    pub names: &'a Path,
    pub cgroup_parent: &'a str,
    /// First processes of the containers whose namespaces are shared.
    pub network_of: Option<i32>,
    pub pid_of: Option<i32>,
    pub ipc_of: Option<i32>,
    /// Device nodes asked for, and for a privileged container all of the host's.
    pub devices: Vec<(Device, String)>,
    /// Device numbers of paths that limits name.
    pub device_number: &'a dyn Fn(&str) -> Result<(i64, i64)>,
    pub executable: &'a Path,
    /// How many files a process may have open, unless the container says otherwise.
    pub open_files: OpenFiles,
    /// What the user mounts.
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

/// Where the reaper of `--init` appears in the container.
const INIT: &str = "/sbin/docker-init";

/// # Errors
/// Settings that only show here to make no sense, such as a device of a limit that does not exist.
pub fn generate(
    config: &Config,
    host: &HostConfig,
    surroundings: &Surroundings<'_>,
) -> Result<Spec> {
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
    // A name that is shared with others is not this container's to set.
    let shares_names = host.uts_mode == "host" || surroundings.network_of.is_some();
    if !config.domainname.is_empty() && surroundings.network_of.is_none() {
        // As Docker hands it on: refused in the host's namespace.
        sysctl
            .entry("kernel.domainname".into())
            .or_insert_with(|| config.domainname.clone());
    }
    if host.network_mode != "host" && !host.network_mode.starts_with("container:") {
        // Without capabilities a container may ping and use low ports: nothing outside its network
        // sees them.
        sysctl
            .entry("net.ipv4.ip_unprivileged_port_start".into())
            .or_insert_with(|| "0".into());
        sysctl
            .entry("net.ipv4.ping_group_range".into())
            .or_insert_with(|| "0 2147483647".into());
    }
    Ok(Spec {
        oci_version: VERSION.into(),
        process: Some(process(config, host, &options, surroundings.open_files)?),
        root: Some(Root {
            path: PathBuf::from("/"),
            readonly: host.readonly_rootfs,
        }),
        hostname: if shares_names {
            String::new()
        } else {
            hostname(config, surroundings.id)
        },
        mounts: mounts(host, &options, surroundings),
        annotations: host.annotations.clone(),
        linux: Linux {
            namespaces: namespaces(host, surroundings),
            devices: surroundings
                .devices
                .iter()
                .map(|(device, _)| device.clone())
                .collect(),
            cgroups_path: cgroup_path(host, surroundings.cgroup_parent, surroundings.id),
            resources: resources(host, surroundings)?,
            sysctl,
            masked_paths: paths(&host.masked_paths, &MASKED_PATHS),
            readonly_paths: paths(&host.readonly_paths, &READONLY_PATHS),
            rootfs_propagation: rootfs_propagation(surroundings.mounts),
            ..Linux::default()
        },
        ..Spec::default()
    })
}

/// The host name a container has.
pub fn hostname(config: &Config, id: &str) -> String {
    if config.hostname.is_empty() {
        id.chars().take(12).collect()
    } else {
        config.hostname.clone()
    }
}

/// The container's cgroup: in the one it asks for, or in the engine's.
pub(crate) fn cgroup_path(host: &HostConfig, default_parent: &str, id: &str) -> String {
    let parent = if host.cgroup_parent.is_empty() {
        default_parent
    } else {
        &host.cgroup_parent
    };
    crate::mounts::clean(&format!("{parent}/{id}"))
}

/// How many files a process may have open: soft and hard limit.
#[derive(Clone, Copy, Debug)]
pub struct OpenFiles {
    pub soft: u64,
    pub hard: u64,
}

/// What each process of the container is limited to. The engine raises its own limit of open files,
/// which the container must not inherit.
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

/// -1 stands for no limit.
fn limit_value(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// What is run: the entrypoint and its arguments.
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

/// A process's sets: nothing is inheritable or ambient (CVE-2022-24769).
pub fn capability_sets(names: Vec<String>) -> Capabilities {
    Capabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        ..Capabilities::default()
    }
}

/// The environment: defaults first, then what `links` tell, then what image and user set, each name
/// once.
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
            // A name without a value takes a variable away.
            None => {
                if let Some(place) = places.remove(entry.as_str()) {
                    environment[place] = None;
                }
            }
        }
    }
    environment.into_iter().flatten().cloned().collect()
}

fn namespaces(host: &HostConfig, surroundings: &Surroundings<'_>) -> Vec<Namespace> {
    let of = |pid: i32, name: &str| Some(PathBuf::from(format!("/proc/{pid}/ns/{name}")));
    let new = |kind| Namespace { kind, path: None };
    let mut namespaces = vec![new(NamespaceKind::Mount)];
    if host.network_mode != "host" {
        namespaces.push(Namespace {
            kind: NamespaceKind::Network,
            path: surroundings.network_of.and_then(|pid| of(pid, "net")),
        });
    }
    if host.uts_mode != "host" {
        // A container in another's network also has its name.
        namespaces.push(Namespace {
            kind: NamespaceKind::Uts,
            path: surroundings.network_of.and_then(|pid| of(pid, "uts")),
        });
    }
    if host.pid_mode != "host" {
        namespaces.push(Namespace {
            kind: NamespaceKind::Pid,
            path: surroundings.pid_of.and_then(|pid| of(pid, "pid")),
        });
    }
    if host.ipc_mode != "host" {
        namespaces.push(Namespace {
            kind: NamespaceKind::Ipc,
            path: surroundings.ipc_of.and_then(|pid| of(pid, "ipc")),
        });
    }
    if host.cgroupns_mode == "private" {
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

fn mounts(host: &HostConfig, options: &Options, surroundings: &Surroundings<'_>) -> Vec<Mount> {
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
    // In the host's namespace this shows the host's queues.
    mounts.push(mount(
        "/dev/mqueue",
        "mqueue",
        "mqueue",
        &["nosuid", "noexec", "nodev"],
    ));
    // A mount of the user's replaces the default one at the same place, and one at /dev all of
    // those below it.
    mounts.retain(|default| {
        let replaces = |target: &str| {
            target == default.destination
                || target == "/dev" && default.destination.starts_with("/dev/")
        };
        !surroundings
            .mounts
            .iter()
            .any(|mount| replaces(&mount.destination))
    });
    mounts.extend(by_depth(
        engine_mounts(host, surroundings),
        surroundings.mounts,
    ));
    mounts
}

/// What the engine itself puts into a container: shared memory, the files of names, the reaper of
/// `--init`.
fn engine_mounts(host: &HostConfig, surroundings: &Surroundings<'_>) -> Vec<Mount> {
    let shm = match (host.ipc_mode.as_str(), surroundings.ipc_of) {
        ("host", _) => Some(mount(
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
        ("none", None) => None,
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
            &surroundings.names.join(file).to_string_lossy(),
            read_only,
        )
    });
    let init = (host.init == Some(true)).then(|| init(surroundings.executable));
    shm.into_iter().chain(names).chain(init).collect()
}

/// The engine's mounts and the user's in the order in which they are made: parents before children,
/// so that a volume on `/etc` does not hide `/etc/hosts`. A mount of the user's replaces the
/// engine's at the same place.
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

/// The engine's own program as the container's reaper: by an overlay without a writable layer, so
/// that a container that may remount it does not get to write to the host's file.
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

/// Mounts that shall reach the host, or come from it, need a root that lets them.
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

fn device_rules(host: &HostConfig, surroundings: &Surroundings<'_>) -> Result<Vec<DeviceRule>> {
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
    rules.extend(
        surroundings
            .devices
            .iter()
            .map(|(device, access)| DeviceRule {
                allow: true,
                kind: Some(device.kind),
                major: Some(device.major),
                minor: Some(device.minor),
                access: access.clone(),
            }),
    );
    for rule in host.device_cgroup_rules.iter().flatten() {
        rules.push(parse_rule(rule)?);
    }
    Ok(rules)
}

/// `c 1:3 rwm`, with `*` for any number.
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

/// The access that a `--device` mapping gives.
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

fn resources(host: &HostConfig, surroundings: &Surroundings<'_>) -> Result<Resources> {
    Ok(Resources {
        devices: device_rules(host, surroundings)?,
        ..limits(host, surroundings.device_number)?
    })
}

/// The limits of a container, for its start and for `update`.
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
            network_mode: "none".into(),
            ipc_mode: "private".into(),
            shm_size: 1,
            ..HostConfig::default()
        };
        change(&mut config, &mut host);
        let surroundings = Surroundings {
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
        generate(&config, &host, &surroundings).expect("valid")
    }

    #[test]
    fn defaults_confine() {
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
    fn the_cgroups_parent_cannot_climb() {
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
    fn the_engines_limit_of_open_files_is_its_own() {
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
    fn domain_names_are_set_where_they_are_the_containers_own() {
        let name = |uts: &str| {
            let spec =
                spec(|config, host| (config.domainname, host.uts_mode) = ("d".into(), uts.into()));
            spec.linux.sysctl.get("kernel.domainname").cloned()
        };
        assert_eq!(name("").as_deref(), Some("d"));
        assert_eq!(
            name("host").as_deref(),
            Some("d"),
            "which the runtime refuses"
        );
    }

    #[test]
    fn privileged_opens_what_it_should() {
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
    fn user_mounts_replace_default_ones() {
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
    fn the_environment_has_each_name_once() {
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
    fn device_rules_are_checked() {
        assert!(parse_rule("c 1:3 rwm").is_ok() && parse_rule("b *:* r").is_ok());
        for text in ["", "c 1:3", "x 1:3 r", "c 1 r", "c 1:x r", "c 1:3 q"] {
            assert!(parse_rule(text).is_err(), "{text}");
        }
    }
}
