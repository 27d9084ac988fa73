//! Creates volumes.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLockWriteGuard};

use super::drivers::{Created, VolumeDriver};

use super::remove::REMOVED;
use super::{CreateVolume, Volume, VolumeDriverName, VolumeRecord, Volumes, no_such_volume};
use crate::error::{Error, Result};
use crate::events::now;
use crate::model::volume::{ANONYMOUS, check_name};
use crate::random_names;

impl Volumes {
    /// Creates a volume, or returns the existing one with this name.
    ///
    /// # Errors
    /// Returns an error if the name or an option is invalid, or the existing volume has another
    /// driver.
    pub fn create(&self, request: CreateVolume) -> Result<VolumeRecord> {
        self.create_for(request, None)
    }

    /// Like [`Volumes::create`], and registers `container` as a user. Blocks if plugins are called.
    pub fn create_for(
        &self,
        request: CreateVolume,
        container: Option<&str>,
    ) -> Result<VolumeRecord> {
        self.forget_if_gone(&request.name)?;
        if let Some(found) = self.use_existing(&request, container) {
            return found;
        }
        let missing = || Err(no_such_volume(&request.name));
        if request.driver.is_none() && self.discover(&request.name).is_some() {
            return self
                .use_existing(&request, container)
                .unwrap_or_else(missing);
        }
        let (record, driver) = self.new_record(request.clone())?;
        let created = driver.create(&record)?;
        let mut state = self.state_mut();
        if state.contains_key(&record.name) {
            // Another request was faster.
            drop(state);
            return self
                .use_existing(&request, container)
                .unwrap_or_else(missing);
        }
        if let Err(error) = self.commit(&mut state, &created, &record) {
            if matches!(created, Created::Published { is_new: true }) {
                self.remove_unrecorded(state, &record, &*driver);
            }
            return Err(error);
        }
        if let Some(volume) = state.get_mut(&record.name) {
            volume.users.extend(container.map(str::to_owned));
        }
        drop(state);
        if !record.is_local() {
            self.store.keep([]);
        } else if !(request.ephemeral && request.name.is_empty()) {
            self.make_durable(&record.name);
        }
        self.publish(&record, "create", &[]);
        Ok(record)
    }

    /// Validates a request and returns the new volume's record and driver.
    pub(super) fn new_record(
        &self,
        request: CreateVolume,
    ) -> Result<(VolumeRecord, Arc<dyn VolumeDriver>)> {
        let CreateVolume {
            name,
            driver: driver_name,
            options,
            labels,
            ..
        } = request;
        let anonymous = name.is_empty();
        let name = if anonymous {
            random_names::random_id()
        } else {
            name
        };
        let wrong = |error: Error| error.prefixed(&format!("create {name}"));
        check_name(&name).map_err(wrong)?;
        let driver_name = driver_name.unwrap_or_default();
        let driver = self.drivers.get(&driver_name).map_err(wrong)?;
        driver.check(&options).map_err(wrong)?;
        let record = record(name, driver_name, options, labels, anonymous);
        Ok((record, driver))
    }

    /// Stores the record of a volume that was found with a plugin, unless it has one.
    pub(super) fn register(&self, record: VolumeRecord) -> Result<VolumeRecord> {
        let mut state = self.state_mut();
        if let Some(volume) = state.get(&record.name) {
            return Ok(volume.record.clone());
        }
        self.commit(&mut state, &Created::Published { is_new: false }, &record)?;
        self.store.keep([]);
        drop(state);
        self.publish(&record, "create", &[]);
        Ok(record)
    }

    /// Adds a user to the volume with the requested name, if it exists, and returns its record.
    fn use_existing(
        &self,
        request: &CreateVolume,
        container: Option<&str>,
    ) -> Option<Result<VolumeRecord>> {
        let mut state = self.state_mut();
        let volume = state.get_mut(&request.name)?;
        let driver = &volume.record.driver;
        if request
            .driver
            .as_ref()
            .is_some_and(|wanted| wanted != driver)
        {
            let name = &request.name;
            return Some(Err(Error::conflict(format!(
                "create {name}: driver '{driver}' already has volume '{name}': volume name must be unique"
            ))));
        }
        if let Err(error) = volume.idle() {
            return Some(Err(error));
        }
        volume.users.extend(container.map(str::to_owned));
        Some(Ok(volume.record.clone()))
    }

    /// Creates a volume whose initial content `fill` writes into the given directory. The volume
    /// becomes visible only when it is complete.
    pub(super) fn create_filled(
        &self,
        record: VolumeRecord,
        fill: impl FnOnce(&std::path::Path) -> Result<()>,
    ) -> Result<VolumeRecord> {
        let taken =
            |name: &str| Error::conflict(format!("a volume with the name {name} already exists"));
        if self.find(&record.name).is_ok() {
            return Err(taken(&record.name));
        }
        let staged = self.drivers.local.stage(&record)?;
        let filled = fill(&staged.content()).and_then(|()| staged.sync());
        let created = Created::Staged(staged);
        let made = filled.and_then(|()| {
            let mut state = self.state_mut();
            if state.contains_key(&record.name) {
                Err(taken(&record.name))
            } else {
                self.commit(&mut state, &created, &record)
            }
        });
        made?;
        self.make_durable(&record.name);
        self.publish(&record, "create", &[]);
        Ok(record)
    }

    /// Gives a new volume's content its name, and stores the record.
    fn commit(
        &self,
        state: &mut BTreeMap<String, Volume>,
        created: &Created,
        record: &VolumeRecord,
    ) -> Result<()> {
        created.publish()?;
        if let Err(error) = self.store.put_volume(record) {
            // The first error is the cause, also of this one.
            if let Err(error) = created.withdraw() {
                tracing::warn!(volume = record.name, "undo its creation: {error}");
            }
            return Err(error);
        }
        state.insert(
            record.name.clone(),
            Volume {
                record: record.clone(),
                ..Volume::default()
            },
        );
        Ok(())
    }

    /// Removes what a driver has created for a volume whose record could not be stored. It can take
    /// long: until it has ended, other operations find a volume that is being removed. Errors are
    /// logged.
    fn remove_unrecorded(
        &self,
        mut state: RwLockWriteGuard<'_, BTreeMap<String, Volume>>,
        record: &VolumeRecord,
        driver: &dyn VolumeDriver,
    ) {
        let volume = Volume {
            record: record.clone(),
            busy: Some(REMOVED),
            ..Volume::default()
        };
        state.insert(record.name.clone(), volume);
        drop(state);
        let removed = driver.release(record).and_then(|()| driver.delete(record));
        if let Err(error) = removed {
            tracing::warn!(
                volume = record.name,
                "undo its creation by driver {}: {error}",
                record.driver
            );
        }
        self.state_mut().remove(&record.name);
    }
}

fn record(
    name: String,
    driver: VolumeDriverName,
    options: BTreeMap<String, String>,
    mut labels: BTreeMap<String, String>,
    anonymous: bool,
) -> VolumeRecord {
    if anonymous {
        labels.insert(ANONYMOUS.into(), String::new());
    }
    let filled = |map: BTreeMap<String, String>| if map.is_empty() { None } else { Some(map) };
    VolumeRecord {
        name,
        driver,
        created_at: now(),
        labels: filled(labels),
        options: filled(options),
        ..VolumeRecord::default()
    }
}
