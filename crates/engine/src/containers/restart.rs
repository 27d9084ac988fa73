//! Restarting a container on a user's request. (Restart policies are in [`super::monitor`].)

use std::sync::Arc;
use std::sync::atomic::Ordering;
use whelk_text::signal;

use super::{Container, Containers, to_its_end};
use crate::error::{Error, Result};
use crate::model::Status;

impl Containers {
    /// Stops a container if it runs, and starts it.
    ///
    /// # Errors
    /// Returns an error if the stop or the start fails.
    pub async fn restart(
        self: &Arc<Self>,
        name: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<()> {
        let container = self.find(name)?;
        let signal = signal
            .filter(|signal| !signal.is_empty())
            .map(signal::parse)
            .transpose()
            .map_err(|error| {
                Error::internal(format!("Cannot restart container {name}: {error}"))
            })?;
        let (containers, name) = (self.clone(), name.to_owned());
        to_its_end(async move {
            containers
                .restart_now(&container, &name, signal, timeout)
                .await
        })
        .await
    }

    async fn restart_now(
        self: &Arc<Self>,
        container: &Arc<Container>,
        name: &str,
        signal: Option<i32>,
        timeout: Option<i64>,
    ) -> Result<()> {
        let operation = container.lock_operation(name).await?;
        container.record().state.stopped_by_user = true;
        // Its exit must not remove a --rm container.
        container.restarts.fetch_add(1, Ordering::Relaxed);
        let end = container.watch_exit();
        let stopping = if container.status().is_running() {
            Some(self.begin_stop(container, end, signal, timeout).await)
        } else {
            None
        };
        drop(operation);
        let stopped = match stopping {
            Some(Ok(stopping)) => self.finish_stop(container, stopping).await,
            Some(Err(error)) => Err(error),
            None => Ok(()),
        };
        container.restarts.fetch_sub(1, Ordering::Relaxed);
        stopped?;
        let _operation = container.lock_operation(name).await?;
        if container.status() == Status::Restarting {
            container.record().state.status = Status::Exited;
        }
        match self.start_for_user(container).await {
            // Another client has started it already.
            Ok(()) | Err(Error::NotModified(_)) => {}
            Err(error) => return Err(error),
        }
        self.publish(container, "restart", &[]);
        Ok(())
    }
}
