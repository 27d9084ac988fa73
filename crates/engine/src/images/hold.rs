//! Keeps layers where they are for what reads or mounts them.

use std::sync::Arc;

use whelk_image::{Digest, Lease};

use super::Images;

/// Holds the layers of images: they are neither collected nor, because they are damaged, moved away. For
/// what a check does not see yet or at all: a start, an open view, an export.
#[derive(Debug)]
pub(crate) struct HeldLayers {
    /// `None` only during `drop`.
    lease: Option<Lease>,
    images: Arc<Images>,
}

impl Images {
    /// Holds the layers of the images with these ids, as far as they exist. Their paths must be determined after
    /// this call.
    pub(crate) fn hold_layers(
        self: &Arc<Self>,
        ids: impl IntoIterator<Item = Digest>,
    ) -> HeldLayers {
        let lease = self.files.leases.take();
        for image in ids.into_iter().filter_map(|id| self.get(&id).ok()) {
            lease.hold(&image.id);
            for layer in image.layers() {
                lease.hold(layer);
            }
        }
        HeldLayers {
            lease: Some(lease),
            images: self.clone(),
        }
    }
}

impl Drop for HeldLayers {
    fn drop(&mut self) {
        drop(self.lease.take());
        // The image was removed meanwhile: nobody else removes the layers.
        if self.images.files.leases.must_collect_again()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let images = self.images.clone();
            runtime.spawn_blocking(move || images.collect_garbage());
        }
    }
}
