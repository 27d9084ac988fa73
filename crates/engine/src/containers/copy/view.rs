//! Views of containers' files: the root with the volumes, and with the tmpfs mounts of a running one, in
//! no mount namespace.
//!
//! The view of a running container is a clone of its root mount. That of a stopped one is a mount of its
//! layers, which all its copies share, because an upper layer may be mounted only once: a start waits for
//! them for a short time, and then ends them. Also a view of an earlier run keeps the layers mounted, so
//! that the first view after the run waits for it in the same way.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::{OwnedMutexGuard, watch};
use whelk_runtime::spec::Mount;
use whelk_runtime::{Rootfs, ViewMount, ViewRoot, view};
use whelk_sys::overlay::{clone_root, clone_tmpfs};
use whelk_sys::sync::IgnorePoison as _;
use whelk_sys::{errno_text, fs};

use super::super::{Container, Containers};
use crate::error::{Error, Result};
use crate::images::HeldLayers;
use crate::model::{ContainerRecord, Status};
use crate::mounts::{MountPlan, Source};
use crate::volumes::Hold;
use crate::workload::blocking;

/// How long a start or a removal waits for copies.
const PATIENCE: Duration = Duration::from_secs(3);

/// The views of a container's files.
#[derive(Debug, Default)]
pub(in crate::containers) struct Views {
    /// Held while a view is opened, and while the container is started or removed.
    gate: Arc<tokio::sync::Mutex<()>>,
    /// The view of the container that does not run.
    stopped: Mutex<Weak<View>>,
    /// What uses the root mount of a run, which keeps the layers mounted as they were in that run.
    of_run: Uses,
    /// The view of the container that does not run, until it is closed.
    of_stopped: Uses,
    /// Exports of the container that does not run, which only read its layers.
    exports: Uses,
}

/// The operations that use a container's files.
#[derive(Debug)]
struct Uses {
    count: Arc<watch::Sender<usize>>,
    /// Number of times that all of them had to end.
    ends: watch::Sender<u64>,
}

impl Default for Uses {
    fn default() -> Self {
        Self {
            count: Arc::new(watch::Sender::new(0)),
            ends: watch::Sender::new(0),
        }
    }
}

impl Uses {
    fn begin(&self) -> Use {
        self.count.send_modify(|count| *count += 1);
        Use {
            ends: self.ends.subscribe(),
            count: self.count.clone(),
        }
    }

    fn is_idle(&self) -> bool {
        *self.count.borrow() == 0
    }

    async fn become_idle(&self) -> bool {
        let mut count = self.count.subscribe();
        let idle = count.wait_for(|count| *count == 0);
        tokio::time::timeout(PATIENCE, idle).await.is_ok()
    }

    async fn end(&self) {
        if !self.is_idle() {
            self.ends.send_modify(|ends| *ends += 1);
            // One that hangs in the kernel is left.
            self.become_idle().await;
        }
    }
}

/// An operation that uses a container's files, until it is dropped.
#[derive(Debug)]
pub(in crate::containers) struct Use {
    ends: watch::Receiver<u64>,
    count: Arc<watch::Sender<usize>>,
}

impl Drop for Use {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count -= 1);
    }
}

impl Use {
    /// Waits until the operation has to end.
    pub(in crate::containers) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ends = self.ends.clone();
        async move {
            // An error: the container is gone.
            let _ = ends.changed().await;
        }
    }

    fn has_ended(&self) -> bool {
        self.ends.has_changed().unwrap_or(true)
    }
}

impl Views {
    /// Waits for the copies before a start, for [`PATIENCE`], and then ends them. No view is opened while
    /// the result exists.
    ///
    /// # Errors
    /// Returns an error if a view is being opened for longer than that, as on a file system that does not
    /// respond, or if a copy does not end: the layers must not be mounted twice.
    pub(in crate::containers) async fn close_for_start(&self) -> Result<OwnedMutexGuard<()>> {
        let gate = self.enter().await.ok_or_else(|| {
            Error::conflict("a copy is waiting for a mount of the container that does not respond")
        })?;
        let idle = self.all().map(Uses::become_idle);
        if futures_util::future::join_all(idle).await.contains(&false) {
            self.end().await;
        }
        if !self.all().iter().all(|uses| uses.is_idle()) {
            return Err(Error::conflict(
                "a copy or export of the container's files does not end",
            ));
        }
        Ok(gate)
    }

    /// Ends all copies before a removal, which does not wait for a view that is being opened for longer
    /// than [`PATIENCE`]. Otherwise no view is opened while the result exists.
    pub(in crate::containers) async fn close(&self) -> Option<OwnedMutexGuard<()>> {
        let gate = self.enter().await;
        self.end().await;
        gate
    }

    /// Begins an export, of a run or of the container that does not run. The caller mounts what it exports
    /// while the first part of the result exists, and drops the use that it does not need.
    pub(in crate::containers) async fn begin_export(&self) -> (OwnedMutexGuard<()>, Use, Use) {
        let gate = self.gate.clone().lock_owned().await;
        (gate, self.of_run.begin(), self.exports.begin())
    }

    fn all(&self) -> [&Uses; 3] {
        [&self.of_run, &self.of_stopped, &self.exports]
    }

    async fn enter(&self) -> Option<OwnedMutexGuard<()>> {
        let gate = self.gate.clone().lock_owned();
        tokio::time::timeout(PATIENCE, gate).await.ok()
    }

    async fn end(&self) {
        futures_util::future::join_all(self.all().map(Uses::end)).await;
    }

    /// Returns the view of the container that does not run. One that had to end is not used again.
    fn shared(&self) -> Option<Arc<View>> {
        let view = self.stopped.lock().ignore_poison().upgrade();
        view.filter(|view| !view.has_ended())
    }

    /// Takes the gate for a view of the container that does not run: waits until an earlier run and an earlier
    /// view have released its layers, which must not be mounted twice, and then ends what has not.
    ///
    /// # Errors
    /// Returns an error if that does not end.
    async fn enter_stopped(&self) -> Result<OwnedMutexGuard<()>> {
        let earlier = [&self.of_run, &self.of_stopped];
        if self.shared().is_none() {
            futures_util::future::join_all(earlier.map(Uses::become_idle)).await;
        }
        let gate = self.gate.clone().lock_owned().await;
        if self.shared().is_some() {
            return Ok(gate);
        }
        futures_util::future::join_all(earlier.map(Uses::end)).await;
        if earlier.iter().all(|uses| uses.is_idle()) {
            return Ok(gate);
        }
        Err(Error::conflict(
            "an earlier copy of the container's files does not end",
        ))
    }
}

/// A view of a container's files. Dropping it blocks.
#[derive(Debug)]
pub(in crate::containers) struct View {
    root: OwnedFd,
    /// Held as long as their mounts.
    _volumes: Vec<Hold>,
    _layers: HeldLayers,
    is_of_run: bool,
    usage: Use,
}

impl View {
    /// The root directory, in which all paths are to be resolved.
    pub(in crate::containers) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Whether the container ran when the view was opened.
    pub(in crate::containers) fn is_of_run(&self) -> bool {
        self.is_of_run
    }

    /// Waits until the copy that uses this has to end.
    pub(in crate::containers) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        self.usage.ended()
    }

    pub(in crate::containers) fn has_ended(&self) -> bool {
        self.usage.has_ended()
    }
}

impl Containers {
    /// Opens a view of a container's files.
    ///
    /// # Errors
    /// Returns an error if there is no such container, or if its files cannot be mounted.
    pub(in crate::containers) async fn open_view(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<Arc<View>> {
        let container = self.find(name)?;
        loop {
            let mut exit = container.watch_exit();
            let runs = container.status().is_running();
            let gate = match runs {
                true => container.views.gate.clone().lock_owned().await,
                false => container.views.enter_stopped().await?,
            };
            if container.progress.borrow().removed {
                return Err(Error::no_such_container(name));
            }
            let (containers, target) = (self.clone(), container.clone());
            let opened = blocking(move || {
                let _gate = gate;
                containers.open_view_now(&target, runs)
            });
            if let Some(view) = opened.await? {
                return Ok(view);
            }
            // Its process has ended, which is about to be recorded.
            if tokio::time::timeout(PATIENCE, exit.exited()).await.is_err() {
                return Err(Error::conflict(format!(
                    "container {} is being stopped",
                    container.id
                )));
            }
        }
    }

    /// Returns `None` if the container's process has just ended, or if it `runs` no longer. The caller holds
    /// the gate.
    fn open_view_now(
        self: &Arc<Self>,
        container: &Arc<Container>,
        runs: bool,
    ) -> Result<Option<Arc<View>>> {
        let record = container.record().clone();
        let views = &container.views;
        if record.state.status.is_running() != runs {
            return Ok(None);
        }
        let layers = self.hold_layers(container);
        if runs {
            let usage = views.of_run.begin();
            let Some(process) = process(record.state.pid, &record.id) else {
                return Ok(None);
            };
            let Ok(root) = clone_root(process.as_fd()) else {
                return Ok(None);
            };
            let (mounts, volumes) = self.view_mounts(&record, Some(&process))?;
            let root = self.mounted(ViewRoot::Clone(root), mounts, &record)?;
            return Ok(Some(Arc::new(View {
                root,
                _volumes: volumes,
                _layers: layers,
                is_of_run: true,
                usage,
            })));
        }
        if matches!(record.state.status, Status::Removing | Status::Dead) {
            return Err(Error::conflict(format!(
                "container {} is being removed",
                record.id
            )));
        }
        if let Some(view) = views.shared() {
            return Ok(Some(view));
        }
        let usage = views.of_stopped.begin();
        let directory = self.instance.container_dir(&record.id);
        let Rootfs::Overlay(mut overlay) = self.rootfs(&record, &directory)? else {
            return Err(Error::internal("a container's root is no overlay"));
        };
        // Otherwise each end of a view, also of one that was only read, would wait until the whole disk is
        // written. What was copied into the container is synced by `ExtractTarget::extract`.
        overlay.volatile = true;
        let (mounts, volumes) = self.view_mounts(&record, None)?;
        let root = self.mounted(ViewRoot::Overlay(overlay), mounts, &record);
        // The kernel's mark of such a mount says that a layer may be incomplete, which recovery takes for
        // that of a `--rm` container.
        fs::remove_tree(directory.join("work/work/incompat"))?;
        let view = Arc::new(View {
            root: root?,
            _volumes: volumes,
            _layers: layers,
            is_of_run: false,
            usage,
        });
        *views.stopped.lock().ignore_poison() = Arc::downgrade(&view);
        Ok(Some(view))
    }

    fn mounted(
        &self,
        root: ViewRoot,
        mounts: Vec<ViewMount>,
        record: &ContainerRecord,
    ) -> Result<OwnedFd> {
        let read_only = record.host.readonly_rootfs;
        let made = unmade_working_directory(record);
        Ok(view(
            root,
            mounts,
            read_only,
            made,
            &self.instance.scratch(),
        )?)
    }

    /// Returns a container's mounts for a view, with what keeps its volumes. `process` is its process
    /// if it runs.
    fn view_mounts(
        self: &Arc<Self>,
        record: &ContainerRecord,
        process: Option<&OwnedFd>,
    ) -> Result<(Vec<ViewMount>, Vec<Hold>)> {
        let mut volumes = Vec::new();
        for volume in record.mounts.iter().filter_map(MountPlan::volume) {
            volumes.push(self.volumes.hold(&volume.name)?);
        }
        let targets: Vec<&str> = record
            .mounts
            .iter()
            .filter(|plan| plan.source == Source::Tmpfs)
            .map(|plan| plan.target.as_str())
            .collect();
        let mut tmpfs = match process {
            Some(process) if !targets.is_empty() => clone_tmpfs(process.as_fd(), &targets)
                .map_err(|error| {
                    Error::internal(format!(
                        "clone the tmpfs mounts: {}",
                        errno_text(&error.into())
                    ))
                })?,
            _ => Vec::new(),
        }
        .into_iter();
        let mut mounts = self.name_files(record);
        let directory = self.instance.container_dir(&record.id);
        for plan in &record.mounts {
            let tree = if plan.source == Source::Tmpfs {
                let Some(tree) = tmpfs.next().flatten() else {
                    continue;
                };
                Some(tree)
            } else {
                None
            };
            let mount = if tree.is_some() {
                bind(&plan.target, "", &[])
            } else {
                private(self.mount_of(plan, record, &directory)?)
            };
            mounts.push(ViewMount { mount, tree });
        }
        mounts.sort_by_key(|mount| crate::mounts::depth(&mount.mount.destination));
        Ok((mounts, volumes))
    }

    /// Returns the mounts of the generated files for name resolution, if they exist.
    fn name_files(&self, record: &ContainerRecord) -> Vec<ViewMount> {
        let Ok(directory) = self.names_dir(record) else {
            return Vec::new();
        };
        let is_replaced = |target: &str| record.mounts.iter().any(|plan| plan.target == target);
        ["resolv.conf", "hostname", "hosts"]
            .into_iter()
            .map(|name| (format!("/etc/{name}"), directory.join(name)))
            .filter(|(target, file)| !is_replaced(target) && fs::exists(file))
            .map(|(target, file)| ViewMount {
                mount: bind(&target, &file.to_string_lossy(), &[]),
                tree: None,
            })
            .collect()
    }
}

/// Returns the working directory of a container that was never started, which its view makes: clients copy
/// files there before the start. Docker makes it when the container is created, which would mount each
/// container's layers twice.
fn unmade_working_directory(record: &ContainerRecord) -> Option<&str> {
    let directory = record.config.working_dir.as_str();
    (record.state.status == Status::Created && !directory.is_empty()).then_some(directory)
}

fn bind(target: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: target.to_owned(),
        kind: "bind".into(),
        source: source.to_owned(),
        options: ["bind", "rprivate"]
            .iter()
            .chain(options)
            .map(|&word| word.to_owned())
            .collect(),
        ..Mount::default()
    }
}

/// Replaces a mount's propagation: only the container's own mount is to take part in mounts of the host.
fn private(mut mount: Mount) -> Mount {
    const WORDS: [&str; 8] = [
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "unbindable",
        "runbindable",
    ];
    mount.options.retain(|word| !WORDS.contains(&word.as_str()));
    mount.options.push("rprivate".into());
    mount
}

/// Returns a descriptor of a container's process, or `None` if it has ended.
pub(in crate::containers) fn process(pid: i32, container: &str) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // The pid may have been reused before the descriptor was opened. If the cgroup is the
    // container's afterwards, the descriptor refers to its process; if that ends later, entering
    // its namespace fails.
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    cgroup.contains(container).then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_view_that_cannot_be_opened_delays_no_removal() {
        let views = Views::default();
        let _opening = views.gate.clone().lock_owned().await;
        let (removal, start) = tokio::join!(views.close(), views.close_for_start());
        assert!(removal.is_none());
        let error = start.unwrap_err().to_string();
        assert!(error.contains("does not respond"), "{error}");
    }
}
