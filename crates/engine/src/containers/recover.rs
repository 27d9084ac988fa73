//! Recovery of containers at the engine's start. Every step is idempotent, because recovery may be
//! interrupted.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use whelk_shim::protocol::Event;
use whelk_sys::fs;

use super::{Container, Containers, monitor};
use crate::error::Result;
use crate::model::{RestartPolicy, Status};
use crate::quota;
use crate::shims::ShimStatus;

/// How long recovery waits for a shim's answer. A slower shim is followed up by its monitor.
const PATIENCE: Duration = Duration::from_secs(2);

impl Containers {
    /// Reads all records, connects to all shims, makes records and reality consistent, and starts
    /// containers that restart policies want.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub async fn recover(self: &Arc<Self>) -> Result<()> {
        let records = self.store.containers()?;
        self.store.update_copies(&records)?;
        for record in records {
            if let Err(error) = self.restore_files(&record) {
                tracing::error!(container = record.id, "restore its files: {error}");
            }
            self.add(Container::new(record, &self.instance));
        }
        match self.remove_unknown() {
            Ok(()) => self.store.note_boot()?,
            // Tried again at the next start. The boot is not noted, so that the audit of that start
            // does not take the directories for containers that the store has lost.
            Err(error) => tracing::warn!("remove directories without a record: {error}"),
        }
        let staging = &self.images.store().staging;
        // The removal of a container may have been interrupted before it came to that.
        for path in staging
            .strays()
            .into_iter()
            .flatten()
            .map(|stray| stray.path)
        {
            quota::remove_limit(&path.join("upper"));
        }
        if let Err(error) = staging.empty_trash() {
            tracing::warn!("empty the trash: {error}");
        }
        // Concurrently, so that an unresponsive shim does not delay the others.
        let probes = self.all().into_iter().map(|container| async move {
            let found = container.workload.probe(PATIENCE).await;
            (container, found)
        });
        for (container, found) in futures_util::future::join_all(probes).await {
            self.recover_one(&container, found).await;
        }
        self.networks.finish_recovery();
        self.volumes.unmount_unused_volumes();
        // Started last, when the resources of all running containers are known.
        for container in self.all() {
            let wanted = {
                let record = container.record();
                let starts_with_engine = match record.host.restart_policy {
                    RestartPolicy::Always => true,
                    RestartPolicy::UnlessStopped => !record.state.stopped_by_user,
                    RestartPolicy::No | RestartPolicy::OnFailure { .. } => false,
                };
                record.state.status == Status::Restarting
                    || (record.state.status == Status::Exited && starts_with_engine)
            };
            if wanted {
                container.record().state.status = Status::Restarting;
                let (containers, container) = (self.clone(), container.clone());
                tokio::spawn(async move {
                    containers.await_links(&container).await;
                    monitor::restart(Arc::downgrade(&containers), container, Duration::ZERO).await;
                });
            }
        }
        Ok(())
    }

    /// Recovers a container. Even a stopped one is probed: the engine may have ended between a
    /// start and the update of the record.
    async fn recover_one(self: &Arc<Self>, container: &Arc<Container>, found: ShimStatus) {
        match found {
            ShimStatus::Running {
                state: Event::State { pid, paused, execs },
                events,
            } => {
                let ends_pause = {
                    let mut record = container.record();
                    record.state.pid = pid;
                    if !record.state.status.is_running() {
                        // The engine ended before it recorded the start. The time of the shim's
                        // socket is the best known.
                        record.state.started_at = container.workload.shim_started_at();
                    }
                    record.state.status = if paused {
                        Status::Paused
                    } else {
                        Status::Running
                    };
                    record.state.paused_by_engine &= paused;
                    record.state.paused_by_engine
                };
                for (id, pid) in execs {
                    self.adopt_exec(container, &id, pid);
                }
                self.adopt(container, Some(events));
                if ends_pause {
                    let id = &container.id;
                    tracing::info!(container = id, "resume: an engine ended during its pause");
                    self.end_left_pause(container).await;
                }
            }
            ShimStatus::Gone => self.recover_ended(container).await,
            // Even if the record says stopped: its start may be under way. It keeps its resources
            // until its state is known.
            ShimStatus::Running { .. } | ShimStatus::Unresponsive => {
                tracing::error!(container = container.id, "the shim does not answer");
                self.adopt(container, None);
            }
        }
    }

    /// Registers a running container's endpoints, ports and volumes, and follows its shim.
    fn adopt(self: &Arc<Self>, container: &Arc<Container>, events: Option<UnixStream>) {
        let pid = container.record().state.pid;
        let (config, mut sandbox) = container.sandbox();
        self.sandboxes.adopt(&config, pid, &mut sandbox);
        container.keep_sandbox(sandbox);
        self.adopt_volumes(container, true);
        let monitor = container.workload.adopt(pid, events);
        container
            .progress
            .send_modify(|progress| progress.running = true);
        self.update_health(container);
        self.save_or_log(container);
        monitor::spawn(self, container, monitor);
    }

    async fn recover_ended(self: &Arc<Self>, container: &Arc<Container>) {
        let was_running = container.status().is_running();
        let has_ended = was_running || container.workload.exit_record().is_some();
        // Created by a start before it mounts anything.
        let was_starting = fs::exists(container.workload.directory());
        if !has_ended && was_starting {
            // If the shim has ended during the start, the container may have been created.
            container.workload.kill_left().await;
        }
        self.adopt_volumes(container, has_ended || was_starting);
        // Includes what an interrupted start had acquired.
        if !self.release_endpoints(container).is_empty() {
            self.save_or_log(container);
        }
        if !has_ended && was_starting {
            drop(self.release_resources(container).await);
        }
        if has_ended {
            let exit = self.reap(container).await;
            self.handle_exit(container, &exit).await;
        } else if matches!(container.status(), Status::Removing | Status::Dead) {
            container.record().state.status = Status::Exited;
            self.remove_or_log(container, false);
        } else if container.record().host.auto_remove {
            // A `--rm` container that never started, or whose end was recorded but not its removal.
            self.remove_or_log(container, true);
        }
        container.workload.delete_directory();
    }
}
