//! OCI hooks: programs to run at certain points of a container's lifecycle.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::spec::Hook;

/// Runs hooks one after another, each with the container's state on standard input.
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
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Error::Os(whelk_sys::errno_text(&error)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its input: EPIPE is not an error.
        let _ = stdin.write_all(state.to_string().as_bytes());
    }
    let deadline = hook
        .timeout
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        if let Some(status) = child
            .try_wait()
            .map_err(|error| Error::Os(whelk_sys::errno_text(&error)))?
        {
            return if status.success() {
                Ok(())
            } else {
                Err(Error::Os(status.to_string()))
            };
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::Os("timed out".into()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
