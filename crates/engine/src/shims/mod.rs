//! Starts shims, and sends them requests.
//!
//! A launch goes to a shim of the [`pool`] that has no container yet, on its standard input. Later
//! requests go to the socket that the shim listens on in its container's run directory, each on a
//! [`connection`] of its own.

mod channel;
mod connection;
#[cfg(test)]
pub(crate) mod fake;
mod messages;
mod pool;
mod probe;
mod process;
mod request;

use std::fmt;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub(crate) use channel::{ExecChannel, Told};
pub(crate) use connection::{any_runs, connect, listener};
pub use messages::read_event;
pub(crate) use pool::time_to_refill;
pub use pool::{LaunchError, Running, WarmPool};
pub use probe::{ShimStatus, probe};
pub use process::ShimProcess;
pub use request::{ANSWER_TIMEOUT, request, request_while_alive};
pub(crate) use request::{PING_TIMEOUT, check_alive, expect_done, request_within};

/// Returns whether the peer of a connected socket has closed it.
pub(crate) fn is_disconnected(socket: impl AsFd) -> bool {
    is_ready(socket, PollFlags::empty())
}

/// Returns whether one of `events`, an error or a hangup is reported for a descriptor now.
pub(crate) fn is_ready(descriptor: impl AsFd, events: PollFlags) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(&descriptor, events)], Some(&now)).is_ok_and(|count| count > 0)
}

/// What a shim runs, and where the shim is found. Displayed as in `container 3f1c…`.
#[derive(Clone, Debug)]
pub struct ShimAddress {
    pub kind: WorkloadKind,
    pub id: String,
    /// The directory of its socket and exit record.
    pub directory: PathBuf,
}

/// The kind of workload that a shim runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadKind {
    Container,
    /// A workload that has no record.
    Recordless,
}

impl fmt::Display for ShimAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            WorkloadKind::Container => "container",
            WorkloadKind::Recordless => "workload",
        };
        write!(formatter, "{kind} {}", self.id)
    }
}
