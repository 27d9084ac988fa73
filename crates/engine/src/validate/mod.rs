//! Validates a container's settings before anything is created, and fills in defaults.
//!
//! Pure: the host's properties are passed in [`HostInfo`]. Where Docker rejects a setting too the
//! error texts are Docker's.

mod limits;
mod modes;

use std::net::IpAddr;

use whelk_text::extra_host::HOST_GATEWAY;
use whelk_text::{signal, size};

use crate::error::{Error, Result};
use crate::host::HostInfo;
use crate::instance::ContainerDefaults;
use crate::model::{
    Config, DeviceRequest, Healthcheck, HostConfig, IpcMode, NetworkMode, PidMode, RestartPolicy,
};
use crate::{mounts, random_names, security};

pub use limits::limits;
pub(crate) use limits::quota_of;
pub(crate) use modes::check_exposed;

use modes::check_modes;

/// Validates the settings and fills in defaults. Returns warnings for the user.
///
/// # Errors
/// Returns an error if a setting is invalid, or not supported by this version.
pub fn settings(
    config: &mut Config,
    host_config: &mut HostConfig,
    host: &HostInfo,
    defaults: &ContainerDefaults,
) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    check_health(config)?;
    refuse_unsupported(host_config)?;
    layer_size(host_config)?;
    if host_config.network_mode == NetworkMode::Host && host_config.publishes() {
        warnings.push("Published ports are discarded when using host network mode".into());
    }
    check_config(config)?;
    check_modes(config, host_config, host, defaults)?;
    limits(host_config, host, &mut warnings)?;
    check_restart_policy(host_config)?;
    check_sysctls(host_config)?;
    let mut requests = host_config.device_requests.iter().flatten();
    requests.try_for_each(check_device_count)?;
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
    crate::logging::config(log, std::path::Path::new(""), "")?;
    crate::logging::destination(log)?;
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
        host_config.shm_size = defaults.shm_size;
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
    if host_config.cgroup_parent.is_empty() {
        host_config
            .cgroup_parent
            .clone_from(&defaults.cgroup_parent);
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
        .find(|server| server.parse::<IpAddr>().is_err())
    {
        return Err(Error::invalid(format!("invalid IP address: {wrong}")));
    }
    for host in host_config.extra_hosts.iter().flatten() {
        let (_, address) = host
            .split_once(':')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| Error::invalid(format!("bad format for add-host: {host:?}")))?;
        if address != HOST_GATEWAY && address.parse::<IpAddr>().is_err() {
            return Err(Error::invalid(format!(
                "invalid IP address in add-host: {address:?}"
            )));
        }
    }
    Ok(warnings)
}

/// Rejects settings that this version does not support, instead of ignoring them.
fn refuse_unsupported(host: &HostConfig) -> Result<()> {
    let refused = [
        (!host.cgroup.is_empty(), "HostConfig.Cgroup"),
        // They limit containers on Windows.
        (host.cpu_count != 0, "HostConfig.CpuCount"),
        (host.cpu_percent != 0, "HostConfig.CpuPercent"),
        (host.io_maximum_iops != 0, "HostConfig.IOMaximumIOps"),
        (
            host.io_maximum_bandwidth != 0,
            "HostConfig.IOMaximumBandwidth",
        ),
    ];
    match refused.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(Error::unsupported(what)),
        None => Ok(()),
    }
}

/// Returns the size limit of a container's writable layer in bytes; 0 for none.
///
/// # Errors
/// Returns an error if a storage option is unknown or its value invalid.
pub(crate) fn layer_size(host: &HostConfig) -> Result<u64> {
    let mut size = 0;
    for (key, value) in &host.storage_opt {
        if !key.eq_ignore_ascii_case("size") {
            let key = key.to_lowercase();
            return Err(Error::invalid(format!("unknown option {key}")));
        }
        let parsed = size::parse_binary(value).ok();
        size = parsed
            .and_then(|size| u64::try_from(size).ok())
            .ok_or_else(|| Error::invalid(format!("invalid size: '{value}'")))?;
    }
    Ok(size)
}

fn check_health(config: &Config) -> Result<()> {
    let Some(check) = &config.healthcheck else {
        return Ok(());
    };
    let too_short = |durations: [(&str, i64); 2]| {
        let short = durations
            .into_iter()
            .find(|&(_, value)| value != 0 && value < Healthcheck::LEAST);
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

/// Checks a container's name, and returns it without the leading slash that the API writes.
///
/// # Errors
/// As [`random_names::check`].
pub fn name(name: &str) -> Result<&str> {
    let name = name.strip_prefix('/').unwrap_or(name);
    random_names::check(name)?;
    Ok(name)
}

/// Checks how many devices a request asks for.
///
/// # Errors
/// Returns an error if they are more than any host has.
pub(crate) fn check_device_count(request: &DeviceRequest) -> Result<()> {
    /// How many devices a request may ask for.
    const MAX_COUNT: i64 = 1024;
    if request.count > MAX_COUNT {
        return Err(Error::invalid(format!(
            "device request for {} devices: at most {MAX_COUNT} are possible",
            request.count
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CgroupnsMode, HealthTest, LogConfig, LogDriver};

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
            has_real_time: true,
            limits: crate::host::Limits::default(),
            apparmor: false,
            ipv4_forwarding: true,
            bridge_filter: (false, false),
            backing_file_system: "extfs",
            default_log,
        }
    }

    #[test]
    fn privileged_containers_have_the_cgroup_namespace_of_a_host_with_cgroup_v1() {
        let private = ContainerDefaults {
            cgroupns_mode: CgroupnsMode::Private,
            ..ContainerDefaults::default()
        };
        for (privileged, cgroup_v2, given, expected) in [
            (true, false, CgroupnsMode::Default, CgroupnsMode::Host),
            (true, false, CgroupnsMode::Private, CgroupnsMode::Private),
            (true, true, CgroupnsMode::Default, CgroupnsMode::Private),
            (false, false, CgroupnsMode::Default, CgroupnsMode::Private),
        ] {
            let mut host = HostConfig {
                privileged,
                cgroupns_mode: given,
                ..HostConfig::default()
            };
            let host_info = HostInfo {
                cgroup_v2,
                ..host_info()
            };
            settings(&mut Config::default(), &mut host, &host_info, &private).unwrap();
            assert_eq!(host.cgroupns_mode, expected, "{privileged} {cgroup_v2}");
        }
    }

    fn check(change: impl FnOnce(&mut Config, &mut HostConfig), expected: &str) {
        let (mut config, mut host) = (Config::default(), HostConfig::default());
        change(&mut config, &mut host);
        let outcome = settings(
            &mut config,
            &mut host,
            &host_info(),
            &ContainerDefaults::default(),
        );
        assert_eq!(
            outcome.map_or_else(|error| error.to_string(), |warnings| warnings.join("; ")),
            expected
        );
    }

    #[test]
    fn hosts_have_a_name_and_an_address() {
        for (entry, expected) in [
            ("a:1.2.3.4", ""),
            ("a:::1", ""),
            ("a:host-gateway", ""),
            ("a", "bad format for add-host: \"a\""),
            (":1.2.3.4", "bad format for add-host: \":1.2.3.4\""),
            ("a:", "invalid IP address in add-host: \"\""),
            ("a:b", "invalid IP address in add-host: \"b\""),
        ] {
            check(
                |_, host| host.extra_hosts = Some(vec![entry.into()]),
                expected,
            );
        }
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
}
