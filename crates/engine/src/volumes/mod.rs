//! Volumes: data that outlives containers.
//!
//! A volume is a record and a directory, `volumes/NAME/_data`. A volume with its own file system
//! (options `type`, `device`) has it mounted there from the start of the first container that uses
//! it to the end of the last. Every container whose record names a volume uses it, running or not;
//! a volume in use cannot be removed.
//!
//! Mounting can take as long as a remote server takes to answer. It happens under the volume's own
//! `mount_lock`, never under the lock of all volumes; functions that mount or unmount block.

mod drivers;
mod mounting;
mod show;
mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use whelk_sys::sync::IgnorePoison as _;

use rustix::fs::{Mode, OFlags};
use whelk_sys::{copy, fs, in_root};

pub(crate) use crate::model::volume::{CreateVolume, LOCAL, VolumeDriverName, VolumeRecord};
#[cfg(test)]
pub(crate) use drivers::fake::FakeVolumes;
pub use show::VolumeDetails;
pub use transfer::Hold;

use drivers::{Created, Drivers, VolumeDriver, delete_directory};

use crate::error::{Error, Result};
use crate::events::{Events, now};
use crate::filters::Filters;
use crate::instance::Instance;
use crate::model::volume::{ANONYMOUS, check_name};
use crate::random_names;
use crate::records::{self, DESCRIPTION};
use crate::store::RecordStore;

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
                let record = records::read_volume_description(&entry.path().join(DESCRIPTION))?
                    .unwrap_or_else(|| VolumeRecord {
                        created_at: now(),
                        ..VolumeRecord::default()
                    });
                let record = VolumeRecord {
                    name: name.clone(),
                    ..record
                };
                volumes.store.put_volume(&record)?;
                state.insert(
                    name,
                    Volume {
                        record,
                        ..Volume::default()
                    },
                );
            }
        }
        drop(state);
        Ok(Arc::new(volumes))
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
    fn new_record(&self, request: CreateVolume) -> Result<(VolumeRecord, Arc<dyn VolumeDriver>)> {
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
    fn register(&self, record: VolumeRecord) -> Result<VolumeRecord> {
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
    fn create_filled(
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
    /// long: meanwhile the volume is being removed, for all others. Errors are logged.
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

    /// Copies the image's content at `path` into a volume, or into its directory `subpath`, if that
    /// is empty: a volume's first use gives it the image's content. A missing `subpath` is reported
    /// when the container starts.
    ///
    /// `layers` are the directories of the image's layers, topmost first. `lasting` content is
    /// synced to disk before the next API answer. Blocks.
    pub fn fill(
        &self,
        name: &str,
        subpath: &str,
        layers: &[PathBuf],
        path: &str,
        lasting: bool,
    ) -> Result<()> {
        let mount_lock = self.mount_lock(name)?;
        let _mount_guard = mount_lock.lock().ignore_poison();
        let record = self.find(name)?;
        self.check_idle(name)?;
        // A volume's own file system is mounted only while a container uses it.
        let filler = random_names::random_id();
        self.mount_for(&record, &filler)?;
        // The directory itself is replaced only if it is not mounted into a container (new users
        // wait for `mount_lock`) and has no quota, which belongs to the directory.
        let is_plain = !record.is_elsewhere() && record.size().is_empty() && subpath.is_empty();
        let directory = self.path(name);
        let replaced = (is_plain && !self.is_in_use(name)).then_some(directory.as_path());
        let outcome = fs::open(&directory)
            .map_err(whelk_image::Error::from)
            .and_then(|root| {
                match in_root::open(
                    &root,
                    subpath,
                    OFlags::RDONLY | OFlags::DIRECTORY,
                    Mode::empty(),
                ) {
                    Ok(target) => {
                        whelk_image::snapshots::copy_up(layers, path, &target, replaced, lasting)
                    }
                    Err(_) => Ok(false),
                }
            });
        self.unmount_for(&record, &filler);
        let filled = outcome.map_err(|error| {
            Error::internal(format!("copy the image's {path} to volume {name}: {error}"))
        })?;
        if filled && lasting && replaced.is_some() {
            self.make_durable(name);
        }
        Ok(())
    }

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

const REMOVED: &str = "removed";

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

fn matches(filters: &Filters, record: &VolumeRecord, none: &BTreeMap<String, String>) -> bool {
    filters.any("driver", |driver| record.driver.as_str() == driver)
        && filters.any_pattern("name", &record.name)
        && filters.labels(record.labels.as_ref().unwrap_or(none))
}

fn no_such_volume(name: &str) -> Error {
    Error::NotFound(format!("get {name}: no such volume"))
}
