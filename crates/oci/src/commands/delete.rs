//! The `delete` command.

use std::path::Path;
use std::time::Duration;

use whelk_runtime::cgroup::Cgroup;
use whelk_runtime::spec::Spec;
use whelk_runtime::{Error, Result, hooks, state_json};
use whelk_sys::{fs, signal};

use super::create::cgroup_path;
use crate::state::{StateFile, Status, directory};
use crate::{Delete, Log};

/// Deletes a stopped container, or with `force` any container.
pub(super) fn delete(root: &Path, args: &Delete, log: &Log) -> Result<()> {
    let state = match StateFile::load(root, &args.id) {
        Err(Error::State(_)) if args.force => {
            return remove_incomplete(&args.id, &directory(root, &args.id)?);
        }
        state => state?,
    };
    let directory = directory(root, &args.id)?;
    let status = state.status(&directory)?;
    if matches!(status, Status::Running | Status::Paused) && !args.force {
        return Err(Error::State(format!(
            "cannot delete container {} that is not stopped: {}",
            args.id,
            status.as_str()
        )));
    }
    let cgroup = state.cgroup()?;
    if status != Status::Stopped {
        let _ = cgroup.freeze(false);
        cgroup.kill_all()?;
        if let Ok(process) = state.open_process() {
            let _ = signal::pidfd_send(process, 9);
        }
        // Poll, because the process may be the child of another process, which reaps it.
        const ATTEMPTS: u32 = 2_000;
        for _ in 0..ATTEMPTS {
            if state.status(&directory)? == Status::Stopped {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let spec = state.spec(&directory)?;
    cgroup.remove()?;
    fs::remove_tree(&directory)?;
    // poststop hooks run after the container is deleted, and their failure does not keep it (OCI
    // runtime specification).
    let state = state_json(&state.id, "stopped", 0, &state.bundle, &spec.annotations);
    for hook in &spec.hooks.poststop {
        if let Err(error) = hooks::run(std::slice::from_ref(hook), &state) {
            log.write("warning", &format!("poststop {error}"));
        }
    }
    Ok(())
}

/// Removes the cgroup and the directory of a container whose `create` was killed before it wrote the
/// state.
fn remove_incomplete(id: &str, directory: &Path) -> Result<()> {
    if let Ok(config) = fs::read(directory.join("config.json"))
        && let Ok(spec) = serde_json::from_slice::<Spec>(&config)
    {
        let cgroup = Cgroup::at(&cgroup_path(id, &spec))?;
        cgroup.kill_all()?;
        cgroup.remove()?;
    }
    Ok(fs::remove_tree(directory)?)
}
