//! Volumes of plugins that implement `VolumeDriver`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use whelk_sys::sync::IgnorePoison as _;

use serde::Deserialize;
use serde_json::{Value, json};
use whelk_plugin::{Plugin, SearchPaths};

use super::{CreateVolume, LOCAL, Volume, VolumeRecord, Volumes};
use crate::error::{Error, Result};
use crate::events::now;
use crate::filters::Filters;
use crate::random_names;

/// How long a plugin may take to answer a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a plugin may take to create, mount, unmount or remove a volume.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);

/// The volume plugins that have been activated.
#[derive(Debug)]
pub(super) struct Drivers {
    search_paths: SearchPaths,
    known: Mutex<BTreeMap<String, Arc<Driver>>>,
}

#[derive(Debug)]
pub(super) struct Driver {
    plugin: Plugin,
    pub scope: &'static str,
}

/// A volume in a plugin's answer.
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

/// Deserializes `null`, as which Go encodes missing values, to the default.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    value: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

impl Drivers {
    pub(super) fn new(search_paths: SearchPaths) -> Self {
        Self {
            search_paths,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Driver>>> {
        self.known.lock().ignore_poison()
    }

    /// Returns a driver by name, and activates it at its first use.
    ///
    /// # Errors
    /// Returns an error if there is no such plugin, or it does not answer as a volume driver.
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
            .search_paths
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
        // Older plugins do not implement this call.
        let answer: Answer = plugin
            .call("VolumeDriver.Capabilities", &json!({}), QUERY_TIMEOUT)
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

    /// Returns all volume drivers that can be discovered, and those that were used before.
    pub(super) fn all(&self) -> Vec<Arc<Driver>> {
        for name in self.search_paths.names() {
            if let Err(error) = self.get(&name) {
                tracing::debug!("{error}");
            }
        }
        self.known().values().cloned().collect()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.known().keys().cloned().collect()
    }

    /// Returns whether there are no plugins at all.
    pub(super) fn is_empty(&self) -> bool {
        self.known().is_empty() && self.search_paths.names().is_empty()
    }

    /// Forgets a driver that cannot be reached: it may return at another address, or with other
    /// capabilities.
    fn forget(&self, driver: &Driver) {
        self.known().remove(driver.name());
    }

    /// Calls a plugin. One that fails to answer is activated again at its next use.
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

    /// Returns the plugin's volume with this name, or `None` if the plugin answers with an error.
    pub(super) fn find(&self, name: &str) -> whelk_plugin::Result<Option<Described>> {
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Answer {
            volume: Option<Described>,
        }
        match self
            .plugin
            .call("VolumeDriver.Get", &json!({"Name": name}), QUERY_TIMEOUT)
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
        let answer: Answer = self
            .plugin
            .call("VolumeDriver.List", &json!({}), QUERY_TIMEOUT)?;
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
                CHANGE_TIMEOUT,
            )
            .map(drop)
    }

    pub(super) fn remove(&self, name: &str) -> whelk_plugin::Result<()> {
        self.plugin
            .call::<Value>(
                "VolumeDriver.Remove",
                &json!({"Name": name}),
                CHANGE_TIMEOUT,
            )
            .map(drop)
    }

    /// Makes the plugin mount a volume for the user `id` and returns the mount point.
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
            .call("VolumeDriver.Mount", &body, CHANGE_TIMEOUT)
            .and_then(|Answer { mountpoint }| {
                let text = || {
                    format!(
                        "plugin {}: mountpoint {mountpoint:?} is not an absolute path",
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
            // It may have mounted the volume nevertheless.
            drop(
                self.plugin
                    .call::<Value>("VolumeDriver.Unmount", &body, QUERY_TIMEOUT),
            );
        }
        mounted
    }

    pub(super) fn unmount(&self, name: &str, id: &str) -> whelk_plugin::Result<()> {
        self.plugin
            .call::<Value>(
                "VolumeDriver.Unmount",
                &json!({"Name": name, "ID": id}),
                CHANGE_TIMEOUT,
            )
            .map(drop)
    }
}

/// A volume with its driver's status, for `inspect` and lists.
#[derive(Clone, Debug)]
pub struct VolumeDetails {
    pub record: VolumeRecord,
    pub mountpoint: PathBuf,
    /// The plugin's creation time, or empty.
    pub created_at: String,
    pub scope: &'static str,
    /// The plugin's status.
    pub status: Option<Value>,
}

impl VolumeDetails {
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
    /// Returns the names of the built-in driver and of the plugins that have been used.
    pub fn drivers(&self) -> Vec<String> {
        [LOCAL.to_owned()]
            .into_iter()
            .chain(self.drivers.names())
            .collect()
    }

    /// Returns everything about a volume, with its plugin's status. A volume that the engine does
    /// not know is searched in all plugins. Blocks.
    ///
    /// # Errors
    /// Returns an error if there is no volume with this name.
    pub fn show(&self, name: &str) -> Result<VolumeDetails> {
        let record = match self.find(name) {
            Ok(record) => record,
            Err(error) => self.discover(name).ok_or(error)?,
        };
        self.show_record(record)
    }

    /// Like [`Volumes::show`], for a known record.
    pub fn show_record(&self, record: VolumeRecord) -> Result<VolumeDetails> {
        if record.driver == LOCAL {
            return Ok(self.show_local(record));
        }
        let driver = self.drivers.get(&record.driver)?;
        let described = self
            .drivers
            .ask(&driver, |driver| driver.find(&record.name))?;
        let described = described.ok_or_else(|| super::no_such_volume(&record.name))?;
        Ok(VolumeDetails::new(record, &driver, described))
    }

    fn show_local(&self, record: VolumeRecord) -> VolumeDetails {
        VolumeDetails {
            mountpoint: self.path(&record.name),
            record,
            created_at: String::new(),
            scope: LOCAL,
            status: None,
        }
    }

    /// Returns all volumes that match, including those that only plugins know, and warnings about
    /// plugins that could not be queried. Blocks.
    ///
    /// # Errors
    /// Returns an error if a filter's value is invalid.
    pub fn show_all(&self, filters: &Filters) -> Result<(Vec<VolumeDetails>, Vec<String>)> {
        let mut warnings = Vec::new();
        let mut shown: BTreeMap<String, VolumeDetails> = BTreeMap::new();
        for record in self.list(filters)? {
            // The known scope; the plugin's answer may replace it below.
            let scope = self
                .drivers
                .known()
                .get(&record.driver)
                .map_or(LOCAL, |driver| driver.scope);
            shown.insert(
                record.name.clone(),
                VolumeDetails {
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
                    // The name belongs to another driver's volume.
                    Ok(record) if record.driver != driver.name() => continue,
                    // The filters were applied to known volumes above.
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
                    // A list contains no plugin status.
                    shown.insert(
                        name,
                        VolumeDetails {
                            status: None,
                            ..VolumeDetails::new(record, &driver, described)
                        },
                    );
                }
            }
        }
        Ok((shown.into_values().collect(), warnings))
    }

    /// Searches a volume in all plugins and registers it.
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
                return self.register(record).ok();
            }
        }
        None
    }

    /// Removes the record of an unused volume that its plugin no longer has.
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
        // A plugin that does not answer may still have it.
        if let Ok(None) = there {
            let mut state = self.state_mut();
            if state.get(name).is_some_and(is_idle) {
                self.store.delete_volume(&record)?;
                state.remove(name);
            }
        }
        Ok(())
    }

    /// Creates a plugin's volume, unless the plugin has it already.
    pub(super) fn create_by_plugin(&self, request: CreateVolume) -> Result<VolumeRecord> {
        let CreateVolume {
            name,
            driver,
            options,
            labels,
            ephemeral: _,
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
        // A plugin that fails to look it up may still be able to create it.
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
        self.register(record)
    }

    /// Stores the record of a plugin's volume, unless it has one.
    fn register(&self, record: VolumeRecord) -> Result<VolumeRecord> {
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

    /// Makes a volume's plugin mount it for `user`. The caller holds the volume's `mount_lock`.
    pub(super) fn mount_by_plugin(&self, record: &VolumeRecord, user: &str) -> Result<()> {
        let failed = |error: Error| {
            error.prefixed(&format!(
                "error while mounting volume '{}'",
                self.path(&record.name).display()
            ))
        };
        let driver = self.drivers.get(&record.driver).map_err(failed)?;
        // Recorded before the call: if the engine is killed, the next one knows what to unmount.
        self.update_record(&record.name, |record| {
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
                let noted =
                    self.update_record(&record.name, |record| record.mountpoint = mountpoint);
                noted
                    .inspect_err(|_| self.unmount_by_plugin(record, user))
                    .map_err(failed)
            }
            Err(error) => {
                // A plugin that did not answer may have mounted it nevertheless.
                if refused {
                    self.record_unmounted(record, user);
                }
                Err(failed(error))
            }
        }
    }

    /// Reverses `mount_by_plugin`. A plugin that does not answer is called again when the engine
    /// starts the next time.
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

    /// Makes plugins unmount, in the background, what a killed engine left mounted.
    pub(super) fn unmount_stale_plugin_mounts(self: &Arc<Self>, records: &[VolumeRecord]) {
        for record in records
            .iter()
            .filter(|record| !self.stale_users(record).is_empty())
        {
            let (volumes, name) = (self.clone(), record.name.clone());
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
                    .for_each(|user| volumes.unmount_by_plugin(&record, user));
            });
        }
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

    /// Makes a volume's plugin remove it.
    pub(super) fn remove_by_plugin(&self, record: &VolumeRecord) -> Result<()> {
        let removed = self.drivers.get(&record.driver).and_then(|driver| {
            self.drivers
                .ask(&driver, |driver| driver.remove(&record.name))
        });
        removed.map_err(|error| error.prefixed(&format!("remove {}", record.name)))
    }
}
