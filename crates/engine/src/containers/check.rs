//! Compares the containers with what there is of them: records in the store, directories, run
//! directories, shims, cgroups and mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mount::UnmountFlags;
use whelk_image::Digest;
use whelk_runtime::cgroup::Cgroup;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use super::audit::{listens, unknown};
use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::findings::Findings;
use crate::images::HeldLayers;
use crate::model::Status;
use crate::model::mount::MountPlan;
use crate::mounts::mount_points;
use crate::shims::check_alive;
use crate::store::read_copy;
use crate::workload::end_processes;

impl Containers {
    /// Looks at all containers, and for what belongs to none. Blocks; called on a thread of the runtime.
    pub(crate) fn check(self: &Arc<Self>, findings: &mut Findings) {
        self.check_records(findings);
        for container in self.all() {
            self.check_container(&container, findings);
        }
        let unknown = self.check_unknown(findings);
        findings.add_failure("directories of containers", unknown);
        let mounts = self.check_mounts(findings);
        findings.add_failure("mounts", mounts);
    }

    /// Returns the layers of running containers, and of images that they mount, with the name of one of them.
    pub(crate) fn layers_in_use(&self) -> BTreeMap<Digest, String> {
        let mut layers = BTreeMap::new();
        for container in self.all() {
            if !container.workload.has_shim() {
                continue;
            }
            let (name, ids) = (container.name(), container.images());
            let images = ids.iter().filter_map(|id| self.images.get(id).ok());
            for image in images.collect::<Vec<_>>() {
                for layer in &image.config.rootfs.diff_ids {
                    layers.insert(layer.clone(), name.clone());
                }
            }
        }
        layers
    }

    /// Holds the layers that a container has or would have, until [`Containers::layers_in_use`] has them or they
    /// are not needed any more.
    pub(super) fn hold_layers(&self, container: &Container) -> HeldLayers {
        self.images.hold_layers(container.images())
    }

    /// Returns the paths of the cgroups that containers have or would have.
    pub(crate) fn cgroups(&self) -> BTreeSet<String> {
        let containers = self.all();
        let paths = containers
            .iter()
            .map(|container| container.workload.cgroup().to_owned());
        paths.collect()
    }

    /// Removes a cgroup with the name of a container that does not exist, with the processes in it, unless they
    /// have a shim.
    ///
    /// # Errors
    /// Returns an error if it cannot be removed.
    pub(crate) fn remove_cgroup(&self, path: &str) -> Result<String> {
        let name = path.rsplit('/').next().unwrap_or_default();
        if self.cgroups().contains(path) || self.is_alive(name) {
            return Err(Error::conflict("it is used by a container now"));
        }
        end_processes(path)?;
        Ok("removed, with the processes in it".into())
    }

    /// Returns whether a shim listens in the run directory of a container.
    fn is_alive(&self, id: &str) -> bool {
        let runtime = tokio::runtime::Handle::current();
        runtime.block_on(listens(&self.instance, id))
    }

    fn check_records(self: &Arc<Self>, findings: &mut Findings) {
        let records = match self.store.containers() {
            Ok(records) => records,
            Err(error) => return findings.add_unrepairable(error.to_string()),
        };
        let recorded: BTreeSet<&str> = records.iter().map(|record| record.id.as_str()).collect();
        for container in self.all() {
            if recorded.contains(container.id.as_str()) || container.is_being_removed() {
                continue;
            }
            let (containers, lost) = (self.clone(), container.clone());
            let problem = format!("{}: the store has no record of it", describe(&container));
            findings.add(problem, move || {
                let _saving = lost.saving();
                if lost.is_being_removed() {
                    return Ok("it was removed meanwhile".into());
                }
                let record = lost.record().clone();
                containers.store.insert_container(&record)?;
                Ok("recorded again".into())
            });
        }
    }

    /// Checks what belongs to a container, unless an operation is changing that.
    fn check_container(self: &Arc<Self>, container: &Arc<Container>, findings: &mut Findings) {
        let Ok(operation) = container.operation.clone().try_lock_owned() else {
            return;
        };
        if container.is_being_removed() {
            return;
        }
        let what = describe(container);
        self.check_files(container, &what, findings);
        self.check_image(container, &what, findings);
        if container.workload.has_shim() {
            drop(operation);
            check_running(container, &what, findings);
            return;
        }
        let directory = container.workload.directory();
        if fs::exists(directory) {
            let problem = format!(
                "{what} does not run, but has the run directory {}",
                directory.display()
            );
            let stopped = container.clone();
            findings.add(problem, move || {
                let _operation = stopped.lock_stopped()?;
                fs::remove_tree(stopped.workload.directory())?;
                Ok("removed".into())
            });
        }
        if exists_anywhere(container.workload.cgroup()) {
            let problem = format!(
                "{what} does not run, but has the cgroup {}",
                container.workload.cgroup()
            );
            let stopped = container.clone();
            findings.add(problem, move || {
                let _operation = stopped.lock_stopped()?;
                end_processes(stopped.workload.cgroup())?;
                Ok("removed, with the processes in it".into())
            });
        }
    }

    fn check_files(
        self: &Arc<Self>,
        container: &Arc<Container>,
        what: &str,
        findings: &mut Findings,
    ) {
        let directory = self.instance.container_dir(&container.id);
        let own = [
            directory.clone(),
            directory.join("upper"),
            directory.join("work"),
        ];
        if let Some(lost) = own.iter().find(|path| !fs::exists(path)) {
            let problem = format!("{what} has lost {}", lost.display());
            if container.workload.has_shim() {
                findings
                    .add_unrepairable(format!("{problem}; stop it, so that it can be repaired"));
                return;
            }
            let (containers, stopped) = (self.clone(), container.clone());
            findings.add(problem, move || {
                let _operation = stopped.lock_stopped()?;
                let record = stopped.record().clone();
                containers.restore_files(&record)?;
                for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
                    fs::create_dir_all(directory.join(name), mode)?;
                }
                containers
                    .store
                    .update_copies(std::slice::from_ref(&record))?;
                Ok("created again, without the files that it has changed".into())
            });
            return;
        }
        match read_copy(&self.instance.root, &directory) {
            Ok(Some(_)) => {}
            Err(error) => findings.add_unrepairable(format!("{what}: {error}")),
            // On a busy disk, a new container's copy may take longer than the time between two looks.
            Ok(None) if self.store.awaits_copy(&container.id) => {}
            Ok(None) => {
                let (containers, container) = (self.clone(), container.clone());
                findings.add(
                    format!("{what} has lost the copy of its record"),
                    move || {
                        let _saving = container.saving();
                        let record = container.record().clone();
                        containers.store.update_copies(&[record])?;
                        Ok("written again".into())
                    },
                );
            }
        }
    }

    fn check_image(&self, container: &Container, what: &str, findings: &mut Findings) {
        let image = container.record().image.clone();
        let id = image.parse::<Digest>();
        if !image.is_empty() && !id.is_ok_and(|id| self.images.get(&id).is_ok()) {
            findings.add_unrepairable(format!(
                "{what} cannot be started: its image {image} is not there; pull or load it again"
            ));
        }
    }

    /// Looks for directories of containers that do not exist.
    fn check_unknown(self: &Arc<Self>, findings: &mut Findings) -> Result<()> {
        let known = self.ids();
        let is_known = |id: &str| known.contains(id);
        for (id, path) in unknown(&self.instance.root.join("containers"), is_known)? {
            let containers = self.clone();
            let problem = format!("{} belongs to no container", path.display());
            findings.add(problem, move || containers.remove_unknown_files(&id, &path));
        }
        for (id, path) in unknown(&self.instance.run.join("containers"), is_known)? {
            let has_exited = fs::exists(path.join("exit.json"));
            match (self.is_alive(&id), has_exited) {
                // Its last output is being written.
                (true, true) => {}
                (true, false) => findings.add_unrepairable(format!(
                    "container {id} runs, but the engine does not know it: stop the engine, and run `whelk system repair --root {}`",
                    self.instance.root.display()
                )),
                (false, _) => {
                    let containers = self.clone();
                    let problem = format!("{} belongs to no container", path.display());
                    findings.add(problem, move || {
                        if containers.ids().contains(&id) || containers.is_alive(&id) {
                            return Err(Error::conflict("it is used by a container now"));
                        }
                        fs::remove_tree(&path)?;
                        Ok("removed".into())
                    });
                }
            }
        }
        Ok(())
    }

    /// Returns the ids of all containers, and of those that are being created.
    fn ids(&self) -> BTreeSet<String> {
        let index = self.index.read().ignore_poison();
        let ids = index.by_id.keys().chain(index.by_name.values());
        ids.cloned().collect()
    }

    fn remove_unknown_files(&self, id: &str, path: &Path) -> Result<String> {
        if self.ids().contains(id) {
            return Err(Error::conflict("it belongs to a container now"));
        }
        Ok(match self.put_away(id, path)? {
            Some(place) => format!("moved to {}", place.display()),
            None => "removed: it has nothing that a container has written".into(),
        })
    }

    /// Looks for mounts below directories of the engine that it mounts nothing on.
    fn check_mounts(&self, findings: &mut Findings) -> Result<()> {
        let (root, run) = (&self.instance.root, &self.instance.run);
        let places: Vec<PathBuf> = ["containers", "layers", "tmp", "trash", "blobs"]
            .map(|name| root.join(name))
            .into_iter()
            .chain(["containers", "workloads", "seccomp"].map(|name| run.join(name)))
            .collect();
        let scratch = self.instance.scratch();
        let is_stray = |point: &PathBuf| {
            let is_below = |place: &PathBuf| point.starts_with(place) && point != place;
            point.starts_with(&scratch) || places.iter().any(is_below)
        };
        let mut strays = mounted()?;
        strays.retain(is_stray);
        // What is mounted inside of another mount comes first.
        for point in strays.into_iter().rev() {
            let problem = format!("something is mounted on {}", point.display());
            findings.add(problem, move || {
                let mut unmounted = Ok(());
                if mounted()?.contains(&point) {
                    unmounted = rustix::mount::unmount(&point, UnmountFlags::DETACH);
                }
                // Others may have unmounted it in between.
                if unmounted.is_err() && !mounted()?.contains(&point) {
                    unmounted = Ok(());
                }
                unmounted.map_err(fs::at("unmount", &point))?;
                Ok("unmounted".into())
            });
        }
        Ok(())
    }
}

impl Container {
    /// Returns the ids of its image and of those that it mounts.
    fn images(&self) -> Vec<Digest> {
        let record = self.record();
        let mounted = record.mounts.iter().filter_map(MountPlan::image);
        let mounted = mounted.filter_map(|image| image.id.parse().ok());
        record.image.parse().into_iter().chain(mounted).collect()
    }

    fn is_being_removed(&self) -> bool {
        self.progress.borrow().removed || self.status() == Status::Removing
    }

    /// Takes the operation lock of a container that does not run.
    ///
    /// # Errors
    /// Returns a conflict if it runs, was removed, or is being changed.
    fn lock_stopped(&self) -> Result<tokio::sync::OwnedMutexGuard<()>> {
        let busy = || Error::conflict("the container is in use now");
        let operation = self
            .operation
            .clone()
            .try_lock_owned()
            .map_err(|_| busy())?;
        if self.is_being_removed() || self.workload.has_shim() {
            return Err(busy());
        }
        Ok(operation)
    }
}

/// Checks that a running container has a cgroup and a shim that answers.
fn check_running(container: &Container, what: &str, findings: &mut Findings) {
    let socket = container.workload.directory().join("shim.sock");
    let runtime = tokio::runtime::Handle::current();
    let answer = runtime.block_on(check_alive(container.workload.address()));
    if let Err(error) = answer {
        findings.add_unrepairable(format!("{what}: {error}"));
    } else if !fs::exists(&socket) && container.workload.has_shim() {
        findings.add_unrepairable(format!(
            "{what} runs, but has lost {}: stop or kill it, for nothing else reaches it",
            socket.display()
        ));
    }
    if !exists_anywhere(container.workload.cgroup()) && container.workload.has_shim() {
        findings.add_unrepairable(format!(
            "{what} runs, but has lost its cgroup {}; restart it",
            container.workload.cgroup()
        ));
    }
}

/// Returns what something is mounted on.
fn mounted() -> Result<BTreeSet<PathBuf>> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mount_points(&mountinfo).collect())
}

/// Returns whether a cgroup exists in any hierarchy.
fn exists_anywhere(path: &str) -> bool {
    Cgroup::at(path).is_ok_and(|cgroup| cgroup.paths().iter().any(|(_, path)| fs::exists(path)))
}

fn describe(container: &Container) -> String {
    format!(
        "container {} ({})",
        container.name(),
        &container.id[..12.min(container.id.len())]
    )
}
