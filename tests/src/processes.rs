//! Processes of the host, by `/proc`.

use std::fs;

use crate::Engine;

/// Returns a field of `/proc/PID/status`, such as `PPid`; `None` if the process does not exist.
pub fn status_field(pid: i32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Returns the process that executes exactly this.
pub fn with_command(command: &[&str]) -> Option<i32> {
    let wanted = command.join("\0") + "\0";
    let mut processes = fs::read_dir("/proc").ok()?.flatten();
    let found = processes.find(|process| {
        let command = fs::read(process.path().join("cmdline"));
        command.is_ok_and(|command| command == wanted.as_bytes())
    });
    found?.file_name().to_str()?.parse().ok()
}

/// Returns whether a process exists and is not a zombie.
pub fn is_alive(pid: i32) -> bool {
    status_field(pid, "State").is_some_and(|state| !state.starts_with('Z'))
}

/// Returns the PID of a container's shim, which is the parent of its first process.
#[track_caller]
pub fn shim_of(engine: &Engine, container: &str) -> i32 {
    let parent = status_field(engine.pid(container), "PPid");
    let parent = parent.expect("the container's first process");
    parent.parse().expect("a number")
}

/// Returns a process's resident memory in KiB; 0 if it does not exist.
pub fn resident_memory(pid: i32) -> u64 {
    status_field(pid, "VmRSS").map_or(0, |text| kibibytes(&text))
}

/// Returns the peak of the resident memory of an engine's process in MiB.
#[track_caller]
pub fn peak_memory(engine: &Engine) -> u64 {
    let peak = status_field(engine.daemon_pid(), "VmHWM");
    kibibytes(&peak.expect("the engine's process")) >> 10
}

fn kibibytes(text: &str) -> u64 {
    text.trim_end_matches(" kB").parse().expect("a number")
}
