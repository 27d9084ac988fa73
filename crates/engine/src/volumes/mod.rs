//! Volumes: data that outlives containers.
//!
//! A volume is a record and a directory, `volumes/NAME/_data`. A volume with its own file system
//! (options `type`, `device`) has it mounted there from the start of the first container that uses
//! it to the end of the last. Every container whose record names a volume uses it, running or not;
//! a volume in use cannot be removed.
//!
//! Mounting can take as long as a remote server takes to answer. It happens under the volume's own
//! `mount_lock`, never under the lock of all volumes; functions that mount or unmount block.

mod check;
mod create;
mod drivers;
mod fill;
mod mounting;
mod remove;
mod show;
mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use drivers::{Drivers, delete_directory};
use whelk_sys::sync::IgnorePoison as _;
use whelk_sys::{copy, fs};

use crate::error::{Error, Result};
use crate::events::{Events, now};
use crate::filters::Filters;
use crate::instance::Instance;
use crate::model::volume::check_name;
use crate::records::{self, DESCRIPTION};
use crate::store::RecordStore;

pub(crate) use crate::model::volume::{CreateVolume, LOCAL, VolumeDriverName, VolumeRecord};
#[cfg(test)]
pub(crate) use drivers::fake::FakeVolumes;
pub use show::VolumeDetails;
pub use transfer::Hold;

/// The filters of the volume list.
pub const FILTERS: &[&str] = &["dangling", "driver", "label", "label!", "name"];
pub const PRUNE_FILTERS: &[&str] = &["all", "label", "label!"];

/// All volumes of an engine.
#[derive(Debug)]
pub struct Volumes {
    instance: Instance,
    store: Arc<RecordStore>,
    events: Arc<Events>,
    state: RwLock<BTreeMap<String, Volume>>,
    drivers: Drivers,
}

#[derive(Debug, Default)]
struct Volume {
    record: VolumeRecord,
    /// The ids of containers whose records name it.
    users: BTreeSet<String>,
    /// The ids of running containers that use it, and of transient users such as exports.
    running: BTreeSet<String>,
    /// An exclusive operation in progress, as a participle for error texts.
    busy: Option<&'static str>,
    /// Held while its content is mounted, unmounted or first filled.
    mount_lock: Arc<Mutex<()>>,
}

impl Volume {
    /// Returns a conflict error if an exclusive operation is in progress.
    fn idle(&self) -> Result<()> {
        match self.busy {
            Some(what) => Err(Error::conflict(format!(
                "volume {} is being {what}",
                self.record.name
            ))),
            None => Ok(()),
        }
    }
}

/// The name prefix of directories that are not volumes yet, or no longer: volume names cannot begin
/// with a dot.
const STAGING_PREFIX: &str = ".half-";

/// The subdirectory with a volume's content.
const DATA: &str = "_data";

impl Volumes {
    /// Reads the volumes. A directory without a record contains data that must not be lost: it
    /// becomes a volume again. A record without a directory is kept too: its disk may not be
    /// mounted yet.
    pub fn open(
        instance: &Instance,
        store: Arc<RecordStore>,
        events: Arc<Events>,
    ) -> Result<Arc<Self>> {
        fs::create_dir_all(instance.volumes_dir(), 0o700)?;
        let drivers = Drivers::new(instance.volumes_dir(), instance.plugin_places());
        let volumes = Self {
            instance: instance.clone(),
            store,
            events,
            state: RwLock::default(),
            drivers,
        };
        let mut state = volumes.state_mut();
        for record in volumes.store.volumes()? {
            if record.is_local() && !fs::exists(instance.volumes_dir().join(&record.name)) {
                tracing::error!(
                    volume = record.name,
                    "the volume's directory does not exist"
                );
            }
            state.insert(
                record.name.clone(),
                Volume {
                    record,
                    ..Volume::default()
                },
            );
        }
        for entry in fs::list(instance.volumes_dir())? {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with(STAGING_PREFIX) {
                std::thread::spawn(move || delete_directory(&entry.path()));
                continue;
            }
            if check_name(&name).is_ok() && !state.contains_key(&name) {
                volumes.restore(&mut state, name)?;
            }
        }
        drop(state);
        Ok(Arc::new(volumes))
    }

    /// Makes a directory without a record a volume again.
    fn restore(&self, state: &mut BTreeMap<String, Volume>, name: String) -> Result<()> {
        let description = self.instance.volumes_dir().join(&name).join(DESCRIPTION);
        let described = records::read_volume_description(&description)?;
        let is_described = described.is_some();
        let record = VolumeRecord {
            name: name.clone(),
            ..described.unwrap_or_else(|| VolumeRecord {
                created_at: now(),
                ..VolumeRecord::default()
            })
        };
        self.store.put_volume(&record)?;
        if !is_described {
            fs::replace(description, records::describe_volume(&record)?, 0o600)?;
        }
        let volume = Volume {
            record,
            ..Volume::default()
        };
        state.insert(name, volume);
        Ok(())
    }

    fn state(&self) -> RwLockReadGuard<'_, BTreeMap<String, Volume>> {
        self.state.read().ignore_poison()
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Volume>> {
        self.state.write().ignore_poison()
    }

    /// Returns the path of a volume's content; empty for a plugin's volume that is not mounted.
    pub fn path(&self, name: &str) -> PathBuf {
        match self.state().get(name) {
            Some(volume) if !volume.record.is_local() => volume.record.mountpoint.clone(),
            _ => self.instance.volume_path(name),
        }
    }

    /// Returns the record of a volume.
    ///
    /// # Errors
    /// Returns an error if there is no volume with this name.
    pub fn find(&self, name: &str) -> Result<VolumeRecord> {
        self.state()
            .get(name)
            .map(|volume| volume.record.clone())
            .ok_or_else(|| no_such_volume(name))
    }

    /// Syncs a new volume to disk before its creation is reported.
    fn make_durable(&self, name: &str) {
        let directory = self.instance.volumes_dir().join(name);
        self.store.keep([
            directory.join(DESCRIPTION),
            directory.join(DATA),
            directory,
            self.instance.volumes_dir(),
        ]);
    }

    /// Registers a container as a user of a volume, at recovery and for `--volumes-from`.
    pub fn adopt(&self, name: &str, container: &str, runs: bool) {
        if let Some(volume) = self.state_mut().get_mut(name) {
            volume.users.insert(container.to_owned());
            if runs {
                volume.running.insert(container.to_owned());
            }
        }
    }

    /// Unregisters a removed container as a user of a volume.
    pub fn release(&self, name: &str, container: &str) {
        if let Some(volume) = self.state_mut().get_mut(name) {
            volume.users.remove(container);
        }
    }

    /// Returns the records of volumes that match.
    ///
    /// # Errors
    /// Returns an error if a filter's value is invalid.
    pub fn list(&self, filters: &Filters) -> Result<Vec<VolumeRecord>> {
        let dangling = filters.flag("dangling")?;
        let none = BTreeMap::new();
        let matches = |volume: &&Volume| {
            dangling.is_none_or(|dangling| volume.users.is_empty() == dangling)
                && matches(filters, &volume.record, &none)
        };
        Ok(self
            .state()
            .values()
            .filter(matches)
            .map(|volume| volume.record.clone())
            .collect())
    }

    /// Returns the number of containers that use a volume.
    pub fn users(&self, name: &str) -> usize {
        self.state()
            .get(name)
            .map_or(0, |volume| volume.users.len())
    }

    /// Returns the ids of running containers that use a volume.
    pub fn running(&self, name: &str) -> Vec<String> {
        self.state()
            .get(name)
            .map(|volume| volume.running.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Returns the disk usage of a volume's files in bytes. Blocks.
    pub fn size(&self, name: &str) -> u64 {
        fs::open(self.path(name))
            .map_err(drop)
            .and_then(|directory| copy::disk_usage(directory).map_err(drop))
            .unwrap_or(0)
    }

    fn publish(&self, record: &VolumeRecord, action: &str, details: &[(&str, String)]) {
        let mut attributes: BTreeMap<String, String> = details
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect();
        attributes.insert("driver".into(), record.driver.to_string());
        self.events
            .publish("volume", action, record.name.clone(), attributes);
    }
}

fn matches(filters: &Filters, record: &VolumeRecord, none: &BTreeMap<String, String>) -> bool {
    filters.any("driver", |driver| record.driver.as_str() == driver)
        && filters.any_pattern("name", &record.name)
        && filters.labels(record.labels.as_ref().unwrap_or(none))
}

fn no_such_volume(name: &str) -> Error {
    Error::NotFound(format!("get {name}: no such volume"))
}
