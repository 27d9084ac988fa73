//! The downloads of an engine, and what holds their content.

use std::sync::Arc;

use whelk_image::{Digest, Lease};
use whelk_registry::Client;

use crate::error::{Error, Result};
use crate::images::Images;
use crate::images::transfers::Transfers;
use crate::instance::RegistrySettings;

/// The downloads of an engine.
#[derive(Debug)]
pub(in crate::images) struct Downloads {
    pub(in crate::images) client: Arc<Client>,
    /// Of layers, by diff ID.
    pub(super) layers: Transfers<Digest>,
}

impl Downloads {
    pub(in crate::images) fn new(settings: RegistrySettings) -> Result<Self> {
        Ok(Self {
            client: Client::new(settings.client)
                .map_err(|error| Error::invalid(error.to_string()))?,
            layers: Transfers::new(settings.downloads),
        })
    }
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
