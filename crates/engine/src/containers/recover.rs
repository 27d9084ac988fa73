//! Picking containers up again after the engine was away. Every step may run twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use whelk_shim::protocol::Event;
use whelk_sys::fs;

use super::{Container, Containers, monitor};
use crate::error::Result;
use crate::model::Status;
use crate::mounts;
use crate::shims::{Contact, contact};

/// Records before this version say in their settings only what they mount.
const WITH_MOUNTS: u32 = 3;

/// How long a shim may take to answer at the engine's start; who takes longer is picked up when it
/// answers.
const PATIENCE: Duration = Duration::from_secs(2);

impl Containers {
    /// Reads all records, connects to all shims, and settles what does not fit together.
    pub async fn recover(self: &Arc<Self>) -> Result<()> {
        let records = self.store.containers()?;
        self.store.check_copies(&records)?;
        for mut record in records {
            if let Err(error) = self.find_files(&record) {
                tracing::error!(container = record.id, "look for its files: {error}");
            }
            if record.version < WITH_MOUNTS {
                match mounts::plan(&record.host, &self.instance.root) {
                    Ok(plans) => record.mounts = plans,
                    Err(error) => {
                        tracing::error!(container = record.id, "its mounts cannot be read: {error}")
                    }
                }
            }
            self.add(Container::new(record));
        }
        match self.clear_unknown() {
            Ok(()) => self.store.note_boot()?,
            // Done at the next start, which must not take it for records that the store has lost.
            Err(error) => tracing::warn!("clear away what no container has: {error}"),
        }
        let store = self.images.store().clone();
        std::thread::spawn(move || {
            if let Err(error) = store.empty_trash() {
                tracing::warn!("empty the trash: {error}");
            }
        });
        // All at once: one that does not answer must not hold up the others.
        let contacts = self.all().into_iter().map(|container| async move {
            let found = contact(&self.instance, &container.id, PATIENCE).await;
            (container, found)
        });
        for (container, found) in futures_util::future::join_all(contacts).await {
            self.recover_one(&container, found).await;
        }
        self.networks.settle();
        self.volumes.settle();
        // Started last, when all that run are known.
        for container in self.all() {
            let wanted = {
                let record = container.record();
                let policy = record.host.restart_policy.name.as_str();
                record.state.status == Status::Restarting
                    || (record.state.status == Status::Exited
                        && (policy == "always"
                            || policy == "unless-stopped" && !record.state.stopped_by_user))
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

    /// Any container may have a shim: the engine could have ended between a start and its record.
    async fn recover_one(self: &Arc<Self>, container: &Arc<Container>, found: Contact) {
        match found {
            Contact::Running {
                state: Event::State { pid, paused, execs },
                events,
            } => {
                {
                    let mut record = container.record();
                    record.state.pid = pid;
                    if !record.state.status.is_running() {
                        // The engine ended between the start and its record; the shim's socket was
                        // made then.
                        record.state.started_at = self.shim_born(&container.id);
                    }
                    record.state.status = if paused {
                        Status::Paused
                    } else {
                        Status::Running
                    };
                }
                for (id, pid) in execs {
                    self.adopt_exec(&container.id, &id, pid);
                }
                self.adopt(container, Some(events));
            }
            Contact::Gone => self.recover_ended(container).await,
            // Also one that is not known to run: its start may be under way. What it has stays its
            // own until it is known.
            Contact::Running { .. } | Contact::Silent => {
                tracing::error!(container = container.id, "its shim does not answer");
                self.adopt(container, None);
            }
        }
    }

    /// Takes note of what a container has that runs.
    fn adopt(self: &Arc<Self>, container: &Arc<Container>, events: Option<UnixStream>) {
        let mut adopted = container.record().clone();
        self.networks.adopt(&mut adopted);
        {
            let mut record = container.record();
            record.networks = adopted.networks;
            record.ports = adopted.ports;
        }
        self.adopt_volumes(container, true);
        container.shim.send_replace(true);
        container
            .progress
            .send_modify(|progress| progress.running = true);
        self.save_or_complain(container);
        monitor::spawn(self, container, events);
    }

    async fn recover_ended(self: &Arc<Self>, container: &Arc<Container>) {
        let was_running = container.status().is_running();
        let has_ended = was_running || self.exit_record(&container.id).is_some();
        // Made on the way to a start, before anything is mounted.
        let was_starting = fs::exists(self.instance.run_dir(&container.id));
        self.adopt_volumes(container, has_ended || was_starting);
        // Also what a start that was cut short had taken.
        if !self.leave(container).is_empty() {
            self.save_or_complain(container);
        }
        if !has_ended && was_starting {
            drop(self.give_back(container).await);
        }
        if has_ended {
            let exit = self.after_lost_shim(container).await;
            self.ended(container, &exit).await;
        } else if matches!(container.status(), Status::Removing | Status::Dead) {
            container.record().state.status = Status::Exited;
            self.remove_or_complain(container, false);
        } else if container.record().host.auto_remove {
            // Who wanted it has gone with the engine.
            self.remove_or_complain(container, true);
        }
        let _ = fs::remove_tree(self.instance.run_dir(&container.id));
    }

    /// When a container's shim began to serve, in nanoseconds since the epoch.
    fn shim_born(&self, id: &str) -> i64 {
        let made = fs::metadata(self.instance.run_dir(id).join("shim.sock"))
            .ok()
            .and_then(|found| found.modified().ok());
        let since = made.and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
        since
            .and_then(|since| i64::try_from(since.as_nanos()).ok())
            .unwrap_or_else(crate::events::now)
    }
}
