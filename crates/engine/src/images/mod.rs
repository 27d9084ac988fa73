//! Images and their names.

mod distribution;
mod list;
mod login;
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
use whelk_image::{Digest, ImageConfig, Platform, Reference};

use whelk_trust::Policy;

use crate::error::{Error, Result};
use crate::events::{Events, now};
use crate::instance::RegistrySettings;
use crate::records::ImageRecord;
use crate::store::RecordStore;

pub use distribution::Distribution;
pub use list::{FILTERS, ImageSummary};
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
            size: self.size,
            tagged_at: self.tagged_at,
        }
    }
}

impl Image {
    /// Checks that the image, which was requested as `name`, runs on the platform `wanted`, if one
    /// is given.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if the image is for another platform.
    pub(crate) fn check_platform(&self, wanted: Option<&Platform>, name: &str) -> Result<()> {
        let own = Platform::of(&self.config);
        match wanted.filter(|wanted| !wanted.runs(&own)) {
            Some(wanted) => Err(Error::NotFound(format!(
                "image with reference {name} was found but its platform ({own}) does not match the specified platform ({wanted})"
            ))),
            None => Ok(()),
        }
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

#[derive(Debug, Default)]
struct Index {
    by_id: BTreeMap<Digest, Arc<Image>>,
    /// Ids by full name with tag.
    tags: BTreeMap<String, Digest>,
    /// Images that could not be read. Their layers would look unused, so nothing is collected while
    /// there are any.
    unreadable: BTreeSet<Digest>,
}

impl Index {
    /// Returns the image with this id, or those that came with this manifest or index: an index may
    /// be that of several images.
    fn by_digest(&self, digest: &Digest) -> Vec<&Arc<Image>> {
        let came_with =
            |image: &&Arc<Image>| image.origin.blobs().any(|document| document == digest);
        match self.by_id.get(digest) {
            Some(image) => vec![image],
            None => self.by_id.values().filter(came_with).collect(),
        }
    }

    /// Returns the images with this digest that the repository `name` has: the one that was pulled by
    /// it, or else those with a tag.
    fn in_repository(&self, name: &str, digest: &Digest) -> Vec<&Arc<Image>> {
        let is_known = |image: &&Arc<Image>| {
            let mut known = image.repo_digests.iter();
            known.any(|known| known.name() == name && known.digest.as_ref() == Some(digest))
        };
        let is_tagged = |image: &&Arc<Image>| self.tags_in(name).any(|(_, id)| *id == image.id);
        let mut found: Vec<_> = self.by_id.values().filter(is_known).collect();
        if found.is_empty() {
            found = self.by_digest(digest);
            found.retain(is_tagged);
        }
        found
    }

    /// Returns the tags of a repository, by full name.
    fn tags_in(&self, repository: &str) -> impl Iterator<Item = (&String, &Digest)> {
        let prefix = format!("{repository}:");
        let tags = self.tags.range(prefix.clone()..);
        tags.take_while(move |(tag, _)| tag.starts_with(&prefix))
    }
}

/// Returns the only image of those with a digest, if there is one.
fn only<'a>(found: &[&'a Arc<Image>], name: &str) -> Result<Option<&'a Arc<Image>>> {
    match found {
        [] => Ok(None),
        [image] => Ok(Some(image)),
        _ => Err(Error::invalid(format!(
            "No such image: {name}: the digest is ambiguous: it is that of {} images",
            found.len()
        ))),
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
                    index.by_id.insert(image.id.clone(), Arc::new(image));
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
    /// As [`Images::find`].
    pub fn pin(&self, name: &str) -> Result<(Arc<Image>, Pin)> {
        let mut pins = self.pins.lock().ignore_poison();
        let image = self.find(name)?;
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
    /// index that it came with, alone or after a repository that has it.
    ///
    /// # Errors
    /// Returns an error if the name is malformed, if there is no such image, or if the prefix or
    /// the digest is ambiguous.
    pub fn find(&self, name: &str) -> Result<Arc<Image>> {
        let index = self.read();
        if let Ok(id) = name.parse::<Digest>() {
            return only(&index.by_digest(&id), name)?
                .cloned()
                .ok_or_else(|| Error::no_such_image(name));
        }
        let by_name = if name.starts_with("sha256:") {
            None
        } else {
            name.parse::<Reference>().ok()
        };
        if let Some(reference) = &by_name {
            let found = match &reference.digest {
                // As with Docker, the tag does not matter: its image may have changed.
                Some(digest) => only(&index.in_repository(&reference.name(), digest), name)?,
                None => {
                    let tagged = reference.clone().with_default_tag().to_string();
                    let id = index.tags.get(&tagged);
                    id.and_then(|id| index.by_id.get(id))
                }
            };
            if let Some(image) = found {
                return Ok(image.clone());
            }
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if !prefix.is_empty()
            && prefix
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            let mut matches = index
                .by_id
                .values()
                .filter(|image| image.id.hex().starts_with(prefix));
            match (matches.next(), matches.next()) {
                (Some(image), None) => return Ok(image.clone()),
                (Some(_), Some(_)) => {
                    return Err(Error::invalid(format!(
                        "No such image: {name}: the prefix is ambiguous"
                    )));
                }
                (None, _) => {}
            }
        }
        match name.parse::<Reference>() {
            Ok(reference) if by_name.is_some() => Err(Error::no_such_image(
                &reference.with_default_tag().familiar(),
            )),
            Ok(_) => Err(Error::no_such_image(name)),
            Err(_) if prefix.len() == 64 || name.starts_with("sha256:") => {
                Err(Error::no_such_image(name))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Like [`Images::find`], for an image that must run on `platform`, if one is given.
    ///
    /// # Errors
    /// Also returns [`Error::NotFound`] if the image is for another platform.
    pub fn find_for(&self, name: &str, platform: Option<&Platform>) -> Result<Arc<Image>> {
        let image = self.find(name)?;
        image.check_platform(platform, name)?;
        Ok(image)
    }

    /// Returns the names of an image in the familiar form (`busybox:latest`).
    pub fn names_of(&self, id: &Digest) -> Vec<String> {
        self.read()
            .tags
            .iter()
            .filter(|(_, tagged)| *tagged == id)
            .filter_map(|(name, _)| name.parse::<Reference>().ok())
            .map(|name| name.familiar())
            .collect()
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
                    .flat_map(|image| image.origin.blobs().chain([&image.id]))
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

    /// Adds a name to an image, taking it from another image that has it.
    ///
    /// # Errors
    /// Returns an error if there is no such image.
    pub fn tag(&self, name: &str, reference: &Reference) -> Result<()> {
        let id = self.find(name)?.id.clone();
        let full = reference.to_string();
        {
            let mut index = self.write();
            let image = index
                .by_id
                .get(&id)
                .ok_or_else(|| Error::no_such_image(name))?;
            let image = Image {
                tagged_at: now(),
                ..Image::clone(image)
            };
            let record = ImageRecord::of(&image);
            self.store.put_image(&record, std::slice::from_ref(&full))?;
            index.by_id.insert(id.clone(), Arc::new(image));
            index.tags.insert(full, id.clone());
        }
        self.publish("tag", &id, reference.familiar());
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
