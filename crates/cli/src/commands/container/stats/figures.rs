//! Computes the columns of the table (percentages, sizes) from a container's statistics.

use serde::Serialize;
use whelk_api_types::{ContainerCpuStats, ContainerMemoryStats, ContainerStatsResponse};
use whelk_text::size;

use crate::format::table::Table;
use crate::format::units::short_id;

pub(super) const TABLE: Table = Table {
    row: "*container.statsContext",
    id: "ID",
    columns: &[
        ("Container", "CONTAINER"),
        ("Name", "NAME"),
        ("ID", "CONTAINER ID"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("MemPerc", "MEM %"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
    ],
};

/// A container's figures, as computed from its statistics. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figures {
    id: String,
    name: String,
    cpu_percent: f64,
    memory: u64,
    memory_limit: u64,
    received: u64,
    sent: u64,
    blocks_read: u64,
    blocks_written: u64,
    pids: u64,
}

impl Figures {
    pub(super) fn of(stats: &ContainerStatsResponse) -> Self {
        let networks = stats.networks.values();
        let blocks = stats
            .blkio_stats
            .io_service_bytes_recursive
            .iter()
            .flatten();
        // The operations are in upper case with cgroup v1.
        let bytes = |initial: char| {
            let counts = blocks
                .clone()
                .filter(|count| count.op.to_ascii_lowercase().starts_with(initial));
            counts.map(|count| count.value).sum()
        };
        Self {
            id: stats.id.clone(),
            name: stats.name.trim_start_matches('/').to_owned(),
            cpu_percent: cpu_percent(&stats.precpu_stats, &stats.cpu_stats),
            memory: memory(&stats.memory_stats),
            memory_limit: stats.memory_stats.limit,
            received: networks.clone().map(|one| one.rx_bytes).sum(),
            sent: networks.map(|one| one.tx_bytes).sum(),
            blocks_read: bytes('r'),
            blocks_written: bytes('w'),
            pids: stats.pids_stats.current,
        }
    }

    /// Sets everything but the container's names to zero.
    pub(super) fn reset(&mut self) {
        *self = Self {
            id: std::mem::take(&mut self.id),
            name: std::mem::take(&mut self.name),
            ..Self::default()
        };
    }

    fn memory_percent(&self) -> f64 {
        if self.memory_limit == 0 {
            0.0
        } else {
            self.memory as f64 / self.memory_limit as f64 * 100.0
        }
    }
}

/// Returns the part of one processor that the container has used between two samples.
fn cpu_percent(before: &ContainerCpuStats, now: &ContainerCpuStats) -> f64 {
    let used = now.cpu_usage.total_usage as f64 - before.cpu_usage.total_usage as f64;
    let system = now.system_cpu_usage as f64 - before.system_cpu_usage as f64;
    let processors = match now.online_cpus {
        0 => now.cpu_usage.percpu_usage.len() as f64,
        count => f64::from(count),
    };
    if used > 0.0 && system > 0.0 {
        used / system * processors * 100.0
    } else {
        0.0
    }
}

/// Returns the memory in use without the part of the page cache that can be dropped at once.
fn memory(stats: &ContainerMemoryStats) -> u64 {
    // The first name is that of cgroup v1.
    ["total_inactive_file", "inactive_file"]
        .iter()
        .filter_map(|name| stats.stats.get(*name))
        .find(|cache| **cache < stats.usage)
        .map_or(stats.usage, |cache| stats.usage - cache)
}

#[derive(Debug, Serialize)]
pub(super) struct Row {
    #[serde(rename = "Container")]
    container: String,
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "CPUPerc")]
    cpu: String,
    #[serde(rename = "MemUsage")]
    memory: String,
    #[serde(rename = "MemPerc")]
    memory_percent: String,
    #[serde(rename = "NetIO")]
    network: String,
    #[serde(rename = "BlockIO")]
    blocks: String,
    #[serde(rename = "PIDs")]
    pids: String,
}

pub(super) fn row(container: &str, figures: &Figures, is_invalid: bool, no_trunc: bool) -> Row {
    let or_none = |none: &str, text: String| if is_invalid { none.to_owned() } else { text };
    let percent = |value: f64| or_none("--", format!("{value:.2}%"));
    let both = |one, other| {
        let text = format!("{} / {}", size::decimal(one, 3), size::decimal(other, 3));
        or_none("--", text)
    };
    Row {
        container: container.to_owned(),
        name: match figures.name.as_str() {
            "" => "--".to_owned(),
            name => name.to_owned(),
        },
        id: if no_trunc {
            figures.id.clone()
        } else {
            short_id(&figures.id)
        },
        cpu: percent(figures.cpu_percent),
        memory: or_none(
            "-- / --",
            format!(
                "{} / {}",
                size::binary(figures.memory),
                size::binary(figures.memory_limit)
            ),
        ),
        memory_percent: percent(figures.memory_percent()),
        network: both(figures.received, figures.sent),
        blocks: both(figures.blocks_read, figures.blocks_written),
        pids: or_none("--", figures.pids.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn figures(stats: serde_json::Value) -> Figures {
        Figures::of(&serde_json::from_value(stats).unwrap())
    }

    #[test]
    fn figures_are_computed_as_by_dockers_client() {
        let stats = json!({
            "id": "0123456789abcdef", "name": "/one",
            "cpu_stats": {"cpu_usage": {"total_usage": 600}, "system_cpu_usage": 3000, "online_cpus": 2},
            "precpu_stats": {"cpu_usage": {"total_usage": 100}, "system_cpu_usage": 1000},
            "memory_stats": {"usage": 3_145_728, "limit": 10_485_760, "stats": {"total_inactive_file": 1_048_576, "inactive_file": 5}},
            "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 1}, "eth1": {"rx_bytes": 500, "tx_bytes": 2}},
            "blkio_stats": {"io_service_bytes_recursive": [
                {"op": "Read", "value": 4096}, {"op": "write", "value": 10}, {"op": "Total", "value": 9}]},
            "pids_stats": {"current": 3},
        });
        let shown = row("one", &figures(stats.clone()), false, false);
        assert_eq!(
            json!(shown),
            json!({
                "Container": "one", "Name": "one", "ID": "0123456789ab", "CPUPerc": "50.00%",
                "MemUsage": "2MiB / 10MiB", "MemPerc": "20.00%", "NetIO": "1.5kB / 3B",
                "BlockIO": "4.1kB / 10B", "PIDs": "3",
            })
        );
        let invalid = row("one", &figures(stats), true, true);
        assert_eq!(
            json!(invalid),
            json!({
                "Container": "one", "Name": "one", "ID": "0123456789abcdef", "CPUPerc": "--",
                "MemUsage": "-- / --", "MemPerc": "--", "NetIO": "--", "BlockIO": "--", "PIDs": "--",
            })
        );
    }

    #[test]
    fn memory_of_cgroup_v2_is_without_the_inactive_cache() {
        let of = |usage: u64, cache: u64| {
            memory(&ContainerMemoryStats {
                usage,
                stats: [("inactive_file".to_owned(), cache)].into(),
                ..ContainerMemoryStats::default()
            })
        };
        assert_eq!([of(100, 30), of(100, 200), of(0, 0)], [70, 100, 0]);
    }

    #[test]
    fn a_container_that_does_not_run_has_zeros() {
        let shown = row(
            "x",
            &figures(json!({"id": "1", "name": "/x"})),
            false,
            false,
        );
        assert_eq!(
            (shown.cpu.as_str(), shown.memory.as_str()),
            ("0.00%", "0B / 0B")
        );
    }
}
