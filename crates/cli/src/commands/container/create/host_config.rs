//! The request's `HostConfig`, which holds all that concerns the host.

use std::collections::BTreeMap;

use super::mounts;
use whelk_api_types::{HostConfig, LogConfig, PortMap};
use whelk_text::{device_name, extra_host};

use crate::Outcome;
use crate::commands::arguments::{given, key_values};
use crate::commands::container::create::devices::{
    byte_rates, device_rules, operation_rates, parse_device, weights,
};
use crate::commands::container::create::gpus::requests;
use crate::commands::container::create::limits::{
    nano_cpus, parse_ulimit, restart_policy, sysctls,
};
use crate::commands::container::create::security::security;
use crate::commands::container::create::{CreateContainerArgs, invalid, named};
use crate::format::units::parse_size;

pub(super) fn host_config(
    args: &CreateContainerArgs,
    network_mode: String,
    bindings: PortMap,
    binds: Vec<String>,
) -> Outcome<HostConfig> {
    let networks = &args.networks;
    check_modes(args)?;
    let (security, paths) = security(args)?;
    let list = |values: &[String]| given(values.to_vec());
    let add_host = networks.add_host.iter();
    let host = HostConfig {
        binds: given(binds),
        container_id_file: text(&args.cidfile),
        log_config: LogConfig {
            kind: text(&args.log_driver),
            config: log_options(args)?,
        },
        network_mode,
        port_bindings: Some(bindings),
        restart_policy: restart_policy(&args.restart)?,
        auto_remove: args.rm,
        volume_driver: text(&args.volume_driver),
        volumes_from: list(&args.volumes_from),
        console_size: crate::terminal::size()
            .filter(|_| args.tty)
            .map_or([0, 0], |(height, width)| [height, width]),
        annotations: key_values(&args.annotation),
        cap_add: list(&args.cap_add),
        cap_drop: list(&args.cap_drop),
        cgroupns_mode: text(&args.cgroupns),
        dns: list(&networks.dns),
        dns_options: list(&networks.dns_option),
        dns_search: list(&networks.dns_search),
        extra_hosts: given(add_host.map(|host| host_entry(host)).collect()),
        group_add: list(&args.group_add),
        ipc_mode: text(&args.ipc),
        links: list(&networks.link),
        oom_score_adj: args.oom_score_adj.map_or(0, |score| {
            // The engine rejects what does not fit here, too.
            i32::try_from(score).unwrap_or(if score < 0 { i32::MIN } else { i32::MAX })
        }),
        pid_mode: text(&args.pid),
        privileged: args.privileged,
        publish_all_ports: networks.publish_all,
        readonly_rootfs: args.read_only,
        security_opt: given(security),
        storage_opt: storage_options(&args.storage_opt)?,
        tmpfs: tmpfs(&args.tmpfs),
        uts_mode: text(&args.uts),
        userns_mode: text(&args.userns),
        shm_size: size(&args.shm_size, "--shm-size")?,
        sysctls: sysctls(&args.sysctl)?,
        runtime: text(&args.runtime),
        isolation: text(&args.isolation),
        mounts: Some(parsed(&args.mount, mounts::parse_mount)?),
        masked_paths: paths.then(Vec::new),
        readonly_paths: paths.then(Vec::new),
        init: args.init,
        ..HostConfig::default()
    };
    with_resources(host, args)
}

/// Adds the limits and the devices.
fn with_resources(host: HostConfig, args: &CreateContainerArgs) -> Outcome<HostConfig> {
    let is_name = |device: &String| device_name::is_qualified(device);
    let (names, nodes): (Vec<String>, Vec<String>) = args.device.iter().cloned().partition(is_name);
    Ok(HostConfig {
        cpu_shares: args.cpu_shares.unwrap_or(0),
        memory: size(&args.memory, "-m, --memory")?,
        nano_cpus: args.cpus.as_deref().map_or(Ok(0), nano_cpus)?,
        cgroup_parent: text(&args.cgroup_parent),
        blkio_weight: args.blkio_weight.unwrap_or(0),
        blkio_weight_device: Some(weights(&args.blkio_weight_device, "--blkio-weight-device")?),
        blkio_device_read_bps: Some(byte_rates(&args.device_read_bps, "--device-read-bps")?),
        blkio_device_write_bps: Some(byte_rates(&args.device_write_bps, "--device-write-bps")?),
        blkio_device_read_iops: Some(operation_rates(
            &args.device_read_iops,
            "--device-read-iops",
        )?),
        blkio_device_write_iops: Some(operation_rates(
            &args.device_write_iops,
            "--device-write-iops",
        )?),
        cpu_period: args.cpu_period.unwrap_or(0),
        cpu_quota: args.cpu_quota.unwrap_or(0),
        cpu_realtime_period: args.cpu_rt_period.unwrap_or(0),
        cpu_realtime_runtime: args.cpu_rt_runtime.unwrap_or(0),
        cpuset_cpus: text(&args.cpuset_cpus),
        cpuset_mems: text(&args.cpuset_mems),
        devices: Some(parsed(&nodes, parse_device)?),
        device_cgroup_rules: device_rules(&args.device_cgroup_rule)?,
        device_requests: requests(&args.gpus, names)?,
        memory_reservation: size(&args.memory_reservation, "--memory-reservation")?,
        memory_swap: match args.memory_swap.as_deref() {
            Some("-1") => -1,
            _ => size(&args.memory_swap, "--memory-swap")?,
        },
        memory_swappiness: Some(args.memory_swappiness.unwrap_or(-1)),
        oom_kill_disable: Some(args.oom_kill_disable),
        pids_limit: args.pids_limit,
        ulimits: Some(parsed(&args.ulimit, parse_ulimit)?),
        ..host
    })
}

fn text(value: &Option<String>) -> String {
    value.clone().unwrap_or_default()
}

fn size(value: &Option<String>, flag: &str) -> Outcome<i64> {
    value
        .as_deref()
        .map_or(Ok(0), |text| named(parse_size(text), text, flag))
}

/// Parses each value of a flag.
fn parsed<T>(values: &[String], parse: fn(&str) -> Outcome<T>) -> Outcome<Vec<T>> {
    values.iter().map(|value| parse(value)).collect()
}

/// Returns the options of tmpfs mounts (`PATH[:OPTIONS]`) by path.
fn tmpfs(mounts: &[String]) -> BTreeMap<String, String> {
    let parts = mounts
        .iter()
        .map(|mount| mount.split_once(':').unwrap_or((mount, "")));
    parts
        .map(|(path, options)| (path.to_owned(), options.to_owned()))
        .collect()
}

/// Returns an entry of the hosts file as `NAME:ADDRESS`, without the brackets that an IPv6 address may have.
fn host_entry(entry: &str) -> String {
    extra_host::split(entry).map_or_else(
        || entry.to_owned(),
        |(name, address)| format!("{name}:{address}"),
    )
}

/// Checks the namespace modes.
fn check_modes(args: &CreateContainerArgs) -> Outcome<()> {
    let is_container = |mode: &str| {
        mode.strip_prefix("container:")
            .is_some_and(|name| !name.is_empty())
    };
    let modes = [
        (
            "--pid: invalid PID mode",
            args.pid
                .as_deref()
                .is_none_or(|mode| matches!(mode, "" | "host") || is_container(mode)),
        ),
        (
            "--uts: invalid UTS mode",
            args.uts
                .as_deref()
                .is_none_or(|mode| matches!(mode, "" | "host")),
        ),
        (
            "--userns: invalid USER mode",
            args.userns
                .as_deref()
                .is_none_or(|mode| matches!(mode, "" | "host")),
        ),
        (
            "--cgroupns: invalid CGROUP mode",
            args.cgroupns
                .as_deref()
                .is_none_or(|mode| matches!(mode, "" | "host" | "private")),
        ),
    ];
    if let Some((text, _)) = modes.iter().find(|(_, valid)| !valid) {
        return Err(invalid(*text));
    }
    Ok(())
}

fn log_options(args: &CreateContainerArgs) -> Outcome<BTreeMap<String, String>> {
    if args.log_driver.as_deref() == Some("none") && !args.log_opt.is_empty() {
        return Err(invalid("invalid logging opts for driver none"));
    }
    Ok(key_values(&args.log_opt))
}

fn storage_options(options: &[String]) -> Outcome<BTreeMap<String, String>> {
    if options.iter().any(|option| !option.contains('=')) {
        return Err(invalid("invalid storage option"));
    }
    Ok(key_values(options))
}
