//! Images: which exist, under what names, and bringing them in and out.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use whelk_image::archive::{self, Import, Loaded, Saved};
use whelk_image::{Digest, ImageConfig, Reference};

use crate::error::{Error, Result};
use crate::events::{Events, now};
use crate::filters::Filters;
use crate::store::Store;

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
struct ImageRecord {
    id: Digest,
    size: u64,
    #[serde(default)]
    tagged_at: i64,
}

#[derive(Debug)]
pub struct Images {
    files: whelk_image::Store,
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

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    Untagged(String),
    Deleted(Digest),
}

pub const FILTERS: &[&str] = &["before", "dangling", "label", "label!", "reference", "since", "until"];

impl Images {
    /// Opens the images below an engine's root.
    pub fn open(root: &std::path::Path, store: Arc<Store>, events: Arc<Events>) -> Result<Arc<Self>> {
        let files = whelk_image::Store::open(root)?;
        let mut index = Index::default();
        let mut unreadable = false;
        for record in store.images::<ImageRecord>()? {
            match files.blob(&record.id).and_then(|bytes| ImageConfig::parse(&bytes)).and_then(|config| whole(&files, config)) {
                Ok(config) => {
                    let image = Image { id: record.id, config, size: record.size, tagged_at: record.tagged_at };
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
        let images = Arc::new(Self { files, store, events, index, incoming, unreadable, pins: Arc::default() });
        // What a load that was cut short has left may not be whole. It goes with the trash.
        drop(images.throw_away());
        Ok(images)
    }

    /// The blobs and layers.
    pub fn store(&self) -> &whelk_image::Store {
        &self.files
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds an image for a container that is being made, and keeps it until the [`Pin`] is dropped.
    ///
    /// # Errors
    /// As [`Images::find`].
    pub fn pin(&self, name: &str) -> Result<(Arc<Image>, Pin)> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let image = self.find(name)?;
        *pins.entry(image.id.clone()).or_default() += 1;
        drop(pins);
        let pin = Pin { image: image.id.clone(), pins: self.pins.clone() };
        Ok((image, pin))
    }

    pub fn get(&self, id: &Digest) -> Result<Arc<Image>> {
        self.read().by_id.get(id).cloned().ok_or_else(|| Error::no_such_image(id.as_str()))
    }

    /// Finds an image by name, id, or a beginning of its id that no other has.
    ///
    /// # Errors
    /// A malformed name, none, or several.
    pub fn find(&self, name: &str) -> Result<Arc<Image>> {
        let index = self.read();
        if let Ok(id) = name.parse::<Digest>() {
            return index.by_id.get(&id).cloned().ok_or_else(|| Error::no_such_image(name));
        }
        let by_name = if name.starts_with("sha256:") { None } else { name.parse::<Reference>().ok() };
        if let Some(reference) = &by_name {
            let tagged = reference.clone().with_default_tag();
            let named = Reference { digest: None, ..tagged.clone() };
            if let Some(id) = index.tags.get(&named.to_string())
                && tagged.digest.as_ref().is_none_or(|digest| digest == id)
            {
                return index.by_id.get(id).cloned().ok_or_else(|| Error::no_such_image(name));
            }
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if !prefix.is_empty() && prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            let mut matches = index.by_id.values().filter(|image| image.id.hex().starts_with(prefix));
            match (matches.next(), matches.next()) {
                (Some(image), None) => return Ok(image.clone()),
                (Some(_), Some(_)) => return Err(Error::invalid(format!("No such image: {name}: the prefix is ambiguous"))),
                (None, _) => {}
            }
        }
        match name.parse::<Reference>() {
            Ok(reference) if by_name.is_some() => Err(Error::no_such_image(&reference.with_default_tag().familiar())),
            Ok(_) => Err(Error::no_such_image(name)),
            Err(_) if prefix.len() == 64 || name.starts_with("sha256:") => Err(Error::no_such_image(name)),
            Err(error) => Err(error.into()),
        }
    }

    /// The ids of an image and of all that have its layers below their own.
    pub fn built_on(&self, name: &str) -> Vec<String> {
        let Ok(image) = self.find(name) else { return Vec::new() };
        let layers = &image.config.rootfs.diff_ids;
        let index = self.read();
        let is_on_top =
            |other: &&Arc<Image>| other.id == image.id || !layers.is_empty() && other.config.rootfs.diff_ids.starts_with(layers);
        index.by_id.values().filter(is_on_top).map(|other| other.id.to_string()).collect()
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

    /// All images that match, the newest first.
    ///
    /// # Errors
    /// A filter value that makes no sense.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Arc<Image>>> {
        let created = |image: &Image| image.config.created.clone().unwrap_or_default();
        let bound = |key: &str| -> Result<Option<String>> {
            filters.get(key).and_then(|names| names.first()).map(|name| self.find(name).map(|image| created(&image))).transpose()
        };
        let until = until(filters)?;
        let (before, since, dangling) = (bound("before")?, bound("since")?, filters.flag("dangling")?);
        let mut images: Vec<Arc<Image>> = self.read().by_id.values().cloned().collect();
        images.retain(|image| {
            let names = self.names_of(&image.id);
            dangling.is_none_or(|dangling| names.is_empty() == dangling)
                && filters.labels(&image.config.config.labels)
                && filters.any("reference", |pattern| names.iter().any(|name| matches_reference(pattern, name)))
                && until.is_none_or(|until| made_before(image, until))
                && before.as_ref().is_none_or(|time| created(image) < *time)
                && since.as_ref().is_none_or(|time| created(image) > *time)
        });
        images.sort_by(|a, b| created(b).cmp(&created(a)).then_with(|| a.id.cmp(&b.id)));
        Ok(images)
    }

    /// The bytes of all layers, each counted once, and for each image those of layers that others have too.
    pub fn layer_usage(&self) -> Result<(u64, BTreeMap<Digest, u64>)> {
        let images: Vec<Arc<Image>> = self.read().by_id.values().cloned().collect();
        let mut users: BTreeMap<&Digest, usize> = BTreeMap::new();
        for image in &images {
            let layers: BTreeSet<&Digest> = image.config.rootfs.diff_ids.iter().collect();
            layers.into_iter().for_each(|layer| *users.entry(layer).or_default() += 1);
        }
        let mut sizes = BTreeMap::new();
        for layer in users.keys() {
            sizes.insert(*layer, self.files.layer_size(layer)?);
        }
        let shared = images.iter().map(|image| {
            let layers: BTreeSet<&Digest> = image.config.rootfs.diff_ids.iter().filter(|layer| users[layer] > 1).collect();
            (image.id.clone(), layers.iter().map(|layer| sizes[*layer]).sum())
        });
        Ok((sizes.values().sum(), shared.collect()))
    }

    /// Puts images that are in the store under their names.
    fn record(&self, loaded: &Loaded) -> Result<()> {
        let names: Vec<String> = loaded.names.iter().map(Reference::to_string).collect();
        let tagged_at = if names.is_empty() { 0 } else { now() };
        self.store.put_image(loaded.id.as_str(), &ImageRecord { id: loaded.id.clone(), size: loaded.size, tagged_at }, &names)?;
        let mut index = self.write();
        index.by_id.insert(
            loaded.id.clone(),
            Arc::new(Image { id: loaded.id.clone(), config: loaded.config.clone(), size: loaded.size, tagged_at }),
        );
        for name in names {
            index.tags.insert(name, loaded.id.clone());
        }
        Ok(())
    }

    /// Reads an image archive. Blocking.
    pub fn load(&self, input: impl Read + Send) -> Result<Vec<Loaded>> {
        self.bring_in(|| self.load_archive(input))
    }

    fn load_archive(&self, input: impl Read + Send) -> Result<Vec<Loaded>> {
        let loaded = archive::load(&self.files, input)?;
        // Everything is on disk before a record says so.
        self.files.sync()?;
        for image in &loaded {
            self.record(image)?;
            self.publish("load", &image.id, image.names.first().map_or_else(|| image.id.to_string(), Reference::familiar));
        }
        Ok(loaded)
    }

    /// Makes an image out of an archive of files. Blocking.
    pub fn import(&self, input: impl Read + Send, import: Import) -> Result<Digest> {
        self.bring_in(|| self.import_archive(input, import))
    }

    fn import_archive(&self, input: impl Read + Send, import: Import) -> Result<Digest> {
        let loaded = archive::import(&self.files, input, import)?;
        self.files.sync()?;
        self.record(&loaded)?;
        self.publish("import", &loaded.id, loaded.names.first().map_or_else(|| loaded.id.to_string(), Reference::familiar));
        Ok(loaded.id)
    }

    /// Carries out what makes layers and then images of them. Meanwhile no layer is removed; afterwards those are that no
    /// image has got.
    fn bring_in<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let outcome = {
            let _incoming = self.incoming.read().unwrap_or_else(PoisonError::into_inner);
            work()
        };
        self.sweep();
        outcome
    }

    /// Removes layers and configurations that no image has. Blocks for as long as that takes, but holds nobody up.
    fn sweep(&self) {
        for path in self.throw_away() {
            if let Err(error) = whelk_sys::fs::remove_tree(&path) {
                tracing::warn!("remove what no image needs: {error}");
            }
        }
    }

    /// Takes out of the store what no image has, unless something is just coming in: then whoever brings it in does that.
    /// Where an image cannot be read, nothing is thrown away.
    fn throw_away(&self) -> Vec<std::path::PathBuf> {
        let Ok(_incoming) = self.incoming.try_write() else { return Vec::new() };
        if self.unreadable {
            return Vec::new();
        }
        let (layers, blobs) = {
            let index = self.read();
            let layers = index.by_id.values().flat_map(|image| &image.config.rootfs.diff_ids).cloned().collect();
            (layers, index.by_id.keys().cloned().collect())
        };
        self.files.keep_only(&blobs, &layers).unwrap_or_else(|error| {
            tracing::warn!("remove what no image needs: {error}");
            Vec::new()
        })
    }

    /// What `save NAME…` writes: each image with the names it was asked for by.
    ///
    /// # Errors
    /// An image that is not here.
    pub fn to_save(&self, names: &[String]) -> Result<Vec<Saved>> {
        let mut images: Vec<Saved> = Vec::new();
        for name in names {
            let image = self.find(name)?;
            let by_id = image.id.as_str() == name || image.id.hex().starts_with(name.strip_prefix("sha256:").unwrap_or(name));
            let names: Vec<Reference> = if by_id {
                Vec::new()
            } else {
                let reference: Reference = name.parse()?;
                match reference.tag {
                    // A name without a tag stands for all its tags.
                    None => self
                        .names_of(&image.id)
                        .iter()
                        .filter_map(|name| name.parse::<Reference>().ok())
                        .filter(|other| other.name() == reference.name())
                        .collect(),
                    Some(_) => vec![reference],
                }
            };
            match images.iter_mut().find(|known| known.id == image.id) {
                Some(known) => known.names.extend(names),
                None => images.push(Saved { id: image.id.clone(), names }),
            }
        }
        for image in &mut images {
            let mut seen = BTreeSet::new();
            image.names.retain(|name| seen.insert(name.clone()));
        }
        Ok(images)
    }

    /// Writes an image archive. Blocking.
    pub fn save(&self, images: &[Saved], output: impl Write) -> Result<()> {
        archive::save(&self.files, images, output)?;
        for image in images {
            self.publish("save", &image.id, image.names.first().map_or_else(|| image.id.to_string(), Reference::familiar));
        }
        Ok(())
    }

    /// Gives an image a further name.
    ///
    /// # Errors
    /// A malformed name, or one with a digest.
    pub fn tag(&self, name: &str, repository: &str, tag: &str) -> Result<()> {
        let image = self.find(name)?;
        let mut reference: Reference = repository.parse()?;
        if reference.digest.is_some() {
            return Err(Error::invalid("refusing to create a tag with a digest reference"));
        }
        if !tag.is_empty() {
            whelk_image::reference::check_tag(tag)?;
            reference.tag = Some(tag.to_owned());
        }
        let reference = reference.with_default_tag();
        self.store.put_tag(&reference.to_string(), image.id.as_str())?;
        self.write().tags.insert(reference.to_string(), image.id.clone());
        self.publish("tag", &image.id, reference.familiar());
        Ok(())
    }

    /// Takes a name off an image, and removes the image with its last name.
    ///
    /// `users` says which containers use an image: id and whether it runs.
    ///
    /// # Errors
    /// [`Error::Conflict`] when a container needs it and `force` does not help.
    pub fn remove(&self, name: &str, force: bool, users: impl Fn(&Digest) -> Vec<(String, bool)>) -> Result<Vec<Removed>> {
        self.remove_unless(name, force, false, users)
    }

    /// The same; with `unless_used` an image that containers use stays as it is, whatever is forced.
    fn remove_unless(
        &self,
        name: &str,
        force: bool,
        unless_used: bool,
        users: impl Fn(&Digest) -> Vec<(String, bool)>,
    ) -> Result<Vec<Removed>> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let image = self.find(name)?;
        let by_id = !self.is_name_of(name, &image.id);
        let names: Vec<String> = self.read().tags.iter().filter(|(_, id)| **id == image.id).map(|(name, _)| name.clone()).collect();
        let short = &image.id.hex()[..12];
        let users = users(&image.id);
        if unless_used && !users.is_empty() {
            return Err(Error::conflict(format!("conflict: unable to delete {short} - containers use it")));
        }
        if by_id && names.len() > 1 && !force {
            return Err(Error::conflict(format!(
                "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
            )));
        }
        let last = by_id || names.len() <= 1;
        if last && pins.contains_key(&image.id) {
            return Err(Error::conflict(format!("conflict: unable to delete {short} - a container is being made of it")));
        }
        if last && let Some((user, running)) = users.iter().find(|(_, running)| *running).or(users.first()) {
            let user = &user[..12];
            let text = match (by_id, running) {
                (true, true) => {
                    Some(format!("conflict: unable to delete {short} (cannot be forced) - image is being used by running container {user}"))
                }
                (true, false) if !force => {
                    Some(format!("conflict: unable to delete {short} (must be forced) - image is being used by stopped container {user}"))
                }
                (false, _) if !force => Some(format!(
                    "conflict: unable to remove repository reference {name:?} (must force) - container {user} is using its referenced image {short}"
                )),
                _ => None,
            };
            if let Some(text) = text {
                return Err(Error::conflict(text));
            }
        }
        let gone: Vec<String> =
            if by_id { names } else { names.into_iter().filter(|full| self.full_name(name).as_deref() == Some(full)).collect() };
        let mut removed = Vec::new();
        for full in gone {
            self.store.delete_tag(&full)?;
            self.write().tags.remove(&full);
            let familiar = full.parse::<Reference>().map_or(full, |name| name.familiar());
            self.publish("untag", &image.id, image.id.to_string());
            removed.push(Removed::Untagged(familiar));
        }
        // A container keeps its image's files; without a name the image stays, dangling, until it is free.
        let deleted = last && users.is_empty();
        if deleted {
            self.delete(&image)?;
            removed.push(Removed::Deleted(image.id.clone()));
        }
        drop(pins);
        if deleted {
            self.sweep();
        }
        Ok(removed)
    }

    fn full_name(&self, name: &str) -> Option<String> {
        name.parse::<Reference>().ok().map(|reference| Reference { digest: None, ..reference.with_default_tag() }.to_string())
    }

    fn is_name_of(&self, name: &str, id: &Digest) -> bool {
        self.full_name(name).is_some_and(|full| self.read().tags.get(&full) == Some(id))
    }

    /// Forgets an image; its files go with the next [`Images::sweep`].
    fn delete(&self, image: &Image) -> Result<()> {
        self.store.delete_image(image.id.as_str())?;
        self.write().by_id.remove(&image.id);
        self.publish("delete", &image.id, image.id.to_string());
        Ok(())
    }

    /// Removes images without a name that no container uses (with `all`, also named ones); returns what was done and
    /// the bytes that became free.
    ///
    /// # Errors
    /// The store's.
    pub fn prune(&self, all: bool, filters: &Filters, users: impl Fn(&Digest) -> Vec<(String, bool)>) -> Result<(Vec<Removed>, u64)> {
        let before = until(filters)?;
        let mut removed = Vec::new();
        let mut reclaimed = 0;
        let images: Vec<Arc<Image>> = self.read().by_id.values().cloned().collect();
        for image in images {
            let dangling = self.names_of(&image.id).is_empty();
            if (dangling || all)
                && users(&image.id).is_empty()
                && filters.labels(&image.config.config.labels)
                && before.is_none_or(|before| made_before(&image, before))
            {
                match self.remove_unless(image.id.as_str(), true, true, &users) {
                    Ok(gone) => {
                        removed.extend(gone);
                        reclaimed += image.size;
                    }
                    // Somebody has begun to use it.
                    Err(Error::Conflict(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((removed, reclaimed))
    }

    fn publish(&self, action: &str, id: &Digest, name: String) {
        let mut attributes = self.read().by_id.get(id).map(|image| image.config.config.labels.clone()).unwrap_or_default();
        attributes.insert("name".into(), name);
        self.events.publish("image", action, id.to_string(), attributes);
    }
}

fn until(filters: &Filters) -> Result<Option<jiff::Timestamp>> {
    Ok(filters.until()?.and_then(|nanoseconds| jiff::Timestamp::from_nanosecond(nanoseconds.into()).ok()))
}

/// Whether an image says that it was made before. One that does not say when is as old as can be.
fn made_before(image: &Image, time: jiff::Timestamp) -> bool {
    image.config.created.as_deref().is_none_or(|created| created.parse().is_ok_and(|created: jiff::Timestamp| created < time))
}

/// A configuration whose layers are all there.
fn whole(files: &whelk_image::Store, config: ImageConfig) -> whelk_image::Result<ImageConfig> {
    match config.rootfs.diff_ids.iter().find(|layer| !files.has_layer(layer)) {
        Some(layer) => Err(whelk_image::Error::NotFound(format!("its layer {layer} is not there"))),
        None => Ok(config),
    }
}

/// Whether a name matches a pattern with `*` and `?`, which may leave out the tag.
fn matches_reference(pattern: &str, name: &str) -> bool {
    let without_tag = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
    glob(pattern.as_bytes(), name.as_bytes()) || glob(pattern.as_bytes(), without_tag.as_bytes())
}

/// Shell patterns where `*` does not cross a slash.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    // Where the last star was, and how much of the text it has taken: what follows it is tried again one further on.
    let mut star: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(at), text.get(read)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                star = Some((at, read));
                at += 1;
                continue;
            }
            (Some(b'?'), Some(found)) if *found != b'/' => {}
            (Some(wanted), Some(found)) if wanted == found && *wanted != b'?' => {}
            _ => {
                let Some((after, taken)) = star.filter(|(_, taken)| text.get(*taken).is_some_and(|byte| *byte != b'/')) else {
                    return false;
                };
                star = Some((after, taken + 1));
                (at, read) = (after + 1, taken + 1);
                continue;
            }
        }
        at += 1;
        read += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_match_with_and_without_tag() {
        for (pattern, name, expected) in [
            ("busybox", "busybox:latest", true),
            ("busy*", "busybox:1", true),
            ("*:latest", "a:latest", true),
            ("*", "a/b:1", false),
            ("*/*", "a/b:1", true),
            ("x", "y:1", false),
            ("a*c*e", "abcde:1", true),
            ("a*c*e", "ab/cde:1", false),
            ("*/b?", "a/bc:1", true),
            ("a?", "a:1", false),
        ] {
            assert_eq!(matches_reference(pattern, name), expected, "{pattern} {name}");
        }
        // In no time, however often a star could take another part.
        assert!(!matches_reference(&("*a".repeat(30) + "b"), &"a".repeat(200)));
    }
}
