//! Volumes: data that outlives its containers.
//!
//! A volume is a record and a directory, `volumes/NAME/_data`. One with a file system of its own (`type`, `device`) has
//! that mounted there from the start of the first container that uses it to the end of the last. A volume is used by
//! every container whose record names it, running or not; that is what keeps it from being removed.

mod local;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};
use whelk_sys::{copy, fs};

use crate::error::{Error, Result};
use crate::events::{Events, now};
use crate::filters::Filters;
use crate::images::Images;
use crate::instance::Instance;
use crate::names;
use crate::store::Store;

/// A volume as it is kept in the store, under the names of the Engine API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeRecord {
    pub name: String,
    pub driver: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub labels: Option<BTreeMap<String, String>>,
    pub options: Option<BTreeMap<String, String>>,
}

impl VolumeRecord {
    /// Made without a name, for one container.
    pub fn is_anonymous(&self) -> bool {
        self.labels.as_ref().is_some_and(|labels| labels.contains_key(ANONYMOUS))
    }

    fn option(&self, key: &str) -> &str {
        self.options.as_ref().and_then(|options| options.get(key)).map_or("", String::as_str)
    }

    /// Whether it has a file system of its own, or is a place elsewhere on the host.
    fn is_mounted(&self) -> bool {
        !self.option("device").is_empty()
    }
}

/// The label of volumes without a name.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// What volumes can be filtered by.
pub const FILTERS: &[&str] = &["dangling", "driver", "label", "label!", "name"];
pub const PRUNE_FILTERS: &[&str] = &["all", "label", "label!"];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateVolume {
    /// Empty for an anonymous one.
    pub name: String,
    /// Empty for `local`.
    pub driver: String,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

/// All volumes of an engine.
#[derive(Debug)]
pub struct Volumes {
    instance: Instance,
    store: Arc<Store>,
    events: Arc<Events>,
    images: Arc<Images>,
    state: RwLock<BTreeMap<String, Volume>>,
}

#[derive(Debug, Default)]
struct Volume {
    record: VolumeRecord,
    /// Containers that name it.
    users: BTreeSet<String>,
    /// Those of them that run.
    running: BTreeSet<String>,
    /// Held while its first content is copied.
    filling: Arc<Mutex<()>>,
}

impl Volumes {
    /// Reads the volumes. A directory without a record is data that must not be lost: it becomes a volume; a record
    /// without a directory is a removal that was cut short.
    pub fn open(instance: &Instance, store: Arc<Store>, events: Arc<Events>, images: Arc<Images>) -> Result<Arc<Self>> {
        fs::create_dir_all(instance.volumes_dir(), 0o700)?;
        let volumes = Self { instance: instance.clone(), store, events, images, state: RwLock::default() };
        let mut state = volumes.state_mut();
        for record in volumes.store.volumes()? {
            if fs::exists(instance.volumes_dir().join(&record.name)) {
                state.insert(record.name.clone(), Volume { record, ..Volume::default() });
            } else {
                tracing::warn!(volume = record.name, "the volume's directory is gone");
                volumes.store.delete_volume(&record.name)?;
            }
        }
        for entry in fs::list(instance.volumes_dir())? {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if check_name(&name).is_ok() && !state.contains_key(&name) {
                let record = VolumeRecord { name: name.clone(), driver: LOCAL.into(), created_at: now(), ..VolumeRecord::default() };
                volumes.store.put_volume(&record)?;
                state.insert(name, Volume { record, ..Volume::default() });
            }
        }
        drop(state);
        Ok(Arc::new(volumes))
    }

    fn state(&self) -> RwLockReadGuard<'_, BTreeMap<String, Volume>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Volume>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a volume's content is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.instance.volume_path(name)
    }

    /// # Errors
    /// There is none of this name.
    pub fn find(&self, name: &str) -> Result<VolumeRecord> {
        self.state().get(name).map(|volume| volume.record.clone()).ok_or_else(|| no_such_volume(name))
    }

    /// Makes a volume, or finds the one of that name.
    ///
    /// # Errors
    /// A name or options that make no sense, another driver than the existing one's.
    pub fn create(&self, request: CreateVolume) -> Result<VolumeRecord> {
        self.create_for(request, None)
    }

    /// The same for a container, which from then on uses it.
    pub fn create_for(&self, request: CreateVolume, container: Option<&str>) -> Result<VolumeRecord> {
        let CreateVolume { name, driver, options, mut labels } = request;
        let driver = if driver.is_empty() { LOCAL.to_owned() } else { driver };
        let anonymous = name.is_empty();
        let name = if anonymous { names::random_id() } else { name };
        let wrong = |error: Error| error.prefixed(&format!("create {name}"));
        if driver != LOCAL {
            return Err(wrong(Error::NotFound(format!("error looking up volume plugin {driver}: plugin {driver:?} not found"))));
        }
        let mut state = self.state_mut();
        if let Some(volume) = state.get_mut(&name) {
            volume.users.extend(container.map(str::to_owned));
            return Ok(volume.record.clone());
        }
        check_name(&name).map_err(wrong)?;
        local::check(&options).map_err(wrong)?;
        if anonymous {
            labels.insert(ANONYMOUS.into(), String::new());
        }
        let filled = |map: BTreeMap<String, String>| if map.is_empty() { None } else { Some(map) };
        let record = VolumeRecord { name: name.clone(), driver, created_at: now(), labels: filled(labels), options: filled(options) };
        // The directory first: without a record it is taken for a volume, a record without it for a removal.
        fs::create_dir_all(self.path(&name), 0o755)?;
        // Nobody else has a say about what is mounted below; whoever may enter the data is decided by its own mode.
        fs::set_mode(self.instance.volumes_dir().join(&name), 0o701)?;
        self.store.put_volume(&record)?;
        let users = container.map(str::to_owned).into_iter().collect();
        state.insert(name, Volume { record: record.clone(), users, ..Volume::default() });
        drop(state);
        self.publish(&record, "create", &[]);
        Ok(record)
    }

    /// Notes that a container names a volume: at recovery, and for `--volumes-from`.
    pub fn adopt(&self, name: &str, container: &str, runs: bool) {
        if let Some(volume) = self.state_mut().get_mut(name) {
            volume.users.insert(container.to_owned());
            if runs {
                volume.running.insert(container.to_owned());
            }
        }
    }

    /// A container that used a volume is gone.
    pub fn release(&self, name: &str, container: &str) {
        if let Some(volume) = self.state_mut().get_mut(name) {
            volume.users.remove(container);
        }
    }

    /// Prepares a volume for a container that starts. Mounts what is to be mounted.
    pub fn enter(&self, name: &str, container: &str, details: &[(&str, String)]) -> Result<()> {
        let mut state = self.state_mut();
        let volume = state.get_mut(name).ok_or_else(|| no_such_volume(name))?;
        let path = self.path(name);
        if volume.record.is_mounted() && volume.running.is_empty() && !local::is_mount_point(&path) {
            local::mount(&volume.record, &path)
                .map_err(|error| error.prefixed(&format!("error while mounting volume '{}'", path.display())))?;
        }
        volume.running.insert(container.to_owned());
        let record = volume.record.clone();
        drop(state);
        let mut attributes = vec![("container", container.to_owned())];
        attributes.extend_from_slice(details);
        self.publish(&record, "mount", &attributes);
        Ok(())
    }

    /// A container that used a volume has ended.
    pub fn leave(&self, name: &str, container: &str) {
        let mut state = self.state_mut();
        let Some(volume) = state.get_mut(name) else { return };
        if !volume.running.remove(container) {
            return;
        }
        if volume.running.is_empty() && volume.record.is_mounted() {
            self.unmount(name);
        }
        let record = volume.record.clone();
        drop(state);
        self.publish(&record, "unmount", &[("container", container.to_owned())]);
    }

    fn unmount(&self, name: &str) {
        let path = self.path(name);
        if local::is_mount_point(&path)
            && let Err(error) = local::unmount(&path)
        {
            tracing::warn!(volume = name, "{error}");
        }
    }

    /// Unmounts what no running container uses, after all of them were adopted.
    pub fn settle(&self) {
        for (name, volume) in self.state().iter() {
            if volume.record.is_mounted() && volume.running.is_empty() {
                self.unmount(name);
            }
        }
    }

    /// Copies what an image has at a path into a volume that is empty: its first use gives it its content.
    ///
    /// `layers` are the image's, the topmost first. Blocks.
    pub fn fill(&self, name: &str, layers: &[PathBuf], path: &str) -> Result<()> {
        let filling = self.state().get(name).map(|volume| volume.filling.clone()).ok_or_else(|| no_such_volume(name))?;
        let _filling = filling.lock().unwrap_or_else(PoisonError::into_inner);
        let record = self.find(name)?;
        // A file system of its own is there only while a container runs.
        let mounted_for_this = record.is_mounted() && !local::is_mount_point(&self.path(name));
        if mounted_for_this {
            local::mount(&record, &self.path(name))?;
        }
        // In use, the directory itself has to stay.
        let at_once = !record.is_mounted() && self.state().get(name).is_none_or(|volume| volume.running.is_empty());
        let outcome = whelk_image::copy_up(layers, path, &self.path(name), at_once);
        if mounted_for_this {
            local::unmount(&self.path(name))?;
        }
        outcome.map_err(|error| Error::internal(format!("copy the image's {path} to volume {name}: {error}")))
    }

    /// # Errors
    /// There is none, or containers use it.
    pub fn remove(&self, name: &str, force: bool) -> Result<()> {
        match self.remove_unused(name) {
            Err(Error::NotFound(_)) if force => Ok(()),
            outcome => outcome,
        }
    }

    fn remove_unused(&self, name: &str) -> Result<()> {
        let mut state = self.state_mut();
        let volume = state.get(name).ok_or_else(|| no_such_volume(name))?;
        if !volume.users.is_empty() {
            let users: Vec<&str> = volume.users.iter().map(String::as_str).collect();
            return Err(Error::conflict(format!("remove {name}: volume is in use - [{}]", users.join(", "))));
        }
        // What is mounted is not ours to delete.
        self.unmount(name);
        let record = volume.record.clone();
        let trashed = self.images.store().trash(&self.instance.volumes_dir().join(name))?;
        self.store.delete_volume(name)?;
        state.remove(name);
        drop(state);
        self.publish(&record, "destroy", &[]);
        if let Some(path) = trashed {
            // Deleted when nobody waits for it.
            std::thread::spawn(move || {
                if let Err(error) = fs::remove_tree(&path) {
                    tracing::warn!("empty the trash: {error}");
                }
            });
        }
        Ok(())
    }

    /// Removes a volume of a container that is gone, if it was made for it and nobody else uses it.
    pub fn remove_anonymous(&self, name: &str) {
        if self.find(name).is_ok_and(|record| record.is_anonymous())
            && let Err(error) = self.remove_unused(name)
            && !matches!(error, Error::Conflict(_))
        {
            tracing::warn!(volume = name, "{error}");
        }
    }

    /// # Errors
    /// A filter's value that makes no sense.
    pub fn list(&self, filters: &Filters) -> Result<Vec<VolumeRecord>> {
        let dangling = filters.flag("dangling")?;
        let none = BTreeMap::new();
        let matches = |volume: &&Volume| {
            let record = &volume.record;
            dangling.is_none_or(|dangling| volume.users.is_empty() == dangling)
                && filters.any("driver", |driver| record.driver == driver)
                && filters.any("name", |name| record.name.contains(name))
                && filters.labels(record.labels.as_ref().unwrap_or(&none))
        };
        Ok(self.state().values().filter(matches).map(|volume| volume.record.clone()).collect())
    }

    /// How many containers use a volume.
    pub fn users(&self, name: &str) -> usize {
        self.state().get(name).map_or(0, |volume| volume.users.len())
    }

    /// The bytes a volume's files have. Blocks.
    pub fn size(&self, name: &str) -> u64 {
        fs::open(self.path(name)).map_err(drop).and_then(|directory| copy::disk_usage(directory).map_err(drop)).unwrap_or(0)
    }

    /// Removes all volumes that nobody uses, only anonymous ones unless `all`; returns their names and the bytes they had.
    /// Blocks.
    pub fn prune(&self, filters: &Filters, all: bool) -> Result<(Vec<String>, u64)> {
        let none = BTreeMap::new();
        let candidates: Vec<String> = self
            .state()
            .values()
            .filter(|volume| volume.users.is_empty() && (all || volume.record.is_anonymous()))
            .filter(|volume| filters.labels(volume.record.labels.as_ref().unwrap_or(&none)))
            .map(|volume| volume.record.name.clone())
            .collect();
        let (mut removed, mut reclaimed) = (Vec::new(), 0);
        for name in candidates {
            let size = self.size(&name);
            if self.remove_unused(&name).is_ok() {
                removed.push(name);
                reclaimed += size;
            }
        }
        self.events.publish("volume", "prune", String::new(), [("reclaimed".to_owned(), reclaimed.to_string())].into());
        Ok((removed, reclaimed))
    }

    fn publish(&self, record: &VolumeRecord, action: &str, details: &[(&str, String)]) {
        let mut attributes: BTreeMap<String, String> = details.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        attributes.insert("driver".into(), record.driver.clone());
        self.events.publish("volume", action, record.name.clone(), attributes);
    }
}

pub(crate) const LOCAL: &str = "local";

fn no_such_volume(name: &str) -> Error {
    Error::NotFound(format!("get {name}: no such volume"))
}

/// # Errors
/// A name that could lead elsewhere as part of a path, or that Docker would not take.
fn check_name(name: &str) -> Result<()> {
    if name.len() == 1 {
        return Err(Error::invalid("volume name is too short, names should be at least two alphanumeric characters"));
    }
    if name.len() > 255 {
        return Err(Error::invalid("volume name is too long, names may have up to 255 characters"));
    }
    let valid = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )))
}
