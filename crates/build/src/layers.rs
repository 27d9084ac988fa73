//! Layers of results.
//!
//! ```text
//! open (a directory in tmp/) ── beside the next steps ──► sealed (a layer of the image store)
//! ```
//! A layer that is open can be mounted like a sealed one. Its directory stays until it is sealed and nobody uses
//! it any more. What a killed engine leaves of it is in `tmp/`, which the next one empties.

use std::any::Any;
use std::collections::HashSet;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use rustix::fs::{Mode, OFlags};
use tokio::sync::{Semaphore, SemaphorePermit};
use whelk_image::{Digest, Lease, Store};
use whelk_sys::overlay::{self, Writable};
use whelk_sys::sync::IgnorePoison as _;
use whelk_sys::{Scratch, fs};

use crate::error::{Error, Result, os};

/// The directories of a step: what it writes, and what it needs meanwhile. It is moved to the trash when
/// nobody has it any more.
#[derive(Debug)]
pub(crate) struct Workspace {
    path: PathBuf,
    owner: Owner,
}

/// The owner of a workspace's directories.
#[derive(Debug)]
enum Owner {
    Workspace {
        _scratch: Scratch,
        staging: whelk_image::Staging,
    },
    /// Somebody else: they stay, and nobody else uses them, as long as this exists.
    Other(#[allow(dead_code, reason = "held until it is dropped")] Arc<dyn Any + Send + Sync>),
}

impl Workspace {
    pub fn create(store: &Store) -> Result<Arc<Self>> {
        let scratch = store.staging.scratch()?;
        for (name, mode) in [("fs", 0o755), ("work", 0o700)] {
            fs::create_dir(scratch.path().join(name), mode)?;
        }
        Ok(Arc::new(Self {
            path: scratch.path().to_owned(),
            owner: Owner::Workspace {
                _scratch: scratch,
                staging: store.staging.clone(),
            },
        }))
    }

    /// Returns the workspace of a directory that has `fs` already.
    pub fn of(scratch: Scratch, store: &Store) -> Arc<Self> {
        Arc::new(Self {
            path: scratch.path().to_owned(),
            owner: Owner::Workspace {
                _scratch: scratch,
                staging: store.staging.clone(),
            },
        })
    }

    /// Returns the workspace of a directory that is only read, and that `holder` keeps.
    pub fn kept(path: &Path, holder: Arc<dyn Any + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            owner: Owner::Other(holder),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The upper directory of the step's overlay.
    pub fn upper(&self) -> PathBuf {
        self.path().join("fs")
    }

    pub fn work(&self) -> PathBuf {
        self.path().join("work")
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let Owner::Workspace { staging, .. } = &self.owner else {
            return;
        };
        match staging.trash(&self.path) {
            Ok(trashed) => staging.dispose(trashed),
            // The drop of the scratch directory removes it at once, which may take longer.
            Err(error) => tracing::warn!("remove the files of a step: {error}"),
        }
    }
}

/// Limits the layers that are sealed at the same time: a step may have many outputs, and each sealing takes some threads.
static SEALING: Semaphore = Semaphore::const_new(64);

type Sealing = Shared<BoxFuture<'static, Result<Digest>>>;

/// A layer.
#[derive(Debug)]
pub(crate) struct Layer {
    /// When it was made, in nanoseconds since the epoch; 0 for one of an image.
    pub created: i64,
    /// Where it is while it is not sealed.
    open: Mutex<Option<Arc<Workspace>>>,
    sealing: Sealing,
    /// Whether it is a client's directory, or what was fetched for a build.
    is_directory: bool,
    /// Holds it, unless something else does.
    _lease: Option<Arc<Lease>>,
}

/// A layer's files, which stay where they are until this is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub path: PathBuf,
    /// Where they are if the layer is not sealed.
    workspace: Option<Arc<Workspace>>,
}

impl Layer {
    /// Returns a layer of the image store, which something else holds.
    pub fn sealed(digest: Digest, created: i64) -> Arc<Self> {
        Self::stored(digest, created, None)
    }

    /// Returns a layer of the image store, which `lease` holds from now on, and something else until now.
    pub fn held(digest: Digest, created: i64, lease: Arc<Lease>) -> Arc<Self> {
        lease.hold(&digest);
        Self::stored(digest, created, Some(lease))
    }

    fn stored(digest: Digest, created: i64, lease: Option<Arc<Lease>>) -> Arc<Self> {
        let sealing: Sealing = std::future::ready(Ok(digest)).boxed().shared();
        // While one thread polls a shared future for the first time, it is not ready for others, and `files` does not wait.
        drop(sealing.clone().now_or_never());
        Arc::new(Self {
            created,
            open: Mutex::new(None),
            sealing,
            is_directory: false,
            _lease: lease,
        })
    }

    /// Returns a directory as a layer, which is sealed only if somebody waits for that: when it is part of a result.
    pub fn directory(store: &Store, workspace: Arc<Workspace>, lease: &Arc<Lease>) -> Arc<Self> {
        Self::on_demand(store, workspace, lease, true)
    }

    /// Returns the layer of what a failed step has written, which is sealed only if somebody waits for that.
    pub fn remains(store: &Store, workspace: Arc<Workspace>, lease: &Arc<Lease>) -> Arc<Self> {
        Self::on_demand(store, workspace, lease, false)
    }

    fn on_demand(
        store: &Store,
        workspace: Arc<Workspace>,
        lease: &Arc<Lease>,
        is_directory: bool,
    ) -> Arc<Self> {
        let (store, upper, held) = (store.clone(), workspace.clone(), lease.clone());
        let sealing = async move {
            let work = move || {
                let layer = store.snapshots.commit(&held, &upper.upper())?;
                Ok::<_, Error>(layer.diff_id)
            };
            tokio::task::spawn_blocking(work)
                .await
                .map_err(|error| Error::internal(format!("seal a layer: {error}")))?
        };
        Arc::new(Self {
            created: whelk_engine::events::now(),
            open: Mutex::new(Some(workspace)),
            sealing: sealing.boxed().shared(),
            is_directory,
            _lease: Some(lease.clone()),
        })
    }

    /// Returns the layer of what a step has written, and begins to seal it. `lease` holds it then.
    pub fn seal(store: &Store, workspace: Arc<Workspace>, lease: Arc<Lease>) -> Arc<Self> {
        let (store, upper, held) = (store.clone(), workspace.clone(), lease.clone());
        let work = move || {
            let layer = store.snapshots.commit(&lease, &upper.upper())?;
            Ok::<_, Error>(layer.diff_id)
        };
        let begin = move |turn: SemaphorePermit<'static>| {
            let task = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work()
            });
            task.map(|done| {
                done.map_err(|error| Error::internal(format!("seal a layer: {error}")))?
            })
        };
        let sealing = match SEALING.try_acquire() {
            Ok(turn) => begin(turn).boxed(),
            Err(_) => async move {
                let turn = SEALING.acquire().await;
                begin(turn.map_err(|error| Error::internal(error.to_string()))?).await
            }
            .boxed(),
        };
        let layer = Arc::new(Self {
            created: whelk_engine::events::now(),
            open: Mutex::new(Some(workspace)),
            sealing: sealing.shared(),
            is_directory: false,
            _lease: Some(held),
        });
        let sealed = layer.clone();
        tokio::spawn(async move {
            if sealed.digest().await.is_ok() {
                let workspace = sealed.open.lock().ignore_poison().take();
                drop(workspace);
            }
        });
        layer
    }

    /// Waits until the layer is sealed.
    pub async fn digest(&self) -> Result<Digest> {
        self.sealing.clone().await
    }

    /// Whether it is not sealed yet.
    pub fn is_open(&self) -> bool {
        self.open.lock().ignore_poison().is_some()
    }

    /// Mounts the layer alone, in overlayfs's form: what it hides of layers below is shown as whiteouts and marks. Blocking.
    pub fn mount(&self, store: &Store) -> Result<View> {
        let files = vec![self.files(store)?];
        let (layers, _mounts) = mounted(store, &files)?;
        let root = overlay::open_layer(&layers[0]).map_err(os("mount a layer"))?;
        Ok(View {
            root,
            _files: files,
            workspace: None,
        })
    }

    pub fn files(&self, store: &Store) -> Result<Files> {
        let workspace = self.open.lock().ignore_poison().clone();
        let path = match &workspace {
            Some(workspace) => workspace.upper(),
            None => match self.sealing.clone().now_or_never() {
                Some(digest) => store.snapshots.files(&digest?),
                None => return Err(Error::internal("a layer is neither open nor sealed")),
            },
        };
        Ok(Files { path, workspace })
    }
}

/// Maximum number of layers of a result that something stands on: overlayfs mounts no more.
pub(crate) const MAX_LAYERS: usize = 500;

/// A result: layers, the lowest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stack(pub Vec<Arc<Layer>>);

impl Stack {
    pub fn of(layers: impl IntoIterator<Item = (Digest, i64)>) -> Self {
        let layers = layers.into_iter();
        Self(
            layers
                .map(|(digest, created)| Layer::sealed(digest, created))
                .collect(),
        )
    }

    /// Whether it is a client's directory, or what was fetched for a build.
    pub fn is_directory(&self) -> bool {
        matches!(self.0.as_slice(), [layer] if layer.is_directory)
    }

    pub fn with(&self, layer: Arc<Layer>) -> Self {
        Self(self.0.iter().cloned().chain([layer]).collect())
    }

    /// Returns the files of the layers, the topmost first; each once, because overlayfs refuses a layer that is
    /// given twice.
    pub fn files(&self, store: &Store) -> Result<Vec<Files>> {
        let mut all: Vec<Files> = Vec::with_capacity(self.0.len());
        let mut known = HashSet::with_capacity(self.0.len());
        for layer in self.0.iter().rev() {
            let files = layer.files(store)?;
            if known.insert(files.path.clone()) {
                all.push(files);
            }
        }
        if all.len() > MAX_LAYERS {
            let text = format!("a step stands on more than {MAX_LAYERS} layers");
            return Err(Error::invalid(text));
        }
        Ok(all)
    }

    pub async fn digests(&self) -> Result<Vec<Digest>> {
        let mut digests = Vec::with_capacity(self.0.len());
        for layer in &self.0 {
            digests.push(layer.digest().await?);
        }
        Ok(digests)
    }

    /// Mounts the layers read-only. The mount is in no namespace, and ends with the descriptor. Blocking.
    pub fn mount(&self, store: &Store) -> Result<View> {
        let files = self.files(store)?;
        let root = match paths(&files).as_slice() {
            [] => {
                let workspace = Workspace::create(store)?;
                let root = open_directory(&workspace.upper())?;
                return Ok(View {
                    root,
                    _files: Vec::new(),
                    workspace: Some(workspace),
                });
            }
            // It has no whiteouts.
            [directory] if self.is_directory() => open_directory(directory)?,
            _ => {
                let (layers, _mounts) = mounted(store, &files)?;
                let is_open = files.iter().any(|files| files.workspace.is_some());
                let root = match is_open {
                    true => overlay::merged(&layers),
                    false => overlay::read_only(&layers),
                };
                root.map_err(os("mount the layers of a step"))?
            }
        };
        Ok(View {
            root,
            _files: files,
            workspace: None,
        })
    }

    /// Mounts the layers below a writable one. Blocking.
    pub fn mount_writable(&self, store: &Store) -> Result<View> {
        let files = self.files(store)?;
        let workspace = Workspace::create(store)?;
        let (upper, work) = (workspace.upper(), workspace.work());
        let root = if files.is_empty() {
            open_directory(&upper)?
        } else {
            let writable = Writable {
                upper: &upper,
                work: &work,
                // Nothing of it is used after a crash, so that it need not be flushed.
                volatile: true,
            };
            let (layers, _mounts) = mounted(store, &files)?;
            overlay::writable(&layers, writable).map_err(os("mount the layers of a step"))?
        };
        Ok(View {
            root,
            _files: files,
            workspace: Some(workspace),
        })
    }
}

/// A mounted result.
#[derive(Debug)]
pub struct View {
    pub root: OwnedFd,
    _files: Vec<Files>,
    /// What is written to.
    workspace: Option<Arc<Workspace>>,
}

impl View {
    /// Unmounts it, and returns what was written.
    pub(crate) fn into_workspace(self) -> Option<Arc<Workspace>> {
        self.workspace
    }
}

/// Returns the layers for an overlay: of those that are images, the mounts that all containers and steps share. They
/// are needed until the overlay is mounted.
fn mounted(store: &Store, files: &[Files]) -> Result<(Vec<PathBuf>, Vec<OwnedFd>)> {
    let mut layers = paths(files);
    let mounts = store.snapshots.mounts.of(&layers, layers.len())?;
    for (index, mount) in &mounts {
        layers[*index] = format!("/proc/self/fd/{}", mount.as_raw_fd()).into();
    }
    let mounts = mounts.into_iter().map(|(_, mount)| mount);
    Ok((layers, mounts.collect()))
}

pub(crate) fn paths(files: &[Files]) -> Vec<PathBuf> {
    files.iter().map(|files| files.path.clone()).collect()
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(os(format!("open {}", path.display())))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// A layer of an image is neither open nor being sealed, so that a step that reads it waits for nothing: its digest is there before
    /// the first of them asks, and not only when the first one has been answered.
    #[test]
    fn steps_that_read_a_base_layer_at_once_find_it() {
        const STEPS: usize = 4;
        let scratch = Scratch::temporary("layers").unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let digest = Digest::of(b"layer");
        let sealed = || Layer::sealed(digest.clone(), 0);
        assert_eq!(sealed().sealing.peek().unwrap().as_ref().unwrap(), &digest);
        let layers: Vec<Arc<Layer>> = (0..1000).map(|_| sealed()).collect();
        let at_once = Barrier::new(STEPS);
        let read = || {
            let missing = layers.iter().filter(|layer| {
                at_once.wait();
                layer.files(&store).is_err()
            });
            missing.count()
        };
        let missing: usize = std::thread::scope(|scope| {
            let steps: Vec<_> = (0..STEPS).map(|_| scope.spawn(read)).collect();
            let steps = steps.into_iter().map(|step| step.join().unwrap());
            steps.sum()
        });
        assert_eq!(missing, 0);
        let files = sealed().files(&store).unwrap();
        assert_eq!(files.path, store.snapshots.files(&digest));
    }
}
