//! Control groups: limits, freezing, counting and finding a container's processes.
//!
//! Two kernels' interfaces behind one type, told apart at run time: v2 (one tree) and v1, also in
//! the hybrid layout where a v2 tree without controllers lies beside it. Files are written
//! directly, each once.

mod devices;
mod files;
mod v1;
mod v2;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use whelk_sys::fs;

pub use devices::DEFAULT_RULES;

use crate::error::{Error, Result};
use crate::spec::Resources;

/// How this host's cgroups are laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One tree, mounted here.
    V2(PathBuf),
    /// One tree per entry: the controllers it has (or `name=…`), and where it is mounted.
    V1(Vec<Tree>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    pub controllers: Vec<String>,
    pub root: PathBuf,
}

/// This host's layout, read once.
///
/// # Errors
/// No cgroup file system is mounted.
pub fn layout() -> Result<&'static Layout> {
    static LAYOUT: OnceLock<Result<Layout>> = OnceLock::new();
    LAYOUT
        .get_or_init(|| parse_layout(&fs::read_to_string("/proc/self/mountinfo")?))
        .as_ref()
        .map_err(Clone::clone)
}

fn parse_layout(mountinfo: &str) -> Result<Layout> {
    let mut unified = None;
    let mut trees = Vec::new();
    for line in mountinfo.lines() {
        // proc_pid_mountinfo(5): … mount-point options [optional…] - type source super-options
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(point), Some(kind), Some(options)) = (
            left.split(' ').nth(4),
            right.split(' ').next(),
            right.split(' ').nth(2),
        ) else {
            continue;
        };
        match kind {
            "cgroup2" if unified.is_none() => unified = Some(PathBuf::from(point)),
            "cgroup" => {
                let controllers = options
                    .split(',')
                    .filter(|option| v1::KNOWN.contains(option) || option.starts_with("name="))
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

/// One container's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    V1(v1::Cgroup),
    V2(v2::Cgroup),
}

/// How often a step that the kernel finishes later is asked for again.
const POLL: Duration = Duration::from_millis(1);

impl Cgroup {
    /// The cgroup at `path` (absolute, below the hierarchy's root), which need not exist.
    ///
    /// # Errors
    /// A path with `..`, or no cgroups on this host.
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

    /// The cgroup a process is in, on v2.
    pub fn of_process(pidfd: impl AsFd) -> Result<Self> {
        // proc(5): the descriptor's own file names the process; then one line "0::/path".
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
            path.ok_or_else(|| Error::Os(format!("process {pid} is in no cgroup of version 2")))?,
        )
    }

    /// Makes the cgroup with its parents and sets its limits.
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

    /// Sets limits, at creation or while the container runs. What `resources` does not name stays
    /// as it is. Device rules are set at creation only.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.apply(resources),
            Kind::V2(cgroup) => cgroup.apply(resources),
        }
    }

    /// On v2, the directory that a process can be born in (`CLONE_INTO_CGROUP`).
    pub fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::V1(_) => None,
            Kind::V2(cgroup) => cgroup.directory(),
        }
    }

    /// Moves the calling process in, which must have one thread. One that was born in
    /// [`Cgroup::birthplace`] is there already.
    pub fn enter(&self) -> Result<()> {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.enter(),
            Kind::V2(cgroup) => cgroup.enter(),
        }
    }

    /// Stops all processes, or lets them go on; returns when the kernel has done so.
    ///
    /// # Errors
    /// When the state is not reached within ten seconds (a process in uninterruptible sleep); the
    /// cgroup is thawed then.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        const LIMIT: Duration = Duration::from_secs(10);
        let begin = Instant::now();
        while !self.begin_freeze(frozen)? {
            if begin.elapsed() > LIMIT {
                if frozen {
                    let _ = self.begin_freeze(false);
                }
                return Err(Error::Os(format!(
                    "cgroup did not reach the state frozen={frozen} within {} s",
                    LIMIT.as_secs()
                )));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Tells the kernel to stop all processes or to let them go on, without waiting. Returns
    /// whether they are in that state; if not, call it again later.
    pub fn begin_freeze(&self, frozen: bool) -> Result<bool> {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.freeze(frozen),
            Kind::V2(cgroup) => cgroup.freeze(frozen),
        }
    }

    pub fn is_frozen(&self) -> bool {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.is_frozen(),
            Kind::V2(cgroup) => cgroup.is_frozen(),
        }
    }

    /// The processes in this cgroup and all below it, as the caller's pid namespace numbers them.
    pub fn processes(&self) -> Result<Vec<i32>> {
        files::processes_below(match &self.kind {
            Kind::V1(cgroup) => cgroup.main_directory(),
            Kind::V2(cgroup) => cgroup.path(),
        })
    }

    /// How many processes the kernel killed here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.oom_kills(),
            Kind::V2(cgroup) => cgroup.oom_kills(),
        }
    }

    /// A descriptor that becomes readable when the kernel may have run out of memory here;
    /// [`Cgroup::was_out_of_memory`] tells whether it has.
    pub fn oom_watch(&self) -> Result<std::os::fd::OwnedFd> {
        match &self.kind {
            Kind::V1(cgroup) => cgroup.oom_watch(),
            Kind::V2(cgroup) => cgroup.oom_watch(),
        }
    }

    pub fn was_out_of_memory(&self) -> bool {
        match &self.kind {
            // Told of nothing else.
            Kind::V1(_) => true,
            // Also told when memory gets short and is reclaimed.
            Kind::V2(cgroup) => cgroup.oom_kills() > 0,
        }
    }

    /// Kills every process in the cgroup and below.
    pub fn kill_all(&self) -> Result<()> {
        if let Kind::V2(cgroup) = &self.kind
            && cgroup.kill().is_ok()
        {
            return Ok(());
        }
        // Frozen, none of them can have further children before it is killed. One in
        // uninterruptible sleep keeps the cgroup from getting there, but the others are stopped,
        // and that one has no children meanwhile either.
        const LIMIT: Duration = Duration::from_millis(200);
        let begin = Instant::now();
        while matches!(self.begin_freeze(true), Ok(false)) && begin.elapsed() < LIMIT {
            std::thread::sleep(POLL);
        }
        let processes = self.processes();
        for pid in processes.iter().flatten() {
            let _ = whelk_sys::signal::kill(*pid, rustix::process::Signal::KILL.as_raw());
        }
        // Without a freezer nothing was stopped.
        let _ = self.begin_freeze(false);
        processes.map(drop)
    }

    /// Removes the cgroup and those below it. A missing one is fine; one that a dying process still
    /// holds is asked for again for two seconds.
    pub fn remove(&self) -> Result<()> {
        const LIMIT: Duration = Duration::from_secs(2);
        let directories = match &self.kind {
            Kind::V1(cgroup) => cgroup.directories(),
            Kind::V2(cgroup) => vec![cgroup.path()],
        };
        let begin = Instant::now();
        let mut result = Ok(());
        for directory in directories {
            loop {
                match files::remove_below(directory) {
                    Err(error)
                        if error.source.raw_os_error()
                            == Some(rustix::io::Errno::BUSY.raw_os_error())
                            && begin.elapsed() < LIMIT =>
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

    pub fn exists(&self) -> bool {
        match &self.kind {
            Kind::V1(cgroup) => fs::exists(cgroup.main_directory()),
            Kind::V2(cgroup) => fs::exists(cgroup.path()),
        }
    }

    /// Path by controller (v1) or under the empty name (v2), as `state` and the cgroup mount need
    /// them.
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
    fn hybrid_counts_as_v1() {
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
    fn a_lone_v2_tree_is_v2() {
        assert_eq!(
            parse_layout("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").unwrap(),
            Layout::V2("/sys/fs/cgroup".into())
        );
        assert!(parse_layout("").is_err());
    }

    #[test]
    fn paths_cannot_climb() {
        let layout = Layout::V2("/sys/fs/cgroup".into());
        for path in ["", "/", "/..", "/a/../../b", "../x"] {
            assert!(Cgroup::in_layout(&layout, path).is_err(), "{path:?}");
        }
    }
}
