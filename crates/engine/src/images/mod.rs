//! Images: which exist, and under what names.

mod list;
mod remove;
mod transfer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use whelk_image::{Digest, ImageConfig, Platform, Reference};

use crate::error::{Error, Result};
use crate::events::{Events, now};
use crate::store::Store;

pub use list::{FILTERS, Listed};
pub use remove::Removed;
pub use transfer::Renamed;

/// An image the engine has.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    pub id: Digest,
    pub config: ImageConfig,
    /// Bytes of file content in all layers.
    pub size: u64,
    /// When it last got a name, in nanoseconds since the epoch; 0 for never.
    pub tagged_at: i64,
}

/// An image as it is kept in the store: the configuration is a blob of its own.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub id: Digest,
    pub size: u64,
    #[serde(default)]
    pub tagged_at: i64,
}

impl Image {
    /// Checks that the image, which was asked for as `name`, runs on a platform, if one is given.
    ///
    /// # Errors
    /// [`Error::NotFound`]: there is an image of that name, but not such a one.
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

#[derive(Debug)]
pub struct Images {
    files: whelk_image::ContentStore,
    store: Arc<Store>,
    events: Arc<Events>,
    index: RwLock<Index>,
    /// Read by those who bring layers in, which no image names yet.
    incoming: RwLock<()>,
    /// Some image could not be read: what it has may look like nobody's.
    unreadable: bool,
    /// Held to decide that an image is used by a container to be, or by none: how many, by image.
    pins: Arc<Mutex<BTreeMap<Digest, usize>>>,
}

/// Keeps an image from being removed for as long as a container of it is being made.
#[derive(Debug)]
pub struct Pin {
    image: Digest,
    pins: Arc<Mutex<BTreeMap<Digest, usize>>>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// Full names with tag to ids.
    tags: BTreeMap<String, Digest>,
}

impl Images {
    /// Opens the images below an engine's root.
    pub fn open(
        root: &std::path::Path,
        store: Arc<Store>,
        events: Arc<Events>,
    ) -> Result<Arc<Self>> {
        let files = whelk_image::ContentStore::open(root)?;
        let mut index = Index::default();
        let mut unreadable = false;
        for record in store.images::<ImageRecord>()? {
            match files
                .blob(&record.id)
                .and_then(|bytes| ImageConfig::parse(&bytes))
                .and_then(|config| whole(&files, config))
            {
                Ok(config) => {
                    let image = Image {
                        id: record.id,
                        config,
                        size: record.size,
                        tagged_at: record.tagged_at,
                    };
                    index.by_id.insert(image.id.clone(), Arc::new(image));
                }
                Err(error) => {
                    unreadable = true;
                    tracing::error!("image {} cannot be used: {error}", record.id);
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
        let (index, incoming) = (RwLock::new(index), RwLock::default());
        let images = Arc::new(Self {
            files,
            store,
            events,
            index,
            incoming,
            unreadable,
            pins: Arc::default(),
        });
        // What a load that was cut short has left may not be whole. It goes with the trash.
        drop(images.throw_away());
        Ok(images)
    }

    /// The blobs and layers.
    pub fn store(&self) -> &whelk_image::ContentStore {
        &self.files
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds an image for a container that is being made, and keeps it until the [`Pin`] is
    /// dropped.
    ///
    /// # Errors
    /// As [`Images::find`].
    pub fn pin(&self, name: &str) -> Result<(Arc<Image>, Pin)> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let image = self.find(name)?;
        *pins.entry(image.id.clone()).or_default() += 1;
        drop(pins);
        let pin = Pin {
            image: image.id.clone(),
            pins: self.pins.clone(),
        };
        Ok((image, pin))
    }

    pub fn get(&self, id: &Digest) -> Result<Arc<Image>> {
        self.read()
            .by_id
            .get(id)
            .cloned()
            .ok_or_else(|| Error::no_such_image(id.as_str()))
    }

    /// Finds an image by name, id, or a beginning of its id that no other has.
    ///
    /// # Errors
    /// A malformed name, none, or several.
    pub fn find(&self, name: &str) -> Result<Arc<Image>> {
        let index = self.read();
        if let Ok(id) = name.parse::<Digest>() {
            return index
                .by_id
                .get(&id)
                .cloned()
                .ok_or_else(|| Error::no_such_image(name));
        }
        let by_name = if name.starts_with("sha256:") {
            None
        } else {
            name.parse::<Reference>().ok()
        };
        if let Some(reference) = &by_name {
            let tagged = reference.clone().with_default_tag();
            let named = Reference {
                digest: None,
                ..tagged.clone()
            };
            if let Some(id) = index.tags.get(&named.to_string())
                && tagged.digest.as_ref().is_none_or(|digest| digest == id)
            {
                return index
                    .by_id
                    .get(id)
                    .cloned()
                    .ok_or_else(|| Error::no_such_image(name));
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

    /// The same for an image that must run on a platform, if one is given.
    ///
    /// # Errors
    /// One that does not.
    pub fn find_for(&self, name: &str, platform: Option<&Platform>) -> Result<Arc<Image>> {
        let image = self.find(name)?;
        image.check_platform(platform, name)?;
        Ok(image)
    }

    /// The names of an image as people write them.
    pub fn names_of(&self, id: &Digest) -> Vec<String> {
        self.read()
            .tags
            .iter()
            .filter(|(_, tagged)| *tagged == id)
            .filter_map(|(name, _)| name.parse::<Reference>().ok())
            .map(|name| name.familiar())
            .collect()
    }

    pub fn count(&self) -> usize {
        self.read().by_id.len()
    }

    /// Removes layers and configurations that no image has. Blocks for as long as that takes, but
    /// holds nobody up.
    fn sweep(&self) {
        for path in self.throw_away() {
            if let Err(error) = whelk_sys::fs::remove_tree(&path) {
                tracing::warn!("remove what no image needs: {error}");
            }
        }
    }

    /// Takes out of the store what no image has, unless something is just coming in: then whoever
    /// brings it in does that. Where an image cannot be read, nothing is thrown away.
    fn throw_away(&self) -> Vec<std::path::PathBuf> {
        let Ok(_incoming) = self.incoming.try_write() else {
            return Vec::new();
        };
        if self.unreadable {
            return Vec::new();
        }
        let (layers, blobs) = {
            let index = self.read();
            let layers = index
                .by_id
                .values()
                .flat_map(|image| &image.config.rootfs.diff_ids)
                .cloned()
                .collect();
            (layers, index.by_id.keys().cloned().collect())
        };
        self.files.gc(&blobs, &layers).unwrap_or_else(|error| {
            tracing::warn!("remove what no image needs: {error}");
            Vec::new()
        })
    }

    /// Gives an image a further name.
    ///
    /// # Errors
    /// An image that is not here.
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
            let record = ImageRecord {
                id: id.clone(),
                size: image.size,
                tagged_at: image.tagged_at,
            };
            self.store
                .put_image(id.as_str(), &record, std::slice::from_ref(&full))?;
            index.by_id.insert(id.clone(), Arc::new(image));
            index.tags.insert(full, id.clone());
        }
        self.publish("tag", &id, reference.familiar());
        Ok(())
    }

    fn publish(&self, action: &str, id: &Digest, name: String) {
        let mut attributes = self
            .read()
            .by_id
            .get(id)
            .map(|image| image.config.config.labels.clone())
            .unwrap_or_default();
        attributes.insert("name".into(), name);
        self.events
            .publish("image", action, id.to_string(), attributes);
    }
}

/// A configuration whose layers are all there.
fn whole(
    files: &whelk_image::ContentStore,
    config: ImageConfig,
) -> whelk_image::Result<ImageConfig> {
    match config
        .rootfs
        .diff_ids
        .iter()
        .find(|layer| !files.has_layer(layer))
    {
        Some(layer) => Err(whelk_image::Error::NotFound(format!(
            "its layer {layer} is not there"
        ))),
        None => Ok(config),
    }
}
