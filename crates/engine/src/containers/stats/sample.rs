//! Reading what a container uses from its cgroup, its network namespace and the host's /proc.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _};
use std::time::{Duration, Instant};

use whelk_runtime::cgroup::{
    BlockIoUsage, Cgroup, CpuUsage, Layout, MemoryUsage, PidsUsage, layout,
};
use whelk_sys::fs;

use crate::error::{Error, Result};
use crate::events::now;
use crate::model::ContainerRecord;

/// What a container uses.
#[derive(Clone, Debug)]
pub struct Sample {
    pub cpu: CpuSample,
    /// Whether the host has cgroup v2.
    pub is_v2: bool,
    /// The limit is at most the host's memory.
    pub memory: MemoryUsage,
    pub pids: PidsUsage,
    pub block_io: BlockIoUsage,
    /// The interfaces of the container's networks, by their names inside it.
    pub networks: BTreeMap<String, InterfaceCounts>,
}

/// The CPU time that a container and the host have used.
#[derive(Clone, Debug)]
pub struct CpuSample {
    /// Nanoseconds since the epoch.
    pub time: i64,
    pub usage: CpuUsage,
    /// The time of all processors of the host, idle or not, in nanoseconds.
    pub system: u64,
    pub online_cpus: u32,
    pub(super) run: Run,
    taken: Instant,
}

/// The pid and the start time of a container's first process, which tell its runs apart.
pub(super) type Run = (i32, i64);

impl CpuSample {
    pub(super) fn is_of(&self, run: Run) -> bool {
        self.run == run
    }

    pub(super) fn age(&self) -> Duration {
        self.taken.elapsed()
    }

    /// Returns the time since an earlier sample.
    pub(super) fn since(&self, earlier: &Self) -> Duration {
        self.taken.saturating_duration_since(earlier.taken)
    }

    /// Returns this sample as the previous one of `later`. The host's time is counted in hundredths of a
    /// second: if the two are close to each other, its difference is computed from the time between them.
    pub(super) fn before(self, later: &Self) -> Self {
        let elapsed = later.since(&self);
        if elapsed >= super::MIN_AGE {
            return self;
        }
        let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let all = elapsed.saturating_mul(u64::from(later.online_cpus));
        Self {
            system: later.system.saturating_sub(all),
            ..self
        }
    }
}

/// The counters of a network interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounts {
    pub received: DirectionCounts,
    pub sent: DirectionCounts,
}

/// The counters of one direction of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionCounts {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// Where the use of a running container is read.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub id: String,
    pub run: Run,
    pub cgroup: String,
    /// The names of its networks' interfaces.
    pub interfaces: Vec<String>,
}

impl Target {
    /// Reads what the container uses. Returns `None` if it has ended.
    pub(super) fn sample(&self) -> Option<Sample> {
        self.logged(self.read())
    }

    /// Reads only the CPU time. Returns `None` if the container has ended.
    pub(super) fn cpu_sample(&self) -> Option<CpuSample> {
        let read = || self.cpu(Cgroup::at(&self.cgroup)?.cpu_usage()?);
        self.logged(read())
    }

    fn logged<T>(&self, read: Result<T>) -> Option<T> {
        // A container may end at any time, and its cgroup with it.
        let log = |error: &Error| tracing::debug!(container = self.id, "read its use: {error}");
        read.inspect_err(log).ok()
    }

    fn read(&self) -> Result<Sample> {
        let cgroup = Cgroup::at(&self.cgroup)?;
        let usage = cgroup.usage()?;
        // Last: the other counters take long enough to matter for two samples in a short time.
        let cpu = self.cpu(cgroup.cpu_usage()?)?;
        let machine = rustix::system::sysinfo();
        let all_memory = machine.totalram * u64::from(machine.mem_unit);
        let mut memory = usage.memory;
        memory.limit = memory.limit.min(all_memory);
        Ok(Sample {
            cpu,
            is_v2: matches!(layout(), Ok(Layout::V2(_))),
            memory,
            pids: usage.pids,
            block_io: usage.block_io,
            networks: self.networks(),
        })
    }

    /// The host's time is read right after the container's, so that their differences fit together.
    fn cpu(&self, usage: CpuUsage) -> Result<CpuSample> {
        let taken = Instant::now();
        let time = now();
        // What follows the processors' lines is long: numbers of interrupts.
        let file = fs::open("/proc/stat")?;
        let lines = BufReader::with_capacity(1024, file).lines();
        let lines = lines.map_while(std::result::Result::ok);
        let (system, online_cpus) = processors(lines).ok_or_else(|| {
            Error::internal("read /proc/stat: the times of processors are missing")
        })?;
        Ok(CpuSample {
            time,
            usage,
            system,
            online_cpus,
            run: self.run,
            taken,
        })
    }

    fn networks(&self) -> BTreeMap<String, InterfaceCounts> {
        /// A container that may create interfaces can make the file long.
        const MOST: u64 = 1 << 20;
        if self.interfaces.is_empty() {
            return BTreeMap::new();
        }
        let Ok(file) = fs::open(format!("/proc/{}/net/dev", self.run.0)) else {
            return BTreeMap::new();
        };
        let lines = BufReader::new(file.take(MOST)).lines();
        interfaces(lines.map_while(std::result::Result::ok), &self.interfaces)
    }
}

impl ContainerRecord {
    /// Returns the names of the interfaces that the container has in its own network namespace.
    pub(super) fn interfaces(&self) -> Vec<String> {
        let assigned = self
            .networks
            .values()
            .filter_map(|one| one.assigned.as_ref());
        assigned
            .map(|assigned| assigned.interface.clone())
            .filter(|name| !name.is_empty())
            .collect()
    }
}

/// Returns the time of all processors in nanoseconds, and their number, from the lines of /proc/stat.
/// As in Docker, the time that a hypervisor has taken, and that of guests, which is counted twice, are
/// left out.
fn processors(lines: impl Iterator<Item = String>) -> Option<(u64, u32)> {
    /// `USER_HZ` is 100 on all architectures that this runs on.
    const TICK: u64 = 10_000_000;
    /// user, nice, system, idle, iowait, irq, softirq
    const FIELDS: usize = 7;
    let mut all = None;
    let mut online = 0;
    for line in lines.take_while(|line| line.starts_with("cpu")) {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("cpu") {
            online += 1;
            continue;
        }
        let ticks: Vec<u64> = words.take(FIELDS).flat_map(str::parse).collect();
        all = (ticks.len() == FIELDS).then(|| ticks.iter().sum::<u64>() * TICK);
    }
    Some((all?, online))
}

/// Parses the lines of /proc/PID/net/dev of these interfaces.
fn interfaces(
    lines: impl Iterator<Item = String>,
    wanted: &[String],
) -> BTreeMap<String, InterfaceCounts> {
    let parse = |line: String| {
        let (name, counts) = line.split_once(':')?;
        let name = name.trim();
        if !wanted.iter().any(|one| one == name) {
            return None;
        }
        let numbers: Vec<u64> = counts
            .split_ascii_whitespace()
            .flat_map(str::parse)
            .collect();
        let direction = |first: usize| {
            let mut four = numbers.iter().copied().skip(first).take(4);
            let mut next = || four.next().unwrap_or(0);
            DirectionCounts {
                bytes: next(),
                packets: next(),
                errors: next(),
                dropped: next(),
            }
        };
        let counts = InterfaceCounts {
            received: direction(0),
            sent: direction(8),
        };
        Some((name.to_owned(), counts))
    };
    lines.filter_map(parse).take(wanted.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> impl Iterator<Item = String> {
        text.lines().map(str::to_owned)
    }

    #[test]
    fn reads_the_time_of_processors() {
        let text = "cpu  1 2 3 4 5 6 7 800 900 1000\ncpu0 1 1 1 1 1 1 1 0 0 0\ncpu1 0 1 2 3 4 5 6 0 0 0\nintr 5 cpu\ncpu9 1";
        assert_eq!(processors(lines(text)), Some((280_000_000, 2)));
        assert_eq!(processors(lines("cpu 1 2 3\n")), None);
        assert_eq!(processors(lines("")), None);
    }

    #[test]
    fn reads_the_counters_of_the_networks_interfaces() {
        let text = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:     100       1    0    0    0     0          0         0     100       1    0    0    0     0       0          0\n  eth0:    1010      11    2    3    0     0          0         0    2020      22    5    6    0     0       0          0\n tunl0: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n";
        let found = interfaces(lines(text), &["eth0".to_owned(), "eth1".to_owned()]);
        let direction = |bytes, packets, errors, dropped| DirectionCounts {
            bytes,
            packets,
            errors,
            dropped,
        };
        let counts = InterfaceCounts {
            received: direction(1010, 11, 2, 3),
            sent: direction(2020, 22, 5, 6),
        };
        assert_eq!(found, [("eth0".to_owned(), counts)].into());
    }

    #[test]
    fn the_hosts_time_between_close_samples_is_exact() {
        let sample = |taken| CpuSample {
            time: 1,
            usage: CpuUsage::default(),
            system: 50_000_000_000,
            online_cpus: 4,
            run: (1, 1),
            taken,
        };
        let begin = Instant::now();
        let later = sample(begin + Duration::from_millis(25));
        assert_eq!(sample(begin).before(&later).system, 49_900_000_000);
        let later = sample(begin + Duration::from_secs(1));
        assert_eq!(sample(begin).before(&later).system, 50_000_000_000);
    }
}
