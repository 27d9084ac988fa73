//! Statistics of containers.

use whelk_api_types::{
    ContainerBlkioStatEntry, ContainerBlkioStats, ContainerCpuStats, ContainerCpuUsage,
    ContainerMemoryStats, ContainerNetworkStats, ContainerPidsStats, ContainerStatsResponse,
    ContainerThrottlingData,
};
use whelk_engine::containers::{
    BlockIoCount, BlockIoUsage, CpuSample, InterfaceCounts, Sample, Stats,
};

use super::time;

pub(crate) fn stats(stats: &Stats) -> ContainerStatsResponse {
    let Stats {
        id,
        name,
        sample,
        previous,
    } = stats;
    let shown = ContainerStatsResponse {
        id: id.clone(),
        name: format!("/{name}"),
        os_type: "linux".into(),
        read: time(sample.as_ref().map_or(0, |sample| sample.cpu.time)),
        preread: time(previous.as_ref().map_or(0, |previous| previous.time)),
        precpu_stats: previous.as_ref().map(cpu).unwrap_or_default(),
        ..ContainerStatsResponse::default()
    };
    match sample {
        None => shown,
        Some(sample) => with_sample(shown, sample),
    }
}

fn with_sample(shown: ContainerStatsResponse, sample: &Sample) -> ContainerStatsResponse {
    let Sample {
        cpu: cpu_sample,
        is_v2,
        memory,
        pids,
        block_io,
        networks,
    } = sample;
    // With cgroup v2, Docker shows no limit as the largest number; with v1 it shows nothing.
    let has_v1 = !is_v2;
    let no_limit = if has_v1 { 0 } else { u64::MAX };
    ContainerStatsResponse {
        cpu_stats: cpu(cpu_sample),
        memory_stats: ContainerMemoryStats {
            usage: memory.usage,
            max_usage: memory.max_usage,
            stats: memory.stats.iter().cloned().collect(),
            failcnt: memory.failures,
            limit: memory.limit,
        },
        networks: networks
            .iter()
            .map(|(name, counts)| (name.clone(), network(counts)))
            .collect(),
        pids_stats: ContainerPidsStats {
            current: pids.current,
            limit: pids.limit.unwrap_or(no_limit),
        },
        blkio_stats: blkio(block_io, has_v1),
        ..shown
    }
}

fn cpu(sample: &CpuSample) -> ContainerCpuStats {
    let usage = &sample.usage;
    ContainerCpuStats {
        cpu_usage: ContainerCpuUsage {
            total_usage: usage.total,
            percpu_usage: usage.per_cpu.clone(),
            usage_in_kernelmode: usage.kernel,
            usage_in_usermode: usage.user,
        },
        system_cpu_usage: sample.system,
        online_cpus: sample.online_cpus,
        throttling_data: ContainerThrottlingData {
            periods: usage.periods,
            throttled_periods: usage.throttled_periods,
            throttled_time: usage.throttled_time,
        },
    }
}

fn network(counts: &InterfaceCounts) -> ContainerNetworkStats {
    let InterfaceCounts { received, sent } = counts;
    ContainerNetworkStats {
        rx_bytes: received.bytes,
        rx_packets: received.packets,
        rx_errors: received.errors,
        rx_dropped: received.dropped,
        tx_bytes: sent.bytes,
        tx_packets: sent.packets,
        tx_errors: sent.errors,
        tx_dropped: sent.dropped,
    }
}

/// Lists that are empty are `null` with cgroup v2.
fn blkio(usage: &BlockIoUsage, has_v1: bool) -> ContainerBlkioStats {
    let entry = |count: &BlockIoCount| ContainerBlkioStatEntry {
        major: count.major,
        minor: count.minor,
        op: count.operation.clone(),
        value: count.value,
    };
    let list = |counts: &[BlockIoCount]| {
        (has_v1 || !counts.is_empty()).then(|| counts.iter().map(entry).collect())
    };
    ContainerBlkioStats {
        io_service_bytes_recursive: list(&usage.service_bytes),
        io_serviced_recursive: list(&usage.serviced),
        io_queue_recursive: list(&usage.queued),
        io_service_time_recursive: list(&usage.service_time),
        io_wait_time_recursive: list(&usage.wait_time),
        io_merged_recursive: list(&usage.merged),
        io_time_recursive: list(&usage.time),
        sectors_recursive: list(&usage.sectors),
    }
}
