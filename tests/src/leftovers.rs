//! What an engine may leave behind on the host, found by its instance's name and its directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::happens;

/// How long what is going already may take to be gone.
const GRACE: Duration = Duration::from_secs(5);

/// Looks for mounts, processes and cgroups of an instance that has ended; names them, and removes them.
pub(crate) fn clean(name: &str, dir: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    if !happens(GRACE, || processes(name, dir).is_empty()) {
        problems.extend(processes(name, dir).into_iter().map(|(pid, command)| format!("process {pid}: {command}")));
        let gone = happens(GRACE, || {
            for (pid, _) in processes(name, dir) {
                let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
            }
            processes(name, dir).is_empty()
        });
        if !gone {
            problems.push("some of them cannot be killed".into());
        }
    }
    for mount in mounts(dir).into_iter().rev() {
        problems.push(format!("mount {}", mount.display()));
        let _ = unmount(&mount, UnmountFlags::DETACH);
    }
    for group in cgroups(name) {
        let own = group.ends_with(name) || group.ends_with(format!("{name}/shims"));
        // The instance's own two hold no process any more. That they outlive it costs nothing, like a service's slice.
        if !own {
            problems.push(format!("cgroup {}", group.display()));
        }
        if fs::remove_dir(&group).is_err() && group.exists() {
            problems.push(format!("cgroup {} cannot be removed", group.display()));
        }
    }
    problems
}

/// Processes whose command line or cgroup names the instance or its directory.
fn processes(name: &str, dir: &Path) -> Vec<(i32, String)> {
    let dir = dir.display().to_string();
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let mut found = Vec::new();
    let Ok(listing) = fs::read_dir("/proc") else { return found };
    for entry in listing.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|text| text.parse::<i32>().ok()) else { continue };
        if pid == own {
            continue;
        }
        let read = |file: &str| String::from_utf8_lossy(&fs::read(entry.path().join(file)).unwrap_or_default()).replace('\0', " ");
        let (command, groups, stat) = (read("cmdline"), read("cgroup"), read("stat"));
        // pid (comm) state …: one that is dead and waits to be collected holds nothing.
        let dead = stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']));
        if !dead && (command.contains(&dir) || command.contains(name) || groups.contains(name)) {
            let command = if command.is_empty() { stat } else { command };
            found.push((pid, format!("{} [{}]", command.trim(), groups.lines().next().unwrap_or_default())));
        }
    }
    found
}

/// Mount points in this mount namespace that lie in the directory or come from it.
fn mounts(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter(|line| line.contains(&dir)).filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// The instance's cgroups in every hierarchy, the deepest first.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        if let (Some(point), true) = (left.split(' ').nth(4), right.starts_with("cgroup")) {
            below(&Path::new(point).join(name), &mut found);
        }
    }
    found
}

fn below(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(listing) = fs::read_dir(directory) else { return };
    for entry in listing.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&entry.path(), found);
        }
    }
    found.push(directory.to_owned());
}
