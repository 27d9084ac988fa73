//! A volume driver for the engine's own tests, which keeps nothing but the state of its volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use whelk_sys::sync::IgnorePoison as _;

use super::{Created, VolumeDriver, VolumeRecord};
use crate::error::{Error, Result};
use crate::volumes::Volumes;

/// The volumes of the driver, each with the users that it is mounted for.
#[derive(Debug)]
pub(crate) struct FakeVolumes {
    /// The path at which all of them are mounted.
    mountpoint: PathBuf,
    volumes: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// The method that fails.
    broken: Mutex<Option<&'static str>>,
}

impl FakeVolumes {
    /// The driver's name.
    pub(crate) const NAME: &str = "fake";

    pub(crate) fn new(mountpoint: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            mountpoint,
            volumes: Mutex::default(),
            broken: Mutex::default(),
        })
    }

    /// Adds a volume that the engine does not know.
    pub(crate) fn add(&self, name: &str) {
        self.volumes().insert(name.to_owned(), BTreeSet::new());
    }

    /// Lets a method fail from now on, or none.
    pub(crate) fn break_method(&self, method: Option<&'static str>) {
        *self.broken.lock().ignore_poison() = method;
    }

    /// Returns the names of the volumes and the number of users that each is mounted for.
    pub(crate) fn list(&self) -> Vec<(String, usize)> {
        let volumes = self.volumes();
        let entries = volumes
            .iter()
            .map(|(name, users)| (name.clone(), users.len()));
        entries.collect()
    }

    fn volumes(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<String>>> {
        self.volumes.lock().ignore_poison()
    }

    fn call(&self, method: &str) -> Result<()> {
        if *self.broken.lock().ignore_poison() == Some(method) {
            return Err(Error::internal(format!("{method} is broken")));
        }
        Ok(())
    }
}

impl VolumeDriver for FakeVolumes {
    fn check(&self, _options: &BTreeMap<String, String>) -> Result<()> {
        Ok(())
    }

    fn create(&self, record: &VolumeRecord) -> Result<Created> {
        self.call("create")?;
        let mut volumes = self.volumes();
        let is_new = !volumes.contains_key(&record.name);
        volumes.entry(record.name.clone()).or_default();
        Ok(Created::Published { is_new })
    }

    fn mount(&self, record: &VolumeRecord, user: &str) -> Result<PathBuf> {
        self.call("mount")?;
        let mut volumes = self.volumes();
        let users = volumes.get_mut(&record.name);
        let users = users.ok_or_else(|| Error::NotFound(record.name.clone()))?;
        users.insert(user.to_owned());
        Ok(self.mountpoint.clone())
    }

    fn unmount(&self, record: &VolumeRecord, user: &str, _is_last: bool) -> Result<()> {
        self.call("unmount")?;
        if let Some(users) = self.volumes().get_mut(&record.name) {
            users.remove(user);
        }
        Ok(())
    }

    fn release(&self, record: &VolumeRecord) -> Result<()> {
        self.call("release")?;
        self.volumes().remove(&record.name);
        Ok(())
    }

    fn delete(&self, _record: &VolumeRecord) -> Result<()> {
        self.call("delete")
    }
}

impl Volumes {
    /// Adds a driver. An engine has at most one.
    pub(crate) fn add_fake(&self, driver: Arc<FakeVolumes>) {
        let added = self.drivers.fake.set((FakeVolumes::NAME.into(), driver));
        assert!(added.is_ok(), "there is a fake driver already");
    }
}
