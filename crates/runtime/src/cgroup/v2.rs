//! cgroup v2: one directory, and the conversion of limits that the OCI specification gives in the
//! units of v1.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, inotify};
use rustix::io::Errno;
use whelk_sys::fs;

use super::files::{counter, set, set_some, try_set};
use super::{CpuUsage, Usage, devices, usage};
use crate::error::{Error, Result, os, os_at};
use crate::spec::{BlockIo, Cpu, DeviceRule, Memory, Rdma, Resources};

#[derive(Debug)]
pub(super) struct Cgroup {
    root: PathBuf,
    path: PathBuf,
    directory: Option<OwnedFd>,
}

impl Cgroup {
    pub(super) fn at(root: &Path, relative: &Path) -> Self {
        Self {
            root: root.to_owned(),
            path: root.join(relative),
            directory: None,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.directory.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn create(&mut self) -> Result<()> {
        // Usually (from the second container on) the parents exist and delegate their controllers,
        // so that a single mkdir suffices.
        if self.path.parent().is_some_and(delegates_all_controllers) {
            match fs::create_dir(&self.path, 0o755) {
                Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {}
                result => result?,
            }
        } else {
            self.create_with_parents()?;
        }
        self.directory = Some(open(&self.path)?);
        Ok(())
    }

    /// Creates each level and enables every available controller for the next.
    fn create_with_parents(&self) -> Result<()> {
        let relative = self
            .path
            .strip_prefix(&self.root)
            .unwrap_or(Path::new(""))
            .to_owned();
        let mut level = self.root.clone();
        for part in relative.components() {
            let available = fs::read_to_string(level.join("cgroup.controllers"))?;
            let all: Vec<String> = available
                .split_whitespace()
                .map(|controller| format!("+{controller}"))
                .collect();
            if let Err(error) = try_set(&level, "cgroup.subtree_control", &all.join(" ")) {
                if error.source.raw_os_error() == Some(Errno::BUSY.raw_os_error())
                    && level != self.root
                {
                    return Err(Error::invalid(format!(
                        "cgroup {} contains processes, so controllers cannot be enabled for a container's cgroup below it",
                        level.display()
                    )));
                }
                // A controller that cannot be enabled (`cpu`, while there are real-time threads)
                // must not keep the others from being enabled. A limit that then cannot be set is
                // reported when it is set.
                for controller in &all {
                    let _ = try_set(&level, "cgroup.subtree_control", controller);
                }
            }
            level.push(part);
            match fs::create_dir(&level, 0o755) {
                Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {}
                result => result?,
            }
        }
        Ok(())
    }

    pub(super) fn enter(&self) -> Result<()> {
        if self.directory.is_some() {
            Ok(())
        } else {
            set(&self.path, "cgroup.procs", 0)
        }
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
        if network.class_id.is_some() || !network.priorities.is_empty() {
            return Err(Error::invalid(
                "network class and priorities need cgroup v1, which this host does not use",
            ));
        }
        self.apply_memory(memory)?;
        self.apply_cpu(cpu)?;
        if let Some(pids) = pids {
            if pids.limit > 0 {
                set(&self.path, "pids.max", pids.limit)
            } else {
                set(&self.path, "pids.max", "max")
            }?;
        }
        self.apply_block_io(block_io)?;
        for limit in hugepage_limits {
            set(
                &self.path,
                &format!("hugetlb.{}.max", limit.page_size),
                limit.limit,
            )?;
        }
        for (device, limit) in rdma {
            set(&self.path, "rdma.max", rdma_line(device, limit))?;
        }
        for (file, value) in unified {
            if !whelk_sys::in_root::is_entry_name(file.as_ref()) {
                return Err(Error::invalid(format!(
                    "invalid unified cgroup file {file:?}"
                )));
            }
            set(&self.path, file, value)?;
        }
        Ok(())
    }

    fn apply_memory(&self, memory: &Memory) -> Result<()> {
        // The order does not matter: in v2 the two limits are independent. Without swap accounting
        // the file does not exist; swap is unlimited then anyway.
        if let Some(swap) = swap_max(memory)?
            .filter(|swap| *swap >= 0 || fs::exists(self.path.join("memory.swap.max")))
        {
            set(&self.path, "memory.swap.max", max_or_number(swap))?;
        }
        set_some(&self.path, "memory.max", memory.limit.map(max_or_number))?;
        set_some(
            &self.path,
            "memory.low",
            memory.reservation.map(max_or_number),
        )
        // Swappiness, kernel memory and disabling the OOM killer do not exist in v2; the engine
        // warns about them.
    }

    fn apply_cpu(&self, cpu: &Cpu) -> Result<()> {
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
            set(&self.path, "cpu.weight", weight_of_shares(shares))?;
        }
        if cpu.quota.is_some() || cpu.period.is_some() {
            let quota = cpu
                .quota
                .filter(|quota| *quota > 0)
                .map_or("max".to_owned(), |quota| quota.to_string());
            let value = cpu
                .period
                .filter(|period| *period != 0)
                .map_or(quota.clone(), |period| format!("{quota} {period}"));
            set(&self.path, "cpu.max", value)?;
        }
        set_some(&self.path, "cpu.max.burst", cpu.burst)?;
        set_some(&self.path, "cpu.idle", cpu.idle)?;
        if cpu.realtime_period.is_some() || cpu.realtime_runtime.is_some() {
            return Err(Error::invalid(
                "realtime CPU limits need cgroup v1, which this host does not use",
            ));
        }
        if !cpu.cpus.is_empty() {
            set(&self.path, "cpuset.cpus", &cpu.cpus)?;
        }
        if !cpu.mems.is_empty() {
            set(&self.path, "cpuset.mems", &cpu.mems)?;
        }
        Ok(())
    }

    fn apply_block_io(&self, io: &BlockIo) -> Result<()> {
        if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
            // io.bfq.weight has the same range as in v1.
            if fs::exists(self.path.join("io.bfq.weight")) {
                set(&self.path, "io.bfq.weight", weight)?;
            } else {
                set(&self.path, "io.weight", weight_of_blkio(weight))?;
            }
        }
        for device in &io.weight_device {
            if let Some(weight) = device.weight {
                let weight = match weight {
                    0 => "default".to_owned(),
                    weight => weight.to_string(),
                };
                set(
                    &self.path,
                    "io.bfq.weight",
                    format!("{}:{} {weight}", device.major, device.minor),
                )?;
            }
        }
        let limits = [
            ("rbps", &io.throttle_read_bps_device),
            ("wbps", &io.throttle_write_bps_device),
            ("riops", &io.throttle_read_iops_device),
            ("wiops", &io.throttle_write_iops_device),
        ];
        for (key, devices) in limits {
            for device in devices {
                // 0 means no limit, as in v1.
                let rate = match device.rate {
                    0 => "max".to_owned(),
                    rate => rate.to_string(),
                };
                set(
                    &self.path,
                    "io.max",
                    format!("{}:{} {key}={rate}", device.major, device.minor),
                )?;
            }
        }
        Ok(())
    }

    /// Attaches a device filter for the rules, then detaches the previous ones.
    pub(super) fn apply_devices(&self, rules: &[DeviceRule]) -> Result<()> {
        if rules.is_empty() {
            return Ok(());
        }
        let opened;
        let directory = match self.directory() {
            Some(directory) => directory,
            None => {
                opened = open(&self.path)?;
                opened.as_fd()
            }
        };
        let old = whelk_sys::bpf::attached_device_filters(directory)
            .map_err(os("query device filters"))?;
        let program = whelk_sys::bpf::load_device_filter(&devices::v2_program(rules))
            .map_err(os("load device filter"))?;
        whelk_sys::bpf::attach_device_filter(directory, program.as_fd())
            .map_err(os("attach device filter"))?;
        old.iter()
            .try_for_each(|filter| whelk_sys::bpf::detach_device_filter(directory, filter.as_fd()))
            .map_err(os("detach device filter"))
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<bool> {
        set(&self.path, "cgroup.freeze", u8::from(frozen))?;
        Ok(self.is_frozen() == frozen)
    }

    pub(super) fn is_frozen(&self) -> bool {
        counter(&self.path, "cgroup.events", "frozen ") == 1
    }

    /// A controller that the parent does not delegate has no files.
    pub(super) fn usage(&self) -> Result<Usage> {
        let directory = usage::Directory::open(&self.path)?;
        let mut usage = Usage {
            block_io: usage::block_io_v2(&directory),
            ..Usage::default()
        };
        if directory.has("memory.current") {
            usage.memory = usage::memory_v2(&directory)?;
        }
        if directory.has("pids.current") {
            usage.pids = usage::pids(&directory)?;
        }
        Ok(usage)
    }

    pub(super) fn cpu_usage(&self) -> Result<CpuUsage> {
        usage::cpu_v2(&usage::Directory::open(&self.path)?)
    }

    pub(super) fn oom_kills(&self) -> u64 {
        counter(&self.path, "memory.events", "oom_kill ")
    }

    /// Returns an inotify descriptor for `memory.events`, which the kernel modifies on every event.
    pub(super) fn oom_watch(&self) -> Result<OwnedFd> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(os("inotify"))?;
        let path = self.path.join("memory.events");
        inotify::add_watch(&watch, &path, inotify::WatchFlags::MODIFY)
            .map_err(os_at("watch", &path))?;
        Ok(watch)
    }

    pub(super) fn kill(&self) -> Result<()> {
        set(&self.path, "cgroup.kill", 1)
    }
}

/// Whether all available controllers of a cgroup are enabled for its children.
fn delegates_all_controllers(parent: &Path) -> bool {
    let list = |file| fs::read_to_string(parent.join(file)).unwrap_or_default();
    let given = list("cgroup.subtree_control");
    !given.trim().is_empty()
        && list("cgroup.controllers")
            .split_whitespace()
            .all(|one| given.split_whitespace().any(|other| one == other))
}

fn open(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(os_at("open cgroup", path))
}

fn max_or_number(value: i64) -> String {
    if value < 0 {
        "max".into()
    } else {
        value.to_string()
    }
}

/// Returns the limit for swap alone, which v2 counts separately; the specification's limit is for
/// memory and swap together. -1 means unlimited.
fn swap_max(memory: &Memory) -> Result<Option<i64>> {
    match (memory.swap, memory.limit) {
        (None | Some(0), _) => Ok(None),
        (Some(swap), _) if swap < 0 => Ok(Some(-1)),
        (Some(swap), Some(limit)) if limit >= 0 && swap >= limit => Ok(Some(swap - limit)),
        (Some(_), Some(limit)) if limit >= 0 => Err(Error::invalid(
            "memory+swap limit must not be less than the memory limit",
        )),
        (Some(_), _) => Err(Error::invalid("a memory+swap limit needs a memory limit")),
    }
}

/// Converts CPU shares (2 to 262144, default 1024) to a weight (1 to 10000, default 100).
///
/// The curve maps minimum, default and maximum of the one scale to those of the other.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 1 and 10000"
)]
fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// Converts a block I/O weight of v1 (10 to 1000) linearly to one of v2 (1 to 10000).
fn weight_of_blkio(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

pub(super) fn rdma_line(device: &str, limit: &Rdma) -> String {
    let max = |value: Option<u32>| value.map_or("max".to_owned(), |value| value.to_string());
    format!(
        "{device} hca_handle={} hca_object={}",
        max(limit.hca_handles),
        max(limit.hca_objects)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_map_minimum_default_and_maximum() {
        assert_eq!([2, 1024, 262_144].map(weight_of_shares), [1, 100, 10_000]);
        assert_eq!([10, 1000].map(weight_of_blkio), [1, 10_000]);
    }

    #[test]
    fn swap_limit_is_the_sum_minus_the_memory_limit() {
        let memory = |limit, swap| Memory {
            limit,
            swap,
            ..Memory::default()
        };
        assert_eq!(swap_max(&memory(Some(100), Some(300))), Ok(Some(200)));
        assert_eq!(swap_max(&memory(Some(100), Some(-1))), Ok(Some(-1)));
        assert_eq!(swap_max(&memory(None, None)), Ok(None));
        let refused = |limit, swap| swap_max(&memory(limit, swap)).unwrap_err().to_string();
        assert_eq!(
            refused(Some(100), Some(50)),
            "memory+swap limit must not be less than the memory limit"
        );
        assert_eq!(
            refused(None, Some(50)),
            "a memory+swap limit needs a memory limit"
        );
    }
}
