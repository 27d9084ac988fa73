//! What OCI hooks of a container need of the shim: the bundle with the configuration, and the calls
//! after the start and the end.

use std::time::{Duration, Instant};

use rustix::process::Pid;
use whelk_runtime::cgroup::{Cgroup, remove_hybrid};
use whelk_runtime::spec::{Hooks, Root};
use whelk_runtime::{Result, Rootfs, hooks, state_json};
use whelk_sys::fs;

use crate::container::pid_number;
use crate::external::External;
use crate::protocol::ContainerLaunch;

/// How long all `poststop` hooks of a container may take. The shim serves nobody meanwhile, and the
/// engine kills a shim that does not report the end of killed processes for 10 s.
const AFTER_STOP: Duration = Duration::from_secs(5);

/// Writes the configuration where hooks look for it: `config.json` in the run directory, which they
/// know as the bundle. The path of the root is the one that it has in the container's mount namespace
/// while hooks run there.
pub(crate) fn write(launch: &ContainerLaunch) -> Result<()> {
    if launch.spec.hooks == Hooks::default() {
        return Ok(());
    }
    let mut spec = launch.spec.clone();
    let path = match &launch.rootfs {
        Rootfs::Directory(path) => path.clone(),
        Rootfs::Overlay(_) => launch.scratch.clone(),
    };
    let readonly = spec.root.is_some_and(|root| root.readonly);
    spec.root = Some(Root { path, readonly });
    // A descriptor of the shim's means nothing to others, who have the process's id.
    for namespace in &mut spec.linux.namespaces {
        namespace
            .path
            .take_if(|path| path.starts_with("/proc/self/fd"));
    }
    let content = serde_json::to_vec(&spec)
        .map_err(|error| whelk_runtime::Error::Os(format!("write config.json: {error}")))?;
    // It has the environment, which may contain passwords.
    fs::write_with_mode(launch.run_dir.join("config.json"), content, 0o600)?;
    Ok(())
}

/// Runs the `poststart` hooks.
///
/// # Errors
/// Returns an error if one fails: the container must be stopped (OCI runtime specification).
pub(crate) fn after_start(launch: &ContainerLaunch, pid: Pid) -> Result<()> {
    let hooks = &launch.spec.hooks.poststart;
    if hooks.is_empty() {
        return Ok(());
    }
    let state = state_json(
        &launch.id,
        "running",
        pid_number(pid),
        &launch.run_dir,
        &launch.spec.annotations,
    );
    hooks::run(hooks, &state)
}

/// Runs the `poststop` hooks. One that fails is logged (OCI runtime specification).
///
/// Another runtime runs them when it deletes the container.
pub(crate) fn after_stop(launch: &ContainerLaunch, cgroup: &Cgroup) {
    if let Some(external) = External::of(launch) {
        if let Err(error) = external.delete() {
            crate::log_error(&format!("delete container {}: {error}", launch.id));
        }
        // Such as processes of the runtime's own.
        if cgroup.exists() {
            let _ = cgroup.kill_all();
        }
        let _ = remove_hybrid(&launch.spec.linux.cgroups_path);
        return;
    }
    let deadline = Instant::now() + AFTER_STOP;
    let (run_dir, annotations) = (&launch.run_dir, &launch.spec.annotations);
    for hook in &launch.spec.hooks.poststop {
        let mut hook = hook.clone();
        let left = deadline.saturating_duration_since(Instant::now()).as_secs();
        hook.timeout = Some(hook.timeout.unwrap_or(left).min(left));
        let state = state_json(&launch.id, "stopped", 0, run_dir, annotations);
        if let Err(error) = hooks::run(&[hook], &state) {
            crate::log_error(&format!("container {}: poststop {error}", launch.id));
        }
    }
}
