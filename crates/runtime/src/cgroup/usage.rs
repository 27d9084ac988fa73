//! What the processes of a cgroup use, as the kernel counts it.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use whelk_sys::fs::{self, PathError};

use crate::error::Result;

/// What the processes of a cgroup have used so far, and use now, besides CPU time. What the kernel does not count,
/// or has no controller for, is zero or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub memory: MemoryUsage,
    pub pids: PidsUsage,
    pub block_io: BlockIoUsage,
}

/// CPU time, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuUsage {
    pub total: u64,
    pub user: u64,
    pub kernel: u64,
    /// By processor; v1 only.
    pub per_cpu: Vec<u64>,
    /// Number of periods of the CPU quota in which the processes ran.
    pub periods: u64,
    /// Number of periods in which they had used up the quota.
    pub throttled_periods: u64,
    pub throttled_time: u64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    pub usage: u64,
    /// The highest usage so far; v1 only.
    pub max_usage: u64,
    /// Number of times that the limit was reached (v1), or that it could not be kept by reclaiming (v2).
    pub failures: u64,
    /// `u64::MAX` if there is none.
    pub limit: u64,
    /// The lines of `memory.stat`, whose names differ between v1 and v2.
    pub stats: Vec<(String, u64)>,
}

/// Processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidsUsage {
    pub current: u64,
    /// `None` for no limit.
    pub limit: Option<u64>,
}

/// Operations on block devices. Only `service_bytes` is counted on v2; which of the others are counted
/// on v1 depends on the I/O scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockIoUsage {
    pub service_bytes: Vec<BlockIoCount>,
    pub serviced: Vec<BlockIoCount>,
    pub queued: Vec<BlockIoCount>,
    pub service_time: Vec<BlockIoCount>,
    pub wait_time: Vec<BlockIoCount>,
    pub merged: Vec<BlockIoCount>,
    pub time: Vec<BlockIoCount>,
    pub sectors: Vec<BlockIoCount>,
}

/// A counter of one kind of operation on one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockIoCount {
    pub major: u64,
    pub minor: u64,
    /// As the kernel names it; empty if it counts all kinds together.
    pub operation: String,
    pub value: u64,
}

/// The directory of a cgroup. It is open because its path is long, and each of its files would be looked up by it.
pub(super) struct Directory<'a> {
    path: &'a Path,
    open: OwnedFd,
}

impl<'a> Directory<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(path, flags, Mode::empty()).map_err(fs::at("open", path))?;
        Ok(Self { path, open })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        rustix::fs::accessat(
            &self.open,
            name,
            rustix::fs::Access::EXISTS,
            rustix::fs::AtFlags::empty(),
        )
        .is_ok()
    }

    fn read(&self, name: &str) -> std::result::Result<String, PathError> {
        /// More than most files have. Their size is not known before they are read.
        const USUAL: usize = 4096;
        let path = || self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.open, name, flags, Mode::empty())
            .map_err(|error| PathError::new("open", path(), error))?;
        let mut text = Vec::with_capacity(USUAL);
        // `take` hides the file's size from the reader, which would ask for it and get 0.
        let mut file = File::from(file).take(u64::MAX);
        file.read_to_end(&mut text)
            .map_err(|error| PathError::new("read", path(), error))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn number(&self, name: &str) -> std::result::Result<u64, PathError> {
        self.read(name).map(|text| number(&text))
    }
}

/// Nanoseconds per tick of `USER_HZ`, which is 100 on all architectures that this runs on.
const TICK: u64 = 10_000_000;

/// Reads the CPU time from the hierarchies of v1, which may be one.
pub(super) fn cpu_v1(
    cpuacct: Option<&Directory<'_>>,
    cpu: Option<&Directory<'_>>,
) -> Result<CpuUsage> {
    let mut usage = CpuUsage::default();
    if let Some(directory) = cpuacct {
        usage.total = directory.number("cpuacct.usage")?;
        usage.per_cpu = directory
            .read("cpuacct.usage_percpu")?
            .split_ascii_whitespace()
            .map(number)
            .collect();
        for (name, value) in lines(&directory.read("cpuacct.stat")?) {
            match name {
                "user" => usage.user = value * TICK,
                "system" => usage.kernel = value * TICK,
                _ => {}
            }
        }
    }
    if let Some(directory) = cpu {
        for (name, value) in lines(&directory.read("cpu.stat")?) {
            match name {
                "nr_periods" => usage.periods = value,
                "nr_throttled" => usage.throttled_periods = value,
                "throttled_time" => usage.throttled_time = value,
                _ => {}
            }
        }
    }
    Ok(usage)
}

pub(super) fn memory_v1(directory: &Directory<'_>) -> Result<MemoryUsage> {
    let read = |file: &str| directory.number(file);
    Ok(MemoryUsage {
        usage: read("memory.usage_in_bytes")?,
        max_usage: read("memory.max_usage_in_bytes")?,
        failures: read("memory.failcnt")?,
        limit: read("memory.limit_in_bytes")?,
        stats: all_lines(&directory.read("memory.stat")?),
    })
}

/// Reads `pids.current` and `pids.max`, which v1 and v2 have.
pub(super) fn pids(directory: &Directory<'_>) -> Result<PidsUsage> {
    let limit = directory.read("pids.max")?;
    Ok(PidsUsage {
        current: directory.number("pids.current")?,
        limit: limit.trim().parse().ok(),
    })
}

pub(super) fn block_io_v1(directory: &Directory<'_>) -> BlockIoUsage {
    let read = |name: &str| {
        let text = directory.read(&format!("blkio.{name}"));
        text.map(|text| counts_v1(&text)).unwrap_or_default()
    };
    // The counters of CFQ, which is not in Linux 5.0 and later.
    let has_scheduler = directory.has("blkio.io_service_bytes_recursive");
    let read_scheduled = |name: &str| {
        if has_scheduler {
            read(name)
        } else {
            Vec::new()
        }
    };
    let usage = BlockIoUsage {
        service_bytes: read_scheduled("io_service_bytes_recursive"),
        serviced: read_scheduled("io_serviced_recursive"),
        queued: read_scheduled("io_queued_recursive"),
        service_time: read_scheduled("io_service_time_recursive"),
        wait_time: read_scheduled("io_wait_time_recursive"),
        merged: read_scheduled("io_merged_recursive"),
        time: read_scheduled("time_recursive"),
        sectors: read_scheduled("sectors_recursive"),
    };
    if usage != BlockIoUsage::default() {
        return usage;
    }
    // What passes the throttling layer is counted with every scheduler. The recursive files exist since
    // Linux 4.17.
    let throttled = |name: &str| {
        let recursive = read(&format!("throttle.{name}_recursive"));
        if recursive.is_empty() {
            read(&format!("throttle.{name}"))
        } else {
            recursive
        }
    };
    BlockIoUsage {
        service_bytes: throttled("io_service_bytes"),
        serviced: throttled("io_serviced"),
        ..BlockIoUsage::default()
    }
}

/// Parses lines such as `8:0 Read 4096` and `8:0 12`; the last line is a total of all devices.
fn counts_v1(text: &str) -> Vec<BlockIoCount> {
    let parse = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (operation, value) = match (words.next()?, words.next()) {
            (operation, Some(value)) => (operation, value),
            (value, None) => ("", value),
        };
        Some(BlockIoCount {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            operation: operation.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(parse).collect()
}

pub(super) fn cpu_v2(directory: &Directory<'_>) -> Result<CpuUsage> {
    const MICROSECOND: u64 = 1000;
    let mut usage = CpuUsage::default();
    for (name, value) in lines(&directory.read("cpu.stat")?) {
        match name {
            "usage_usec" => usage.total = value * MICROSECOND,
            "user_usec" => usage.user = value * MICROSECOND,
            "system_usec" => usage.kernel = value * MICROSECOND,
            "nr_periods" => usage.periods = value,
            "nr_throttled" => usage.throttled_periods = value,
            "throttled_usec" => usage.throttled_time = value * MICROSECOND,
            _ => {}
        }
    }
    Ok(usage)
}

pub(super) fn memory_v2(directory: &Directory<'_>) -> Result<MemoryUsage> {
    let read = |file: &str| directory.read(file);
    Ok(MemoryUsage {
        usage: number(&read("memory.current")?),
        max_usage: 0,
        failures: lines(&read("memory.events").unwrap_or_default())
            .find_map(|(name, value)| (name == "oom").then_some(value))
            .unwrap_or(0),
        // "max" if there is none.
        limit: read("memory.max")?.trim().parse().unwrap_or(u64::MAX),
        stats: all_lines(&read("memory.stat")?),
    })
}

/// Reads the bytes read and written from lines such as `8:0 rbytes=4096 wbytes=0 rios=1 …`.
pub(super) fn block_io_v2(directory: &Directory<'_>) -> BlockIoUsage {
    let text = directory.read("io.stat").unwrap_or_default();
    let mut usage = BlockIoUsage::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(|device| device.split_once(':'));
        let Some((major, minor)) = device else {
            continue;
        };
        let of = |key: &str| {
            line.split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(key))
                .map_or(0, number)
        };
        // The kernel also lists devices that have no counters.
        if words.next().is_none() {
            continue;
        }
        for (operation, key) in [("read", "rbytes="), ("write", "wbytes=")] {
            usage.service_bytes.push(BlockIoCount {
                major: number(major),
                minor: number(minor),
                operation: operation.to_owned(),
                value: of(key),
            });
        }
    }
    usage
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// Returns the lines of a file of "name number" lines.
fn lines(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name, number(value)))
}

fn all_lines(text: &str) -> Vec<(String, u64)> {
    lines(text)
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    fn directory(files: &[(&str, &str)]) -> Scratch {
        let scratch = Scratch::temporary("usage").unwrap();
        for (name, text) in files {
            whelk_sys::fs::write(scratch.path().join(name), text).unwrap();
        }
        scratch
    }

    fn count(device: (u64, u64), operation: &str, value: u64) -> BlockIoCount {
        BlockIoCount {
            major: device.0,
            minor: device.1,
            operation: operation.to_owned(),
            value,
        }
    }

    #[test]
    fn reads_the_files_of_v1() {
        let scratch = directory(&[
            ("cpuacct.usage", "5000000123\n"),
            ("cpuacct.usage_percpu", "2000000100 3000000023 \n"),
            ("cpuacct.stat", "user 300\nsystem 200\n"),
            (
                "cpu.stat",
                "nr_periods 7\nnr_throttled 3\nthrottled_time 99\nnr_bursts 0\n",
            ),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.max_usage_in_bytes", "8192\n"),
            ("memory.failcnt", "2\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.stat", "cache 1\ntotal_inactive_file 2\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
            ),
            ("blkio.throttle.io_serviced", "8:0 Read 1\n"),
        ]);
        let path = &Directory::open(scratch.path()).unwrap();
        let cpu = cpu_v1(Some(path), Some(path)).unwrap();
        assert_eq!(cpu.total, 5_000_000_123);
        assert_eq!(cpu.per_cpu, [2_000_000_100, 3_000_000_023]);
        assert_eq!((cpu.user, cpu.kernel), (3_000_000_000, 2_000_000_000));
        assert_eq!(
            (cpu.periods, cpu.throttled_periods, cpu.throttled_time),
            (7, 3, 99)
        );
        let memory = memory_v1(path).unwrap();
        assert_eq!(
            (memory.usage, memory.max_usage, memory.failures),
            (4096, 8192, 2)
        );
        assert_eq!(memory.limit, 9_223_372_036_854_771_712);
        assert_eq!(memory.stats[1], ("total_inactive_file".to_owned(), 2));
        assert_eq!(
            pids(path).unwrap(),
            PidsUsage {
                current: 3,
                limit: None
            }
        );
        let io = block_io_v1(path);
        assert_eq!(
            io.service_bytes,
            [
                count((8, 0), "Read", 10),
                count((8, 0), "Write", 20),
                count((8, 0), "Total", 30)
            ]
        );
        assert_eq!(io.serviced, [count((8, 0), "Read", 1)]);
        assert_eq!(counts_v1("8:16 77\n"), [count((8, 16), "", 77)]);
    }

    #[test]
    fn reads_the_files_of_v2() {
        let scratch = directory(&[
            (
                "cpu.stat",
                "usage_usec 50\nuser_usec 30\nsystem_usec 20\nnr_periods 4\nnr_throttled 1\nthrottled_usec 5\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\n"),
            ("memory.stat", "anon 1\ninactive_file 2\n"),
            (
                "io.stat",
                "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:0 \n",
            ),
        ]);
        let path = &Directory::open(scratch.path()).unwrap();
        let cpu = cpu_v2(path).unwrap();
        assert_eq!(
            (cpu.total, cpu.user, cpu.kernel, cpu.throttled_time),
            (50_000, 30_000, 20_000, 5_000)
        );
        let memory = memory_v2(path).unwrap();
        assert_eq!(
            (memory.usage, memory.failures, memory.limit),
            (4096, 2, u64::MAX)
        );
        assert_eq!(
            block_io_v2(path).service_bytes,
            [count((8, 0), "read", 10), count((8, 0), "write", 20),]
        );
    }

    #[test]
    fn a_missing_cgroup_is_an_error() {
        let scratch = directory(&[]);
        let directory = Directory::open(scratch.path()).unwrap();
        assert!(cpu_v1(Some(&directory), None).is_err());
        assert!(cpu_v2(&directory).is_err());
    }
}
