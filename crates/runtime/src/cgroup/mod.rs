//! Control groups: setting limits, freezing, and listing a container's processes.
//!
//! One type for both kernel interfaces, which are told apart at run time: v2 (one hierarchy) and
//! v1, including the hybrid layout with an additional v2 hierarchy that has no controllers. Files
//! are written directly.

mod devices;
mod files;
mod usage;
mod v1;
mod v2;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use whelk_sys::fs;

pub use devices::default_rules;
pub use usage::{BlockIoCount, BlockIoUsage, CpuUsage, MemoryUsage, PidsUsage, Usage};

use crate::error::{Error, Result};
use crate::spec::Resources;

/// The cgroup layout of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The unified hierarchy, and its mount point.
    V2(PathBuf),
    /// The hierarchies of cgroup v1.
    V1(Vec<Tree>),
}

/// A mounted hierarchy of cgroup v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Its controllers, or `name=…` for a named hierarchy.
    pub controllers: Vec<String>,
    /// Its mount point.
    pub root: PathBuf,
}

/// Returns the layout of this host, which is read once per process.
///
/// # Errors
/// Returns an error if no cgroup file system is mounted.
pub fn layout() -> Result<&'static Layout> {
    static LAYOUT: OnceLock<Result<Layout>> = OnceLock::new();
    LAYOUT
        .get_or_init(|| parse_layout(&fs::read_to_string("/proc/self/mountinfo")?))
        .as_ref()
        .map_err(Clone::clone)
}

/// Returns mount point, type and options of the file system of each mount.
fn mounts(mountinfo: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    mountinfo.lines().filter_map(|line| {
        // proc_pid_mountinfo(5): … mount-point options [optional…] - type source super-options
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        Some((left.split(' ').nth(4)?, right.next()?, right.nth(1)?))
    })
}

/// Removes the cgroup at `path` in the v2 hierarchy of the hybrid layout, where only other runtimes create
/// any, with those below it. A missing one is not an error.
///
/// # Errors
/// Returns an error if it is in use.
pub fn remove_hybrid(path: &str) -> Result<()> {
    if matches!(layout()?, Layout::V2(_)) {
        return Ok(());
    }
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let unified = mounts(&mountinfo).find(|(_, kind, _)| *kind == "cgroup2");
    // Checks the path.
    Cgroup::at(path)?;
    if let Some((root, ..)) = unified {
        files::remove_below(&Path::new(root).join(path.trim_start_matches('/')))?;
    }
    Ok(())
}

fn parse_layout(mountinfo: &str) -> Result<Layout> {
    let mut unified = None;
    let mut trees = Vec::new();
    for (point, kind, options) in mounts(mountinfo) {
        match kind {
            "cgroup2" if unified.is_none() => unified = Some(PathBuf::from(point)),
            "cgroup" => {
                let controllers = options
                    .split(',')
                    .filter(|option| {
                        v1::CONTROLLERS.contains(option) || option.starts_with("name=")
                    })
                    .map(str::to_owned)
                    .collect();
                let tree = Tree {
                    controllers,
                    root: PathBuf::from(point),
                };
                if !trees
                    .iter()
                    .any(|known: &Tree| known.controllers == tree.controllers)
                {
                    trees.push(tree);
                }
            }
            _ => {}
        }
    }
    match (trees.is_empty(), unified) {
        (false, _) => Ok(Layout::V1(trees)),
        (true, Some(root)) => Ok(Layout::V2(root)),
        (true, None) => Err(Error::invalid("no cgroup file system is mounted")),
    }
}

/// The cgroup of a container.
#[derive(Debug)]
pub struct Cgroup {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    V1(v1::Cgroup),
    V2(v2::Cgroup),
}

/// Interval for polling a state that the kernel reaches asynchronously.
const POLL: Duration = Duration::from_millis(1);

impl Cgroup {
    /// Returns the cgroup at `path` (absolute, below the root of the hierarchy), which need not
    /// exist.
    ///
    /// # Errors
    /// Returns an error if the path has `..` in it, or if this host has no cgroups.
    pub fn at(path: &str) -> Result<Self> {
        Self::in_layout(layout()?, path)
    }

    fn in_layout(layout: &Layout, path: &str) -> Result<Self> {
        let relative = Path::new(path.trim_start_matches('/'));
        if relative.as_os_str().is_empty()
            || relative
                .components()
                .any(|part| !matches!(part, std::path::Component::Normal(_)))
        {
            return Err(Error::invalid(format!("invalid cgroup path {path:?}")));
        }
        let kind = match layout {
            Layout::V1(trees) => Kind::V1(v1::Cgroup::at(trees, relative)),
            Layout::V2(root) => Kind::V2(v2::Cgroup::at(root, relative)),
        };
        Ok(Self { kind })
    }

    /// Returns the cgroup that a process is in (cgroup v2 only).
    pub fn of_process(pidfd: impl AsFd) -> Result<Self> {
        // proc(5): the fdinfo of a pidfd has the pid; /proc/PID/cgroup has one line "0::/path".
        let info = fs::read_to_string(format!(
            "/proc/thread-self/fdinfo/{}",
            pidfd.as_fd().as_raw_fd()
        ))?;
        let pid = info
            .lines()
            .find_map(|line| line.strip_prefix("Pid:"))
            .unwrap_or_default()
            .trim();
        let lines = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = lines.lines().find_map(|line| line.strip_prefix("0::"));
        Self::at(
            path.ok_or_else(|| {
                Error::Os(format!("process {pid} is not in a cgroup v2 hierarchy"))
            })?,
        )
    }

    /// Creates the cgroup and its parents and sets its limits and device rules.
    pub fn create(&mut self, resources: &Resources) -> Result<()> {
        match &mut self.kind {
            Kind::V1(cgroup) => cgroup.create()?,
            Kind::V2(cgroup) => cgroup.create()?,
        }
        self.apply(resources)?;
        match &self.kind {
            Kind::V1(cgroup) => cgroup.apply_devices(&resources.devices),
            Kind::V2(cgroup) => cgroup.apply_devices(&resources.devices),
        }
    }

    /// Sets limits, at creation or while the container runs. Limits that `resources` does not have
    /// stay as they are. Device rules are only set at creation.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.apply(resources),
            Kind::V2(cgroup) => cgroup.apply(resources),
        }
    }

    /// Returns the directory to clone a process into (`CLONE_INTO_CGROUP`); `None` on v1.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::V1(_) => None,
            Kind::V2(cgroup) => cgroup.directory(),
        }
    }

    /// Moves the calling process, which must be single-threaded, into the cgroup. A no-op for a
    /// process that was cloned into it with [`Cgroup::clone_into`].
    pub fn enter(&self) -> Result<()> {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.enter(),
            Kind::V2(cgroup) => cgroup.enter(),
        }
    }

    /// Freezes or thaws all processes. Returns when the kernel has done so.
    ///
    /// # Errors
    /// Returns an error if the state is not reached within ten seconds (a process is in
    /// uninterruptible sleep); the cgroup is thawed then.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        const LIMIT: Duration = Duration::from_secs(10);
        let begin = Instant::now();
        while !self.begin_freeze(frozen)? {
            if begin.elapsed() > LIMIT {
                if frozen {
                    let _ = self.begin_freeze(false);
                }
                return Err(Error::Os(format!(
                    "{} cgroup: not done within {} s",
                    if frozen { "freeze" } else { "thaw" },
                    LIMIT.as_secs()
                )));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Starts freezing or thawing all processes without waiting. Returns whether they are in that
    /// state; if not, call it again later.
    pub fn begin_freeze(&self, frozen: bool) -> Result<bool> {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.freeze(frozen),
            Kind::V2(cgroup) => cgroup.freeze(frozen),
        }
    }

    /// Whether the cgroup is frozen; on v1 also while it is freezing.
    pub fn is_frozen(&self) -> bool {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.is_frozen(),
            Kind::V2(cgroup) => cgroup.is_frozen(),
        }
    }

    /// Returns the pids in this cgroup and all below it, as numbered in the caller's pid namespace.
    pub fn processes(&self) -> Result<Vec<i32>> {
        files::processes_below(match &self.kind {
            Kind::V1(cgroup) => cgroup.main_directory(),
            Kind::V2(cgroup) => cgroup.path(),
        })
    }

    /// Reads what the cgroup's processes use, besides CPU time.
    ///
    /// # Errors
    /// Returns an error if the cgroup does not exist.
    pub fn usage(&self) -> Result<Usage> {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.usage(),
            Kind::V2(cgroup) => cgroup.usage(),
        }
    }

    /// Reads only the CPU time that the cgroup's processes have used.
    ///
    /// # Errors
    /// Returns an error if the cgroup does not exist.
    pub fn cpu_usage(&self) -> Result<CpuUsage> {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.cpu_usage(),
            Kind::V2(cgroup) => cgroup.cpu_usage(),
        }
    }

    /// Returns the number of processes that the OOM killer has killed in this cgroup.
    pub fn oom_kills(&self) -> u64 {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.oom_kills(),
            Kind::V2(cgroup) => cgroup.oom_kills(),
        }
    }

    /// Returns a descriptor that becomes readable on an OOM event; on v2 also on others, so check
    /// [`Cgroup::was_out_of_memory`].
    pub fn oom_watch(&self) -> Result<std::os::fd::OwnedFd> {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.oom_watch(),
            Kind::V2(cgroup) => cgroup.oom_watch(),
        }
    }

    /// Whether the event that [`Cgroup::oom_watch`] has reported was an OOM event.
    pub fn was_out_of_memory(&self) -> bool {
        match &self.kind {
            // The eventfd is only signalled on OOM.
            Kind::V1(_) => true,
            // memory.events also changes when memory is reclaimed under pressure.
            Kind::V2(cgroup) => cgroup.oom_kills() > 0,
        }
    }

    /// Kills every process in the cgroup and below it.
    pub fn kill_all(&self) -> Result<()> {
        if let Kind::V2(cgroup) = &self.kind
            && cgroup.kill().is_ok()
        {
            return Ok(());
        }
        // Freeze first: frozen processes cannot fork while they are being killed. A process in
        // uninterruptible sleep keeps the cgroup from becoming frozen, but it does not fork either,
        // and the others are stopped.
        const LIMIT: Duration = Duration::from_millis(200);
        let begin = Instant::now();
        while matches!(self.begin_freeze(true), Ok(false)) && begin.elapsed() < LIMIT {
            std::thread::sleep(POLL);
        }
        let processes = self.processes();
        for pid in processes.iter().flatten() {
            let _ = whelk_sys::signal::kill(*pid, rustix::process::Signal::KILL.as_raw());
        }
        // An error means that there is no freezer controller and nothing was frozen.
        let _ = self.begin_freeze(false);
        processes.map(drop)
    }

    /// Removes the cgroup and those below it. A missing one is not an error. While an exiting
    /// process still holds it (EBUSY), retries for about two seconds.
    pub fn remove(&self) -> Result<()> {
        // Counted, because on a machine that stops for seconds the process has no time to exit either.
        const TRIES: usize = 2000;
        let directories = match &self.kind {
            Kind::V1(cgroup) => cgroup.directories(),
            Kind::V2(cgroup) => vec![cgroup.path()],
        };
        let mut tries = 0..TRIES;
        let mut result = Ok(());
        for directory in directories {
            loop {
                match files::remove_below(directory) {
                    Err(error)
                        if error.source.raw_os_error()
                            == Some(rustix::io::Errno::BUSY.raw_os_error())
                            && tries.next().is_some() =>
                    {
                        std::thread::sleep(POLL)
                    }
                    Err(error) => {
                        result = Err(error.into());
                        break;
                    }
                    Ok(()) => break,
                }
            }
        }
        result
    }

    /// Returns the names of the cgroups directly below this one, in any hierarchy.
    ///
    /// # Errors
    /// Returns an error if they cannot be listed.
    pub fn children(&self) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for (_, path) in self.paths() {
            match fs::list(path) {
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
                Ok(entries) => {
                    let is_directory = |entry: &&std::fs::DirEntry| {
                        entry.file_type().is_ok_and(|kind| kind.is_dir())
                    };
                    let children = entries.iter().filter(is_directory);
                    names.extend(children.filter_map(|entry| entry.file_name().into_string().ok()));
                }
            }
        }
        Ok(names)
    }

    /// Whether the cgroup exists.
    pub fn exists(&self) -> bool {
        match &self.kind {
            Kind::V1(cgroup) => fs::exists(cgroup.main_directory()),
            Kind::V2(cgroup) => fs::exists(cgroup.path()),
        }
    }

    /// Returns the path for each set of controllers (v1), or under the empty name (v2).
    pub fn paths(&self) -> Vec<(String, PathBuf)> {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.paths(),
            Kind::V2(cgroup) => vec![(String::new(), cgroup.path().to_owned())],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "36 29 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        37 29 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        38 29 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_hybrid_layout_is_v1() {
        let Layout::V1(trees) = parse_layout(HYBRID).unwrap() else {
            panic!("v1 expected")
        };
        assert_eq!(
            trees[0],
            Tree {
                controllers: vec!["cpu".into()],
                root: "/sys/fs/cgroup/cpu".into()
            }
        );
        assert_eq!(trees[1].controllers, ["name=systemd"]);
        assert_eq!(trees.len(), 2);
    }

    #[test]
    fn a_single_v2_hierarchy_is_v2() {
        assert_eq!(
            parse_layout("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").unwrap(),
            Layout::V2("/sys/fs/cgroup".into())
        );
        assert_eq!(
            parse_layout("").unwrap_err().to_string(),
            "no cgroup file system is mounted"
        );
    }

    #[test]
    fn rejects_paths_outside_the_hierarchy() {
        let layout = Layout::V2("/sys/fs/cgroup".into());
        for path in ["", "/", "/..", "/a/../../b", "../x"] {
            let error = Cgroup::in_layout(&layout, path).unwrap_err();
            assert_eq!(error.to_string(), format!("invalid cgroup path {path:?}"));
        }
    }
}
