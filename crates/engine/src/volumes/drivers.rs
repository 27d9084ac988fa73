//! Volumes whose content somebody else keeps: plugins that implement `VolumeDriver`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use whelk_plugin::{Places, Plugin};

use super::{CreateVolume, LOCAL, Volume, VolumeRecord, Volumes};
use crate::error::{Error, Result};
use crate::events::now;
use crate::filters::Filters;
use crate::random_names;

/// How long a plugin may take to say what it has.
const TO_LOOK: Duration = Duration::from_secs(10);
/// How long it may take to make, mount or remove something.
const TO_CHANGE: Duration = Duration::from_secs(120);

/// The plugins that have been used.
#[derive(Debug)]
pub(super) struct Drivers {
    places: Places,
    known: Mutex<BTreeMap<String, Arc<Driver>>>,
}

#[derive(Debug)]
pub(super) struct Driver {
    plugin: Plugin,
    pub scope: &'static str,
}

/// A volume as its plugin describes it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Described {
    pub name: String,
    #[serde(deserialize_with = "or_default")]
    pub mountpoint: PathBuf,
    #[serde(deserialize_with = "or_default")]
    pub created_at: String,
    pub status: Option<Value>,
}

/// Go writes what is not there as `null`.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    value: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

impl Drivers {
    pub(super) fn new(places: Places) -> Self {
        Self {
            places,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Driver>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// There is no such plugin, or it does not answer as one.
    pub(super) fn get(&self, name: &str) -> Result<Arc<Driver>> {
        if let Some(driver) = self.known().get(name) {
            return Ok(driver.clone());
        }
        let looked_up = |error: whelk_plugin::Error| {
            let text = format!("error looking up volume plugin {name}: {error}");
            match error {
                whelk_plugin::Error::NotFound(_) => Error::NotFound(text),
                whelk_plugin::Error::Broken(_) => Error::Unavailable(text),
                whelk_plugin::Error::Refused(_) => Error::internal(text),
            }
        };
        let plugin = self
            .places
            .activate(name, "VolumeDriver")
            .map_err(looked_up)?;
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Answer {
            capabilities: Capabilities,
        }
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Capabilities {
            scope: String,
        }
        // Older plugins do not know the question.
        let answer: Answer = plugin
            .call("VolumeDriver.Capabilities", &json!({}), TO_LOOK)
            .unwrap_or_default();
        let scope = if answer.capabilities.scope.eq_ignore_ascii_case("global") {
            "global"
        } else {
            "local"
        };
        let driver = Arc::new(Driver { plugin, scope });
        self.known().insert(name.to_owned(), driver.clone());
        Ok(driver)
    }

    /// All plugins that can be found without being asked for, and are volume drivers; and those
    /// that were.
    pub(super) fn all(&self) -> Vec<Arc<Driver>> {
        for name in self.places.names() {
            if let Err(error) = self.get(&name) {
                tracing::debug!("{error}");
            }
        }
        self.known().values().cloned().collect()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.known().keys().cloned().collect()
    }

    /// Whether there may be any.
    pub(super) fn is_empty(&self) -> bool {
        self.known().is_empty() && self.places.names().is_empty()
    }

    /// A plugin that cannot be reached may come back elsewhere, or as another.
    fn forget(&self, driver: &Driver) {
        self.known().remove(driver.name());
    }

    /// Asks a plugin; one that fails to answer is looked up anew the next time.
    pub(super) fn ask<T>(
        &self,
        driver: &Driver,
        question: impl FnOnce(&Driver) -> whelk_plugin::Result<T>,
    ) -> Result<T> {
        question(driver).map_err(|error| match error {
            whelk_plugin::Error::Broken(text) => {
                self.forget(driver);
                Error::Unavailable(text)
            }
            other => Error::internal(other.to_string()),
        })
    }
}

impl Driver {
    pub(super) fn name(&self) -> &str {
        self.plugin.name()
    }

    /// What the plugin has under a name; whatever it says instead stands for nothing.
    pub(super) fn find(&self, name: &str) -> whelk_plugin::Result<Option<Described>> {
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Answer {
            volume: Option<Described>,
        }
        match self
            .plugin
            .call("VolumeDriver.Get", &json!({"Name": name}), TO_LOOK)
        {
            Ok(Answer { volume }) => Ok(volume.filter(|volume| volume.name == name)),
            Err(whelk_plugin::Error::Refused(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn list(&self) -> whelk_plugin::Result<Vec<Described>> {
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Answer {
            volumes: Option<Vec<Described>>,
        }
        let answer: Answer = self.plugin.call("VolumeDriver.List", &json!({}), TO_LOOK)?;
        Ok(answer.volumes.unwrap_or_default())
    }

    pub(super) fn create(
        &self,
        name: &str,
        options: &BTreeMap<String, String>,
    ) -> whelk_plugin::Result<()> {
        let options = if options.is_empty() {
            Value::Null
        } else {
            json!(options)
        };
        self.plugin
            .call::<Value>(
                "VolumeDriver.Create",
                &json!({"Name": name, "Opts": options}),
                TO_CHANGE,
            )
            .map(drop)
    }

    pub(super) fn remove(&self, name: &str) -> whelk_plugin::Result<()> {
        self.plugin
            .call::<Value>("VolumeDriver.Remove", &json!({"Name": name}), TO_CHANGE)
            .map(drop)
    }

    /// Has the plugin make a volume's content available, for whoever `id` stands for, and returns
    /// where.
    pub(super) fn mount(&self, name: &str, id: &str) -> whelk_plugin::Result<PathBuf> {
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Answer {
            #[serde(deserialize_with = "or_default")]
            mountpoint: PathBuf,
        }
        let body = json!({"Name": name, "ID": id});
        let mounted = self
            .plugin
            .call("VolumeDriver.Mount", &body, TO_CHANGE)
            .and_then(|Answer { mountpoint }| {
                let text = || {
                    format!(
                        "plugin {}: mountpoint {mountpoint:?} is no absolute path",
                        self.name()
                    )
                };
                if mountpoint.is_absolute() {
                    Ok(mountpoint)
                } else {
                    Err(whelk_plugin::Error::Broken(text()))
                }
            });
        if let Err(whelk_plugin::Error::Broken(_)) = mounted {
            // It may have mounted all the same.
            drop(
                self.plugin
                    .call::<Value>("VolumeDriver.Unmount", &body, TO_LOOK),
            );
        }
        mounted
    }

    pub(super) fn unmount(&self, name: &str, id: &str) -> whelk_plugin::Result<()> {
        self.plugin
            .call::<Value>(
                "VolumeDriver.Unmount",
                &json!({"Name": name, "ID": id}),
                TO_CHANGE,
            )
            .map(drop)
    }
}

/// A volume as it is shown.
#[derive(Clone, Debug)]
pub struct Shown {
    pub record: VolumeRecord,
    pub mountpoint: PathBuf,
    /// As its plugin says, or empty.
    pub created_at: String,
    pub scope: &'static str,
    /// What its plugin has to say.
    pub status: Option<Value>,
}

impl Shown {
    fn new(record: VolumeRecord, driver: &Driver, described: Described) -> Self {
        let Described {
            mountpoint,
            created_at,
            status,
            ..
        } = described;
        Self {
            record,
            mountpoint,
            created_at,
            scope: driver.scope,
            status,
        }
    }
}

impl Volumes {
    /// The names of the drivers that have been used.
    pub fn drivers(&self) -> Vec<String> {
        [LOCAL.to_owned()]
            .into_iter()
            .chain(self.drivers.names())
            .collect()
    }

    /// Everything about a volume. Asks its plugin; one that the engine does not know yet is looked
    /// for with all of them. Blocks.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn show(&self, name: &str) -> Result<Shown> {
        let record = match self.find(name) {
            Ok(record) => record,
            Err(error) => self.discover(name).ok_or(error)?,
        };
        self.show_record(record)
    }

    /// The same for a record.
    pub fn show_record(&self, record: VolumeRecord) -> Result<Shown> {
        if record.driver == LOCAL {
            return Ok(self.show_local(record));
        }
        let driver = self.drivers.get(&record.driver)?;
        let described = self
            .drivers
            .ask(&driver, |driver| driver.find(&record.name))?;
        let described = described.ok_or_else(|| super::no_such_volume(&record.name))?;
        Ok(Shown::new(record, &driver, described))
    }

    fn show_local(&self, record: VolumeRecord) -> Shown {
        Shown {
            mountpoint: self.path(&record.name),
            record,
            created_at: String::new(),
            scope: LOCAL,
            status: None,
        }
    }

    /// All volumes that match, also those that only plugins know, and what went wrong when they
    /// were asked. Blocks.
    ///
    /// # Errors
    /// A filter's value that makes no sense.
    pub fn show_all(&self, filters: &Filters) -> Result<(Vec<Shown>, Vec<String>)> {
        let mut warnings = Vec::new();
        let mut shown: BTreeMap<String, Shown> = BTreeMap::new();
        for record in self.list(filters)? {
            // As far as it is known here; its plugin may say more.
            let scope = self
                .drivers
                .known()
                .get(&record.driver)
                .map_or(LOCAL, |driver| driver.scope);
            shown.insert(
                record.name.clone(),
                Shown {
                    scope,
                    ..self.show_local(record)
                },
            );
        }
        let (none, dangling) = (BTreeMap::new(), filters.flag("dangling")?);
        for driver in self.drivers.all() {
            let listed = match self.drivers.ask(&driver, Driver::list) {
                Ok(listed) => listed,
                Err(error) => {
                    warnings.push(format!("list {}: {error}", driver.name()));
                    continue;
                }
            };
            shown.retain(|name, one| {
                one.record.driver != driver.name()
                    || listed.iter().any(|described| described.name == *name)
            });
            for described in listed {
                let name = described.name.clone();
                let known = match self.find(&name) {
                    // Another driver's.
                    Ok(record) if record.driver != driver.name() => continue,
                    // Matched already, or did not.
                    Ok(record) => shown.remove(&name).map(|_| record),
                    Err(_) => {
                        let record = VolumeRecord {
                            name: name.clone(),
                            driver: driver.name().to_owned(),
                            ..VolumeRecord::default()
                        };
                        Some(record).filter(|record| {
                            dangling != Some(false) && super::matches(filters, record, &none)
                        })
                    }
                };
                if let Some(record) = known {
                    // A list has no place for what each plugin may have to say.
                    shown.insert(
                        name,
                        Shown {
                            status: None,
                            ..Shown::new(record, &driver, described)
                        },
                    );
                }
            }
        }
        Ok((shown.into_values().collect(), warnings))
    }

    /// Looks for a volume with all plugins, and takes note of it.
    pub(super) fn discover(&self, name: &str) -> Option<VolumeRecord> {
        if name.is_empty() || self.drivers.is_empty() {
            return None;
        }
        for driver in self.drivers.all() {
            if let Ok(Some(_)) = self.drivers.ask(&driver, |driver| driver.find(name)) {
                let record = VolumeRecord {
                    name: name.to_owned(),
                    driver: driver.name().to_owned(),
                    ..VolumeRecord::default()
                };
                return self.take_note(record).ok();
            }
        }
        None
    }

    /// Forgets a volume that nobody uses and that its plugin does not have any more.
    pub(super) fn forget_if_gone(&self, name: &str) -> Result<()> {
        let is_idle = |volume: &Volume| {
            volume.record.driver != LOCAL && volume.users.is_empty() && volume.running.is_empty()
        };
        let Some(record) = self
            .state()
            .get(name)
            .filter(|volume| is_idle(volume))
            .map(|volume| volume.record.clone())
        else {
            return Ok(());
        };
        let there = self
            .drivers
            .get(&record.driver)
            .and_then(|driver| self.drivers.ask(&driver, |driver| driver.find(name)));
        // One that does not answer may have it.
        if let Ok(None) = there {
            let mut state = self.state_mut();
            if state.get(name).is_some_and(is_idle) {
                self.store.delete_volume(&record)?;
                state.remove(name);
            }
        }
        Ok(())
    }

    /// Makes a volume by a plugin, unless the plugin has it.
    pub(super) fn create_by_plugin(&self, request: CreateVolume) -> Result<VolumeRecord> {
        let CreateVolume {
            name,
            driver,
            options,
            labels,
            passing: _,
        } = request;
        let anonymous = name.is_empty();
        let name = if anonymous {
            random_names::random_id()
        } else {
            name
        };
        let wrong = |error: Error| error.prefixed(&format!("create {name}"));
        super::check_name(&name).map_err(wrong)?;
        let driver = self.drivers.get(&driver).map_err(wrong)?;
        // A plugin that fails to look may still be able to make one.
        let there = self
            .drivers
            .ask(&driver, |driver| driver.find(&name))
            .unwrap_or_default();
        if there.is_none() {
            self.drivers
                .ask(&driver, |driver| driver.create(&name, &options))
                .map_err(wrong)?;
        }
        let mut record = super::record(
            name.clone(),
            driver.name().to_owned(),
            options,
            labels,
            anonymous,
        );
        record.created_at = now();
        self.take_note(record)
    }

    fn take_note(&self, record: VolumeRecord) -> Result<VolumeRecord> {
        let mut state = self.state_mut();
        if let Some(volume) = state.get(&record.name) {
            return Ok(volume.record.clone());
        }
        self.store.put_volume(&record)?;
        self.store.keep([]);
        state.insert(
            record.name.clone(),
            Volume {
                record: record.clone(),
                ..Volume::default()
            },
        );
        drop(state);
        self.publish(&record, "create", &[]);
        Ok(record)
    }

    /// Has a volume's plugin make its content available for `user`. The volume's gate is held.
    pub(super) fn mount_by_plugin(&self, record: &VolumeRecord, user: &str) -> Result<()> {
        let failed = |error: Error| {
            error.prefixed(&format!(
                "error while mounting volume '{}'",
                self.path(&record.name).display()
            ))
        };
        let driver = self.drivers.get(&record.driver).map_err(failed)?;
        // Noted first: whatever ends this engine, the next one knows what to take back.
        self.note(&record.name, |record| {
            record.mounts.insert(user.to_owned());
        })
        .map_err(failed)?;
        let mut refused = false;
        let mounted = self.drivers.ask(&driver, |driver| {
            driver
                .mount(&record.name, user)
                .inspect_err(|error| refused = matches!(error, whelk_plugin::Error::Refused(_)))
        });
        match mounted {
            Ok(mountpoint) => {
                let noted = self.note(&record.name, |record| record.mountpoint = mountpoint);
                noted
                    .inspect_err(|_| self.unmount_by_plugin(record, user))
                    .map_err(failed)
            }
            Err(error) => {
                // One that did not answer may have mounted it all the same.
                if refused {
                    self.note_unmounted(record, user);
                }
                Err(failed(error))
            }
        }
    }

    /// Takes that back. A plugin that does not answer is asked again by the next engine.
    pub(super) fn unmount_by_plugin(&self, record: &VolumeRecord, user: &str) {
        let unmounted = self.drivers.get(&record.driver).and_then(|driver| {
            self.drivers
                .ask(&driver, |driver| match driver.unmount(&record.name, user) {
                    Err(error @ whelk_plugin::Error::Refused(_)) => {
                        tracing::warn!(volume = record.name, "error unmounting volume: {error}");
                        Ok(())
                    }
                    outcome => outcome,
                })
        });
        match unmounted {
            Ok(()) => self.note_unmounted(record, user),
            Err(error) => tracing::warn!(volume = record.name, "error unmounting volume: {error}"),
        }
    }

    fn note_unmounted(&self, record: &VolumeRecord, user: &str) {
        let noted = self.note(&record.name, |record| {
            record.mounts.remove(user);
            if record.mounts.is_empty() {
                record.mountpoint = PathBuf::new();
            }
        });
        if let Err(error) = noted {
            tracing::warn!(
                volume = record.name,
                "note that it is not mounted any more: {error}"
            );
        }
    }

    /// Has plugins take back what an engine that was killed has left mounted, while nobody waits
    /// for it.
    pub(super) fn settle_plugins(self: &Arc<Self>, records: &[VolumeRecord]) {
        for record in records
            .iter()
            .filter(|record| !self.left_mounted(record).is_empty())
        {
            let (volumes, name) = (self.clone(), record.name.clone());
            std::thread::spawn(move || {
                let Ok(gate) = volumes.gate(&name) else {
                    return;
                };
                let _gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
                // As it is by now.
                let Ok(record) = volumes.find(&name) else {
                    return;
                };
                volumes
                    .left_mounted(&record)
                    .iter()
                    .for_each(|user| volumes.unmount_by_plugin(&record, user));
            });
        }
    }

    /// For whom a plugin has mounted a volume, as far as is known, that do not use it.
    fn left_mounted(&self, record: &VolumeRecord) -> Vec<String> {
        let running = self.running(&record.name);
        record
            .mounts
            .iter()
            .filter(|user| !running.contains(user))
            .cloned()
            .collect()
    }

    /// Changes what is known of a volume, for good.
    fn note(&self, name: &str, change: impl FnOnce(&mut VolumeRecord)) -> Result<()> {
        let mut state = self.state_mut();
        // One that is gone by now has nothing to be known.
        let Some(volume) = state.get_mut(name) else {
            return Ok(());
        };
        let mut record = volume.record.clone();
        change(&mut record);
        self.store.put_volume(&record)?;
        volume.record = record;
        Ok(())
    }

    /// Has a volume's plugin remove it.
    pub(super) fn remove_by_plugin(&self, record: &VolumeRecord) -> Result<()> {
        let removed = self.drivers.get(&record.driver).and_then(|driver| {
            self.drivers
                .ask(&driver, |driver| driver.remove(&record.name))
        });
        removed.map_err(|error| error.prefixed(&format!("remove {}", record.name)))
    }
}
