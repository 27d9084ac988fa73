//! Attaching a client to a container's standard streams.

use std::os::fd::OwnedFd;
use whelk_sys::sync::IgnorePoison as _;

use tokio::net::UnixStream;
use whelk_shim::protocol::{Attach, Request};

use super::Containers;
use crate::error::{Error, Result};
use crate::model::Status;
use crate::shims::{self, is_disconnected};

#[derive(Clone, Debug, Default)]
pub struct AttachRequest {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub detach_keys: Vec<u8>,
    /// Whether the output comes without frames; `None` means if the container has a terminal.
    pub raw: Option<bool>,
}

/// A connection to a container's streams. Output is multiplexed in Docker's stream format, unless it
/// is raw; input is raw.
#[derive(Debug)]
pub struct Attached {
    pub stream: UnixStream,
    pub tty: bool,
}

/// Maximum number of clients that wait for a start. Their descriptors go to the shim in one message
/// with the others (SCM_MAX_FD is 253).
const MAX_WAITING: usize = 40;

impl Containers {
    /// Attaches to a running container, or to a stopped one: then the streams are connected at its
    /// next start.
    ///
    /// # Errors
    /// Returns an error if the container is paused or being removed, or if too many clients wait.
    pub async fn attach(&self, name: &str, request: AttachRequest) -> Result<Attached> {
        let container = self.find(name)?;
        let (open_stdin, tty) = {
            let record = container.record();
            (record.config.open_stdin, record.config.tty)
        };
        let attach = Attach {
            stdin: request.stdin && open_stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            detach_keys: request.detach_keys,
            raw: request.raw,
        };
        // A start under way has already taken the waiting clients, so wait for it. The lock also
        // keeps another start from beginning before this client is registered.
        let operation = if container.status().is_running() {
            None
        } else {
            Some(container.operation.lock().await)
        };
        let stream = match container.status() {
            Status::Paused => {
                return Err(Error::conflict(format!(
                    "container {} is paused, unpause the container before attach",
                    name
                )));
            }
            Status::Removing | Status::Dead => {
                return Err(Error::conflict(format!(
                    "container {} is being removed",
                    container.id
                )));
            }
            Status::Running => {
                drop(operation);
                let request = Request::Attach(attach);
                let (reply, stream) = container.workload.request(&request).await?;
                shims::expect_done(reply, "attach")?;
                stream
            }
            Status::Created | Status::Exited | Status::Restarting => {
                let fail = |error: std::io::Error| {
                    Error::internal(format!("attach: {}", whelk_sys::errno_text(&error)))
                };
                let (ours, theirs) = UnixStream::pair().map_err(fail)?;
                let theirs = OwnedFd::from(theirs.into_std().map_err(fail)?);
                let mut waiting = container.waiting_clients.lock().ignore_poison();
                waiting.retain(|(_, stream)| !is_disconnected(stream));
                if waiting.len() >= MAX_WAITING {
                    return Err(Error::conflict(format!(
                        "container {}: {MAX_WAITING} clients are already waiting for its start",
                        container.id
                    )));
                }
                waiting.push((attach, theirs));
                ours
            }
        };
        self.publish(&container, "attach", &[]);
        Ok(Attached { stream, tty })
    }
}
