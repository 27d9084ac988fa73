//! The `exec` command.

use std::path::Path;

use whelk_runtime::spec::{Process, Spec};
use whelk_runtime::{Error, Result, exec, seccomp};
use whelk_sys::fs;

use super::process::{check_preserved, remove_unknown_capabilities, send_terminal, wait_for};
use crate::state::{StateFile, Status, directory};
use crate::{ExecOptions, Log};

/// Runs a further process in a container. Returns its exit code; 0 if it is detached.
pub(super) fn exec(root: &Path, args: ExecOptions, log: &Log) -> Result<u8> {
    let state = StateFile::load(root, &args.id)?;
    let directory = directory(root, &args.id)?;
    let status = state.status(&directory)?;
    let is_allowed = matches!(status, Status::Running | Status::Created)
        || status == Status::Paused && args.ignore_paused;
    if !is_allowed {
        return Err(Error::State(format!(
            "cannot exec in a container that is {}",
            status.as_str()
        )));
    }
    let spec = state.spec(&directory)?;
    let mut wanted = wanted_process(&spec, &args)?;
    remove_unknown_capabilities(&mut wanted, log);
    check_preserved(args.preserve_fds)?;
    let filter = spec
        .linux
        .seccomp
        .as_ref()
        .map(seccomp::compile)
        .transpose()?;
    let request = exec::ExecRequest {
        init: &state.open_process()?,
        container: &args.id,
        linux: &spec.linux,
        process: &wanted,
        user: None,
        filter: filter.as_ref(),
        streams: None,
        preserved: args.preserve_fds,
    };
    let executed = exec::exec(&request, Some(&state.cgroup()?))?;
    let pid = executed.pid.as_raw_nonzero().get();
    if let (Some(terminal), Some(socket)) = (&executed.terminal, &args.console_socket) {
        send_terminal(terminal, socket)?;
    }
    if let Some(file) = &args.pid_file {
        fs::replace(file, pid.to_string(), 0o644)?;
    }
    if args.detach { Ok(0) } else { wait_for(pid) }
}

/// Returns the process to run: that of a file, or the container's with the changes of the flags.
fn wanted_process(spec: &Spec, args: &ExecOptions) -> Result<Process> {
    let mut wanted = match &args.process {
        Some(file) => serde_json::from_slice(&fs::read(file)?)
            .map_err(|error| Error::invalid(format!("{}: {error}", file.display())))?,
        None => {
            let mut wanted = spec.process.clone().unwrap_or_default();
            wanted.args.clone_from(&args.command);
            wanted.terminal = args.tty;
            wanted.env.extend(args.env.iter().cloned());
            if let Some(cwd) = &args.cwd {
                wanted.cwd.clone_from(cwd);
            }
            if let Some(user) = &args.user {
                let invalid =
                    || Error::invalid(format!("invalid user {user:?}: UID[:GID] is needed"));
                let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
                (wanted.user.uid, wanted.user.gid) = (
                    uid.parse().map_err(|_| invalid())?,
                    gid.parse().map_err(|_| invalid())?,
                );
            }
            wanted
        }
    };
    wanted.terminal |= args.tty;
    if !args.cap.is_empty() {
        let sets = wanted.capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.extend(
                args.cap
                    .iter()
                    .filter(|cap| !set.contains(cap))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
        }
    }
    if wanted.args.is_empty() {
        return Err(Error::invalid("no command to execute"));
    }
    if wanted.terminal && args.console_socket.is_none() {
        return Err(Error::invalid("a terminal needs --console-socket"));
    }
    Ok(wanted)
}
