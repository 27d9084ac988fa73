//! Validates a container's settings before anything is created, and fills in defaults.
//!
//! Pure: the host's properties are passed in [`HostInfo`]. Where Docker rejects a setting too the
//! error texts are Docker's.

use whelk_text::signal;

use crate::error::{Error, Result};
use crate::host::HostInfo;
use crate::model::{
    CgroupnsMode, Config, HealthTest, HostConfig, IpcMode, NetworkMode, PidMode, RestartPolicy,
    UtsMode,
};
use crate::{mounts, random_names, security};

/// Docker's minimum memory limit in bytes; a process does not start with less.
const MIN_MEMORY: i64 = 6 << 20;
/// The default CFS period, in microseconds.
const PERIOD: i64 = 100_000;

/// Validates the settings and fills in defaults. Returns warnings for the user.
///
/// # Errors
/// Returns an error if a setting is invalid, or not supported by this version.
pub fn settings(
    config: &mut Config,
    host_config: &mut HostConfig,
    host: &HostInfo,
) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    check_health(config)?;
    refuse_unsupported(config, host_config)?;
    if host_config.network_mode == NetworkMode::Host && host_config.publishes() {
        warnings.push("Published ports are discarded when using host network mode".into());
    }
    check_config(config)?;
    check_modes(config, host_config, host)?;
    limits(host_config, host, &mut warnings)?;
    check_restart_policy(host_config)?;
    check_sysctls(host_config)?;
    security::capabilities(host_config)?;
    security::Options::parse(host_config)?;
    let (log, default) = (&mut host_config.log_config, &host.default_log);
    log.driver = log.driver.or(default.driver);
    crate::logging::check_new(log)?;
    if log.driver == default.driver {
        for (key, value) in &default.options {
            log.options
                .entry(key.clone())
                .or_insert_with(|| value.clone());
        }
    }
    crate::logging::config(log, std::path::Path::new(""), "", &Default::default())?;
    if !(-1000..=1000).contains(&host_config.oom_score_adj) {
        return Err(Error::invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host_config.oom_score_adj
        )));
    }
    if host_config.shm_size < 0 {
        return Err(Error::invalid("SHM size can not be less than 0"));
    }
    if host_config.shm_size == 0 {
        host_config.shm_size = 64 << 20;
    }
    if host_config.privileged
        || host_config.pid_mode == PidMode::Host
        || host_config.ipc_mode == IpcMode::Host
    {
        // As Docker does: a container that shares the host's namespaces has no SELinux label of its
        // own.
        host_config
            .security_opt
            .get_or_insert_default()
            .push("label=disable".into());
    }
    if host_config.annotations.contains_key("") {
        return Err(Error::invalid(
            "invalid Annotations: the empty string is not permitted as an annotation key",
        ));
    }
    let lists = [
        &host_config.extra_hosts,
        &host_config.dns_search,
        &host_config.dns_options,
    ];
    // They are written to `hosts` and `resolv.conf`: a newline would inject further lines.
    if let Some(wrong) =
        lists.into_iter().flatten().flatten().find(|text| {
            text.contains(|letter: char| letter.is_control() || letter.is_whitespace())
        })
    {
        return Err(Error::invalid(format!(
            "invalid name or option {wrong:?}: blanks and control characters are not allowed"
        )));
    }
    if let Some(wrong) = host_config
        .dns
        .iter()
        .flatten()
        .find(|server| server.parse::<std::net::IpAddr>().is_err())
    {
        return Err(Error::invalid(format!("invalid IP address: {wrong}")));
    }
    for host in host_config.extra_hosts.iter().flatten() {
        if !host.contains(':') {
            return Err(Error::invalid(format!("bad format for add-host: {host:?}")));
        }
    }
    Ok(warnings)
}

/// Checks and completes the limits, which an update may change as well.
pub fn limits(
    host_config: &mut HostConfig,
    host: &HostInfo,
    warnings: &mut Vec<String>,
) -> Result<()> {
    check_memory(host_config, host, warnings)?;
    check_cpu(host_config, host)?;
    check_block_io(host_config, host, warnings);
    Ok(())
}

/// Rejects settings that this version does not support, instead of ignoring them.
fn refuse_unsupported(config: &Config, host: &HostConfig) -> Result<()> {
    let refused = [
        (
            !host.storage_opt.is_empty(),
            "HostConfig.StorageOpt (--storage-opt)",
        ),
        (
            host.device_requests
                .as_ref()
                .is_some_and(|list| !list.is_empty()),
            "HostConfig.DeviceRequests (--gpus)",
        ),
        (!host.cgroup.is_empty(), "HostConfig.Cgroup"),
        // They limit containers on Windows.
        (host.cpu_count != 0, "HostConfig.CpuCount"),
        (host.cpu_percent != 0, "HostConfig.CpuPercent"),
        (host.io_maximum_iops != 0, "HostConfig.IOMaximumIOps"),
        (
            host.io_maximum_bandwidth != 0,
            "HostConfig.IOMaximumBandwidth",
        ),
        (
            config.healthcheck.as_ref().is_some_and(|check| {
                matches!(check.test, HealthTest::Command(_) | HealthTest::Shell(_))
            }),
            "Healthcheck (--health-cmd)",
        ),
    ];
    match refused.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(Error::Unsupported(format!(
            "{what}: not available in this version of whelk"
        ))),
        None => Ok(()),
    }
}

fn check_health(config: &Config) -> Result<()> {
    const LEAST: i64 = 1_000_000;
    let Some(check) = &config.healthcheck else {
        return Ok(());
    };
    let too_short = |durations: [(&str, i64); 2]| {
        let short = durations
            .into_iter()
            .find(|&(_, value)| value != 0 && value < LEAST);
        short.map_or(Ok(()), |(name, _)| {
            Err(Error::invalid(format!(
                "{name} in Healthcheck cannot be less than 1ms"
            )))
        })
    };
    too_short([("Interval", check.interval), ("Timeout", check.timeout)])?;
    if check.retries < 0 {
        return Err(Error::invalid("Retries in Healthcheck cannot be negative"));
    }
    too_short([
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ])
}

fn check_config(config: &mut Config) -> Result<()> {
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(Error::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    if !config.working_dir.is_empty() {
        config.working_dir = mounts::clean(&config.working_dir);
    }
    for entry in config.env.iter().flatten() {
        if entry.is_empty() || entry.starts_with('=') || entry.contains('\0') {
            return Err(Error::invalid(format!(
                "invalid environment variable: {entry}"
            )));
        }
    }
    if !config.stop_signal.is_empty() {
        signal::parse(&config.stop_signal)?;
    }
    if config.hostname.len() > 64 || config.hostname.contains(['\0', '\n']) {
        return Err(Error::invalid(format!(
            "invalid hostname: {:?}",
            config.hostname
        )));
    }
    Ok(())
}

fn check_modes(config: &Config, host: &mut HostConfig, host_info: &HostInfo) -> Result<()> {
    if host.network_mode == NetworkMode::Default {
        host.network_mode = if config.network_disabled {
            NetworkMode::None
        } else {
            NetworkMode::Bridge
        };
    }
    // Networks are looked up at the start, as Docker does: one may be created until then.
    check_ports(host)?;
    if host.ipc_mode == IpcMode::Default {
        host.ipc_mode = IpcMode::Private;
    }
    if host.uts_mode == UtsMode::Host && !config.hostname.is_empty() {
        return Err(Error::invalid(
            "conflicting options: hostname and the UTS mode",
        ));
    }
    if host.cgroupns_mode == CgroupnsMode::Default {
        host.cgroupns_mode = if host_info.cgroup_v2 {
            CgroupnsMode::Private
        } else {
            CgroupnsMode::Host
        };
    }
    match host.runtime.as_str() {
        "" | "runc" | "io.containerd.runc.v2" | "whelk" => {}
        other => {
            return Err(Error::invalid(format!(
                "unknown or invalid runtime name: {other}"
            )));
        }
    }
    // Docker's clients expect the name `runc`.
    host.runtime = "runc".into();
    if host.network_mode.container().is_some() {
        check_shared_network(config, host)?;
    }
    Ok(())
}

/// Rejects settings of host names and DNS for a container that shares another's network: it uses
/// the other's files.
fn check_shared_network(config: &Config, host: &HostConfig) -> Result<()> {
    let is_given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let conflicts = [
        (!config.hostname.is_empty(), "hostname"),
        (is_given(&host.dns), "dns"),
        (is_given(&host.extra_hosts), "custom host-to-IP mapping"),
    ];
    match conflicts.iter().find(|(given, _)| *given) {
        Some((_, what)) => Err(Error::invalid(format!(
            "conflicting options: {what} and the network mode"
        ))),
        None => Ok(()),
    }
}

fn check_memory(
    host: &mut HostConfig,
    host_info: &HostInfo,
    warnings: &mut Vec<String>,
) -> Result<()> {
    if host.memory != 0 && host.memory < MIN_MEMORY {
        return Err(Error::invalid("Minimum memory limit allowed is 6MB"));
    }
    if host.memory > 0 && host.memory_swap != 0 && !host_info.has_swap_limit {
        warnings
            .push("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.".into());
        host.memory_swap = -1;
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return Err(Error::invalid(
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ));
    }
    if host.memory == 0 && host.memory_swap > 0 {
        return Err(Error::invalid(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ));
    }
    if host.memory > 0 && host.memory_swap == 0 && host_info.has_swap_limit {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    match host.memory_swappiness {
        Some(-1) => host.memory_swappiness = None,
        Some(value) if !(0..=100).contains(&value) => {
            return Err(Error::invalid(format!(
                "Invalid value: {value}, valid memory swappiness range is 0-100"
            )));
        }
        Some(_) if host_info.cgroup_v2 => {
            warnings.push(
                "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded."
                    .into(),
            );
            host.memory_swappiness = None;
        }
        _ => {}
    }
    if host.memory_reservation != 0 && host.memory_reservation < MIN_MEMORY {
        return Err(Error::invalid("Minimum memory reservation allowed is 6MB"));
    }
    if host.memory > 0 && host.memory_reservation > host.memory {
        return Err(Error::invalid(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ));
    }
    if host.oom_kill_disable == Some(true) && host_info.cgroup_v2 {
        warnings
            .push("Your kernel does not support OomKillDisable. OomKillDisable discarded.".into());
        host.oom_kill_disable = None;
    } else if host.oom_kill_disable == Some(true) && host.memory == 0 {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources."
                .into(),
        );
    }
    if host.oom_kill_disable.is_none() && !host_info.cgroup_v2 {
        host.oom_kill_disable = Some(false);
    }
    if host.pids_limit.is_some_and(|limit| limit <= 0) {
        host.pids_limit = None;
    }
    Ok(())
}

fn check_cpu(host: &HostConfig, host_info: &HostInfo) -> Result<()> {
    if host.nano_cpus != 0 {
        if host.cpu_period != 0 {
            return Err(Error::invalid(
                "Conflicting options: Nano CPUs and CPU Period cannot both be set",
            ));
        }
        if host.cpu_quota != 0 {
            return Err(Error::invalid(
                "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
            ));
        }
        // The kernel's minimum quota, 1 ms, is 0.01 of the default period.
        const MIN_CPUS: i64 = 10_000_000;
        if !(MIN_CPUS..=i64::from(host_info.cpus) * 1_000_000_000).contains(&host.nano_cpus) {
            return Err(Error::invalid(format!(
                "range of CPUs is from 0.01 to {}.00, as there are only {} CPUs available",
                host_info.cpus, host_info.cpus
            )));
        }
    }
    if host.cpu_shares < 0 {
        return Err(Error::invalid(format!(
            "invalid CPU shares ({}): value must be a positive integer",
            host.cpu_shares
        )));
    }
    if host.cpu_period != 0 && !(1_000..=1_000_000).contains(&host.cpu_period) {
        return Err(Error::invalid(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ));
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1_000 {
        return Err(Error::invalid(
            "CPU cfs quota can not be less than 1ms (i.e. 1000)",
        ));
    }
    if host_info.cgroup_v2 && (host.cpu_realtime_period != 0 || host.cpu_realtime_runtime != 0) {
        return Err(Error::invalid(
            "Your kernel does not support CPU real-time scheduler",
        ));
    }
    let available = if host_info.cpus <= 1 {
        "0".to_owned()
    } else {
        format!("0-{}", host_info.cpus - 1)
    };
    check_set(&host.cpuset_cpus, &available, "cpus", "CPUs")?;
    check_set(
        &host.cpuset_mems,
        &host_info.memory_nodes,
        "mems",
        "memory nodes",
    )
}

/// Checks that only a container with a network of its own publishes ports.
fn check_ports(host: &HostConfig) -> Result<()> {
    if host.network_mode.container().is_some() && host.publishes() {
        return Err(Error::invalid(
            "conflicting options: port publishing and the container type network mode",
        ));
    }
    Ok(())
}

/// Checks the ports that a client exposes, before those of the image are added.
pub(crate) fn check_exposed(config: &Config, host: &HostConfig) -> Result<()> {
    if host.network_mode.container().is_some()
        && !config.exposed_ports.is_empty()
        && !host.publishes()
    {
        return Err(Error::invalid(
            "conflicting options: port exposing and the container type network mode",
        ));
    }
    Ok(())
}

/// Checks a cpuset list.
///
/// # Errors
/// Returns an error if the list is malformed, or names a number that is not in `available`.
fn check_set(wanted: &str, available: &str, field: &str, what: &str) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let numbers = parse_set(wanted).ok_or_else(|| {
        Error::invalid(format!(
            "Invalid value {wanted} for cpuset {field}: invalid format: {wanted}"
        ))
    })?;
    let have = parse_set(available).unwrap_or_default();
    if numbers.iter().all(|number| have.contains(number)) {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "Requested {what} are not available - requested {wanted}, available: {available}"
        )))
    }
}

/// Parses a list such as `0-2,7`. Returns `None` if it is malformed.
fn parse_set(text: &str) -> Option<Vec<u32>> {
    // The largest NR_CPUS of the kernel; bounds the enumeration.
    const MOST: u32 = 8192;
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > MOST {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

fn check_block_io(host: &mut HostConfig, host_info: &HostInfo, warnings: &mut Vec<String>) {
    if host.blkio_weight != 0 && !host_info.has_blkio_weight {
        warnings.push("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.".into());
        host.blkio_weight = 0;
    }
    if host
        .blkio_weight_device
        .as_ref()
        .is_some_and(|list| !list.is_empty())
        && !host_info.has_blkio_weight
    {
        warnings.push("Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.".into());
        host.blkio_weight_device = Some(Vec::new());
    }
}

fn check_restart_policy(host: &HostConfig) -> Result<()> {
    if host.auto_remove && host.restart_policy != RestartPolicy::No {
        return Err(Error::invalid(
            "can't create 'AutoRemove' container with restart policy",
        ));
    }
    Ok(())
}

/// Rejects sysctls of single interfaces, as Docker does: which network's interface is called eth0
/// may change. Whether the other sysctls are namespaced is checked by the runtime at the start.
fn check_sysctls(host: &HostConfig) -> Result<()> {
    for key in host.sysctls.keys() {
        let key = key.replace('/', ".");
        let parts: Vec<&str> = key.split('.').collect();
        if let [
            "net",
            "ipv4" | "ipv6" | "mpls",
            "conf" | "neigh",
            interface,
            _,
        ] = parts[..]
            && interface.starts_with("eth")
        {
            return Err(Error::invalid(format!(
                "interface specific sysctl setting {key:?} must be supplied using driver option 'com.docker.network.endpoint.sysctls'"
            )));
        }
    }
    Ok(())
}

/// Converts billionths of a processor to CFS quota and period in microseconds.
pub(crate) fn quota_of(nano_cpus: i64) -> (i64, i64) {
    (
        nano_cpus / 1_000_000_000 * PERIOD + nano_cpus % 1_000_000_000 * PERIOD / 1_000_000_000,
        PERIOD,
    )
}

/// Checks a container's name, and returns it without the leading slash that the API writes.
///
/// # Errors
/// As [`random_names::check`].
pub fn name(name: &str) -> Result<&str> {
    let name = name.strip_prefix('/').unwrap_or(name);
    random_names::check(name)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Healthcheck, LogConfig, LogDriver};

    fn host_info() -> HostInfo {
        let default_log = LogConfig {
            driver: Some(LogDriver::Local),
            ..LogConfig::default()
        };
        HostInfo {
            kernel: String::new(),
            architecture: String::new(),
            cpus: 2,
            memory_nodes: "0".into(),
            cgroup_v2: false,
            has_blkio_weight: false,
            has_swap_limit: true,
            apparmor: false,
            ipv4_forwarding: true,
            bridge_filter: (false, false),
            backing_file_system: "extfs",
            default_log,
        }
    }

    fn check(change: impl FnOnce(&mut Config, &mut HostConfig), expected: &str) {
        let (mut config, mut host) = (Config::default(), HostConfig::default());
        change(&mut config, &mut host);
        let outcome = settings(&mut config, &mut host, &host_info());
        assert_eq!(
            outcome.map_or_else(|error| error.to_string(), |warnings| warnings.join("; ")),
            expected
        );
    }

    #[test]
    fn error_texts_are_dockers() {
        check(|_, _| {}, "");
        check(
            |_, host| host.memory = 1 << 20,
            "Minimum memory limit allowed is 6MB",
        );
        check(
            |_, host| (host.memory, host.memory_swap) = (64 << 20, 32 << 20),
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        );
        check(
            |_, host| host.cpuset_cpus = "99".into(),
            "Requested CPUs are not available - requested 99, available: 0-1",
        );
        check(
            |_, host| host.cpuset_cpus = "1-0".into(),
            "Invalid value 1-0 for cpuset cpus: invalid format: 1-0",
        );
        for cpus in [99_000_000_000, 9_999_999, 1_000, -1] {
            check(
                |_, host| host.nano_cpus = cpus,
                "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available",
            );
        }
        check(|_, host| host.nano_cpus = 10_000_000, "");
        check(
            |_, host| host.oom_score_adj = 2000,
            "Invalid value 2000, range for oom score adj is [-1000, 1000]",
        );
        let health = |change: fn(&mut Healthcheck)| {
            move |config: &mut Config, _: &mut HostConfig| {
                change(config.healthcheck.get_or_insert_default())
            }
        };
        check(
            health(|check| check.interval = 1000),
            "Interval in Healthcheck cannot be less than 1ms",
        );
        check(
            health(|check| {
                check.test = HealthTest::Disabled;
                check.timeout = -1;
            }),
            "Timeout in Healthcheck cannot be less than 1ms",
        );
        check(
            health(|check| check.start_period = 999_999),
            "StartPeriod in Healthcheck cannot be less than 1ms",
        );
        check(
            health(|check| check.start_interval = 1),
            "StartInterval in Healthcheck cannot be less than 1ms",
        );
        check(
            health(|check| check.retries = -1),
            "Retries in Healthcheck cannot be negative",
        );
        check(health(|check| check.interval = 1_000_000), "");
        check(
            |config, _| config.working_dir = "rel".into(),
            "the working directory 'rel' is invalid, it needs to be an absolute path",
        );
        check(
            |config, _| config.stop_signal = "BOGUS".into(),
            "invalid signal: BOGUS",
        );
        check(
            |config, _| config.env = Some(vec!["=x".into()]),
            "invalid environment variable: =x",
        );
        check(
            |_, host| host.blkio_weight = 300,
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
        );
        check(
            |_, host| {
                drop(
                    host.sysctls
                        .insert("net/ipv6/conf/eth0/disable_ipv6".into(), "1".into()),
                )
            },
            "interface specific sysctl setting \"net.ipv6.conf.eth0.disable_ipv6\" must be supplied using driver option 'com.docker.network.endpoint.sysctls'",
        );
        let shared = |host: &mut HostConfig| host.network_mode = NetworkMode::Container("x".into());
        check(
            |_, host| (shared(host), host.dns = Some(vec!["1.1.1.1".into()])).0,
            "conflicting options: dns and the network mode",
        );
        check(
            |_, host| {
                (
                    shared(host),
                    host.extra_hosts = Some(vec!["a:1.2.3.4".into()]),
                )
                    .0
            },
            "conflicting options: custom host-to-IP mapping and the network mode",
        );
    }

    #[test]
    fn converts_cpus_to_quotas() {
        assert_eq!(quota_of(1_500_000_000), (150_000, 100_000));
        assert_eq!(quota_of(10_000_000), (1_000, 100_000));
    }
}
