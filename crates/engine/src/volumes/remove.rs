//! Removes volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use whelk_sys::sync::IgnorePoison as _;

use super::{Volume, Volumes, no_such_volume};
use crate::error::{Error, Result};
use crate::filters::Filters;

impl Volumes {
    /// Removes a volume. `force` also removes the record of a volume that its plugin cannot remove,
    /// and ignores a missing volume.
    ///
    /// # Errors
    /// Returns an error if there is no such volume or containers use it.
    pub fn remove(&self, name: &str, force: bool) -> Result<()> {
        if self.find(name).is_err() {
            // It may be known to a plugin only.
            drop(self.discover(name));
        }
        match self.remove_unused(name, force) {
            Err(Error::NotFound(_)) if force => Ok(()),
            Ok(()) => {
                self.store.keep([self.instance.volumes_dir()]);
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Removes an unused volume. `force` also removes the record of a volume that its plugin cannot
    /// remove.
    fn remove_unused(&self, name: &str, force: bool) -> Result<()> {
        let mount_lock = self.mount_lock(name)?;
        let record = self.find(name)?;
        // The lock is only necessary where something is unmounted, which can take long.
        let is_elsewhere = record.is_elsewhere();
        let _mount_guard = is_elsewhere.then(|| mount_lock.lock().ignore_poison());
        if is_elsewhere {
            self.begin_removal(name)?;
        }
        let driver = self.drivers.get(&record.driver);
        let released = driver
            .map_err(|error| error.prefixed(&format!("remove {}", record.name)))
            .and_then(|driver| driver.release(&record).map(|()| driver));
        let driver = match released {
            Ok(driver) => Some(driver),
            // The plugin keeps what it does not remove.
            Err(_) if force && !record.is_local() => None,
            Err(error) => {
                if let Some(volume) = self.state_mut().get_mut(name) {
                    volume.busy = None;
                }
                return Err(error);
            }
        };
        let mut state = self.state_mut();
        let volume = state.get(name).ok_or_else(|| no_such_volume(name))?;
        check_unused(volume)?;
        // The record before the directory: if the engine ends in between, the volume is restored
        // from its directory.
        self.store.delete_volume(&record)?;
        if let Some(driver) = driver
            && let Err(error) = driver.delete(&record)
        {
            self.store.put_volume(&record)?;
            return Err(error);
        }
        state.remove(name);
        drop(state);
        self.publish(&record, "destroy", &[]);
        Ok(())
    }

    /// Marks a volume as being removed, which keeps others from using it.
    fn begin_removal(&self, name: &str) -> Result<()> {
        let mut state = self.state_mut();
        let volume = state.get_mut(name).ok_or_else(|| no_such_volume(name))?;
        check_unused(volume)?;
        volume.busy = Some(REMOVED);
        Ok(())
    }

    /// Removes a volume of a removed container if it is anonymous and nobody else uses it.
    pub fn remove_anonymous(self: &Arc<Self>, name: &str) {
        let Ok(record) = self.find(name) else { return };
        if !record.is_anonymous() {
            return;
        }
        let (volumes, name) = (self.clone(), record.name.clone());
        let remove = move || match volumes.remove_unused(&name, false) {
            Ok(()) | Err(Error::Conflict(_)) => {}
            Err(error) => tracing::warn!(volume = name, "{error}"),
        };
        // Unmounting and plugins can take long, and the caller must not wait.
        if record.is_elsewhere() {
            drop(std::thread::spawn(remove))
        } else {
            remove()
        }
    }

    /// Removes all unused volumes, only anonymous ones unless `all`; returns their names and the
    /// disk space they used in bytes. Blocks.
    pub fn prune(&self, filters: &Filters, all: bool) -> Result<(Vec<String>, u64)> {
        let none = BTreeMap::new();
        let candidates: Vec<String> = self
            .state()
            .values()
            .filter(|volume| volume.record.is_local())
            .filter(|volume| volume.users.is_empty() && (all || volume.record.is_anonymous()))
            .filter(|volume| filters.labels(volume.record.labels.as_ref().unwrap_or(&none)))
            .map(|volume| volume.record.name.clone())
            .collect();
        let (mut removed, mut reclaimed) = (Vec::new(), 0);
        for name in candidates {
            let size = self.size(&name);
            if self.remove_unused(&name, false).is_ok() {
                removed.push(name);
                reclaimed += size;
            }
        }
        self.store.keep([self.instance.volumes_dir()]);
        self.events.publish(
            "volume",
            "prune",
            String::new(),
            [("reclaimed".to_owned(), reclaimed.to_string())].into(),
        );
        Ok((removed, reclaimed))
    }
}

pub(super) const REMOVED: &str = "removed";

/// Returns a conflict error if a container or transient user uses the volume.
fn check_unused(volume: &Volume) -> Result<()> {
    let users: BTreeSet<&str> = volume
        .users
        .iter()
        .chain(&volume.running)
        .map(String::as_str)
        .collect();
    if users.is_empty() {
        return Ok(());
    }
    let users: Vec<&str> = users.into_iter().collect();
    Err(Error::conflict(format!(
        "remove {}: volume is in use - [{}]",
        volume.record.name,
        users.join(", ")
    )))
}
