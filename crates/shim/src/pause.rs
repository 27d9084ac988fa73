//! Pausing and resuming the container's processes.
//!
//! The kernel completes a freeze when every process has reached a point where it can stop. A
//! process in uninterruptible sleep (a dead disk or file server) may never do so. The shim serves
//! its other clients meanwhile, also during a thaw.

use std::time::{Duration, Instant};

use whelk_runtime::Error;

use crate::container::Shim;
use crate::protocol::Reply;

/// A pause or its end that the kernel has not completed yet.
pub(crate) struct Freezing {
    /// Whether the container is being frozen; else it is being thawed.
    frozen: bool,
    /// The client that waits for the reply.
    pub client: u64,
    /// When to check next whether the kernel has completed it.
    pub next_check: Instant,
    started: Instant,
}

/// Time limit for a freeze or thaw. The engine waits a little longer for the reply.
const LIMIT: Duration = Duration::from_secs(8);

impl Shim {
    /// Starts to freeze the container; the client gets its reply when that is done or has failed.
    pub(crate) fn pause(&mut self, client: u64) {
        if self.freezing.is_some() {
            return self.reply(
                client,
                &Reply::Failed(Error::State(
                    "the container is being paused or resumed".into(),
                )),
            );
        }
        self.begin(client, true);
    }

    /// Starts to thaw the container; the client gets its reply when that is done or has failed. A
    /// pause in progress fails.
    pub(crate) fn resume(&mut self, client: u64) {
        if let Some(freezing) = self.freezing.take() {
            self.reply(
                freezing.client,
                &Reply::Failed(Error::State("the container was resumed".into())),
            );
        }
        self.begin(client, false);
    }

    fn begin(&mut self, client: u64, frozen: bool) {
        let now = Instant::now();
        self.freezing = Some(Freezing {
            frozen,
            client,
            next_check: now,
            started: now,
        });
        self.poll_pause();
    }

    /// Checks a freeze or thaw that is in progress, and replies when it is done or has timed out.
    pub(crate) fn poll_pause(&mut self) {
        let now = Instant::now();
        let Some(freezing) = self
            .freezing
            .as_mut()
            .filter(|freezing| freezing.next_check <= now)
        else {
            return;
        };
        let (frozen, elapsed) = (freezing.frozen, now - freezing.started);
        let outcome = match self.cgroup.begin_freeze(frozen) {
            Ok(false) if elapsed < LIMIT => {
                // It usually takes one or two milliseconds.
                const MIN_INTERVAL: Duration = Duration::from_millis(1);
                const MAX_INTERVAL: Duration = Duration::from_millis(100);
                freezing.next_check = now + (elapsed / 4).clamp(MIN_INTERVAL, MAX_INTERVAL);
                return;
            }
            Ok(false) => {
                let (step, change) = if frozen {
                    ("freeze", "stop")
                } else {
                    ("thaw", "continue")
                };
                Err(Error::Os(format!(
                    "{step} cgroup: a process did not {change} within {} s",
                    LIMIT.as_secs()
                )))
            }
            Ok(true) => Ok(Reply::Done),
            Err(error) => Err(error),
        };
        let client = freezing.client;
        self.freezing = None;
        if outcome.is_ok() {
            self.paused = frozen;
        } else if frozen {
            self.paused = false;
            let _ = self.cgroup.begin_freeze(false);
        }
        self.reply(client, &outcome.unwrap_or_else(Reply::Failed));
    }
}
