//! The downloads of an engine, and what holds their content.

use std::sync::{Arc, RwLock};
use whelk_sys::sync::IgnorePoison as _;

use whelk_image::{Digest, Lease};
use whelk_registry::Client;

use crate::error::{Error, Result};
use crate::images::Images;
use crate::images::transfers::Transfers;
use crate::instance::RegistrySettings;

/// The downloads of an engine.
#[derive(Debug)]
pub(in crate::images) struct Downloads {
    client: RwLock<Arc<Client>>,
    /// Of layers, by diff ID.
    pub(super) layers: Transfers<Digest>,
}

impl Downloads {
    pub(in crate::images) fn new(settings: &RegistrySettings) -> Result<Self> {
        Ok(Self {
            client: RwLock::new(client(settings)?),
            layers: Transfers::new(settings.downloads),
        })
    }

    /// Replaces the client, and the number of downloads at a time.
    pub(in crate::images) fn reload(&self, settings: &RegistrySettings) -> Result<()> {
        *self.client.write().ignore_poison() = client(settings)?;
        self.layers.limit(settings.downloads);
        Ok(())
    }

    pub(in crate::images) fn client(&self) -> Arc<Client> {
        self.client.read().ignore_poison().clone()
    }
}

fn client(settings: &RegistrySettings) -> Result<Arc<Client>> {
    Client::new(settings.client.clone()).map_err(|error| Error::invalid(error.to_string()))
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
