//! What containers have to do with volumes.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use whelk_runtime::spec::{IdMapping, Mount};
use whelk_runtime::user::UserRequest;
use whelk_sys::{errno_text, fs, in_root};

use super::{Container, Containers, files};
use crate::error::{Error, Result};
use crate::images::Pin;
use crate::model::{Config, HostConfig, Record, Status};
use crate::mounts::{self, ImageUse, MountPlan, Source, VolumeUse};
use crate::volumes::VolumeRecord;

/// A copy of a volume to be made.
#[derive(Clone, Debug, Default)]
pub struct CopyVolume {
    pub source: String,
    pub name: String,
    /// Beside those of the source.
    pub labels: BTreeMap<String, String>,
    /// Only to be read.
    pub snapshot: bool,
    pub pause: bool,
}

impl Containers {
    /// All that a new container mounts. Volumes that are missing are made, and all are kept for it
    /// from here on: [`Containers::release_volumes`] takes that back. Images are kept by the pins
    /// until a record says so.
    pub(super) fn resolve_mounts(
        &self,
        id: &str,
        config: &Config,
        host: &HostConfig,
    ) -> Result<(Vec<MountPlan>, Vec<Pin>)> {
        let (mut plans, mut places, mut pins) = (Vec::new(), HashMap::new(), Vec::new());
        for from in host.volumes_from.iter().flatten() {
            let (name, read_only) = mounts::parse_volumes_from(from)?;
            // Not a "not found": clients take that for a missing image, and pull it.
            let donor = self
                .find(name)
                .map_err(|error| Error::invalid(error.to_string()))?;
            let mounts = donor.record().mounts.clone();
            for mut plan in mounts {
                if plan.source == Source::Tmpfs {
                    continue;
                }
                if read_only == Some(true) {
                    plan.make_read_only();
                }
                if let Source::Volume(volume) = &mut plan.source {
                    // It got its content with its first container; what is empty by now is so on
                    // purpose.
                    volume.copy = false;
                }
                put(&mut plans, &mut places, plan);
            }
        }
        for plan in mounts::plan(host, &self.instance.root)? {
            put(&mut plans, &mut places, plan);
        }
        for target in config.volumes.iter().flat_map(|volumes| volumes.keys()) {
            let plan = MountPlan::anonymous(target, &host.volume_driver)?;
            if !places.contains_key(&plan.target) {
                put(&mut plans, &mut places, plan);
            }
        }
        mounts::sort(&mut plans);
        for index in 0..plans.len() {
            let mut must_be_read_only = false;
            let taken = match &mut plans[index].source {
                Source::Volume(volume) => self
                    .take_volume(id, volume, host.auto_remove)
                    .map(|is_snapshot| must_be_read_only = is_snapshot),
                Source::Image(image) => self.pin_image(image).map(|pin| pins.push(pin)),
                Source::Bind { .. } | Source::Tmpfs => Ok(()),
            };
            if must_be_read_only {
                plans[index].make_read_only();
            }
            if let Err(error) = taken {
                self.release_volumes(id, &plans[..index], true);
                return Err(error);
            }
        }
        Ok((plans, pins))
    }

    /// An image that a container mounts; one of `--volumes-from` is the one that its donor has,
    /// whatever has its name by now.
    fn pin_image(&self, image: &mut ImageUse) -> Result<Pin> {
        let is_inherited = !image.id.is_empty();
        let pinned = self
            .images
            .pin(if is_inherited { &image.id } else { &image.name });
        let (found, pin) = pinned.map_err(|error| match error {
            // Clients would take that for the container's own image, and pull it.
            Error::NotFound(text) if is_inherited => Error::Invalid(text),
            error => error,
        })?;
        image.id = found.id.to_string();
        Ok(pin)
    }

    /// The same where it may block: volumes may be other programs' to make.
    pub(super) async fn resolve_mounts_aside(
        self: &Arc<Self>,
        id: &str,
        config: &Config,
        host: &HostConfig,
    ) -> Result<(Vec<MountPlan>, Vec<Pin>)> {
        if host.binds.is_none()
            && host.mounts.is_none()
            && host.volumes_from.is_none()
            && config.volumes.is_none()
        {
            return self.resolve_mounts(id, config, host);
        }
        let (containers, id, config, host) =
            (self.clone(), id.to_owned(), config.clone(), host.clone());
        tokio::task::spawn_blocking(move || containers.resolve_mounts(&id, &config, &host))
            .await
            .map_err(|error| Error::internal(error.to_string()))?
    }

    /// Finds or makes a volume for a container, which is `passing` if it is removed at its end.
    /// Returns whether it may only be read.
    fn take_volume(&self, id: &str, volume: &mut VolumeUse, passing: bool) -> Result<bool> {
        let mut make = std::mem::take(&mut volume.make);
        make.passing = passing;
        if make.name.is_empty() {
            // One of `--volumes-from` has its name already.
            make.name.clone_from(&volume.name);
        }
        volume.anonymous = make.name.is_empty() || volume.anonymous;
        let record = match self.volumes.create_for(make, Some(id)) {
            // Likewise.
            Err(Error::NotFound(text)) => return Err(Error::Invalid(text)),
            made => made?,
        };
        let is_snapshot = record.is_snapshot();
        volume.name = record.name;
        volume.copy &= !is_snapshot;
        Ok(is_snapshot)
    }

    /// Copies a volume into a new one. With `pause` the containers that run with it stand still
    /// meanwhile, so that the copy is of one moment.
    pub async fn copy_volume(self: &Arc<Self>, request: CopyVolume) -> Result<VolumeRecord> {
        let mut paused = Vec::new();
        let mut ready = Ok(());
        if request.pause {
            ready = self.pause_users(&request.source, &mut paused).await;
        }
        let volumes = self.volumes.clone();
        let copied = match ready {
            Ok(()) => tokio::task::spawn_blocking(move || {
                let source = volumes.hold(&request.source)?;
                volumes.copy(&source, &request.name, request.labels, request.snapshot)
            })
            .await
            .map_err(|error| Error::internal(error.to_string()))
            .flatten(),
            Err(error) => Err(error),
        };
        for container in paused {
            if container.status() == Status::Paused
                && let Err(error) = self.unpause(&container.id).await
            {
                tracing::warn!(
                    container = container.id,
                    "after a volume was copied: {error}"
                );
            }
        }
        copied
    }

    /// Pauses the containers that run with a volume, and says which: also those that may be paused
    /// when it fails.
    async fn pause_users(&self, volume: &str, paused: &mut Vec<Arc<Container>>) -> Result<()> {
        for id in self.volumes.running(volume) {
            let Some(container) = self
                .by_id(&id)
                .filter(|container| container.status() == Status::Running)
            else {
                continue;
            };
            let outcome = self.pause(&id).await;
            paused.push(container);
            match outcome {
                // It has ended meanwhile.
                Err(Error::Conflict(_) | Error::NotFound(_)) => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// A container does not use its volumes any more; `anonymous` ones that nobody uses now go as
    /// well.
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
        let auto_remove = record.host.auto_remove;
        let fills: Vec<(VolumeUse, String)> = record
            .mounts
            .iter()
            .filter_map(|plan| {
                plan.volume()
                    .filter(|volume| volume.copy)
                    .map(|volume| (volume.clone(), plan.target.clone()))
            })
            .collect();
        if fills.is_empty() || record.image.is_empty() {
            return Ok(());
        }
        let (containers, image, directory) = (
            self.clone(),
            record.image.clone(),
            self.instance.container_dir(&record.id),
        );
        tokio::task::spawn_blocking(move || {
            let layers = containers.root_layers(&image, &directory)?;
            fills.iter().try_for_each(|(volume, target)| {
                let lasting = !(volume.anonymous && auto_remove);
                containers
                    .volumes
                    .fill(&volume.name, &volume.subpath, &layers, target, lasting)
            })
        })
        .await
        .map_err(|error| Error::internal(error.to_string()))?
    }

    /// The mounts that a container's runtime is told.
    pub(super) fn mounts_of(&self, record: &Record, directory: &Path) -> Result<Vec<Mount>> {
        record
            .mounts
            .iter()
            .map(|plan| self.mount_of(plan, record, directory))
            .collect()
    }

    fn mount_of(&self, plan: &MountPlan, record: &Record, directory: &Path) -> Result<Mount> {
        let mut mount = Mount {
            destination: plan.target.clone(),
            options: plan.options.clone(),
            ..Mount::default()
        };
        (mount.kind, mount.source) = match &plan.source {
            Source::Bind { path, map_user, .. } => {
                if *map_user {
                    (mount.uid_mappings, mount.gid_mappings) =
                        self.owner_as_user(record, directory, path)?;
                }
                ("bind".into(), path.clone())
            }
            Source::Volume(volume) => (
                "bind".into(),
                self.volumes
                    .path(&volume.name)
                    .to_string_lossy()
                    .into_owned(),
            ),
            Source::Tmpfs => ("tmpfs".into(), "tmpfs".into()),
            Source::Image(image) => {
                // Overlay takes no less than two layers, and the lowest has no say.
                let layers = self
                    .layers(&image.id)?
                    .into_iter()
                    .chain([files::empty_directory(directory)?]);
                let layers: Vec<String> = layers
                    .map(|layer| layer.to_string_lossy().into_owned())
                    .collect();
                if let [empty] = layers.as_slice() {
                    mount.options.push("bind".into());
                    ("bind".into(), empty.clone())
                } else {
                    mount
                        .options
                        .extend(layers.iter().map(|layer| format!("lowerdir+={layer}")));
                    ("overlay".into(), image.name.clone())
                }
            }
        };
        Ok(mount)
    }

    /// The id mappings with which what the owner of `path` has is the container's user's, and what
    /// that one makes there is the owner's. None where they are the same.
    fn owner_as_user(
        &self,
        record: &Record,
        directory: &Path,
        path: &str,
    ) -> Result<(Vec<IdMapping>, Vec<IdMapping>)> {
        let owner = fs::metadata(path)?;
        let mut layers = vec![directory.join("upper")];
        layers.extend(self.layers(&record.image)?);
        let root = whelk_sys::overlay::read_only(&layers).map_err(|error| {
            Error::internal(format!(
                "mount the container's layers: {}",
                errno_text(&error.into())
            ))
        })?;
        let request = UserRequest {
            user: record.config.user.clone(),
            groups: Vec::new(),
        };
        let user = whelk_runtime::user::resolve(root, &request)
            .map_err(|error| Error::internal(error.to_string()))?;
        if (owner.uid(), owner.gid()) == (user.uid, user.gid) {
            return Ok((Vec::new(), Vec::new()));
        }
        Ok((
            mounts::shown_as(owner.uid(), user.uid),
            mounts::shown_as(owner.gid(), user.gid),
        ))
    }

    /// Makes what a container is about to mount ready.
    pub(super) fn enter_mounts(&self, record: &Record) -> Result<()> {
        for plan in &record.mounts {
            match &plan.source {
                Source::Bind { path, create, .. } => {
                    if *create && !fs::exists(path) {
                        fs::create_dir_all(path, 0o755)?;
                    }
                    if plan.propagation != "rprivate" && plan.propagation != "private" {
                        let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
                        mounts::check_propagation(
                            plan,
                            path,
                            &fs::canonicalize(path)?,
                            &self.instance.root,
                            &mountinfo,
                        )?;
                    }
                }
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
        let names: Vec<String> = container
            .record()
            .mounts
            .iter()
            .filter_map(|plan| plan.volume().map(|volume| volume.name.clone()))
            .collect();
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

/// Adds a mount, in place of an earlier one with the same target. `places` has each target's index.
fn put(plans: &mut Vec<MountPlan>, places: &mut HashMap<String, usize>, plan: MountPlan) {
    match places.get(&plan.target) {
        Some(place) => plans[*place] = plan,
        None => {
            places.insert(plan.target.clone(), plans.len());
            plans.push(plan);
        }
    }
}

/// The runtime resolves the path again, as safely; here a missing one is told in the words that
/// users know.
fn check_subpath(volume: &PathBuf, subpath: &str) -> Result<()> {
    if subpath.is_empty() {
        return Ok(());
    }
    let directory = fs::open(volume)?;
    in_root::open(&directory, subpath, OFlags::PATH, Mode::empty())
        .map(drop)
        .map_err(|error| {
            let path = volume.join(subpath);
            Error::invalid(format!(
                "cannot access path {path}: lstat {path}: {}",
                errno_text(&error),
                path = path.display()
            ))
        })
}
