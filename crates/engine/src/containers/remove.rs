//! Removing a container. What cannot be removed at once goes to the trash; the container itself is
//! gone either way.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use whelk_sys::fs;

use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::model::Status;

#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveRequest {
    /// Kill it first if it runs.
    pub force: bool,
    /// Its anonymous volumes too.
    pub volumes: bool,
}

impl Containers {
    /// # Errors
    /// [`Error::Conflict`] if it runs and is not to be killed.
    pub async fn remove(self: &Arc<Self>, name: &str, request: RemoveRequest) -> Result<()> {
        let container = self.find(name)?;
        if container.status() == Status::Removing {
            return Err(Error::conflict(format!(
                "removal of container {} is already in progress",
                container.id
            )));
        }
        // Without waiting for whatever else is being done to it.
        if request.force {
            self.kill_for_removal(&container).await?
        } else {
            check_ended(&container)?
        }
        let _operation = container.turn(name).await?;
        // It may have been started since.
        if request.force {
            self.kill_for_removal(&container).await?
        } else {
            check_ended(&container)?
        }
        container.shim_gone().await;
        self.remove_now(&container, request.volumes)
    }

    async fn kill_for_removal(self: &Arc<Self>, container: &Container) -> Result<()> {
        container.record().state.stopped_by_user = true;
        if !container.status().is_running() {
            return Ok(());
        }
        // Not to be removed by its own end as well.
        container.record().host.auto_remove = false;
        match self.kill(&container.id, "KILL").await {
            Ok(()) | Err(Error::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes the record and the files of a container that does not run.
    ///
    /// # Errors
    /// The store's; the container is dead then.
    pub(super) fn remove_now(
        self: &Arc<Self>,
        container: &Arc<Container>,
        volumes: bool,
    ) -> Result<()> {
        {
            let mut record = container.record();
            if record.state.status == Status::Removing {
                return Ok(());
            }
            record.state.status = Status::Removing;
        }
        let (id, lasting) = (&container.id, !container.record().host.auto_remove);
        // The files go first, to where they can be taken back from: as long as there is a record,
        // the container is not removed yet, and files that have no record are never found in their
        // place.
        let trashed = self
            .images
            .store()
            .trash_as(&self.instance.container_dir(id), id);
        if lasting && let Ok(Some(trashed)) = &trashed {
            // On disk no later than the record's deletion: a directory that came back would have no
            // record.
            self.store.keep(
                [self.instance.container_dir(id).as_path(), trashed]
                    .iter()
                    .filter_map(|path| path.parent())
                    .map(Path::to_owned),
            );
        }
        let removed = match &trashed {
            Ok(trashed) => self
                .store
                .delete_container(id, lasting)
                .or_else(|error| self.make_room_and_delete(id, trashed.as_deref(), lasting, &error))
                .inspect_err(|_| self.take_back(id, trashed.as_deref())),
            Err(error) => Err(Error::internal(error.to_string())),
        };
        if let Err(error) = removed {
            tracing::error!(container = id, "remove: {error}");
            container.record().state.status = Status::Dead;
            return Err(error);
        }
        self.forget(container);
        let mounts = std::mem::take(&mut container.record().mounts);
        self.release_volumes(&container.id, &mounts, volumes);
        self.execs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, exec| exec.container != container.id);
        container
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.publish(container, "destroy", &[]);
        container
            .progress
            .send_modify(|progress| progress.removed = true);
        if let Ok(Some(path)) = trashed {
            // Deleted when nobody waits for it.
            drop(tokio::spawn(empty_trash(path, container.clone())));
        }
        Ok(())
    }

    /// The same where there is nobody to report a failure to; it is in the log.
    pub(super) fn remove_or_complain(self: &Arc<Self>, container: &Arc<Container>, volumes: bool) {
        let _ = self.remove_now(container, volumes);
    }

    /// Where the store cannot forget a container, its disk may be full, and this container be what
    /// fills it.
    fn make_room_and_delete(
        &self,
        id: &str,
        trashed: Option<&Path>,
        lasting: bool,
        error: &Error,
    ) -> Result<()> {
        tracing::warn!(container = id, "remove: {error}; its files go first");
        tokio::task::block_in_place(|| {
            trashed.map_or(Ok(()), fs::remove_tree)?;
            self.store.delete_container(id, lasting)
        })
    }

    /// Puts the files of a container that is not removed after all back in their place.
    fn take_back(&self, id: &str, trashed: Option<&Path>) {
        let Some(trashed) = trashed.filter(|path| fs::exists(path)) else {
            return;
        };
        if let Err(error) = fs::rename(trashed, self.instance.container_dir(id)) {
            tracing::error!(container = id, "remove: {error}");
        }
    }

    /// Removes all containers that do not run and match `matches`; returns their ids and the bytes
    /// they took.
    pub async fn prune(
        self: &Arc<Self>,
        matches: impl Fn(&crate::model::Record) -> bool,
    ) -> Result<(Vec<String>, u64)> {
        let mut removed = Vec::new();
        let mut reclaimed = 0;
        for container in self.all() {
            let candidate = {
                let record = container.record();
                matches!(
                    record.state.status,
                    Status::Created | Status::Exited | Status::Dead
                ) && matches(&record)
            };
            if !candidate {
                continue;
            }
            let size = self.writable_size(&container.id).await;
            if self
                .remove(&container.id, RemoveRequest::default())
                .await
                .is_ok()
            {
                reclaimed += size;
                removed.push(container.id.clone());
            }
        }
        Ok((removed, reclaimed))
    }
}

/// Deletes the files of a removed container, once those who read its log have it whole; but nobody
/// keeps them for long.
async fn empty_trash(path: PathBuf, container: Arc<Container>) {
    const PATIENCE: Duration = Duration::from_secs(30);
    let mut readers = container.readers.subscribe();
    let _ = tokio::time::timeout(PATIENCE, readers.wait_for(|readers| *readers == 0)).await;
    let emptied = tokio::task::spawn_blocking(move || fs::remove_tree(&path)).await;
    if let Ok(Err(error)) = emptied {
        tracing::warn!("empty the trash: {error}");
    }
}

/// # Errors
/// It runs, or will by itself.
fn check_ended(container: &Container) -> Result<()> {
    let what = match container.status() {
        Status::Paused => {
            return Err(Error::conflict(format!(
                "cannot remove container {:?}: container is paused and must be unpaused first",
                container.name()
            )));
        }
        Status::Running => "running",
        Status::Restarting => "restarting",
        _ => return Ok(()),
    };
    Err(Error::conflict(format!(
        "cannot remove container {:?}: container is {what}: stop the container before removing or force remove",
        container.name()
    )))
}
