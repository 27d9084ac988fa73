//! Images and their names.

mod distribution;
mod index;
mod list;
mod login;
mod manifests;
mod pull;
mod push;
mod refusals;
mod remove;
mod search;
mod transfer;
mod transfers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use whelk_sys::sync::IgnorePoison as _;

use whelk_image::archive::Origin;
use whelk_image::content::MAX_PARTIAL_AGE;
use whelk_image::descriptor;
use whelk_image::{Digest, ImageConfig, Platform, Reference};

use whelk_trust::Policy;

use crate::error::{Error, Result};
use crate::events::{Events, now};
use crate::instance::RegistrySettings;
use crate::records::ImageRecord;
use crate::store::RecordStore;

pub use distribution::Distribution;
use index::{Index, choose};
pub use list::{FILTERS, ImageSummary};
pub use manifests::{ListedManifest, ManifestKind};
pub use pull::{PullRequest, Pulled};
pub use push::{PushRequest, Pushed};
pub use remove::{ImageUser, Removed};
pub use search::SEARCH_FILTERS;
pub use transfer::Renamed;

/// An image the engine has.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    pub id: Digest,
    pub config: ImageConfig,
    /// The manifest and index that the image came with.
    pub origin: Origin,
    /// Further manifests by which indexes list it: other blobs of the same content.
    pub other_manifests: Vec<Digest>,
    /// The index that each of its tags stands for, by full name. A tag without one stands for that of
    /// the origin.
    pub tag_indexes: BTreeMap<String, Digest>,
    /// Names with the digest of the manifest or index that a registry has for the image.
    pub repo_digests: Vec<Reference>,
    /// Size of the file contents in all layers, in bytes.
    pub size: u64,
    /// Time of its last tag, in nanoseconds since the epoch; 0 for never.
    pub tagged_at: i64,
}

impl ImageRecord {
    fn of(image: &Image) -> Self {
        Self {
            id: image.id.clone(),
            size: image.size,
            tagged_at: image.tagged_at,
            manifest: image.origin.manifest.clone(),
            index: image.origin.index.clone(),
            other_manifests: image.other_manifests.clone(),
            tag_indexes: image.tag_indexes.clone(),
            repo_digests: image
                .repo_digests
                .iter()
                .map(Reference::to_string)
                .collect(),
        }
    }

    fn image(self, config: ImageConfig) -> Image {
        let names = self.repo_digests.iter();
        Image {
            repo_digests: names.filter_map(|name| name.parse().ok()).collect(),
            id: self.id,
            config,
            origin: Origin {
                manifest: self.manifest,
                index: self.index,
            },
            other_manifests: self.other_manifests,
            tag_indexes: self.tag_indexes,
            size: self.size,
            tagged_at: self.tagged_at,
        }
    }
}

impl Image {
    /// Returns the manifests that it has come with.
    fn manifests(&self) -> impl Iterator<Item = &Digest> {
        self.origin.manifest.iter().chain(&self.other_manifests)
    }

    /// Returns the indexes that it has come with and its tags stand for.
    fn indexes(&self) -> impl Iterator<Item = &Digest> {
        self.origin.index.iter().chain(self.tag_indexes.values())
    }

    /// Keeps only those of its further manifests that are in use.
    fn keep_manifests(&mut self, is_used: impl Fn(&Digest) -> bool) {
        let mut seen: BTreeSet<Digest> = self.origin.manifest.iter().cloned().collect();
        self.other_manifests
            .retain(|manifest| is_used(manifest) && seen.insert(manifest.clone()));
    }

    /// Sets the index that a tag of it (a full name) stands for.
    fn set_index(&mut self, tag: &str, index: Option<Digest>) {
        match index {
            Some(index) => self.tag_indexes.insert(tag.to_owned(), index),
            None => self.tag_indexes.remove(tag),
        };
    }
}

/// All images of an engine.
#[derive(Debug)]
pub struct Images {
    files: whelk_image::Store,
    store: Arc<RecordStore>,
    events: Arc<Events>,
    downloads: pull::Downloads,
    uploads: push::Uploads,
    /// What is required of images that are pulled.
    policy: Option<Policy>,
    index: RwLock<Index>,
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
    /// Opens the images below an engine's root directory.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read. An image whose files cannot be read is logged
    /// and left out.
    pub fn open(
        root: &std::path::Path,
        store: Arc<RecordStore>,
        events: Arc<Events>,
        registries: RegistrySettings,
    ) -> Result<Arc<Self>> {
        let files = whelk_image::Store::open(root)?;
        let mut index = Index::default();
        for record in store.images()? {
            match files
                .content
                .read(&record.id)
                .and_then(|bytes| ImageConfig::parse(&bytes))
                .and_then(|config| check_layers(&files, config))
            {
                Ok(config) => {
                    let image = record.image(config);
                    for digest in image.indexes() {
                        note_index(&mut index, &files, digest);
                    }
                    index.put(Arc::new(image));
                }
                Err(error) => {
                    index.unreadable.insert(record.id.clone());
                    tracing::error!("image {} cannot be read: {error}", record.id);
                }
            }
        }
        for (name, id) in store.tags()? {
            if let Ok(id) = id.parse()
                && index.by_id.contains_key(&id)
            {
                index.tags.insert(name, id);
            }
        }
        let images = Arc::new(Self {
            files,
            store,
            events,
            uploads: push::Uploads::new(registries.uploads),
            policy: registries.policy.clone(),
            downloads: pull::Downloads::new(registries)?,
            index: RwLock::new(index),
            pins: Arc::default(),
        });
        // An interrupted load may have left incomplete files. They are moved to the trash, which
        // recovery empties.
        drop(images.trash_unused(MAX_PARTIAL_AGE));
        Ok(images)
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

    /// Returns the names that stand for an image, in the familiar form (`busybox:latest`).
    pub fn names_of(&self, id: &Digest) -> Vec<String> {
        let index = self.read();
        let Some(image) = index.by_id.get(id) else {
            return Vec::new();
        };
        let names = index
            .tags_of(image)
            .filter_map(|tag| tag.parse::<Reference>().ok());
        names.map(|name| name.familiar()).collect()
    }

    /// Returns the number of images.
    pub fn count(&self) -> usize {
        self.read().by_id.len()
    }

    /// Removes layers and configurations that no image uses, except for those that a pull may resume
    /// with. They are moved to the trash before this returns, and deleted in the background.
    fn collect_garbage(&self) {
        self.collect_older(MAX_PARTIAL_AGE);
    }

    /// Like [`Images::collect_garbage`], but keeps content that a pull may resume with only if it is
    /// younger than `age`.
    fn collect_older(&self, age: Duration) {
        self.files
            .staging
            .dispose_and_make_room(self.trash_unused(age));
    }

    /// Moves layers and configurations that no image uses to the trash, except for those leased by a
    /// running load, import or pull, and those that an interrupted one left less than `age` ago.
    /// Returns their paths there. Does nothing if an image could not be read.
    fn trash_unused(&self, age: Duration) -> Vec<std::path::PathBuf> {
        if !self.read().unreadable.is_empty() {
            return Vec::new();
        }
        let used = || {
            let index = self.read();
            let images = index.by_id.values();
            whelk_image::Used {
                blobs: images
                    .clone()
                    .flat_map(|image| {
                        let documents = image.origin.manifest.iter().chain(image.indexes());
                        documents.chain([&image.id])
                    })
                    .cloned()
                    .collect(),
                layers: images
                    .flat_map(|image| &image.config.rootfs.diff_ids)
                    .cloned()
                    .collect(),
            }
        };
        self.files.gc(age, used).unwrap_or_else(|error| {
            tracing::warn!("collect unused layers: {error}");
            Vec::new()
        })
    }

    /// Adds a name to an image, taking it from another image that has it. If `name` is a tag of several
    /// platforms, so is the new one.
    ///
    /// # Errors
    /// Returns an error if there is no such image.
    pub fn tag(&self, name: &str, reference: &Reference) -> Result<()> {
        let full = reference.to_string();
        let id = {
            let mut index = self.write();
            let found = index.find(name)?;
            let image = choose(&found, None, name)?.image;
            let source = self.full_name(name);
            let source = source.filter(|source| index.tags.get(source) == Some(&image.id));
            let stands_for = match source {
                Some(source) => index.index_of(&source).cloned(),
                None => image.origin.index.clone(),
            };
            let mut image = Image {
                tagged_at: now(),
                ..Image::clone(&image)
            };
            image.set_index(&full, stands_for);
            self.assign(&mut index, image, std::slice::from_ref(&full))?
                .0
        };
        self.publish("tag", &id, reference.familiar());
        Ok(())
    }

    /// Records an image, and that these tags (full names) name it. Returns its id, and the images that
    /// tags were taken from.
    fn assign(
        &self,
        index: &mut Index,
        image: Image,
        tags: &[String],
    ) -> Result<(Digest, Vec<(String, Digest)>)> {
        let id = image.id.clone();
        self.store.put_image(&ImageRecord::of(&image), tags)?;
        index.put(Arc::new(image));
        let mut taken = Vec::new();
        for tag in tags {
            let old = index.tags.insert(tag.clone(), id.clone());
            if let Some(old) = old.filter(|old| *old != id) {
                self.forget_tag(index, &old, tag)?;
                taken.push((tag.clone(), old));
            }
        }
        Ok((id, taken))
    }

    /// Removes what an image's record has of a tag that is another image's now, or nobody's.
    fn forget_tag(&self, index: &mut Index, id: &Digest, tag: &str) -> Result<()> {
        let image = index.by_id.get(id);
        if let Some(image) = image.filter(|image| image.tag_indexes.contains_key(tag)) {
            let mut image = Image::clone(image);
            image.tag_indexes.remove(tag);
            self.store.put_image(&ImageRecord::of(&image), &[])?;
            index.put(Arc::new(image));
        }
        Ok(())
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

/// Reads the entries of an index that an image has come with. One that cannot be read lists nothing.
fn note_index(index: &mut Index, files: &whelk_image::Store, digest: &Digest) {
    if index.listed.contains_key(digest) {
        return;
    }
    let read = files.content.read(digest);
    match read.and_then(|bytes| descriptor::Index::parse(&bytes)) {
        Ok(read) => {
            index.listed.insert(digest.clone(), read.manifests.into());
        }
        Err(error) => tracing::warn!("index {digest}: {error}"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{decode, encode};

    #[test]
    fn records_of_earlier_versions_open() {
        let id = Digest::of(b"config");
        let old = format!(r#"{{"id":"{id}","size":5,"tagged_at":7}}"#);
        let record: ImageRecord = decode(old.as_bytes()).unwrap();
        assert_eq!(encode(&record).unwrap(), old);
        let image = record.image(ImageConfig::default());
        assert_eq!((image.id, image.size, image.tagged_at), (id, 5, 7));
        assert_eq!(
            (image.origin, image.repo_digests),
            (Origin::default(), vec![])
        );
    }

    #[test]
    fn a_record_keeps_what_registries_know_of_the_image() {
        let digest = Digest::of(b"manifest");
        let image = Image {
            id: Digest::of(b"config"),
            config: ImageConfig::default(),
            origin: Origin {
                manifest: Some(digest.clone()),
                index: Some(Digest::of(b"index")),
            },
            other_manifests: vec![Digest::of(b"others")],
            tag_indexes: [("docker.io/library/a:1".to_owned(), Digest::of(b"other"))].into(),
            repo_digests: vec![
                format!("docker.io/library/busybox@{digest}")
                    .parse()
                    .unwrap(),
            ],
            size: 5,
            tagged_at: 7,
        };
        let text = encode(&ImageRecord::of(&image)).unwrap();
        let record: ImageRecord = decode(text.as_bytes()).unwrap();
        assert_eq!(record.image(ImageConfig::default()), image);
    }
}
