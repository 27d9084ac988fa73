//! The request's `HostConfig`, which holds all that concerns the host.

use super::mounts;
use serde_json::{Map, Value, json};

use crate::Outcome;
use crate::commands::arguments::key_values;
use crate::commands::container::create::body::list;
use crate::commands::container::create::devices::{device_rules, parse_device, rates};
use crate::commands::container::create::limits::{
    nano_cpus, parse_ulimit, restart_policy, sysctls,
};
use crate::commands::container::create::security::security;
use crate::commands::container::create::{CreateContainerArgs, invalid, named};
use crate::format::units::parse_size;

pub(super) fn host_config(
    args: &CreateContainerArgs,
    network_mode: String,
    bindings: Map<String, Value>,
    binds: Vec<String>,
) -> Outcome<Value> {
    let networks = &args.networks;
    let size = |value: &Option<String>, flag: &str| {
        value
            .as_deref()
            .map_or(Ok(0), |text| named(parse_size(text), text, flag))
    };
    check_modes(args)?;
    let (security, paths) = security(args)?;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut host = json!({
        "Binds": list(&binds),
        "ContainerIDFile": text(&args.cidfile),
        "LogConfig": {"Type": text(&args.log_driver), "Config": log_options(args)?},
        "NetworkMode": network_mode,
        "PortBindings": bindings,
        "PublishAllPorts": networks.publish_all,
        "Links": list(&networks.link),
        "RestartPolicy": restart_policy(&args.restart)?,
        "AutoRemove": args.rm,
        "VolumesFrom": list(&args.volumes_from),
        "Annotations": key_values(&args.annotation),
        "CapAdd": list(&args.cap_add), "CapDrop": list(&args.cap_drop),
        "CgroupnsMode": text(&args.cgroupns),
        "Dns": list(&networks.dns), "DnsOptions": list(&networks.dns_option), "DnsSearch": list(&networks.dns_search),
        "ExtraHosts": list(&networks.add_host.iter().map(|host| host.replacen('=', ":", 1)).collect::<Vec<_>>()), "GroupAdd": list(&args.group_add),
        "IpcMode": text(&args.ipc), "PidMode": text(&args.pid), "UTSMode": text(&args.uts), "UsernsMode": text(&args.userns),
        "OomScoreAdj": args.oom_score_adj.unwrap_or(0), "OomKillDisable": args.oom_kill_disable,
        "Privileged": args.privileged, "ReadonlyRootfs": args.read_only,
        "SecurityOpt": list(&security),
        "StorageOpt": storage_options(&args.storage_opt)?,
        "Tmpfs": args.tmpfs.iter().map(|tmpfs| { let (path, options) = tmpfs.split_once(':').unwrap_or((tmpfs, "")); (path.to_owned(), json!(options)) }).collect::<Map<_, _>>(),
        "ShmSize": size(&args.shm_size, "--shm-size")?,
        "Sysctls": sysctls(&args.sysctl)?,
        "Runtime": text(&args.runtime),
        "CpuShares": args.cpu_shares.unwrap_or(0),
        "Memory": size(&args.memory, "-m, --memory")?,
        "MemoryReservation": size(&args.memory_reservation, "--memory-reservation")?,
        "MemorySwap": match args.memory_swap.as_deref() { Some("-1") => -1, _ => size(&args.memory_swap, "--memory-swap")? },
        "MemorySwappiness": args.memory_swappiness.unwrap_or(-1),
        "NanoCpus": args.cpus.as_deref().map_or(Ok(0), nano_cpus)?,
        "CgroupParent": text(&args.cgroup_parent),
        "BlkioWeight": args.blkio_weight.unwrap_or(0),
    });
    let more = json!({
        "BlkioWeightDevice": rates(&args.blkio_weight_device, "--blkio-weight-device", "Weight", false)?,
        "BlkioDeviceReadBps": rates(&args.device_read_bps, "--device-read-bps", "Rate", true)?,
        "BlkioDeviceWriteBps": rates(&args.device_write_bps, "--device-write-bps", "Rate", true)?,
        "BlkioDeviceReadIOps": rates(&args.device_read_iops, "--device-read-iops", "Rate", false)?,
        "BlkioDeviceWriteIOps": rates(&args.device_write_iops, "--device-write-iops", "Rate", false)?,
        "CpuPeriod": args.cpu_period.unwrap_or(0), "CpuQuota": args.cpu_quota.unwrap_or(0),
        "CpuRealtimePeriod": args.cpu_rt_period.unwrap_or(0), "CpuRealtimeRuntime": args.cpu_rt_runtime.unwrap_or(0),
        "CpusetCpus": text(&args.cpuset_cpus), "CpusetMems": text(&args.cpuset_mems),
        "Devices": args.device.iter().map(|device| parse_device(device)).collect::<Outcome<Vec<_>>>()?,
        "DeviceCgroupRules": device_rules(&args.device_cgroup_rule)?,
        "DeviceRequests": args.gpus.as_ref().map(|gpus| json!([{"Driver": "", "Count": if gpus == "all" { -1 } else { 1 }, "Capabilities": [["gpu"]]}])),
        "PidsLimit": args.pids_limit,
        "Ulimits": args.ulimit.iter().map(|limit| parse_ulimit(limit)).collect::<Outcome<Vec<_>>>()?,
        "Mounts": args.mount.iter().map(|mount| mounts::parse_mount(mount)).collect::<Outcome<Vec<_>>>()?,
        "Init": args.init.then_some(true),
        "VolumeDriver": text(&args.volume_driver),
        "Isolation": text(&args.isolation),
    });
    if let (Value::Object(host), Value::Object(more)) = (&mut host, more) {
        host.extend(more);
        if paths {
            host.insert("MaskedPaths".into(), json!([]));
            host.insert("ReadonlyPaths".into(), json!([]));
        }
        if let Some((height, width)) = crate::terminal::size().filter(|_| args.tty) {
            host.insert("ConsoleSize".into(), json!([height, width]));
        }
    }
    Ok(host)
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

fn log_options(args: &CreateContainerArgs) -> Outcome<Map<String, Value>> {
    if args.log_driver.as_deref() == Some("none") && !args.log_opt.is_empty() {
        return Err(invalid("invalid logging opts for driver none"));
    }
    Ok(key_values(&args.log_opt))
}

fn storage_options(given: &[String]) -> Outcome<Map<String, Value>> {
    if given.iter().any(|option| !option.contains('=')) {
        return Err(invalid("invalid storage option"));
    }
    Ok(key_values(given))
}
