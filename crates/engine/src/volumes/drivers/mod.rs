//! Volume drivers: where the content of volumes is kept.
//!
//! A driver knows neither the users of a volume nor its record: [`Volumes`](super::Volumes) does.
//! The tests in `contract` are what every driver must pass.

#[cfg(test)]
mod contract;
#[cfg(test)]
pub(in crate::volumes) mod fake;
mod local;
mod plugin;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use whelk_plugin::SearchPaths;

pub(super) use local::{Local, delete_directory, delete_stray, is_mount_point, is_temporary};
pub(super) use plugin::{Described, Plugin};

use local::Staged;
use plugin::Plugins;

use super::{VolumeDriverName, VolumeRecord};
use crate::error::{Error, Result};

/// Keeps the content of volumes. All methods may block, as long as a remote server takes to answer.
pub(super) trait VolumeDriver: fmt::Debug + Send + Sync {
    /// Checks the options of a new volume.
    ///
    /// # Errors
    /// Returns an error if an option is unknown, invalid, or requires another that is missing.
    fn check(&self, options: &BTreeMap<String, String>) -> Result<()>;

    /// Creates a volume's content. A driver that has a volume with this name already leaves its
    /// content as it is.
    fn create(&self, record: &VolumeRecord) -> Result<Created>;

    /// Makes a volume's content available to `user`, who may have it already, and returns its path.
    ///
    /// # Errors
    /// An [`Error::Unavailable`] leaves open whether the volume is mounted: the driver did not
    /// answer, and has to be asked to unmount it.
    fn mount(&self, record: &VolumeRecord, user: &str) -> Result<PathBuf>;

    /// Reverses [`VolumeDriver::mount`], also of an earlier engine; does nothing if the volume is
    /// not mounted for `user`. `is_last` is whether nobody else uses the volume.
    fn unmount(&self, record: &VolumeRecord, user: &str, is_last: bool) -> Result<()>;

    /// Begins the removal of an unused volume: does what can take long or can be refused. Needed
    /// only for volumes that are [elsewhere](VolumeRecord::is_elsewhere).
    fn release(&self, record: &VolumeRecord) -> Result<()>;

    /// Ends a removal, quickly. Content that is gone already is not an error.
    fn delete(&self, record: &VolumeRecord) -> Result<()>;
}

/// The content of a new volume.
#[derive(Debug)]
pub(super) enum Created {
    /// Complete, under a temporary name; deleted when dropped before it is published.
    Staged(Staged),
    /// With the driver, under its name.
    Published {
        /// Whether the driver has created it now; else it had it already.
        is_new: bool,
    },
}

impl Created {
    /// Gives the content its name.
    ///
    /// # Errors
    /// Returns an error if there is content without a volume under that name.
    pub(super) fn publish(&self) -> Result<()> {
        match self {
            Self::Staged(staged) => staged.publish(),
            Self::Published { .. } => Ok(()),
        }
    }

    /// Reverses [`Created::publish`]. What the driver has created under its name is removed by the
    /// driver.
    pub(super) fn withdraw(&self) -> Result<()> {
        match self {
            Self::Staged(staged) => staged.withdraw(),
            Self::Published { .. } => Ok(()),
        }
    }
}

/// The drivers of an engine.
#[derive(Debug)]
pub(super) struct Drivers {
    pub(super) local: Arc<Local>,
    plugins: Plugins,
    /// A driver that a test has added, with its name.
    #[cfg(test)]
    pub(super) fake: std::sync::OnceLock<(String, Arc<dyn VolumeDriver>)>,
}

impl Drivers {
    pub(super) fn new(directory: PathBuf, search_paths: SearchPaths) -> Self {
        Self {
            local: Arc::new(Local::new(directory)),
            plugins: Plugins::new(search_paths),
            #[cfg(test)]
            fake: std::sync::OnceLock::new(),
        }
    }

    /// Returns a driver. A plugin is activated at its first use.
    ///
    /// # Errors
    /// Returns an error if there is no such plugin, or it does not answer as a volume driver.
    pub(super) fn get(&self, name: &VolumeDriverName) -> Result<Arc<dyn VolumeDriver>> {
        #[cfg(test)]
        if let Some((_, fake)) = self.fake.get().filter(|(own, _)| own == name.as_str()) {
            return Ok(fake.clone());
        }
        match name {
            VolumeDriverName::Local => Ok(self.local.clone()),
            VolumeDriverName::Plugin(name) => Ok(self.plugins.get(name)?),
        }
    }

    /// Returns the plugins, which know volumes that the engine has no record of.
    pub(super) fn plugins(&self) -> &Plugins {
        &self.plugins
    }
}

/// Prefixes an error in creating a volume.
fn creating(name: &str) -> impl Fn(Error) -> Error {
    move |error| error.prefixed(&format!("create {name}"))
}
