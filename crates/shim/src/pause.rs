//! Pausing and resuming the container's processes.
//!
//! The kernel completes a freeze when every process has reached a point where it can stop. One in
//! uninterruptible sleep (a dead disk or file server) may never get there; the shim serves its
//! other clients meanwhile.

use std::time::{Duration, Instant};

use whelk_runtime::{Error, Result};

use crate::container::Shim;
use crate::protocol::Reply;

/// A pause that has been asked for.
pub(crate) struct Freezing {
    /// Who asked.
    pub client: u64,
    /// When the kernel is asked again whether it is done.
    pub again: Instant,
    begin: Instant,
}

/// How long a freeze may take. The engine waits a little longer for the answer.
const LIMIT: Duration = Duration::from_secs(8);

impl Shim {
    pub(crate) fn pause(&mut self, client: u64) {
        if self.freezing.is_some() {
            return self.reply(
                client,
                &Reply::Failed(Error::State("the container is being paused".into())),
            );
        }
        let now = Instant::now();
        self.freezing = Some(Freezing {
            client,
            again: now,
            begin: now,
        });
        self.continue_pause();
    }

    /// Goes on with a pause that is under way, and answers when it is done or given up.
    pub(crate) fn continue_pause(&mut self) {
        let now = Instant::now();
        let Some(freezing) = self
            .freezing
            .as_mut()
            .filter(|freezing| freezing.again <= now)
        else {
            return;
        };
        let elapsed = now - freezing.begin;
        let outcome = match self.cgroup.begin_freeze(true) {
            Ok(false) if elapsed < LIMIT => {
                // Usually it takes a millisecond or two.
                const SOONEST: Duration = Duration::from_millis(1);
                const LATEST: Duration = Duration::from_millis(100);
                freezing.again = now + (elapsed / 4).clamp(SOONEST, LATEST);
                return;
            }
            Ok(false) => Err(Error::Os(format!(
                "a process did not stop within {} s",
                LIMIT.as_secs()
            ))),
            Ok(true) => Ok(Reply::Done),
            Err(error) => Err(error),
        };
        let client = freezing.client;
        self.freezing = None;
        self.paused = outcome.is_ok();
        if outcome.is_err() {
            let _ = self.cgroup.begin_freeze(false);
        }
        self.reply(client, &outcome.unwrap_or_else(Reply::Failed));
    }

    pub(crate) fn resume(&mut self) -> Result<Reply> {
        if let Some(freezing) = self.freezing.take() {
            self.reply(
                freezing.client,
                &Reply::Failed(Error::State("the container was resumed".into())),
            );
        }
        self.cgroup.freeze(false)?;
        self.paused = false;
        Ok(Reply::Done)
    }
}
