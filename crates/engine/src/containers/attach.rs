//! Connecting a client to a container's streams.

use std::os::fd::OwnedFd;
use std::sync::PoisonError;

use tokio::net::UnixStream;
use whelk_shim::protocol::{Attach, Request};

use super::Containers;
use super::stop::expect_done;
use crate::error::{Error, Result};
use crate::model::Status;
use crate::shims::{ask, has_left};

#[derive(Clone, Debug, Default)]
pub struct AttachRequest {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub detach_keys: Vec<u8>,
}

/// A connection to a container's streams: output comes framed (raw with a terminal), input goes as
/// it is.
#[derive(Debug)]
pub struct Attached {
    pub stream: UnixStream,
    pub tty: bool,
}

/// As many clients as can be handed to a shim together with everything else.
const MOST_WAITING: usize = 40;

impl Containers {
    /// Attaches to a container that runs, or that will be started: then the connection waits for
    /// that.
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
            raw: None,
        };
        // A start that is under way has taken its clients with it already: it is waited for. None
        // begins meanwhile.
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
                let (reply, stream) =
                    ask(&self.instance, &container.id, &Request::Attach(attach)).await?;
                expect_done(reply, "attach")?;
                stream
            }
            Status::Created | Status::Exited | Status::Restarting => {
                let fail = |error: std::io::Error| {
                    Error::internal(format!("attach: {}", whelk_sys::errno_text(&error)))
                };
                let (ours, theirs) = UnixStream::pair().map_err(fail)?;
                let theirs = OwnedFd::from(theirs.into_std().map_err(fail)?);
                let mut waiting = container
                    .waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                waiting.retain(|(_, stream)| !has_left(stream));
                if waiting.len() >= MOST_WAITING {
                    return Err(Error::conflict(format!(
                        "container {}: {MOST_WAITING} clients wait for it already",
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
