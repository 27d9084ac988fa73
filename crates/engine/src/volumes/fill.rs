//! Fills a volume with an image's content at its first use.

use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use whelk_sys::sync::IgnorePoison as _;
use whelk_sys::{fs, in_root};

use super::Volumes;
use crate::error::{Error, Result};
use crate::random_names;

impl Volumes {
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
}
