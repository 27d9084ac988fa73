//! Images that were built.

use whelk_image::archive::{Loaded, Named, Origin};
use whelk_image::{Digest, ImageConfig, Lease, Reference};

use super::{Images, Renamed};
use crate::error::{Error, Result};
use crate::events::now;

/// An image that was built.
#[derive(Clone, Debug, Default)]
pub struct BuiltImage {
    /// The configuration, with the layers, which are in the store.
    pub config: Vec<u8>,
    pub names: Vec<Reference>,
}

/// An image that was recorded.
#[derive(Clone, Debug)]
pub struct AddedImage {
    pub id: Digest,
    /// The names that it has taken from other images.
    pub renamed: Vec<Renamed>,
    /// Whether everything that was written before is on disk. If not, the image was there.
    pub is_flushed: bool,
}

impl Images {
    /// Records an image whose layers `lease` holds. They are flushed to disk before, unless the image is there
    /// already. Blocking.
    ///
    /// # Errors
    /// Returns an error if the configuration is invalid, if a layer does not exist, or if the store fails.
    pub fn add_built(&self, lease: &Lease, built: BuiltImage) -> Result<AddedImage> {
        // With its limits of layers and size.
        let config = ImageConfig::parse(&built.config)?;
        let mut size = 0;
        for layer in &config.rootfs.diff_ids {
            if !self.files.snapshots.claim(lease, layer) {
                return Err(Error::NotFound(format!("layer {layer} does not exist")));
            }
            size += self.files.snapshots.size(layer)?;
        }
        let id = self.files.content.put(lease, &built.config)?;
        // The lease holds the content from here on: if the image is there now, its content was never removed.
        let is_flushed = self.get(&id).is_err();
        if is_flushed {
            self.files.sync()?;
        }
        let names = built.names.into_iter();
        let loaded = Loaded {
            id: id.clone(),
            origin: Origin::default(),
            config,
            other_manifests: Vec::new(),
            parent: None,
            names: names.map(|name| Named { name, index: None }).collect(),
            size,
        };
        let tagged_at = loaded.names.first().map(|_| now());
        let renamed = self.record(&loaded, tagged_at, None)?;
        for named in &loaded.names {
            self.publish("tag", &id, named.name.familiar());
        }
        Ok(AddedImage {
            id,
            renamed,
            is_flushed,
        })
    }
}
