//! Containers' mounts: resolving, acquiring and releasing volumes and images.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;
use whelk_runtime::spec::{IdMapping, Mount};
use whelk_runtime::user::UserRequest;
use whelk_sys::{errno_text, fs, in_root};

use super::pause::OwnPause;
use super::{Container, Containers, files, to_its_end};
use crate::error::{Error, Result};
use crate::images::Pin;
use crate::model::{Config, ContainerRecord, HostConfig};
use crate::mounts::{self, ImageUse, MountPlan, Source, VolumeUse};
use crate::volumes::{VolumeRecord, Volumes};

/// A request to copy a volume.
#[derive(Clone, Debug, Default)]
pub struct CopyVolume {
    pub source: String,
    pub name: String,
    /// Labels added to those of the source.
    pub labels: BTreeMap<String, String>,
    /// Create a read-only snapshot instead of a writable copy.
    pub snapshot: bool,
    /// Pause the containers that use the volume while it is copied.
    pub pause: bool,
}

/// The mounts of a container that is being created. The container is a user of the volumes;
/// dropping this before [`NewMounts::keep`] reverses that. Whoever works on the volumes shares it:
/// if the request ends meanwhile, the volumes are released after that work. Releasing them blocks.
#[derive(Debug)]
pub(super) struct NewMounts {
    volumes: Arc<Volumes>,
    id: String,
    pub(super) plans: Vec<MountPlan>,
    /// Keep images from being removed until the container's record refers to them.
    pins: Vec<Pin>,
    is_kept: AtomicBool,
}

impl NewMounts {
    fn new(volumes: &Arc<Volumes>, id: &str) -> Self {
        Self {
            volumes: volumes.clone(),
            id: id.to_owned(),
            plans: Vec::new(),
            pins: Vec::new(),
            is_kept: AtomicBool::new(false),
        }
    }

    /// The container's record refers to the volumes now.
    pub(super) fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for NewMounts {
    fn drop(&mut self) {
        if !*self.is_kept.get_mut() {
            release(&self.volumes, &self.id, &self.plans, true);
        }
    }
}

/// Removes a container from the users of its volumes. With `anonymous` also removes its anonymous
/// volumes that have no user left.
fn release(volumes: &Arc<Volumes>, id: &str, plans: &[MountPlan], anonymous: bool) {
    for volume in plans.iter().filter_map(MountPlan::volume) {
        volumes.release(&volume.name, id);
        if anonymous && volume.anonymous {
            volumes.remove_anonymous(&volume.name);
        }
    }
}

impl Containers {
    /// Returns a new container's mounts. Creates missing volumes and registers the container as a
    /// user of all of them.
    fn resolve_mounts(&self, id: &str, config: &Config, host: &HostConfig) -> Result<NewMounts> {
        let (mut plans, mut places) = (Vec::new(), HashMap::new());
        for from in host.volumes_from.iter().flatten() {
            let (name, read_only) = mounts::parse_volumes_from(from)?;
            // Not `NotFound`: clients take that for a missing image, and pull it.
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
                    // The volume was filled for its first container; if it is empty now, that is
                    // intended.
                    volume.copy = false;
                }
                put(&mut plans, &mut places, plan);
            }
        }
        for plan in mounts::plan(host, &self.instance.root)? {
            put(&mut plans, &mut places, plan);
        }
        for target in config.volumes.iter().flatten() {
            let plan = MountPlan::anonymous(target, &host.volume_driver)?;
            if !places.contains_key(&plan.target) {
                put(&mut plans, &mut places, plan);
            }
        }
        mounts::sort(&mut plans);
        let mut mounts = NewMounts::new(&self.volumes, id);
        for mut plan in plans {
            match &mut plan.source {
                Source::Volume(volume) => {
                    if self.acquire_volume(id, volume, host.auto_remove)? {
                        plan.make_read_only();
                    }
                }
                Source::Image(image) => mounts.pins.push(self.pin_image(image)?),
                Source::Bind { .. } | Source::Tmpfs => {}
            }
            mounts.plans.push(plan);
        }
        Ok(mounts)
    }

    /// Finds and pins an image to mount. One inherited by `--volumes-from` is found by the id in
    /// the donor's mount, because the name may refer to another image now.
    fn pin_image(&self, image: &mut ImageUse) -> Result<Pin> {
        let is_inherited = !image.id.is_empty();
        let pinned = self
            .images
            .pin(if is_inherited { &image.id } else { &image.name }, None);
        let (found, pin) = pinned.map_err(|error| match error {
            // Clients would take `NotFound` for the container's own image, and pull it.
            Error::NotFound(text) if is_inherited => Error::Invalid(text),
            error => error,
        })?;
        image.id = found.id.to_string();
        Ok(pin)
    }

    /// Like [`Containers::resolve_mounts`], on a blocking thread if there are mounts: a volume
    /// plugin may take long.
    pub(super) async fn resolve_mounts_async(
        self: &Arc<Self>,
        id: &str,
        config: &Config,
        host: &HostConfig,
    ) -> Result<Arc<NewMounts>> {
        if host.binds.is_none()
            && host.mounts.is_none()
            && host.volumes_from.is_none()
            && config.volumes.is_none()
        {
            return self.resolve_mounts(id, config, host).map(Arc::new);
        }
        let (containers, id, config, host) =
            (self.clone(), id.to_owned(), config.clone(), host.clone());
        tokio::task::spawn_blocking(move || containers.resolve_mounts(&id, &config, &host))
            .await
            .map_err(|error| Error::internal(error.to_string()))?
            .map(Arc::new)
    }

    /// Finds or creates a volume for a container; `ephemeral` says that the container is a `--rm`
    /// one. Returns whether the volume is a read-only snapshot.
    fn acquire_volume(&self, id: &str, volume: &mut VolumeUse, ephemeral: bool) -> Result<bool> {
        let mut make = std::mem::take(&mut volume.make);
        make.ephemeral = ephemeral;
        if make.name.is_empty() {
            // A volume inherited by `--volumes-from` has its name already.
            make.name.clone_from(&volume.name);
        }
        volume.anonymous = make.name.is_empty() || volume.anonymous;
        let record = match self.volumes.create_for(make, Some(id)) {
            // As above: not `NotFound`, which makes clients pull the image.
            Err(Error::NotFound(text)) => return Err(Error::Invalid(text)),
            made => made?,
        };
        let is_snapshot = record.is_snapshot();
        volume.name = record.name;
        volume.copy &= !is_snapshot;
        Ok(is_snapshot)
    }

    /// Copies a volume to a new one. With `pause` the running containers that use it are paused
    /// during the copy, so that the copy is consistent.
    ///
    /// # Errors
    /// Returns an error if a container cannot be paused, or if the copy fails.
    pub async fn copy_volume(self: &Arc<Self>, request: CopyVolume) -> Result<VolumeRecord> {
        let containers = self.clone();
        to_its_end(async move { containers.copy_volume_now(request).await }).await
    }

    async fn copy_volume_now(self: &Arc<Self>, request: CopyVolume) -> Result<VolumeRecord> {
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
        for pause in paused {
            self.end_pause(pause).await;
        }
        copied
    }

    /// Pauses the running containers that use a volume, and adds their pauses to `paused`.
    async fn pause_users(self: &Arc<Self>, volume: &str, paused: &mut Vec<OwnPause>) -> Result<()> {
        for id in self.volumes.running(volume) {
            let Some(container) = self.by_id(&id) else {
                continue;
            };
            match self.pause_meanwhile(&container).await {
                Ok(pause) => paused.push(pause),
                // It does not run any more, or a user has paused it.
                Err(Error::Conflict(_) | Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes a container from the users of its volumes. With `anonymous` also removes its
    /// anonymous volumes that have no user left.
    pub(super) fn release_volumes(&self, id: &str, plans: &[MountPlan], anonymous: bool) {
        release(&self.volumes, id, plans, anonymous);
    }

    /// Copies the image's files at each mount target into volumes that are empty.
    pub(super) async fn fill_volumes(
        self: &Arc<Self>,
        record: &ContainerRecord,
        mounts: &Arc<NewMounts>,
    ) -> Result<()> {
        let auto_remove = record.host.auto_remove;
        let fills: Vec<(VolumeUse, String)> = mounts
            .plans
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
        let (containers, image, directory, mounts) = (
            self.clone(),
            record.image.clone(),
            self.instance.container_dir(&record.id),
            mounts.clone(),
        );
        tokio::task::spawn_blocking(move || {
            let _mounts = mounts;
            let _held = containers
                .images
                .hold_layers(image.parse::<whelk_image::Digest>());
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

    /// Returns a container's mounts in the form of the OCI configuration.
    pub(super) fn mounts_of(
        &self,
        record: &ContainerRecord,
        directory: &Path,
    ) -> Result<Vec<Mount>> {
        record
            .mounts
            .iter()
            .map(|plan| self.mount_of(plan, record, directory))
            .collect()
    }

    pub(super) fn mount_of(
        &self,
        plan: &MountPlan,
        record: &ContainerRecord,
        directory: &Path,
    ) -> Result<Mount> {
        let mut mount = Mount {
            destination: plan.target.clone(),
            options: plan.options.clone(),
            ..Mount::default()
        };
        (mount.kind, mount.source) = match &plan.source {
            Source::Bind { path, map_user, .. } => {
                if *map_user {
                    (mount.uid_mappings, mount.gid_mappings) =
                        self.owner_to_user_mappings(record, directory, path)?;
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
                // Overlayfs needs at least two lower layers; the additional empty one at the bottom
                // changes nothing.
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

    /// Returns the uid and gid mappings of an id-mapped mount that shows files of `path`'s owner as
    /// the container user's, and makes files that this user creates the owner's. Empty if the two
    /// are the same.
    fn owner_to_user_mappings(
        &self,
        record: &ContainerRecord,
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
            mounts::map_owner(owner.uid(), user.uid),
            mounts::map_owner(owner.gid(), user.gid),
        ))
    }

    /// Prepares a container's mounts for its start: creates sources of binds, checks propagation,
    /// mounts volumes.
    pub(super) fn acquire_mounts(&self, record: &ContainerRecord) -> Result<()> {
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
                    self.volumes
                        .mount_for_container(&volume.name, &record.id, &details)?;
                    check_subpath(&self.volumes.path(&volume.name), &volume.subpath)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Releases the volumes of a container that has ended or could not be started.
    pub(super) fn release_mounts(&self, container: &Container) {
        let names: Vec<String> = container
            .record()
            .mounts
            .iter()
            .filter_map(|plan| plan.volume().map(|volume| volume.name.clone()))
            .collect();
        for name in names {
            self.volumes.unmount_for_container(&name, &container.id);
        }
    }

    /// Registers at recovery the volumes that a container uses.
    pub(super) fn adopt_volumes(&self, container: &Container, runs: bool) {
        let record = container.record().clone();
        for volume in record.mounts.iter().filter_map(MountPlan::volume) {
            self.volumes.adopt(&volume.name, &container.id, runs);
        }
    }
}

/// Adds a mount, or replaces an earlier one with the same target. `places` has each target's index.
fn put(plans: &mut Vec<MountPlan>, places: &mut HashMap<String, usize>, plan: MountPlan) {
    match places.get(&plan.target) {
        Some(place) => plans[*place] = plan,
        None => {
            places.insert(plan.target.clone(), plans.len());
            plans.push(plan);
        }
    }
}

/// Checks that a volume's subpath exists and does not lead out of the volume, to report Docker's error
/// texts. The runtime resolves the path again, confined to the volume.
fn check_subpath(volume: &PathBuf, subpath: &str) -> Result<()> {
    if subpath.is_empty() {
        return Ok(());
    }
    let directory = fs::open(volume)?;
    in_root::open_beneath(&directory, subpath, OFlags::PATH)
        .map(drop)
        .map_err(|error| {
            if Errno::from_io_error(&error) == Some(Errno::XDEV) {
                return Error::invalid(format!(
                    "path concatenation escapes the base directory, base: {}, subpath: {subpath}",
                    volume.display()
                ));
            }
            let path = volume.join(subpath);
            Error::invalid(format!(
                "cannot access path {path}: lstat {path}: {}",
                errno_text(&error),
                path = path.display()
            ))
        })
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;
    use crate::filters::Filters;
    use crate::instance::Instance;
    use crate::store::RecordStore;
    use crate::volumes::CreateVolume;

    #[test]
    fn volumes_of_a_container_that_is_not_created_are_released_after_all_work_on_them() {
        let scratch = Scratch::temporary("mounts").unwrap();
        let root = scratch.path().join("root");
        fs::create_dir(&root, 0o700).unwrap();
        let store = Arc::new(RecordStore::open(&root).unwrap());
        let instance = Instance::new(root, scratch.path().join("run"), "test".into()).unwrap();
        let volumes = Volumes::open(&instance, store, Arc::default()).unwrap();
        let acquire = || {
            let mut mounts = NewMounts::new(&volumes, "one");
            for name in ["named", ""] {
                let request = CreateVolume {
                    name: name.into(),
                    ..CreateVolume::default()
                };
                let record = volumes.create_for(request, Some("one")).unwrap();
                let mut plan = MountPlan::anonymous("/v", "").unwrap();
                if let Source::Volume(volume) = &mut plan.source {
                    (volume.name, volume.anonymous) = (record.name, name.is_empty());
                }
                mounts.plans.push(plan);
            }
            Arc::new(mounts)
        };
        let check = |users: usize, count: usize| {
            let listed = volumes.list(&Filters::default()).unwrap();
            assert_eq!((volumes.users("named"), listed.len()), (users, count));
        };
        let mounts = acquire();
        let filling = mounts.clone();
        drop(mounts);
        check(1, 2);
        drop(filling);
        check(0, 1);
        let mounts = acquire();
        mounts.keep();
        drop(mounts);
        check(1, 2);
    }
}
