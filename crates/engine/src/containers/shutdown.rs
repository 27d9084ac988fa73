//! Stopping all containers before the host shuts down.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Container, Containers, to_its_end};
use crate::error::Result;

impl Containers {
    /// Stops all containers at the same time, each with its own signal and timeout. From now on, until this engine
    /// ends, restart policies start nothing; the next engine starts what they want, as if the containers had ended
    /// by themselves. Returns the names of the containers with how their stop went.
    ///
    /// A timeout without a limit is waited for: the caller has a limit of its own.
    ///
    /// # Errors
    /// Returns an error if the operation panics.
    pub async fn stop_for_shutdown(self: &Arc<Self>) -> Result<Vec<(String, Result<()>)>> {
        let containers = self.clone();
        to_its_end(async move { Ok(containers.stop_for_shutdown_now().await) }).await
    }

    async fn stop_for_shutdown_now(self: &Arc<Self>) -> Vec<(String, Result<()>)> {
        self.is_shutting_down.store(true, Ordering::Relaxed);
        let mut stopped = Vec::new();
        // Twice, because of starts that were under way.
        for _ in 0..2 {
            let stops = self.all().into_iter().map(|container| async move {
                let name = container.name();
                let outcome = self.stop_one_for_shutdown(&container).await;
                (name, outcome)
            });
            let outcomes = futures_util::future::join_all(stops).await;
            let ended = outcomes
                .into_iter()
                .filter_map(|(name, outcome)| match outcome {
                    Ok(true) => Some((name, Ok(()))),
                    Ok(false) => None,
                    Err(error) => Some((name, Err(error))),
                });
            stopped.extend(ended);
        }
        stopped
    }

    /// Returns whether the container ran.
    async fn stop_one_for_shutdown(self: &Arc<Self>, container: &Arc<Container>) -> Result<bool> {
        let operation = container.lock_operation(&container.id).await?;
        if !container.status().is_running() {
            return Ok(false);
        }
        let end = container.watch_exit();
        let stopping = self.begin_stop(container, end, None, None).await?;
        drop(operation);
        self.finish_stop(container, stopping).await?;
        Ok(true)
    }

    pub(super) fn is_shutting_down(&self) -> bool {
        self.is_shutting_down.load(Ordering::Relaxed)
    }
}
