//! Validates and completes limits of memory, processors and block I/O.

use crate::error::{Error, Result};
use crate::host::HostInfo;
use crate::model::HostConfig;

/// Docker's minimum memory limit in bytes; a process does not start with less.
const MIN_MEMORY: i64 = 6 << 20;
/// The default CFS period, in microseconds.
const PERIOD: i64 = 100_000;

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
    let (period, runtime) = (host.cpu_realtime_period, host.cpu_realtime_runtime);
    if !host_info.has_real_time && (period != 0 || runtime != 0) {
        return Err(Error::invalid(
            "Your kernel does not support CPU real-time scheduler",
        ));
    }
    if period != 0 && runtime > period {
        return Err(Error::invalid(
            "cpu real-time runtime cannot be higher than cpu real-time period",
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

/// Converts billionths of a processor to CFS quota and period in microseconds.
pub(crate) fn quota_of(nano_cpus: i64) -> (i64, i64) {
    (
        nano_cpus / 1_000_000_000 * PERIOD + nano_cpus % 1_000_000_000 * PERIOD / 1_000_000_000,
        PERIOD,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_cpus_to_quotas() {
        assert_eq!(quota_of(1_500_000_000), (150_000, 100_000));
        assert_eq!(quota_of(10_000_000), (1_000, 100_000));
    }
}
