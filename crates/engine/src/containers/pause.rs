//! Pausing and unpausing a container.
//!
//! Operations of the engine's own that need a container to be paused share one pause of it, which ends with
//! the last of them. A user's `pause` meanwhile makes it the user's; `unpause` ends it.

use std::collections::BTreeSet;
use std::sync::Arc;

use whelk_runtime::cgroup::Cgroup;
use whelk_shim::protocol::Request;
use whelk_sys::sync::IgnorePoison as _;

use super::{Container, Containers, to_its_end};
use crate::error::{Error, Result};
use crate::model::Status;
use crate::shims;
use crate::workload::blocking;

/// The operations of the engine's own that need a container to be paused.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    last: u64,
    current: BTreeSet<u64>,
}

impl Pauses {
    /// Adds an operation, and returns its number.
    fn begin(&mut self) -> u64 {
        self.last += 1;
        self.current.insert(self.last);
        self.last
    }

    /// Removes an operation. Returns whether it was the last one of the container's pause.
    fn end(&mut self, number: u64) -> bool {
        self.current.remove(&number) && self.current.is_empty()
    }
}

/// A pause for an operation of the engine's own, which ends it by [`Containers::end_pause`].
#[derive(Debug)]
#[must_use]
pub(super) struct OwnPause {
    container: Arc<Container>,
    number: u64,
}

impl Container {
    /// Forgets the engine's own pauses, when the container is not paused any more or its pause is the
    /// user's. Returns whether it was recorded as paused by the engine.
    pub(super) fn forget_own_pauses(&self) -> bool {
        self.pauses.lock().ignore_poison().current.clear();
        std::mem::take(&mut self.record().state.paused_by_engine)
    }

    fn is_paused_by_engine(&self) -> bool {
        let record = self.record();
        record.state.status == Status::Paused && record.state.paused_by_engine
    }
}

impl Containers {
    /// Pauses a container by its freezer cgroup. If it is paused for an operation of the engine's own, it
    /// remains paused after that.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if it does not run, or is paused already.
    pub async fn pause(self: &Arc<Self>, name: &str) -> Result<()> {
        let (containers, name) = (self.clone(), name.to_owned());
        to_its_end(async move { containers.pause_now(&name).await }).await
    }

    async fn pause_now(&self, name: &str) -> Result<()> {
        let container = self.find(name)?;
        let _operation = container.lock_operation(name).await?;
        let is_paused = container.is_paused_by_engine();
        // Before the pause, so that a later engine does not end it.
        if container.forget_own_pauses() {
            self.save(&container)?;
        }
        if is_paused {
            return Ok(());
        }
        self.pause_locked(&container).await
    }

    /// Pauses a container for an operation of the engine's own. If the engine ends before it has ended the
    /// pause, the next one does that.
    ///
    /// # Errors
    /// Returns an error if it does not run, is paused by a user, or cannot be paused: it is not paused then.
    pub(super) async fn pause_meanwhile(&self, container: &Arc<Container>) -> Result<OwnPause> {
        let _operation = container.lock_operation(&container.id).await?;
        let own = OwnPause {
            container: container.clone(),
            number: container.pauses.lock().ignore_poison().begin(),
        };
        if container.is_paused_by_engine() {
            return Ok(own);
        }
        let outcome = match container.status() {
            Status::Running => {
                container.record().state.paused_by_engine = true;
                match self.save(container) {
                    Ok(()) => self.pause_locked(container).await,
                    Err(error) => Err(error),
                }
            }
            _ => self.pause_locked(container).await,
        };
        match outcome {
            Ok(()) => Ok(own),
            Err(error) => {
                if container.forget_own_pauses() {
                    self.withdraw_pause(container, &error).await;
                }
                Err(error)
            }
        }
    }

    /// Reverses a pause that has failed, and that a slow shim may still carry out.
    async fn withdraw_pause(&self, container: &Arc<Container>, error: &Error) {
        if matches!(error, Error::ShimSilent(_)) {
            // The shim handles requests in their order.
            let resumed = self.request_shim(container, &Request::Resume).await;
            if let Err(Error::ShimSilent(_)) = resumed
                && let Err(error) = self.thaw(container).await
            {
                tracing::warn!(container = container.id, "thaw: {error}");
            }
        }
        self.save_or_log(container);
    }

    /// Ends a pause that [`Containers::pause_meanwhile`] began, if no other operation needs it, and unless
    /// a user has ended it or made it theirs.
    pub(super) async fn end_pause(&self, own: OwnPause) {
        let container = &own.container;
        let _operation = container.operation.lock().await;
        if container.pauses.lock().ignore_poison().end(own.number) {
            self.end_own_pause(container).await;
        }
    }

    /// Ends a pause that an earlier engine began for an operation of its own.
    pub(super) async fn end_left_pause(&self, container: &Arc<Container>) {
        let _operation = container.operation.lock().await;
        self.end_own_pause(container).await;
    }

    async fn end_own_pause(&self, container: &Arc<Container>) {
        if container.is_paused_by_engine()
            && let Err(error) = self.resume_for_signal(container).await
        {
            tracing::warn!(container = container.id, "end a pause: {error}");
        }
    }

    /// Pauses a container that runs. The caller holds its operation lock.
    async fn pause_locked(&self, container: &Arc<Container>) -> Result<()> {
        match container.status() {
            Status::Paused => {
                return Err(Error::conflict(format!(
                    "Container {} is already paused",
                    container.id
                )));
            }
            Status::Restarting => {
                return Err(Error::conflict(format!(
                    "container {} is restarting, wait until the container is running",
                    container.id
                )));
            }
            Status::Running => {}
            _ => {
                return Err(Error::conflict(format!(
                    "container {} is not running",
                    container.id
                )));
            }
        }
        let paused = self.request_shim(container, &Request::Pause).await;
        let what = format!("cannot pause container {}", container.id);
        paused.and_then(|reply| shims::expect_done(reply, &what))?;
        {
            let mut record = container.record();
            if record.state.status != Status::Running {
                // It has ended meanwhile.
                return Err(Error::conflict(format!(
                    "container {} is not running",
                    container.id
                )));
            }
            record.state.status = Status::Paused;
        }
        self.update_health(container);
        self.save_or_log(container);
        self.publish(container, "pause", &[]);
        Ok(())
    }

    /// Resumes a paused container.
    ///
    /// # Errors
    /// Returns an error if it is not paused.
    pub async fn unpause(self: &Arc<Self>, name: &str) -> Result<()> {
        let (containers, name) = (self.clone(), name.to_owned());
        to_its_end(async move { containers.unpause_now(&name).await }).await
    }

    async fn unpause_now(&self, name: &str) -> Result<()> {
        let container = self.find(name)?;
        let _operation = container.lock_operation(name).await?;
        if container.status() != Status::Paused {
            return Err(Error::internal(format!(
                "Container {} is not paused",
                container.id
            )));
        }
        self.resume_locked(&container).await
    }

    /// Resumes a paused container. The caller holds its operation lock, or is killing it.
    pub(super) async fn resume_locked(&self, container: &Arc<Container>) -> Result<()> {
        shims::expect_done(
            self.request_shim(container, &Request::Resume).await?,
            &format!("cannot unpause container {}", container.id),
        )?;
        self.note_resumed(container);
        Ok(())
    }

    /// Like [`Containers::resume_locked`], so that the container can handle a signal: if its shim
    /// does not answer, the engine thaws the cgroup itself.
    pub(super) async fn resume_for_signal(&self, container: &Arc<Container>) -> Result<()> {
        match self.resume_locked(container).await {
            Err(Error::ShimSilent(text)) => {
                tracing::warn!("resume: {text}; the engine thaws the container itself");
                self.thaw(container).await?;
                self.note_resumed(container);
                Ok(())
            }
            resumed => resumed,
        }
    }

    /// Thaws a container whose shim does not answer.
    async fn thaw(&self, container: &Container) -> Result<()> {
        let path = container.workload.cgroup().to_owned();
        blocking(move || Ok(Cgroup::at(&path)?.begin_freeze(false)?)).await?;
        Ok(())
    }

    fn note_resumed(&self, container: &Arc<Container>) {
        container.forget_own_pauses();
        {
            let mut record = container.record();
            if record.state.status == Status::Paused {
                record.state.status = Status::Running;
            }
        }
        self.update_health(container);
        self.save_or_log(container);
        self.publish(container, "unpause", &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_operation_ends_the_pause() {
        let mut pauses = Pauses::default();
        let (first, second) = (pauses.begin(), pauses.begin());
        assert!(!pauses.end(first));
        assert!(!pauses.end(first));
        let third = pauses.begin();
        assert!(!pauses.end(second));
        assert!(pauses.end(third));
        // A user has resumed the container, and another operation has paused it since.
        let before = pauses.begin();
        pauses.current.clear();
        let since = pauses.begin();
        assert!(!pauses.end(before));
        assert!(pauses.end(since));
    }
}
