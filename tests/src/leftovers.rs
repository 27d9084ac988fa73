//! Finds what an engine left on the host, by its instance name and directory, and starts a watcher
//! that removes it if the test program is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::Program;
use crate::happens;

/// How long resources that are being released may take to disappear.
const GRACE: Duration = Duration::from_secs(30);

/// Returns a new instance name and creates a directory for it. Both contain the PID of this
/// process.
pub(crate) fn new_instance() -> (String, PathBuf) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    watch();
    // The trailing letter keeps one name from being a prefix of another.
    let name = format!(
        "{}{:x}z",
        prefix(std::process::id()),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let dir = base().join(format!("whelk-{name}"));
    fs::create_dir_all(&dir).expect("make the instance's directory");
    (name, dir)
}

fn prefix(pid: u32) -> String {
    format!("t{pid:x}x")
}

fn base() -> PathBuf {
    std::env::var_os("WHELK_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// Starts, once per process, a program that waits until this process ends, and then removes its
/// leftovers. It is needed if this process is killed.
fn watch() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let program = Program::beside("whelk-sweep");
        // In a session of its own, so that Ctrl-C does not reach it. Its standard input ends with
        // this process.
        let mut command = Command::new("setsid");
        command
            .arg(&program)
            .arg(std::process::id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", program.display()));
        std::mem::forget(child);
    });
}

/// Removes everything that instances of a terminated process left: their directories, and what
/// [`clean`] finds.
pub fn sweep(pid: u32) -> Vec<String> {
    let prefix = format!("whelk-{}", prefix(pid));
    let mut problems = Vec::new();
    for entry in fs::read_dir(base()).into_iter().flatten().flatten() {
        let directory = entry.file_name().to_string_lossy().into_owned();
        if let (true, Some(name)) = (
            directory.starts_with(&prefix),
            directory.strip_prefix("whelk-"),
        ) {
            problems.extend(clean(name, &entry.path(), Duration::ZERO));
            if std::env::var_os("WHELK_TEST_KEEP").is_none() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
    problems
}

/// Finds, reports and removes processes, mounts, loop devices and cgroups of an instance whose
/// engine has ended, and uninstalls its bridges and firewall rules.
pub(crate) fn end(name: &str, dir: &Path) -> Vec<String> {
    clean(name, dir, GRACE)
}

fn clean(name: &str, dir: &Path, grace: Duration) -> Vec<String> {
    let mut problems = Vec::new();
    if !happens(grace, || processes(name, dir).is_empty()) {
        problems.extend(
            processes(name, dir)
                .into_iter()
                .map(|(pid, command)| format!("process {pid}: {command}")),
        );
        let gone = happens(GRACE, || {
            for (pid, _) in processes(name, dir) {
                let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
            }
            processes(name, dir).is_empty()
        });
        if !gone {
            problems.push("some processes were not killed".into());
        }
    }
    for mount in mounts(dir).into_iter().rev() {
        problems.push(format!("mount {}", mount.display()));
        let _ = unmount(&mount, UnmountFlags::DETACH);
    }
    // The kernel detaches one when its last user has closed it, which may be a moment after an unmount.
    happens(grace, || loop_devices(dir).is_empty());
    for device in loop_devices(dir) {
        problems.push(format!("loop device {}", device.display()));
        let _ = Command::new("losetup").arg("-d").arg(&device).status();
    }
    problems.extend(uninstall(name, dir).err());
    for group in cgroups(name) {
        problems.push(format!("cgroup {}", group.display()));
        if fs::remove_dir(&group).is_err() && group.exists() {
            problems.push(format!("cgroup {} was not removed", group.display()));
        }
    }
    for lock in locks(name) {
        problems.push(format!("lock {}", lock.display()));
        let _ = fs::remove_file(&lock);
    }
    problems
}

/// Runs `whelk daemon --uninstall` if the instance has ever been started: removes its bridges,
/// rules, cgroups and lock.
fn uninstall(name: &str, dir: &Path) -> Result<(), String> {
    if locks(name).is_empty() {
        return Ok(());
    }
    let output = uninstall_command(name, dir)
        .output()
        .map_err(|error| format!("uninstall: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "uninstall: {}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

pub(crate) fn uninstall_command(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(Program::Whelk.path());
    command
        .arg("daemon")
        .arg("--root")
        .arg(dir.join("root"))
        .arg("--run")
        .arg(dir.join("run"))
        .args(["--instance", name, "--uninstall"]);
    command
}

/// Returns processes whose command line or cgroup contains the instance's name or directory.
fn processes(name: &str, dir: &Path) -> Vec<(i32, String)> {
    let dir = dir.display().to_string();
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let mut found = Vec::new();
    let Ok(listing) = fs::read_dir("/proc") else {
        return found;
    };
    for entry in listing.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|text| text.parse::<i32>().ok())
        else {
            continue;
        };
        if pid == own {
            continue;
        }
        let read = |file: &str| {
            String::from_utf8_lossy(&fs::read(entry.path().join(file)).unwrap_or_default())
                .replace('\0', " ")
        };
        let (command, groups, stat) = (read("cmdline"), read("cgroup"), read("stat"));
        // pid (comm) state …: zombies hold no resources.
        let dead = stat
            .rsplit(") ")
            .next()
            .is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']));
        if !dead && (command.contains(&dir) || command.contains(name) || groups.contains(name)) {
            let command = if command.is_empty() { stat } else { command };
            found.push((
                pid,
                format!(
                    "{} [{}]",
                    command.trim(),
                    groups.lines().next().unwrap_or_default()
                ),
            ));
        }
    }
    found
}

/// Returns mount points in this mount namespace that are in the directory or come from it.
fn mounts(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter(|line| line.contains(&dir))
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

/// Returns loop devices whose backing files are in the directory.
fn loop_devices(dir: &Path) -> Vec<PathBuf> {
    let named = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default()
    };
    let all = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    all.filter(|entry| Path::new(&named(entry)).starts_with(dir))
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .collect()
}

/// Returns the cgroups in all hierarchies whose names contain the instance's, deepest first.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        if let (Some(point), true) = (left.split(' ').nth(4), right.starts_with("cgroup")) {
            for entry in fs::read_dir(point).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().contains(name) {
                    below(&entry.path(), &mut found);
                }
            }
        }
    }
    found
}

fn below(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(listing) = fs::read_dir(directory) else {
        return;
    };
    for entry in listing.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&entry.path(), found);
        }
    }
    found.push(directory.to_owned());
}

/// Returns the lock files of the instance and of those whose names start with its name.
fn locks(name: &str) -> Vec<PathBuf> {
    let prefix = format!("whelk-instance-{name}");
    let all = fs::read_dir("/run").into_iter().flatten().flatten();
    all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}
