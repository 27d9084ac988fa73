//! Describes volumes for clients, with the status that their drivers report.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::drivers::{Described, Plugin};
use super::{LOCAL, Volume, VolumeRecord, Volumes};
use crate::error::Result;
use crate::filters::Filters;

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
    fn new(record: VolumeRecord, driver: &Plugin, described: Described) -> Self {
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
            .chain(self.drivers.plugins().names())
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
        if record.is_local() {
            return Ok(self.show_local(record));
        }
        let driver = self.drivers.plugins().get(record.driver.as_str())?;
        let described = driver.find(&record.name)?;
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
            let scope = self.drivers.plugins().known_scope(record.driver.as_str());
            shown.insert(
                record.name.clone(),
                VolumeDetails {
                    scope: scope.unwrap_or(LOCAL),
                    ..self.show_local(record)
                },
            );
        }
        let (none, dangling) = (BTreeMap::new(), filters.flag("dangling")?);
        for driver in self.drivers.plugins().all() {
            let listed = match driver.list() {
                Ok(listed) => listed,
                Err(error) => {
                    warnings.push(format!("list {}: {error}", driver.name()));
                    continue;
                }
            };
            shown.retain(|name, one| {
                one.record.driver.as_str() != driver.name()
                    || listed.iter().any(|described| described.name == *name)
            });
            for described in listed {
                let name = described.name.clone();
                let known = match self.find(&name) {
                    // The name belongs to another driver's volume.
                    Ok(record) if record.driver.as_str() != driver.name() => continue,
                    // The filters were applied to known volumes above.
                    Ok(record) => shown.remove(&name).map(|_| record),
                    Err(_) => {
                        let record = VolumeRecord {
                            name: name.clone(),
                            driver: driver.name().into(),
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
        if name.is_empty() || self.drivers.plugins().is_empty() {
            return None;
        }
        for driver in self.drivers.plugins().all() {
            if let Ok(Some(_)) = driver.find(name) {
                let record = VolumeRecord {
                    name: name.to_owned(),
                    driver: driver.name().into(),
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
            !volume.record.is_local() && volume.users.is_empty() && volume.running.is_empty()
        };
        let Some(record) = self
            .state()
            .get(name)
            .filter(|volume| is_idle(volume))
            .map(|volume| volume.record.clone())
        else {
            return Ok(());
        };
        let there = self.drivers.plugins().find(record.driver.as_str(), name);
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
}
