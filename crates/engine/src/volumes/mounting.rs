//! Mounts and unmounts the content of volumes for their users, and records for whom it is mounted.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use whelk_sys::sync::IgnorePoison as _;

use super::{VolumeRecord, Volumes, no_such_volume};
use crate::error::{Error, Result};

impl Volumes {
    pub(super) fn mount_lock(&self, name: &str) -> Result<Arc<Mutex<()>>> {
        self.state()
            .get(name)
            .map(|volume| volume.mount_lock.clone())
            .ok_or_else(|| no_such_volume(name))
    }

    /// Mounts a volume's content for a container that is being started. Blocks.
    pub fn mount_for_container(
        &self,
        name: &str,
        container: &str,
        details: &[(&str, String)],
    ) -> Result<()> {
        let record = self.begin_use(name, container)?;
        let mut attributes = vec![("container", container.to_owned())];
        attributes.extend_from_slice(details);
        self.publish(&record, "mount", &attributes);
        Ok(())
    }

    pub(super) fn begin_use(&self, name: &str, user: &str) -> Result<VolumeRecord> {
        let mount_lock = self.mount_lock(name)?;
        let _mount_guard = mount_lock.lock().ignore_poison();
        let record = self.find(name)?;
        self.check_idle(name)?;
        let uses = self
            .state()
            .get(name)
            .is_some_and(|volume| volume.running.contains(user));
        // A container may mount the same volume at several paths.
        if !uses || self.path(name).as_os_str().is_empty() {
            self.mount_for(&record, user)?;
        }
        if let Some(volume) = self.state_mut().get_mut(name) {
            volume.running.insert(user.to_owned());
        }
        Ok(record)
    }

    /// Returns a conflict error if an exclusive operation on a volume is in progress.
    pub(super) fn check_idle(&self, name: &str) -> Result<()> {
        self.state()
            .get(name)
            .map_or(Ok(()), |volume| volume.idle())
    }

    /// Mounts a volume's content for `user`. The caller holds the volume's `mount_lock`.
    pub(super) fn mount_for(&self, record: &VolumeRecord, user: &str) -> Result<()> {
        let failed = |error: Error| {
            error.prefixed(&format!(
                "error while mounting volume '{}'",
                self.path(&record.name).display()
            ))
        };
        let driver = self.drivers.get(&record.driver).map_err(failed)?;
        if record.is_local() {
            return driver.mount(record, user).map(drop).map_err(failed);
        }
        // Recorded before the call: if the engine is killed, the next one knows what to unmount.
        self.update_record(&record.name, |record| {
            record.mounts.insert(user.to_owned());
        })
        .map_err(failed)?;
        match driver.mount(record, user) {
            Ok(mountpoint) => {
                let noted =
                    self.update_record(&record.name, |record| record.mountpoint = mountpoint);
                noted
                    .inspect_err(|_| self.unmount_for(record, user))
                    .map_err(failed)
            }
            Err(error) => {
                // A plugin that did not answer may have mounted it nevertheless.
                if !matches!(error, Error::Unavailable(_)) {
                    self.record_unmounted(record, user);
                }
                Err(failed(error))
            }
        }
    }

    /// Reverses `mount_for`. A plugin that does not answer is called again when the engine starts
    /// the next time. The caller holds the volume's `mount_lock`.
    pub(super) fn unmount_for(&self, record: &VolumeRecord, user: &str) {
        let is_last = !self.is_in_use(&record.name);
        let unmounted = self
            .drivers
            .get(&record.driver)
            .and_then(|driver| driver.unmount(record, user, is_last));
        match unmounted {
            Ok(()) if record.is_local() => {}
            Ok(()) => self.record_unmounted(record, user),
            Err(error) => tracing::warn!(volume = record.name, "error unmounting volume: {error}"),
        }
    }

    fn record_unmounted(&self, record: &VolumeRecord, user: &str) {
        let noted = self.update_record(&record.name, |record| {
            record.mounts.remove(user);
            if record.mounts.is_empty() {
                record.mountpoint = PathBuf::new();
            }
        });
        if let Err(error) = noted {
            tracing::warn!(
                volume = record.name,
                "record that the volume was unmounted: {error}"
            );
        }
    }

    /// Changes a volume's record, also in the store. A volume that has been removed is ignored.
    fn update_record(&self, name: &str, change: impl FnOnce(&mut VolumeRecord)) -> Result<()> {
        let mut state = self.state_mut();
        let Some(volume) = state.get_mut(name) else {
            return Ok(());
        };
        let mut record = volume.record.clone();
        change(&mut record);
        self.store.put_volume(&record)?;
        volume.record = record;
        Ok(())
    }

    /// Unmounts a volume's content for a container that has ended, if no other uses it. Blocks.
    pub fn unmount_for_container(&self, name: &str, container: &str) {
        if let Some(record) = self.end_use(name, container) {
            self.publish(&record, "unmount", &[("container", container.to_owned())]);
        }
    }

    pub(super) fn end_use(&self, name: &str, user: &str) -> Option<VolumeRecord> {
        let mount_lock = self.mount_lock(name).ok()?;
        // The lock is only necessary where something is unmounted.
        let is_mounted = self.find(name).is_ok_and(|record| record.is_elsewhere());
        let _mount_guard = is_mounted.then(|| mount_lock.lock().ignore_poison());
        let record = {
            let mut state = self.state_mut();
            let volume = state.get_mut(name)?;
            if !volume.running.remove(user) {
                return None;
            }
            volume.record.clone()
        };
        self.unmount_for(&record, user);
        Some(record)
    }

    /// Returns whether a running container or transient user uses its content.
    pub(super) fn is_in_use(&self, name: &str) -> bool {
        self.state()
            .get(name)
            .is_some_and(|volume| !volume.running.is_empty())
    }

    /// Unmounts all volumes that no running container uses. Called after all of them were adopted.
    pub fn unmount_unused_volumes(self: &Arc<Self>) {
        let records: Vec<VolumeRecord> = self
            .state()
            .values()
            .map(|volume| volume.record.clone())
            .collect();
        for record in &records {
            if record.is_mounted() {
                self.unmount_for(record, "");
            }
            if !self.stale_users(record).is_empty() {
                self.unmount_stale(record.name.clone());
            }
        }
    }

    /// Makes a plugin unmount, in the background, what a killed engine left mounted.
    fn unmount_stale(self: &Arc<Self>, name: String) {
        let volumes = self.clone();
        std::thread::spawn(move || {
            let Ok(mount_lock) = volumes.mount_lock(&name) else {
                return;
            };
            let _mount_guard = mount_lock.lock().ignore_poison();
            // The record may have changed while waiting for the lock.
            let Ok(record) = volumes.find(&name) else {
                return;
            };
            volumes
                .stale_users(&record)
                .iter()
                .for_each(|user| volumes.unmount_for(&record, user));
        });
    }

    /// Returns the users for which a plugin has mounted a volume and that no longer run.
    fn stale_users(&self, record: &VolumeRecord) -> Vec<String> {
        let running = self.running(&record.name);
        record
            .mounts
            .iter()
            .filter(|user| !running.contains(user))
            .cloned()
            .collect()
    }
}
