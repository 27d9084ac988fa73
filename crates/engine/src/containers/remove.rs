//! Removing a container. Its files are moved to the trash and deleted in the background.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use whelk_sys::sync::IgnorePoison as _;

use whelk_image::Staging;
use whelk_sys::fs;

use super::{Container, Containers, to_its_end};
use crate::error::{Error, Result};
use crate::model::Status;
use crate::quota;

/// The options of a removal.
#[derive(Clone, Copy, Debug, Default)]
pub struct RemoveRequest {
    /// Kill the container first if it runs.
    pub force: bool,
    /// Remove its anonymous volumes too.
    pub volumes: bool,
}

impl Containers {
    /// Removes a container.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if it runs and `force` is not set.
    pub async fn remove(self: &Arc<Self>, name: &str, request: RemoveRequest) -> Result<()> {
        let (containers, name) = (self.clone(), name.to_owned());
        to_its_end(async move { containers.remove_and_kill(&name, request).await }).await
    }

    async fn remove_and_kill(self: &Arc<Self>, name: &str, request: RemoveRequest) -> Result<()> {
        let container = self.find(name)?;
        if container.status() == Status::Removing {
            return Err(Error::conflict(format!(
                "removal of container {} is already in progress",
                container.id
            )));
        }
        // Before waiting for the operation lock: a stop that holds it would delay the kill or the
        // error.
        if request.force {
            self.kill_for_removal(&container).await?
        } else {
            check_stopped(&container)?
        }
        let _operation = container.lock_operation(name).await?;
        // It may have been started meanwhile.
        if request.force {
            self.kill_for_removal(&container).await?
        } else {
            check_stopped(&container)?
        }
        container.workload.await_shim_exit().await?;
        let _views = container.views.close().await;
        self.remove_now(&container, request.volumes)
    }

    async fn kill_for_removal(self: &Arc<Self>, container: &Container) -> Result<()> {
        container.record().state.stopped_by_user = true;
        if !container.status().is_running() {
            return Ok(());
        }
        // Otherwise its exit would remove a `--rm` container concurrently.
        container.record().host.auto_remove = false;
        match self.kill_now(&container.id, "KILL").await {
            Ok(()) | Err(Error::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes a stopped container's record and files. Returns without doing anything if its
    /// removal is under way.
    ///
    /// # Errors
    /// Returns an error if the store fails; the container's status is `dead` then.
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
        // The files are moved to the trash before the record is deleted, so that a container's
        // directory always has a record. If the deletion fails they are moved back.
        let trashed = self
            .images
            .store()
            .staging
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
                .or_else(|error| {
                    if *container.layer_readers.borrow() > 0 {
                        return Err(error);
                    }
                    self.make_room_and_delete(id, trashed.as_deref(), lasting, &error)
                })
                .inspect_err(|_| self.restore_trashed(id, trashed.as_deref())),
            Err(error) => Err(Error::internal(error.to_string())),
        };
        if let Err(error) = removed {
            tracing::error!(container = id, "remove: {error}");
            container.record().state.status = Status::Dead;
            return Err(error);
        }
        self.remove_from_index(container);
        let mounts = std::mem::take(&mut container.record().mounts);
        if mounts.iter().any(|plan| plan.volume().is_some()) {
            // A plugin may take long to remove a volume.
            tokio::task::block_in_place(|| self.release_volumes(&container.id, &mounts, volumes));
        }
        self.execs
            .lock()
            .ignore_poison()
            .retain(|_, exec| exec.container != container.id);
        container.waiting_clients.lock().ignore_poison().clear();
        self.publish(container, "destroy", &[]);
        container
            .progress
            .send_modify(|progress| progress.removed = true);
        if let Ok(Some(path)) = trashed {
            if !container.record().host.storage_opt.is_empty() {
                quota::remove_limit(&path.join("upper"));
            }
            // In the background: nobody waits for the deletion.
            let staging = self.images.store().staging.clone();
            drop(tokio::spawn(empty_trash(staging, path, container.clone())));
        }
        Ok(())
    }

    /// Like [`Containers::remove_now`] where no client waits for the result; errors are logged.
    pub(super) fn remove_or_log(self: &Arc<Self>, container: &Arc<Container>, volumes: bool) {
        let _ = self.remove_now(container, volumes);
    }

    /// Deletes a container's files, and then its record again: the store may have failed because
    /// the disk is full, and these files may be what fills it.
    fn make_room_and_delete(
        &self,
        id: &str,
        trashed: Option<&Path>,
        lasting: bool,
        error: &Error,
    ) -> Result<()> {
        tracing::warn!(
            container = id,
            "delete the record: {error}; deleting the files first"
        );
        tokio::task::block_in_place(|| {
            if let Some(trashed) = trashed {
                quota::remove_limit(&trashed.join("upper"));
                fs::remove_tree(trashed)?;
            }
            self.store.delete_container(id, lasting)
        })
    }

    /// Moves the files of a container whose removal has failed back from the trash.
    fn restore_trashed(&self, id: &str, trashed: Option<&Path>) {
        let Some(trashed) = trashed.filter(|path| fs::exists(path)) else {
            return;
        };
        if let Err(error) = fs::rename(trashed, self.instance.container_dir(id)) {
            tracing::error!(container = id, "move files back from the trash: {error}");
        }
    }

    /// Removes all stopped containers for which `matches` returns true. Returns their ids and the
    /// number of bytes freed.
    pub async fn prune(
        self: &Arc<Self>,
        matches: impl Fn(&crate::model::ContainerRecord) -> bool,
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
        let attributes = [("reclaimed".to_owned(), reclaimed.to_string())].into();
        self.events
            .publish("container", "prune", String::new(), attributes);
        Ok((removed, reclaimed))
    }
}

/// Deletes the files of a removed container when all readers of its log have finished, or after 30
/// s, and all readers of its writable layer, whose result would lack what is deleted.
async fn empty_trash(staging: Staging, path: PathBuf, container: Arc<Container>) {
    const PATIENCE: Duration = Duration::from_secs(30);
    let mut readers = container.log_readers.subscribe();
    let _ = tokio::time::timeout(PATIENCE, readers.wait_for(|readers| *readers == 0)).await;
    let mut readers = container.layer_readers.subscribe();
    let ended = tokio::time::timeout(PATIENCE, readers.wait_for(|readers| *readers == 0));
    let is_late = ended.await.is_err();
    if is_late {
        tracing::warn!(
            container = container.id,
            "the files of the removed container stay until the exports, commits and copies that read them end"
        );
        let _ = readers.wait_for(|readers| *readers == 0).await;
    }
    staging.dispose([path]);
}

/// Checks that a container is stopped.
///
/// # Errors
/// Returns [`Error::Conflict`] if it runs, is paused, or waits for its restart policy.
fn check_stopped(container: &Container) -> Result<()> {
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
