//! Volumes: data that outlives its containers.
//!
//! A volume is a record and a directory, `volumes/NAME/_data`. One with a file system of its own
//! (`type`, `device`) has that mounted there from the start of the first container that uses it to
//! the end of the last. A volume is used by every container whose record names it, running or not;
//! that is what keeps it from being removed.
//!
//! Mounting takes as long as a server somewhere takes. It happens under the volume's own lock, its
//! `gate`, and never under that of all volumes; whoever enters or leaves a volume must be able to
//! block.

mod drivers;
mod local;
mod quota;
mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use whelk_sys::{copy, fs, in_root};

pub use drivers::Shown;
pub use transfer::Hold;

use crate::error::{Error, Result};
use crate::events::{Events, now};
use crate::filters::Filters;
use crate::instance::Instance;
use crate::random_names;
use crate::store::RecordStore;

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
    /// Where its plugin has put its content, since it was last mounted.
    #[serde(skip_serializing_if = "is_empty")]
    mountpoint: PathBuf,
    /// For whom its plugin was asked to mount it, and not yet to take that back.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    mounts: BTreeSet<String>,
}

fn is_empty(path: &std::path::Path) -> bool {
    path.as_os_str().is_empty()
}

impl VolumeRecord {
    /// Made without a name, for one container.
    pub fn is_anonymous(&self) -> bool {
        self.labels
            .as_ref()
            .is_some_and(|labels| labels.contains_key(ANONYMOUS))
    }

    fn option(&self, key: &str) -> &str {
        self.options
            .as_ref()
            .and_then(|options| options.get(key))
            .map_or("", String::as_str)
    }

    /// Whether it is the state of another volume at some time: it is only ever read.
    pub fn is_snapshot(&self) -> bool {
        self.driver == LOCAL && !self.option(SNAPSHOT_OF).is_empty()
    }

    /// How much of the disk it may take, or empty.
    fn size(&self) -> &str {
        if self.driver == LOCAL {
            self.option(local::SIZE)
        } else {
            ""
        }
    }

    /// Whether it has a file system of its own, or is a place elsewhere on the host.
    fn is_mounted(&self) -> bool {
        self.driver == LOCAL && !self.option("device").is_empty()
    }
}

/// The label of volumes without a name.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// The option of a snapshot, which names the volume that it is of.
const SNAPSHOT_OF: &str = "snapshot-of";

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
    /// It is made for a container that is removed at its end, and goes with it: a loss of power may
    /// take both.
    pub passing: bool,
}

/// All volumes of an engine.
#[derive(Debug)]
pub struct Volumes {
    instance: Instance,
    store: Arc<RecordStore>,
    events: Arc<Events>,
    state: RwLock<BTreeMap<String, Volume>>,
    drivers: drivers::Drivers,
}

#[derive(Debug, Default)]
struct Volume {
    record: VolumeRecord,
    /// Containers that name it.
    users: BTreeSet<String>,
    /// Those of them that run.
    running: BTreeSet<String>,
    /// What is being done to it that nobody may get in between, in words.
    busy: Option<&'static str>,
    /// Held while something is mounted, unmounted or copied there for the first time.
    gate: Arc<Mutex<()>>,
}

impl Volume {
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

/// What a volume was made with, beside its data: whoever finds a volume without a record knows what
/// it is.
const DESCRIPTION: &str = "volume.json";

/// What directories are called that are to be a volume or were one: no volume's name begins like
/// this.
const HALF_MADE: &str = ".half-";

/// Where a volume's content is, in its directory.
const DATA: &str = "_data";

/// A directory that is to be a volume's. What has not become that goes away.
struct Staged {
    path: PathBuf,
}

impl Staged {
    /// Waits until all that is in it is on disk.
    fn sync(&self) -> Result<()> {
        let directory = fs::open(&self.path)?;
        Ok(rustix::fs::openat(
            &directory,
            ".",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .and_then(rustix::fs::syncfs)
        .map_err(fs::at("sync", &self.path))?)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if fs::exists(&self.path) {
            discard(&self.path);
        }
    }
}

/// What a new volume is, once all that was asked for is checked.
fn new_record(request: CreateVolume) -> Result<VolumeRecord> {
    let CreateVolume {
        name,
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
    local::check(&options).map_err(wrong)?;
    Ok(record(name, LOCAL.into(), options, labels, anonymous))
}

fn record(
    name: String,
    driver: String,
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

/// Removes what was a volume's directory, or was to be one.
fn discard(path: &std::path::Path) {
    quota::lift(&path.join(DATA));
    if let Err(error) = fs::remove_tree(path) {
        tracing::warn!("remove what was a volume: {error}");
    }
}

impl Volumes {
    /// Reads the volumes. A directory without a record is data that must not be lost: it becomes a
    /// volume again. A record without a directory stays as well: its disk may come back.
    pub fn open(
        instance: &Instance,
        store: Arc<RecordStore>,
        events: Arc<Events>,
    ) -> Result<Arc<Self>> {
        fs::create_dir_all(instance.volumes_dir(), 0o700)?;
        let drivers = drivers::Drivers::new(instance.plugin_places());
        let volumes = Self {
            instance: instance.clone(),
            store,
            events,
            state: RwLock::default(),
            drivers,
        };
        let mut state = volumes.state_mut();
        for record in volumes.store.volumes()? {
            if record.driver == LOCAL && !fs::exists(instance.volumes_dir().join(&record.name)) {
                tracing::error!(volume = record.name, "the volume's directory is gone");
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
            if name.starts_with(HALF_MADE) {
                std::thread::spawn(move || discard(&entry.path()));
                continue;
            }
            if check_name(&name).is_ok() && !state.contains_key(&name) {
                let record =
                    described(&entry.path().join(DESCRIPTION)).unwrap_or_else(|| VolumeRecord {
                        driver: LOCAL.into(),
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
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Volume>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a volume's content is; empty for one that a plugin has and has not mounted.
    pub fn path(&self, name: &str) -> PathBuf {
        match self.state().get(name) {
            Some(volume) if volume.record.driver != LOCAL => volume.record.mountpoint.clone(),
            _ => self.instance.volume_path(name),
        }
    }

    /// # Errors
    /// There is none of this name.
    pub fn find(&self, name: &str) -> Result<VolumeRecord> {
        self.state()
            .get(name)
            .map(|volume| volume.record.clone())
            .ok_or_else(|| no_such_volume(name))
    }

    /// Makes a volume, or finds the one of that name.
    ///
    /// # Errors
    /// A name or options that make no sense, another driver than the existing one's.
    pub fn create(&self, request: CreateVolume) -> Result<VolumeRecord> {
        self.create_for(request, None)
    }

    /// The same for a container, which from then on uses it. Blocks, where plugins are asked.
    pub fn create_for(
        &self,
        mut request: CreateVolume,
        container: Option<&str>,
    ) -> Result<VolumeRecord> {
        self.forget_if_gone(&request.name)?;
        if let Some(found) = self.use_existing(&request, container) {
            return found;
        }
        let is_of_plugin = match request.driver.as_str() {
            "" => self.discover(&request.name).is_some(),
            LOCAL => false,
            _ => {
                request.name = self.create_by_plugin(request.clone())?.name;
                true
            }
        };
        if is_of_plugin {
            return self
                .use_existing(&request, container)
                .unwrap_or_else(|| Err(no_such_volume(&request.name)));
        }
        let mut state = self.state_mut();
        if let Some(volume) = state.get_mut(&request.name) {
            volume.users.extend(container.map(str::to_owned));
            return Ok(volume.record.clone());
        }
        let lasting = !(request.passing && request.name.is_empty());
        let record = new_record(request)?;
        self.put_in_place(&mut state, &self.stage(&record)?, &record)?;
        if lasting {
            self.keep(&record.name);
        }
        if let Some(volume) = state.get_mut(&record.name) {
            volume.users.extend(container.map(str::to_owned));
        }
        drop(state);
        self.publish(&record, "create", &[]);
        Ok(record)
    }

    /// The volume of that name, if there is one, with one more user.
    fn use_existing(
        &self,
        request: &CreateVolume,
        container: Option<&str>,
    ) -> Option<Result<VolumeRecord>> {
        let mut state = self.state_mut();
        let volume = state.get_mut(&request.name)?;
        if !request.driver.is_empty() && request.driver != volume.record.driver {
            let (name, driver) = (&request.name, &volume.record.driver);
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

    /// Makes a volume that has something in it from its first moment on: what `fill` puts into the
    /// directory it is given.
    fn create_filled(
        &self,
        record: VolumeRecord,
        fill: impl FnOnce(&std::path::Path) -> Result<()>,
    ) -> Result<VolumeRecord> {
        let taken =
            |name: &str| Error::conflict(format!("a volume with the name {name} exists already"));
        if self.find(&record.name).is_ok() {
            return Err(taken(&record.name));
        }
        let staged = self.stage(&record)?;
        let filled = fill(&staged.path.join(DATA)).and_then(|()| staged.sync());
        let made = filled.and_then(|()| {
            let mut state = self.state_mut();
            if state.contains_key(&record.name) {
                Err(taken(&record.name))
            } else {
                self.put_in_place(&mut state, &staged, &record)
            }
        });
        made?;
        self.keep(&record.name);
        self.publish(&record, "create", &[]);
        Ok(record)
    }

    /// Has a new volume be on disk before somebody is told of it.
    fn keep(&self, name: &str) {
        let directory = self.instance.volumes_dir().join(name);
        self.store.keep([
            directory.join(DESCRIPTION),
            directory.join(DATA),
            directory,
            self.instance.volumes_dir(),
        ]);
    }

    /// Makes a volume's directory where nobody sees it yet.
    fn stage(&self, record: &VolumeRecord) -> Result<Staged> {
        // On the same disk: the volumes may have one of their own.
        let staged = Staged {
            path: self
                .instance
                .volumes_dir()
                .join(format!("{HALF_MADE}{}", random_names::random_id())),
        };
        let description =
            serde_json::to_vec(record).map_err(|error| Error::internal(error.to_string()))?;
        // Nobody else has a say about what is mounted below; whoever may enter the data is decided
        // by its own mode.
        fs::create_dir(&staged.path, 0o701)?;
        fs::create_dir(staged.path.join(DATA), 0o755)?;
        fs::write(staged.path.join(DESCRIPTION), description)?;
        let size = record.size();
        if !size.is_empty() {
            let limited = local::parse_size(size)
                .and_then(|size| quota::limit(&staged.path.join(DATA), size));
            limited.map_err(|error| error.prefixed(&format!("create {}", record.name)))?;
        }
        Ok(staged)
    }

    fn put_in_place(
        &self,
        state: &mut BTreeMap<String, Volume>,
        staged: &Staged,
        record: &VolumeRecord,
    ) -> Result<()> {
        let directory = self.instance.volumes_dir().join(&record.name);
        if fs::exists(&directory) {
            return Err(Error::internal(format!(
                "{} is there and no volume's",
                directory.display()
            )));
        }
        fs::rename(&staged.path, &directory)?;
        if let Err(error) = self.store.put_volume(record) {
            fs::rename(&directory, &staged.path)?;
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

    fn gate(&self, name: &str) -> Result<Arc<Mutex<()>>> {
        self.state()
            .get(name)
            .map(|volume| volume.gate.clone())
            .ok_or_else(|| no_such_volume(name))
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

    /// Prepares a volume for a container that starts. Mounts what is to be mounted. Blocks.
    pub fn enter(&self, name: &str, container: &str, details: &[(&str, String)]) -> Result<()> {
        let record = self.begin_use(name, container)?;
        let mut attributes = vec![("container", container.to_owned())];
        attributes.extend_from_slice(details);
        self.publish(&record, "mount", &attributes);
        Ok(())
    }

    fn begin_use(&self, name: &str, user: &str) -> Result<VolumeRecord> {
        let gate = self.gate(name)?;
        let _gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let record = self.find(name)?;
        self.check_idle(name)?;
        let uses = self
            .state()
            .get(name)
            .is_some_and(|volume| volume.running.contains(user));
        // A container may mount it at several places.
        if !uses || self.path(name).as_os_str().is_empty() {
            self.mount_for(&record, user)?;
        }
        if let Some(volume) = self.state_mut().get_mut(name) {
            volume.running.insert(user.to_owned());
        }
        Ok(record)
    }

    /// # Errors
    /// Something is being done to it meanwhile.
    fn check_idle(&self, name: &str) -> Result<()> {
        self.state()
            .get(name)
            .map_or(Ok(()), |volume| volume.idle())
    }

    /// Makes a volume's content available for `user`. Its gate is held.
    fn mount_for(&self, record: &VolumeRecord, user: &str) -> Result<()> {
        if record.driver == LOCAL {
            self.mount(record)
        } else {
            self.mount_by_plugin(record, user)
        }
    }

    /// Takes that back. Its gate is held.
    fn unmount_for(&self, record: &VolumeRecord, user: &str) {
        if record.driver == LOCAL {
            self.unmount_unused(record)
        } else {
            self.unmount_by_plugin(record, user)
        }
    }

    /// Mounts a volume's own file system where it is not there yet.
    fn mount(&self, record: &VolumeRecord) -> Result<()> {
        let path = self.path(&record.name);
        if !record.is_mounted() || local::is_mount_point(&path) {
            return Ok(());
        }
        local::mount(record, &path).map_err(|error| {
            error.prefixed(&format!("error while mounting volume '{}'", path.display()))
        })
    }

    /// A container that used a volume has ended. Blocks.
    pub fn leave(&self, name: &str, container: &str) {
        if let Some(record) = self.end_use(name, container) {
            self.publish(&record, "unmount", &[("container", container.to_owned())]);
        }
    }

    fn end_use(&self, name: &str, user: &str) -> Option<VolumeRecord> {
        let gate = self.gate(name).ok()?;
        // Only what is mounted can be in somebody's way here.
        let is_mounted = self
            .find(name)
            .is_ok_and(|record| record.is_mounted() || record.driver != LOCAL);
        let _gate = is_mounted.then(|| gate.lock().unwrap_or_else(PoisonError::into_inner));
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

    /// Whether somebody uses its content just now.
    fn is_in_use(&self, name: &str) -> bool {
        self.state()
            .get(name)
            .is_some_and(|volume| !volume.running.is_empty())
    }

    /// Unmounts what no running container uses. Its gate is held.
    fn unmount_unused(&self, record: &VolumeRecord) {
        if record.is_mounted()
            && !self.is_in_use(&record.name)
            && let Err(error) = self.unmount(&record.name)
        {
            tracing::warn!(volume = record.name, "{error}");
        }
    }

    fn unmount(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        if local::is_mount_point(&path) {
            local::unmount(&path)
        } else {
            Ok(())
        }
    }

    /// Unmounts what no running container uses, after all of them were adopted.
    pub fn settle(self: &Arc<Self>) {
        let records: Vec<VolumeRecord> = self
            .state()
            .values()
            .map(|volume| volume.record.clone())
            .collect();
        records
            .iter()
            .for_each(|record| self.unmount_unused(record));
        self.settle_plugins(&records);
    }

    /// Copies what an image has at a path into a volume, or into the directory `subpath` of it, if
    /// that is empty: its first use gives it its content. A `subpath` that is missing is reported
    /// when the container starts.
    ///
    /// `layers` are the image's, the topmost first. `lasting` content survives a loss of power
    /// after the next answer. Blocks.
    pub fn fill(
        &self,
        name: &str,
        subpath: &str,
        layers: &[PathBuf],
        path: &str,
        lasting: bool,
    ) -> Result<()> {
        let gate = self.gate(name)?;
        let _gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let record = self.find(name)?;
        self.check_idle(name)?;
        // A file system of its own is there only while a container runs.
        let filler = random_names::random_id();
        self.mount_for(&record, &filler)?;
        // In use, the directory itself has to stay. Who is about to use it waits at the gate.
        // And one that takes the place of a directory with a limit would have none.
        let is_plain = record.driver == LOCAL
            && !record.is_mounted()
            && record.size().is_empty()
            && subpath.is_empty();
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
                    Ok(target) => whelk_image::copy_up(layers, path, &target, replaced, lasting),
                    Err(_) => Ok(false),
                }
            });
        self.unmount_for(&record, &filler);
        let filled = outcome.map_err(|error| {
            Error::internal(format!("copy the image's {path} to volume {name}: {error}"))
        })?;
        if filled && lasting && replaced.is_some() {
            self.keep(name);
        }
        Ok(())
    }

    /// # Errors
    /// There is none, or containers use it.
    pub fn remove(&self, name: &str, force: bool) -> Result<()> {
        if self.find(name).is_err() {
            // One that only a plugin knows so far.
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

    /// `force` has the engine forget a volume that its plugin cannot remove.
    fn remove_unused(&self, name: &str, force: bool) -> Result<()> {
        let gate = self.gate(name)?;
        let record = self.find(name)?;
        // Only what is mounted, which may take its time, can be in somebody's way here.
        let is_elsewhere = record.is_mounted() || record.driver != LOCAL;
        let _gate = is_elsewhere.then(|| gate.lock().unwrap_or_else(PoisonError::into_inner));
        if is_elsewhere {
            self.begin_removal(name)?;
            let removed = match record.driver.as_str() {
                // What is mounted is not ours to delete.
                LOCAL => self.unmount(name),
                _ => self
                    .remove_by_plugin(&record)
                    .or_else(|error| if force { Ok(()) } else { Err(error) }),
            };
            if let Some(volume) = self.state_mut().get_mut(name) {
                volume.busy = removed.is_ok().then_some(REMOVED);
            }
            removed?;
        }
        let mut state = self.state_mut();
        let volume = state.get(name).ok_or_else(|| no_such_volume(name))?;
        check_unused(volume)?;
        // The record first: from a directory that is left over the volume comes back as it was.
        self.store.delete_volume(&record)?;
        if record.driver != LOCAL {
            // Its files are the plugin's.
            state.remove(name);
            drop(state);
            self.publish(&record, "destroy", &[]);
            return Ok(());
        }
        let trashed = self
            .instance
            .volumes_dir()
            .join(format!("{HALF_MADE}{}", random_names::random_id()));
        match fs::rename(self.instance.volumes_dir().join(name), &trashed) {
            Err(error) if !error.is_not_found() => {
                self.store.put_volume(&record)?;
                return Err(error.into());
            }
            _ => {}
        }
        state.remove(name);
        drop(state);
        self.publish(&record, "destroy", &[]);
        // Deleted when nobody waits for it.
        std::thread::spawn(move || discard(&trashed));
        Ok(())
    }

    /// Keeps others from a volume whose removal takes its time.
    fn begin_removal(&self, name: &str) -> Result<()> {
        let mut state = self.state_mut();
        let volume = state.get_mut(name).ok_or_else(|| no_such_volume(name))?;
        check_unused(volume)?;
        volume.busy = Some(REMOVED);
        Ok(())
    }

    /// Removes a volume of a container that is gone, if it was made for it and nobody else uses it.
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
        // What others mount or keep takes its time, which nobody here has.
        if record.is_mounted() || record.driver != LOCAL {
            drop(std::thread::spawn(remove))
        } else {
            remove()
        }
    }

    /// # Errors
    /// A filter's value that makes no sense.
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

    /// How many containers use a volume.
    pub fn users(&self, name: &str) -> usize {
        self.state()
            .get(name)
            .map_or(0, |volume| volume.users.len())
    }

    /// The containers that run with it.
    pub fn running(&self, name: &str) -> Vec<String> {
        self.state()
            .get(name)
            .map(|volume| volume.running.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// The bytes a volume's files have. Blocks.
    pub fn size(&self, name: &str) -> u64 {
        fs::open(self.path(name))
            .map_err(drop)
            .and_then(|directory| copy::disk_usage(directory).map_err(drop))
            .unwrap_or(0)
    }

    /// Removes all volumes that nobody uses, only anonymous ones unless `all`; returns their names
    /// and the bytes they had. Blocks.
    pub fn prune(&self, filters: &Filters, all: bool) -> Result<(Vec<String>, u64)> {
        let none = BTreeMap::new();
        let candidates: Vec<String> = self
            .state()
            .values()
            .filter(|volume| volume.record.driver == LOCAL)
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
        attributes.insert("driver".into(), record.driver.clone());
        self.events
            .publish("volume", action, record.name.clone(), attributes);
    }
}

const REMOVED: &str = "removed";

/// # Errors
/// Somebody names it or uses it.
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
    filters.any("driver", |driver| record.driver == driver)
        && filters.any_pattern("name", &record.name)
        && filters.labels(record.labels.as_ref().unwrap_or(none))
}

/// What a volume's own directory says that it is.
fn described(path: &std::path::Path) -> Option<VolumeRecord> {
    const LARGEST: u64 = 1 << 20;
    serde_json::from_slice(&fs::read_at_most(path, LARGEST).ok()?).ok()
}

/// The driver that is the engine itself.
pub const LOCAL: &str = "local";

fn no_such_volume(name: &str) -> Error {
    Error::NotFound(format!("get {name}: no such volume"))
}

/// # Errors
/// A name that could lead elsewhere as part of a path, or that Docker would not take.
fn check_name(name: &str) -> Result<()> {
    if name.len() == 1 {
        return Err(Error::invalid(
            "volume name is too short, names should be at least two alphanumeric characters",
        ));
    }
    if name.len() > 255 {
        return Err(Error::invalid(
            "volume name is too long, names may have up to 255 characters",
        ));
    }
    let valid = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )))
}
