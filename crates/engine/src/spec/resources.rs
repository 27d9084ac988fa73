//! Generates the resource limits of a container's cgroup.

use whelk_runtime::spec::{BlockIo, Cpu, Memory, Pids, Resources, ThrottleDevice, WeightDevice};

use super::SpecContext;
use super::devices::device_rules;
use crate::error::Result;
use crate::model::HostConfig;
use crate::validate::quota_of;

pub(super) fn resources(host: &HostConfig, context: &SpecContext<'_>) -> Result<Resources> {
    Ok(Resources {
        devices: device_rules(host, context)?,
        ..limits(host, context.device_number)?
    })
}

/// Returns the cgroup limits of a container, without device rules.
fn limits(
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

/// Returns the limits to apply to a running container whose limits were `old`. Devices that are not
/// limited any more get the rate or weight 0, which resets theirs.
///
/// # Errors
/// Returns an error if a device does not exist.
pub fn changed_limits(
    old: &HostConfig,
    new: &HostConfig,
    device_number: &dyn Fn(&str) -> Result<(i64, i64)>,
) -> Result<Resources> {
    let mut limits = limits(new, device_number)?;
    let io = &mut limits.block_io;
    // The device itself may not exist any more.
    let gone = |path: &str, kept: &dyn Fn((i64, i64)) -> bool| {
        let number = device_number(path).ok();
        number.filter(|number| !kept(*number))
    };
    for device in old.blkio_weight_device.iter().flatten() {
        let kept = |number| {
            io.weight_device
                .iter()
                .any(|kept| (kept.major, kept.minor) == number)
        };
        if let Some((major, minor)) = gone(&device.path, &kept) {
            io.weight_device.push(WeightDevice {
                major,
                minor,
                weight: Some(0),
                leaf_weight: None,
            });
        }
    }
    for (old, new) in [
        (&old.blkio_device_read_bps, &mut io.throttle_read_bps_device),
        (
            &old.blkio_device_write_bps,
            &mut io.throttle_write_bps_device,
        ),
        (
            &old.blkio_device_read_iops,
            &mut io.throttle_read_iops_device,
        ),
        (
            &old.blkio_device_write_iops,
            &mut io.throttle_write_iops_device,
        ),
    ] {
        for device in old.iter().flatten() {
            let kept = |number| new.iter().any(|kept| (kept.major, kept.minor) == number);
            if let Some((major, minor)) = gone(&device.path, &kept) {
                let rate = 0;
                new.push(ThrottleDevice { major, minor, rate });
            }
        }
    }
    Ok(limits)
}
