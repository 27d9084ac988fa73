//! The downloads of an engine: the limit of parallel ones, the layers that are being downloaded, and the
//! lease that holds their content.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use whelk_image::{Digest, Lease};
use whelk_registry::Client;
use whelk_sys::sync::IgnorePoison as _;

use crate::error::{Error, Result};
use crate::images::Images;
use crate::instance::RegistrySettings;

/// The running downloads of layers, at most one for each layer.
#[derive(Debug)]
pub(in crate::images) struct Downloads {
    pub(in crate::images) client: Arc<Client>,
    permits: Arc<Semaphore>,
    /// A lock for each layer that is being downloaded, by diff ID. Other pulls of the layer wait for it.
    coming: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Downloads {
    pub(in crate::images) fn new(settings: RegistrySettings) -> Result<Self> {
        Ok(Self {
            client: Client::new(settings.client)
                .map_err(|error| Error::invalid(error.to_string()))?,
            permits: Arc::new(Semaphore::new(settings.downloads.max(1))),
            coming: Mutex::default(),
        })
    }

    /// Waits until no other pull downloads the layer, and for one of the limited number of parallel
    /// downloads. `waiting` is called before each wait.
    pub(super) async fn claim(&self, diff_id: &Digest, waiting: impl Fn()) -> Result<Claim> {
        let turn = self.turn(diff_id);
        let turn = match turn.clone().try_lock_owned() {
            Ok(turn) => turn,
            Err(_) => {
                waiting();
                turn.lock_owned().await
            }
        };
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                waiting();
                let permit = self.permits.clone().acquire_owned().await;
                permit.map_err(|error| Error::internal(error.to_string()))?
            }
        };
        Ok(Claim {
            _turn: turn,
            _permit: permit,
        })
    }

    fn turn(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut coming = self.coming.lock().ignore_poison();
        // Locks without another holder belong to finished downloads.
        coming.retain(|_, turn| Arc::strong_count(turn) > 1);
        coming.entry(diff_id.clone()).or_default().clone()
    }
}

/// The right to download a layer. The thread that unpacks the layer shares it, because it ends later
/// than a cancelled pull.
#[derive(Debug)]
pub(super) struct Claim {
    _turn: OwnedMutexGuard<()>,
    _permit: OwnedSemaphorePermit,
}

/// The lease of a pull or push, shared by its threads. When the last one has ended, unused content is
/// removed, apart from layers that another pull may resume with.
#[derive(Debug)]
pub(in crate::images) struct Held {
    /// `None` only during `drop`.
    lease: Option<Lease>,
    images: Arc<Images>,
}

impl Held {
    pub(in crate::images) fn take(images: &Arc<Images>) -> Self {
        Self {
            lease: Some(images.files.leases.take()),
            images: images.clone(),
        }
    }

    pub(in crate::images) fn lease(&self) -> Result<&Lease> {
        let lease = self.lease.as_ref();
        lease.ok_or_else(|| Error::internal("the transfer has ended"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.lease.take());
        let images = self.images.clone();
        // Without a runtime the engine is ending. Its next start removes unused content.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || images.collect_garbage());
        }
    }
}
