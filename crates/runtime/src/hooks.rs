//! OCI hooks: programs to run at certain points of a container's lifecycle.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Error, Result, os};
use crate::spec::Hook;

/// How much of a failed hook's error output is shown, in bytes.
const MAX_OUTPUT: usize = 1 << 10;

/// How long a killed hook is waited for.
const AFTER_KILL: Duration = Duration::from_secs(1);

/// Runs hooks one after another, each with the container's state on standard input. A hook is killed when
/// the process that runs it ends.
///
/// # Errors
/// Returns an error for the first hook that cannot be run, fails, or exceeds its timeout.
pub fn run(hooks: &[Hook], state: &serde_json::Value) -> Result<()> {
    run_with(hooks, state, &[])
}

/// Like [`run`], with an environment for hooks that do not set their own.
pub fn run_with(hooks: &[Hook], state: &serde_json::Value, environment: &[String]) -> Result<()> {
    let during = |hook: &Hook, error: Error| error.during(&format!("hook {}", hook.path.display()));
    hooks
        .iter()
        .try_for_each(|hook| run_one(hook, state, environment).map_err(|error| during(hook, error)))
}

fn run_one(hook: &Hook, state: &serde_json::Value, environment: &[String]) -> Result<()> {
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    let environment = if hook.env.is_empty() {
        environment
    } else {
        &hook.env
    };
    command
        .env_clear()
        .envs(environment.iter().filter_map(|entry| entry.split_once('=')));
    let (errors, theirs) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(os("create a pipe"))?;
    rustix::io::ioctl_fionbio(&errors, true).map_err(os("set up a pipe"))?;
    whelk_sys::process::end_with_thread(&mut command);
    let child = command
        .stdin(input(state)?)
        .stdout(Stdio::null())
        .stderr(theirs)
        // So that its children can be killed too.
        .process_group(0)
        .spawn()
        .map_err(|error| Error::Os(whelk_sys::errno_text(&error)))?;
    // It has the other end of the pipe.
    drop(command);
    let mut output = Vec::new();
    let status = wait(child, hook.timeout, &mut File::from(errors), &mut output)?;
    if status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output);
    let text = match output.trim() {
        "" => status.to_string(),
        output => format!("{status}: {output}"),
    };
    Err(Error::Os(text))
}

/// Returns a file with the state. With a pipe, a hook that does not read could block the writer.
fn input(state: &serde_json::Value) -> Result<File> {
    let memory = rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)
        .map_err(os("create the state's file"))?;
    let mut file = File::from(memory);
    file.write_all(state.to_string().as_bytes())
        .and_then(|()| file.rewind())
        .map_err(os("write the state"))?;
    Ok(file)
}

/// Waits for a hook, and reads what it writes. `limit` is in seconds.
fn wait(
    mut child: Child,
    limit: Option<u64>,
    errors: &mut File,
    output: &mut Vec<u8>,
) -> Result<ExitStatus> {
    let deadline = limit.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        let ended = child.try_wait().map_err(os("wait"))?;
        read_available(errors, output);
        if let Some(status) = ended {
            return Ok(status);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            give_up(&mut child);
            return Err(Error::Os("timed out".into()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits a moment for a killed hook. One that hangs in the kernel cannot end.
fn give_up(child: &mut Child) {
    let deadline = Instant::now() + AFTER_KILL;
    while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reads what a non-blocking pipe has; keeps the beginning only. One that is always full does not
/// keep it from returning.
fn read_available(pipe: &mut File, output: &mut Vec<u8>) {
    const MAX_READS: usize = 16;
    let mut buffer = [0; 4096];
    for _ in 0..MAX_READS {
        let Ok(count @ 1..) = pipe.read(&mut buffer) else {
            return;
        };
        let kept = count.min(MAX_OUTPUT.saturating_sub(output.len()));
        output.extend_from_slice(&buffer[..kept]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Option<u64>) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(str::to_owned).into(),
            env: vec!["A=1".into()],
            timeout,
        }
    }

    fn failure(script: &str, timeout: Option<u64>) -> String {
        let state = serde_json::json!({"id": "x".repeat(1 << 20)});
        run(&[sh(script, timeout)], &state).unwrap_err().to_string()
    }

    #[test]
    fn failures_say_what_the_hook_has_written() {
        assert_eq!(
            failure("echo no $A >&2; echo unseen; exit 3", None),
            "hook /bin/sh: exit status: 3: no 1"
        );
        assert_eq!(
            failure("test $(wc -c) -gt 1000000 || exit 4; exit 5", None),
            "hook /bin/sh: exit status: 5"
        );
        let long = failure("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1", None);
        assert!(long.len() < 2 * MAX_OUTPUT, "{}", long.len());
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed_with_its_children() {
        let begun = Instant::now();
        let text = failure("sleep 60 & sleep 60; :", Some(1));
        assert_eq!(text, "hook /bin/sh: timed out");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_hook_that_writes_without_end_is_killed_too() {
        let begun = Instant::now();
        let writer = "yes >&2 & ";
        let text = failure(&format!("{}wait", writer.repeat(8)), Some(1));
        assert_eq!(text, "hook /bin/sh: timed out");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
