//! What containers have to do with volumes.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use whelk_sys::{errno_text, fs, in_root};

use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::model::{Config, HostConfig, Record};
use crate::mounts::{self, MountPlan, Source, VolumeUse};

impl Containers {
    /// All that a new container mounts. Volumes that are missing are made, and all are kept for it from here on:
    /// [`Containers::release_volumes`] takes that back.
    pub(super) fn resolve_mounts(&self, id: &str, config: &Config, host: &HostConfig) -> Result<Vec<MountPlan>> {
        let mut plans = Vec::new();
        for from in host.volumes_from.iter().flatten() {
            let (name, read_only) = mounts::parse_volumes_from(from)?;
            // Not a "not found": clients take that for a missing image, and pull it.
            let donor = self.find(name).map_err(|error| Error::invalid(error.to_string()))?;
            let mounts = donor.record().mounts.clone();
            for mut plan in mounts {
                if plan.source == Source::Tmpfs {
                    continue;
                }
                if read_only == Some(true) && !plan.read_only {
                    plan.read_only = true;
                    plan.options.extend(["ro", "rro"].map(str::to_owned));
                }
                put(&mut plans, plan);
            }
        }
        for plan in mounts::plan(host)? {
            put(&mut plans, plan);
        }
        for target in config.volumes.iter().flat_map(|volumes| volumes.keys()) {
            let plan = MountPlan::anonymous(target)?;
            if !plans.iter().any(|other| other.target == plan.target) {
                plans.push(plan);
            }
        }
        mounts::sort(&mut plans);
        for index in 0..plans.len() {
            if let Source::Volume(volume) = &mut plans[index].source
                && let Err(error) = self.take_volume(id, volume)
            {
                self.release_volumes(id, &plans[..index], true);
                return Err(error);
            }
        }
        Ok(plans)
    }

    fn take_volume(&self, id: &str, volume: &mut VolumeUse) -> Result<()> {
        let mut make = std::mem::take(&mut volume.make);
        if make.name.is_empty() {
            // One of `--volumes-from` has its name already.
            make.name.clone_from(&volume.name);
        }
        volume.anonymous = make.name.is_empty() || volume.anonymous;
        volume.name = match self.volumes.create_for(make, Some(id)) {
            // Likewise.
            Err(Error::NotFound(text)) => return Err(Error::Invalid(text)),
            made => made?.name,
        };
        Ok(())
    }

    /// A container does not use its volumes any more; `anonymous` ones that nobody uses now go as well.
    pub(super) fn release_volumes(&self, id: &str, plans: &[MountPlan], anonymous: bool) {
        for volume in plans.iter().filter_map(MountPlan::volume) {
            self.volumes.release(&volume.name, id);
            if anonymous && volume.anonymous {
                self.volumes.remove_anonymous(&volume.name);
            }
        }
    }

    /// Gives empty volumes what the image has at their place.
    pub(super) async fn fill_volumes(self: &Arc<Self>, record: &Record) -> Result<()> {
        let fills: Vec<(String, String)> = record
            .mounts
            .iter()
            .filter_map(|plan| plan.volume().filter(|volume| volume.copy).map(|volume| (volume.name.clone(), plan.target.clone())))
            .collect();
        if fills.is_empty() || record.image.is_empty() {
            return Ok(());
        }
        let layers = self.layers(&record.image)?;
        let volumes = self.volumes.clone();
        tokio::task::spawn_blocking(move || fills.iter().try_for_each(|(name, target)| volumes.fill(name, &layers, target)))
            .await
            .map_err(|error| Error::internal(error.to_string()))?
    }

    /// Makes what a container is about to mount ready.
    pub(super) fn enter_mounts(&self, record: &Record) -> Result<()> {
        for plan in &record.mounts {
            match &plan.source {
                Source::Bind { path, create: true } if !fs::exists(path) => fs::create_dir_all(path, 0o755)?,
                Source::Volume(volume) => {
                    let details = [
                        ("destination", plan.target.clone()),
                        ("read/write", (!plan.read_only).to_string()),
                        ("propagation", plan.propagation.clone()),
                    ];
                    self.volumes.enter(&volume.name, &record.id, &details)?;
                    check_subpath(&self.volumes.path(&volume.name), &volume.subpath)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A container has ended, or could not be started.
    pub(super) fn leave_mounts(&self, container: &Container) {
        let names: Vec<String> =
            container.record().mounts.iter().filter_map(|plan| plan.volume().map(|volume| volume.name.clone())).collect();
        for name in names {
            self.volumes.leave(&name, &container.id);
        }
    }

    /// Notes at recovery which volumes a container uses.
    pub(super) fn adopt_volumes(&self, container: &Container, runs: bool) {
        let record = container.record().clone();
        for volume in record.mounts.iter().filter_map(MountPlan::volume) {
            self.volumes.adopt(&volume.name, &container.id, runs);
        }
    }
}

/// A later mount takes an earlier one's place.
fn put(plans: &mut Vec<MountPlan>, plan: MountPlan) {
    plans.retain(|other| other.target != plan.target);
    plans.push(plan);
}

/// The runtime resolves the path again, as safely; here a missing one is told in the words that users know.
fn check_subpath(volume: &PathBuf, subpath: &str) -> Result<()> {
    if subpath.is_empty() {
        return Ok(());
    }
    let directory = fs::open(volume)?;
    in_root::open(&directory, subpath, OFlags::PATH, Mode::empty()).map(drop).map_err(|error| {
        let path = volume.join(subpath);
        Error::invalid(format!("cannot access path {path}: lstat {path}: {}", errno_text(&error), path = path.display()))
    })
}
