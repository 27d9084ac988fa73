//! The process that `create` and `exec` start: its capabilities, descriptors, terminal and exit code.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use whelk_runtime::spec::Process;
use whelk_runtime::{Error, Result, caps};
use whelk_sys::fs;

use crate::Log;

/// Removes unknown capabilities and logs a warning: by the OCI specification they are not an error.
pub(super) fn remove_unknown_capabilities(process: &mut Process, log: &Log) {
    let Some(sets) = &mut process.capabilities else {
        return;
    };
    let mut unknown = BTreeSet::new();
    for set in [
        &mut sets.bounding,
        &mut sets.effective,
        &mut sets.permitted,
        &mut sets.inheritable,
        &mut sets.ambient,
    ] {
        unknown.extend(set.extract_if(.., |name| caps::number(name).is_none()));
    }
    if !unknown.is_empty() {
        let names: Vec<String> = unknown.into_iter().collect();
        log.write(
            "warning",
            &format!(
                "ignoring unknown or unavailable capabilities: [{}]",
                names.join(" ")
            ),
        );
    }
}

/// Checks the descriptors of `--preserve-fds`.
///
/// # Errors
/// Returns an error if a descriptor to preserve is not open.
pub(super) fn check_preserved(count: u32) -> Result<()> {
    match (3..3u32.saturating_add(count))
        .find(|number| !fs::exists(format!("/proc/self/fd/{number}")))
    {
        Some(number) => Err(Error::invalid(format!(
            "--preserve-fds {count}: descriptor {number} is not open"
        ))),
        None => Ok(()),
    }
}

/// Sends the master end of a terminal to the listener at the socket `path`.
pub(super) fn send_terminal(terminal: &OwnedFd, path: &Path) -> Result<()> {
    let step = |error: rustix::io::Errno| {
        Error::Os(format!("send the terminal to {}: {error}", path.display()))
    };
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(step)?;
    connect(&socket, &SocketAddrUnix::new(path).map_err(step)?).map_err(step)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [terminal.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        &socket,
        &[IoSlice::new(b"/dev/ptmx")],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .map_err(step)
}

/// Waits for a child and returns its exit code, or 128 plus the number of the signal that
/// terminated it.
pub(super) fn wait_for(pid: i32) -> Result<u8> {
    let pid = Pid::from_raw(pid).ok_or_else(|| Error::Os("no process to wait for".into()))?;
    let status: Option<(Pid, WaitStatus)> = waitpid(Some(pid), WaitOptions::empty())
        .map_err(|error| Error::Os(format!("wait for process {pid}: {error}")))?;
    let code = status.and_then(|(_, status)| {
        status
            .exit_status()
            .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
    });
    Ok(code
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX))
}
