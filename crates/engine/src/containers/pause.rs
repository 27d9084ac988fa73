//! Pausing and unpausing a container.

use std::sync::Arc;

use whelk_runtime::cgroup::Cgroup;
use whelk_shim::protocol::Request;

use super::{Container, Containers, to_its_end};
use crate::error::{Error, Result};
use crate::model::Status;
use crate::shims;
use crate::workload::blocking;

impl Containers {
    /// Pauses a container by its freezer cgroup.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if it does not run, or is paused already.
    pub async fn pause(self: &Arc<Self>, name: &str) -> Result<()> {
        let (containers, name) = (self.clone(), name.to_owned());
        to_its_end(async move { containers.pause_now(&name, false).await }).await
    }

    /// Pauses a container for an operation of the engine's own, which ends the pause by
    /// [`Containers::end_pause`]. If the engine ends before, the next one does that.
    ///
    /// # Errors
    /// As [`Containers::pause`].
    pub(super) async fn pause_meanwhile(&self, container: &Container) -> Result<()> {
        self.pause_now(&container.id, true).await
    }

    /// Ends a pause that [`Containers::pause_meanwhile`] began, unless a user has ended it.
    pub(super) async fn end_pause(&self, container: &Arc<Container>) {
        let _operation = container.operation.lock().await;
        let is_paused = {
            let record = container.record();
            record.state.status == Status::Paused && record.state.paused_by_engine
        };
        if is_paused && let Err(error) = self.resume_locked(container).await {
            tracing::warn!(container = container.id, "end a pause: {error}");
        }
    }

    async fn pause_now(&self, name: &str, by_engine: bool) -> Result<()> {
        let container = self.find(name)?;
        let _operation = container.lock_operation(name).await?;
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
        container.record().state.paused_by_engine = by_engine;
        if by_engine {
            self.save(&container)?;
        }
        let paused = self.request_shim(&container, &Request::Pause).await;
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
        self.update_health(&container);
        self.save_or_log(&container);
        self.publish(&container, "pause", &[]);
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
                let path = container.workload.cgroup().to_owned();
                blocking(move || Ok(Cgroup::at(&path)?.begin_freeze(false)?)).await?;
                self.note_resumed(container);
                Ok(())
            }
            resumed => resumed,
        }
    }

    fn note_resumed(&self, container: &Arc<Container>) {
        {
            let mut record = container.record();
            if record.state.status == Status::Paused {
                record.state.status = Status::Running;
                record.state.paused_by_engine = false;
            }
        }
        self.update_health(container);
        self.save_or_log(container);
        self.publish(container, "unpause", &[]);
    }
}
