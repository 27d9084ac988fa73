//! Images and their names.

mod budget;
mod built;
mod check;
mod commit;
mod distribution;
mod garbage;
mod hold;
mod image;
mod index;
mod list;
mod login;
mod manifests;
mod names;
mod pull;
mod push;
mod refusals;
mod remove;
mod search;
mod transfer;
mod transfers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use whelk_sys::sync::IgnorePoison as _;

use whelk_image::content::MAX_PARTIAL_AGE;
use whelk_image::descriptor::{self, Descriptor};
use whelk_image::{Digest, ImageConfig, Platform};

use whelk_trust::Policy;

use crate::error::{Error, Result};
use crate::events::Events;
use crate::instance::RegistrySettings;
use crate::store::RecordStore;

pub use built::{AddedImage, AddedIndex, BuiltImage, BuiltIndex, BuiltMember};
pub(crate) use check::{GoesOn, InUse};
pub use commit::NewImage;
pub use distribution::Distribution;
pub(crate) use hold::HeldLayers;
pub use image::Image;
use index::{Index, ReadIndex, Tag, choose};
pub use list::{FILTERS, ImageSummary};
use manifests::is_attestation;
pub use manifests::{ListedManifest, ManifestKind};
pub use pull::{PullRequest, Pulled};
pub use push::{PushRequest, Pushed};
pub use remove::{ImageUser, Removed};
pub use search::SEARCH_FILTERS;
pub use transfer::Renamed;

/// All images of an engine.
#[derive(Debug)]
pub struct Images {
    files: whelk_image::Store,
    store: Arc<RecordStore>,
    events: Arc<Events>,
    downloads: pull::Downloads,
    uploads: push::Uploads,
    /// What is required of images that are pulled.
    policy: RwLock<Option<Policy>>,
    index: RwLock<Index>,
    uses: budget::Uses,
    root: PathBuf,
    /// Sizes of layers in bytes, as far as lists have needed them.
    layer_sizes: Mutex<BTreeMap<Digest, u64>>,
    /// Number of [`Pin`]s by image. Locked while an image is found and pinned, and while it is
    /// removed.
    pins: Arc<Mutex<BTreeMap<Digest, usize>>>,
}

/// Keeps an image from being removed while a container of it is being created.
#[derive(Debug)]
pub struct Pin {
    image: Digest,
    pins: Arc<Mutex<BTreeMap<Digest, usize>>>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().ignore_poison();
        if let Some(count) = pins.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.image);
            }
        }
    }
}

impl Images {
    /// Returns the client of registries, with whose connections and settings files are fetched from other servers, too.
    pub fn web(&self) -> Arc<whelk_registry::Client> {
        self.downloads.client()
    }

    /// Opens the images of an engine, whose content is in `files`.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read. An image whose files cannot be read is logged
    /// and left out.
    pub fn open(
        files: whelk_image::Store,
        store: Arc<RecordStore>,
        events: Arc<Events>,
        registries: &RegistrySettings,
    ) -> Result<Arc<Self>> {
        let mut index = Index::default();
        let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tag, id) in store.tags()? {
            tags.entry(id).or_default().push(tag);
        }
        for record in store.images()? {
            match files
                .content
                .read(&record.id)
                .and_then(|bytes| ImageConfig::parse(&bytes))
                .and_then(|config| check_layers(&files, config))
            {
                Ok(config) => {
                    for name in tags.remove(record.id.as_str()).unwrap_or_default() {
                        let tag = Tag {
                            image: record.id.clone(),
                            index: record.index_of(&name),
                        };
                        index.tags.insert(name, tag);
                    }
                    index.put(Arc::new(record.image(config)));
                }
                Err(error) => {
                    index.unreadable.insert(record.id.clone());
                    tracing::error!("image {} cannot be read: {error}", record.id);
                }
            }
        }
        let origins = index.by_id.values().map(|image| &image.origin.index);
        let indexes = origins.chain(index.tags.values().map(|tag| &tag.index));
        let indexes: BTreeSet<Digest> = indexes.flatten().cloned().collect();
        for digest in indexes {
            index.add_read(&digest, read_index(&files, &digest));
        }
        let images = Arc::new(Self {
            root: files.staging.root().to_owned(),
            files,
            uses: budget::Uses::open(&store),
            store,
            events,
            uploads: push::Uploads::new(registries.uploads),
            policy: RwLock::new(registries.policy.clone()),
            downloads: pull::Downloads::new(registries)?,
            index: RwLock::new(index),
            layer_sizes: Mutex::default(),
            pins: Arc::default(),
        });
        // An interrupted load may have left incomplete files. They are moved to the trash, which
        // recovery empties.
        drop(images.trash_unused(MAX_PARTIAL_AGE));
        Ok(images)
    }

    /// Applies other settings for registries. Transfers that have begun keep the previous ones.
    ///
    /// # Errors
    /// Returns an error if the settings cannot be used. The previous ones stay then.
    pub fn reload(&self, registries: &RegistrySettings) -> Result<()> {
        self.downloads.reload(registries)?;
        self.uploads.limit(registries.uploads);
        *self.policy.write().ignore_poison() = registries.policy.clone();
        Ok(())
    }

    /// Returns the store of blobs and layers.
    pub fn store(&self) -> &whelk_image::Store {
        &self.files
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().ignore_poison()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().ignore_poison()
    }

    /// Finds an image for a container that is being created, and keeps it from being removed until
    /// the [`Pin`] is dropped.
    ///
    /// # Errors
    /// As [`Images::find_for`].
    pub fn pin(&self, name: &str, platform: Option<&Platform>) -> Result<(Arc<Image>, Pin)> {
        let mut pins = self.pins.lock().ignore_poison();
        let image = self.find_for(name, platform)?;
        *pins.entry(image.id.clone()).or_default() += 1;
        drop(pins);
        self.uses.note(&image.id);
        let pin = Pin {
            image: image.id.clone(),
            pins: self.pins.clone(),
        };
        Ok((image, pin))
    }

    /// Returns an image by its id.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if there is none.
    pub fn get(&self, id: &Digest) -> Result<Arc<Image>> {
        self.read()
            .by_id
            .get(id)
            .cloned()
            .ok_or_else(|| Error::no_such_image(id.as_str()))
    }

    /// Finds an image by name, id or unique prefix of the id, or by the digest of the manifest or
    /// index that it came with, alone or after a repository that has it. Of several platforms it is the
    /// image for this host, or else another.
    ///
    /// # Errors
    /// Returns an error if the name is malformed, if there is no such image, or if the prefix is
    /// ambiguous.
    pub fn find(&self, name: &str) -> Result<Arc<Image>> {
        self.find_for(name, None)
    }

    /// Like [`Images::find`], for an image that must be for `platform`, if one is given.
    ///
    /// # Errors
    /// Also returns [`Error::NotFound`] if the name stands for no image for the platform.
    pub fn find_for(&self, name: &str, platform: Option<&Platform>) -> Result<Arc<Image>> {
        let found = self.read().find(name)?;
        Ok(choose(&found, platform, name)?.image)
    }

    /// Returns the number of images.
    pub fn count(&self) -> usize {
        self.read().by_id.len()
    }

    /// Publishes an event of an image.
    fn publish(&self, action: &str, id: &Digest, name: String) {
        self.publish_as(action, id, id.to_string(), name);
    }

    /// Publishes an event of an image whose actor is not its id.
    fn publish_as(&self, action: &str, id: &Digest, actor: String, name: String) {
        let mut attributes = self
            .read()
            .by_id
            .get(id)
            .map(|image| image.config.config.labels.clone())
            .unwrap_or_default();
        attributes.insert("name".into(), name);
        self.events.publish("image", action, actor, attributes);
    }
}

/// Reads the entries of an index that an image has come with, if it can be read. A manifest that a name stands for lists itself.
fn read_index(files: &whelk_image::Store, digest: &Digest) -> Option<ReadIndex> {
    let read = files.content.read(digest);
    let read = read.and_then(|bytes| Ok((descriptor::Index::parse(&bytes)?, bytes.len() as u64)));
    let read = read.inspect_err(|error| tracing::error!("index {digest} cannot be read: {error}"));
    let (index, size) = read.ok()?;
    let is_manifest = matches!(
        index.media_type.as_str(),
        descriptor::MANIFEST | descriptor::DOCKER_MANIFEST
    );
    if is_manifest && index.manifests.is_empty() {
        let own = Descriptor::new(index.media_type, digest.clone(), size);
        return Some(ReadIndex {
            entries: vec![own],
            attached: Vec::new(),
        });
    }
    let entries = index.manifests;
    let attached = entries.iter().filter(|entry| is_attestation(entry));
    Some(ReadIndex {
        attached: attached
            .flat_map(|entry| attached_blobs(files, &entry.digest))
            .collect(),
        entries,
    })
}

/// Returns the manifest of an attestation with what it refers to; nothing if the engine does not have it.
fn attached_blobs(files: &whelk_image::Store, digest: &Digest) -> Vec<Digest> {
    if !whelk_sys::fs::exists(files.content.path(digest)) {
        return Vec::new();
    }
    let read = files.content.read(digest);
    let read = read.and_then(|bytes| descriptor::Manifest::parse(&bytes));
    let read = read.inspect_err(|error| tracing::warn!("attestation {digest}: {error}"));
    let Ok(manifest) = read else {
        return Vec::new();
    };
    let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
    let blobs = blobs.map(|blob| blob.digest.clone());
    blobs.chain([digest.clone()]).collect()
}

/// Returns the configuration if all its layers exist.
fn check_layers(
    files: &whelk_image::Store,
    config: ImageConfig,
) -> whelk_image::Result<ImageConfig> {
    match config
        .rootfs
        .diff_ids
        .iter()
        .find(|layer| !files.snapshots.has(layer))
    {
        Some(layer) => Err(whelk_image::Error::NotFound(format!(
            "layer {layer} is missing"
        ))),
        None => Ok(config),
    }
}
