//! Images from the changes of containers (`commit`).

use std::path::Path;

use whelk_image::archive::{Loaded, Named, Origin};
use whelk_image::config::{ContainerConfig, History, ImageConfig, RootFs};
use whelk_image::{Digest, Platform, Reference};

use super::Images;
use crate::error::{Error, Result};
use crate::events::now;

/// The settings of an image that is created from a container.
#[derive(Clone, Debug, Default)]
pub struct NewImage {
    /// The image of the container, if it has one.
    pub parent: Option<Digest>,
    pub config: ContainerConfig,
    /// The container's command, for the history.
    pub created_by: String,
    pub author: String,
    pub comment: String,
    pub name: Option<Reference>,
}

impl Images {
    /// Creates an image from its parent and the changes in `upper`, the upper directory of an overlay.
    /// Blocking.
    ///
    /// # Errors
    /// Returns an error if the parent does not exist, or if the image cannot be stored.
    pub(crate) fn commit(&self, new: NewImage, upper: &Path) -> Result<Digest> {
        let parent = new.parent.as_ref().map(|id| self.get(id)).transpose()?;
        let (mut config, size) = match &parent {
            Some(parent) => (parent.config.clone(), parent.size),
            None => (empty(), 0),
        };
        self.with_lease(|lease| {
            // The container keeps them, unless it is removed meanwhile.
            for layer in &config.rootfs.diff_ids {
                if !self.files.snapshots.claim(lease, layer) {
                    return Err(Error::NotFound(format!("layer {layer} does not exist")));
                }
            }
            let is_empty =
                whelk_sys::copy::is_empty(whelk_sys::fs::open(upper)?).map_err(|error| {
                    let error = error.into();
                    let text = whelk_sys::errno_text(&error);
                    Error::kernel(format!("read {}: {text}", upper.display()), &error)
                })?;
            let mut size = size;
            if !is_empty {
                let layer = self.files.snapshots.commit(lease, upper)?;
                size += layer.size;
                config.rootfs.diff_ids.push(layer.diff_id);
            }
            let created = Some(jiff::Timestamp::now().to_string());
            config.created.clone_from(&created);
            config.author.clone_from(&new.author);
            config.comment.clone_from(&new.comment);
            config.docker_version.clear();
            config.config = new.config;
            config.history.push(History {
                created,
                created_by: new.created_by,
                author: new.author,
                comment: new.comment,
                empty_layer: is_empty,
            });
            let bytes =
                serde_json::to_vec(&config).map_err(|error| Error::internal(error.to_string()))?;
            // It must be readable again, with its limits of layers and size.
            ImageConfig::parse(&bytes)?;
            let id = self.files.content.put(lease, &bytes)?;
            self.files.sync()?;
            let loaded = Loaded {
                id: id.clone(),
                origin: Origin::default(),
                config,
                other_manifests: Vec::new(),
                parent: new.parent,
                names: new
                    .name
                    .into_iter()
                    .map(|name| Named { name, index: None })
                    .collect(),
                size,
            };
            self.record(&loaded, loaded.names.first().map(|_| now()), None)?;
            self.publish("create", &id, id.to_string());
            for named in &loaded.names {
                self.publish("tag", &id, named.name.familiar());
            }
            Ok(id)
        })
    }
}

/// Returns the configuration of an image without layers.
fn empty() -> ImageConfig {
    let platform = Platform::host();
    ImageConfig {
        architecture: platform.architecture,
        variant: platform.variant,
        os: platform.os,
        rootfs: RootFs {
            kind: "layers".into(),
            diff_ids: Vec::new(),
        },
        ..ImageConfig::default()
    }
}
