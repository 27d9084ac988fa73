//! cgroup v1: one directory in the hierarchy of each controller.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use whelk_sys::fs;

use super::files::{counter, set, set_some, try_set};
use super::{CpuUsage, Tree, Usage, devices, usage};
use crate::error::{Error, Result, os};
use crate::spec::{BlockIo, Cpu, DeviceRule, Memory, Resources, ThrottleDevice};

pub(super) const CONTROLLERS: &[&str] = &[
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
    "misc",
];

#[derive(Debug)]
pub(super) struct Cgroup {
    /// Controllers of the hierarchy, its root, and the cgroup's directory in it.
    trees: Vec<(Vec<String>, PathBuf, PathBuf)>,
}

impl Cgroup {
    pub(super) fn at(trees: &[Tree], relative: &Path) -> Self {
        Self {
            trees: trees
                .iter()
                .map(|tree| {
                    (
                        tree.controllers.clone(),
                        tree.root.clone(),
                        tree.root.join(relative),
                    )
                })
                .collect(),
        }
    }

    pub(super) fn create(&mut self) -> Result<()> {
        for (controllers, root, directory) in &self.trees {
            if controllers.iter().any(|name| name == "cpuset") {
                create_cpuset(root, directory)?;
            } else {
                fs::create_dir_all(directory, 0o755)?;
            }
        }
        Ok(())
    }

    /// Moves the calling process, which must be single-threaded, into the cgroup. Written to
    /// `tasks` rather than `cgroup.procs`: for a thread that moves itself the kernel does not take
    /// `cgroup_threadgroup_rwsem`, whose first writer waits for an RCU grace period of some 10 ms
    /// (`cgroup_procs_write_start`, 5.17).
    pub(super) fn enter(&self) -> Result<()> {
        self.trees
            .iter()
            .try_for_each(|(_, _, directory)| set(directory, "tasks", 0))
    }

    fn directory(&self, controller: &str) -> Option<&Path> {
        self.trees
            .iter()
            .find(|(controllers, _, _)| controllers.iter().any(|name| name == controller))
            .map(|(_, _, directory)| directory.as_path())
    }

    /// Returns the directory to list processes in: all hierarchies have the same ones.
    pub(super) fn main_directory(&self) -> &Path {
        ["freezer", "devices", "memory"]
            .into_iter()
            .find_map(|name| self.directory(name))
            .or_else(|| self.trees.first().map(|tree| tree.2.as_path()))
            .unwrap_or(Path::new("/nonexistent"))
    }

    pub(super) fn directories(&self) -> Vec<&Path> {
        self.trees
            .iter()
            .map(|(_, _, directory)| directory.as_path())
            .collect()
    }

    pub(super) fn paths(&self) -> Vec<(String, PathBuf)> {
        self.trees
            .iter()
            .map(|(controllers, _, directory)| (controllers.join(","), directory.clone()))
            .collect()
    }

    fn require(&self, controller: &str) -> Result<&Path> {
        self.directory(controller).ok_or_else(|| {
            Error::invalid(format!("this host has no {controller} cgroup controller"))
        })
    }

    pub(super) fn apply(&self, resources: &Resources) -> Result<()> {
        let Resources {
            memory,
            cpu,
            pids,
            block_io,
            hugepage_limits,
            network,
            rdma,
            unified,
            devices: _,
        } = resources;
        if !unified.is_empty() {
            return Err(Error::invalid(
                "unified cgroup settings require cgroup v2, which this host does not use",
            ));
        }
        if *memory != Memory::default() {
            apply_memory(self.require("memory")?, memory)?;
        }
        if *cpu != Cpu::default() {
            self.apply_cpu(cpu)?;
        }
        if let Some(pids) = pids {
            let directory = self.require("pids")?;
            if pids.limit > 0 {
                set(directory, "pids.max", pids.limit)
            } else {
                set(directory, "pids.max", "max")
            }?;
        }
        if *block_io != BlockIo::default() {
            apply_block_io(self.require("blkio")?, block_io)?;
        }
        for limit in hugepage_limits {
            set(
                self.require("hugetlb")?,
                &format!("hugetlb.{}.limit_in_bytes", limit.page_size),
                limit.limit,
            )?;
        }
        if let Some(class) = network.class_id {
            set(self.require("net_cls")?, "net_cls.classid", class)?;
        }
        for priority in &network.priorities {
            set(
                self.require("net_prio")?,
                "net_prio.ifpriomap",
                format!("{} {}", priority.name, priority.priority),
            )?;
        }
        for (device, limit) in rdma {
            set(
                self.require("rdma")?,
                "rdma.max",
                super::v2::rdma_line(device, limit),
            )?;
        }
        Ok(())
    }

    fn apply_cpu(&self, cpu: &Cpu) -> Result<()> {
        if cpu.shares.is_some()
            || cpu.quota.is_some()
            || cpu.period.is_some()
            || cpu.realtime_period.is_some()
            || cpu.realtime_runtime.is_some()
            || cpu.burst.is_some()
            || cpu.idle.is_some()
        {
            let directory = self.require("cpu")?;
            set_some(directory, "cpu.shares", cpu.shares)?;
            // The kernel rejects a quota or a period that does not fit the other, old value. So if
            // the period fails, it is set again after the quota.
            let period = || set_some(directory, "cpu.cfs_period_us", cpu.period);
            let quota = || set_some(directory, "cpu.cfs_quota_us", cpu.quota);
            if period().is_err() {
                quota()?;
                period()?;
            } else {
                quota()?;
            }
            set_some(directory, "cpu.cfs_burst_us", cpu.burst)?;
            set_some(directory, "cpu.rt_period_us", cpu.realtime_period)?;
            set_some(directory, "cpu.rt_runtime_us", cpu.realtime_runtime)?;
            set_some(directory, "cpu.idle", cpu.idle)?;
        }
        if !cpu.cpus.is_empty() {
            set(self.require("cpuset")?, "cpuset.cpus", &cpu.cpus)?;
        }
        if !cpu.mems.is_empty() {
            set(self.require("cpuset")?, "cpuset.mems", &cpu.mems)?;
        }
        Ok(())
    }

    pub(super) fn apply_devices(&self, rules: &[DeviceRule]) -> Result<()> {
        if rules.is_empty() {
            return Ok(());
        }
        let directory = self.require("devices")?;
        for (file, line) in devices::v1_lines(rules) {
            set(directory, file, line)?;
        }
        Ok(())
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<bool> {
        let directory = self.require("freezer")?;
        let state = if frozen { "FROZEN" } else { "THAWED" };
        set(directory, "freezer.state", state)?;
        Ok(fs::read_to_string(directory.join("freezer.state"))?.trim() == state)
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.directory("freezer").is_some_and(|directory| {
            fs::read_to_string(directory.join("freezer.state"))
                .is_ok_and(|state| state.trim() != "THAWED")
        })
    }

    pub(super) fn usage(&self) -> Result<Usage> {
        let memory = self.open("memory")?;
        let pids = self.open("pids")?;
        let block_io = self.open("blkio")?;
        let memory = memory.as_ref().map(usage::memory_v1).transpose()?;
        let pids = pids.as_ref().map(usage::pids).transpose()?;
        let block_io = block_io.as_ref().map(usage::block_io_v1);
        Ok(Usage {
            memory: memory.unwrap_or_default(),
            pids: pids.unwrap_or_default(),
            block_io: block_io.unwrap_or_default(),
        })
    }

    pub(super) fn cpu_usage(&self) -> Result<CpuUsage> {
        let (cpuacct, cpu) = (self.open("cpuacct")?, self.open("cpu")?);
        usage::cpu_v1(cpuacct.as_ref(), cpu.as_ref())
    }

    /// Opens the directory of a controller, if the host has that.
    fn open(&self, controller: &str) -> Result<Option<usage::Directory<'_>>> {
        let directory = self.directory(controller);
        directory.map(usage::Directory::open).transpose()
    }

    pub(super) fn oom_kills(&self) -> u64 {
        self.directory("memory").map_or(0, |directory| {
            counter(directory, "memory.oom_control", "oom_kill ")
        })
    }

    /// Returns an eventfd registered with the memory controller (kernel:
    /// admin-guide/cgroup-v1/memory, "OOM Control").
    pub(super) fn oom_watch(&self) -> Result<OwnedFd> {
        let directory = self.require("memory")?;
        let event = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
        )
        .map_err(os("eventfd"))?;
        let control = fs::open(directory.join("memory.oom_control"))?;
        set(
            directory,
            "cgroup.event_control",
            format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd()),
        )?;
        Ok(event)
    }
}

/// Creates a cpuset directory and its parents. A cpuset without CPUs and memory nodes cannot hold
/// processes, so each new level is initialised with its parent's values. Existing levels are
/// checked too, because another process may have created one and not initialised it yet.
fn create_cpuset(root: &Path, directory: &Path) -> Result<()> {
    let Some(parent) = directory.parent().filter(|parent| parent.starts_with(root)) else {
        return Ok(());
    };
    if parent != root {
        create_cpuset(root, parent)?;
    }
    match fs::create_dir(directory, 0o755) {
        Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(directory.join(file))?.trim().is_empty() {
            set(
                directory,
                file,
                fs::read_to_string(parent.join(file))?.trim(),
            )?;
        }
    }
    Ok(())
}

fn apply_memory(directory: &Path, memory: &Memory) -> Result<()> {
    // Without swap accounting the file does not exist; swap is unlimited then anyway.
    let swap = memory
        .swap
        .filter(|swap| *swap >= 0 || fs::exists(directory.join("memory.memsw.limit_in_bytes")));
    if let (Some(limit), Some(swap)) = (memory.limit, swap) {
        // The memory limit must not exceed memory+swap at any time: if it cannot be set first,
        // memory+swap is raised before it.
        if try_set(directory, "memory.limit_in_bytes", &limit.to_string()).is_err() {
            set(directory, "memory.memsw.limit_in_bytes", swap)?;
            set(directory, "memory.limit_in_bytes", limit)?;
        } else {
            set(directory, "memory.memsw.limit_in_bytes", swap)?;
        }
    } else {
        set_some(directory, "memory.limit_in_bytes", memory.limit)?;
        set_some(directory, "memory.memsw.limit_in_bytes", swap)?;
    }
    set_some(directory, "memory.soft_limit_in_bytes", memory.reservation)?;
    set_some(
        directory,
        "memory.kmem.tcp.limit_in_bytes",
        memory.kernel_tcp,
    )?;
    if memory.disable_oom_killer == Some(true) {
        set(directory, "memory.oom_control", 1)?;
    }
    match memory.swappiness {
        Some(value) if value > 100 => Err(Error::invalid(format!(
            "invalid memory swappiness {value}: must be 0 to 100"
        ))),
        value => set_some(directory, "memory.swappiness", value),
    }
}

fn apply_block_io(directory: &Path, io: &BlockIo) -> Result<()> {
    // The weight file belongs to the I/O scheduler: BFQ since Linux 5.0, CFQ before.
    let prefix = if fs::exists(directory.join("blkio.bfq.weight")) {
        "blkio.bfq."
    } else {
        "blkio."
    };
    set_some(directory, &format!("{prefix}weight"), io.weight)?;
    set_some(directory, "blkio.leaf_weight", io.leaf_weight)?;
    for device in &io.weight_device {
        if let Some(weight) = device.weight {
            // BFQ has a word for the weight of all devices, and refuses 0; CFQ takes 0 for it.
            let weight = match weight {
                0 if prefix == "blkio.bfq." => "default".to_owned(),
                weight => weight.to_string(),
            };
            set(
                directory,
                &format!("{prefix}weight_device"),
                format!("{}:{} {weight}", device.major, device.minor),
            )?;
        }
        if let Some(weight) = device.leaf_weight {
            set(
                directory,
                "blkio.leaf_weight_device",
                format!("{}:{} {weight}", device.major, device.minor),
            )?;
        }
    }
    let throttle = |file: &str, devices: &[ThrottleDevice]| {
        devices.iter().try_for_each(|device| {
            set(
                directory,
                file,
                format!("{}:{} {}", device.major, device.minor, device.rate),
            )
        })
    };
    throttle(
        "blkio.throttle.read_bps_device",
        &io.throttle_read_bps_device,
    )?;
    throttle(
        "blkio.throttle.write_bps_device",
        &io.throttle_write_bps_device,
    )?;
    throttle(
        "blkio.throttle.read_iops_device",
        &io.throttle_read_iops_device,
    )?;
    throttle(
        "blkio.throttle.write_iops_device",
        &io.throttle_write_iops_device,
    )
}
