//! The images of an engine in memory, by everything that they are found by.
//!
//! A tag names an image. If that has come with an index, the tag stands for all images that the index
//! lists and the engine has, one for each platform: the tag itself names the default one, which suits this
//! host best.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use whelk_image::descriptor::Descriptor;
use whelk_image::{Digest, Platform, Reference};

use super::Image;
use crate::error::{Error, Result};
use crate::records::ImageRecord;

/// An image, and the platform that it is for.
#[derive(Clone, Debug)]
pub(super) struct Variant {
    pub(super) image: Arc<Image>,
    pub(super) platform: Platform,
}

/// An image as it is listed, with those that belong to it: it is the default one of some tags, or has
/// none.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// Full names.
    pub(super) tags: Vec<&'a String>,
    /// The image itself is the first.
    pub(super) variants: Vec<Variant>,
}

/// What a tag stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// The image that it names, the default one.
    pub(super) image: Digest,
    /// The index whose other images it stands for, too. Of an image that was built with annotations, and is in no index, it is the
    /// manifest: so each name can have its own.
    pub(super) index: Option<Digest>,
}

/// What was read of an index.
#[derive(Debug, Default)]
pub(super) struct ReadIndex {
    pub(super) entries: Vec<Descriptor>,
    /// The blobs of attestations that it lists, as far as the engine has them.
    pub(super) attached: Vec<Digest>,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) by_id: BTreeMap<Digest, Arc<Image>>,
    /// By full name with tag.
    pub(super) tags: BTreeMap<String, Tag>,
    /// Images that could not be read. Their layers would look unused, so nothing is collected while
    /// there are any.
    pub(super) unreadable: BTreeSet<Digest>,
    /// The entries of the indexes that images have come with and tags stand for, by digest.
    entries: BTreeMap<Digest, Arc<[Descriptor]>>,
    /// The blobs of the attestations that these indexes list, as far as the engine has them.
    attached: BTreeMap<Digest, Vec<Digest>>,
    /// Those of these indexes whose content could not be read. What they list is not known, so a tag that
    /// stands for one may stand for any image.
    unreadable_indexes: BTreeSet<Digest>,
    /// The indexes in `entries` that list a manifest, by its digest.
    listing: BTreeMap<Digest, BTreeSet<Digest>>,
    /// Ids by the digests of the manifests that an image has come with.
    by_manifest: BTreeMap<Digest, Digest>,
}

impl Tag {
    /// Returns whether it stands for an image that these indexes list.
    fn covers(&self, image: &Image, indexes: &BTreeSet<&Digest>) -> bool {
        self.image == image.id
            || self
                .index
                .as_ref()
                .is_some_and(|index| indexes.contains(index))
    }
}

impl Index {
    /// Adds an image, or replaces it.
    pub(super) fn put(&mut self, image: Arc<Image>) {
        for manifest in image.manifests() {
            self.by_manifest.insert(manifest.clone(), image.id.clone());
        }
        self.by_id.insert(image.id.clone(), image);
    }

    /// Removes an image and its tags.
    pub(super) fn remove(&mut self, id: &Digest) {
        let mut indexes: Vec<Digest> = Vec::new();
        if let Some(image) = self.by_id.remove(id) {
            indexes.extend(image.origin.index.clone());
            for manifest in image.manifests() {
                if self.by_manifest.get(manifest) == Some(id) {
                    self.by_manifest.remove(manifest);
                }
            }
        }
        let names: Vec<String> = self.named(id).map(|(name, _)| name.clone()).collect();
        for name in names {
            indexes.extend(self.tags.remove(&name).and_then(|tag| tag.index));
        }
        self.forget_unused(&indexes);
    }

    /// Removes a tag.
    pub(super) fn untag(&mut self, tag: &str) {
        let gone = self.tags.remove(tag);
        self.forget_unused(gone.and_then(|tag| tag.index).as_slice());
    }

    /// Returns whether the entries of an index are known.
    pub(super) fn has_entries(&self, index: &Digest) -> bool {
        self.entries.contains_key(index)
    }

    /// Adds the entries of an index; `None` for one whose content could not be read.
    pub(super) fn add_entries(&mut self, index: &Digest, entries: Option<Vec<Descriptor>>) {
        let Some(mut entries) = entries else {
            self.unreadable_indexes.insert(index.clone());
            return;
        };
        for entry in &mut entries {
            // They are not used, and may be many.
            entry.urls = Vec::new();
            let listing = self.listing.entry(entry.digest.clone()).or_default();
            listing.insert(index.clone());
        }
        self.unreadable_indexes.remove(index);
        self.entries.insert(index.clone(), entries.into());
    }

    /// Adds what was read of an index; `None` for one whose content could not be read.
    pub(super) fn add_read(&mut self, index: &Digest, read: Option<ReadIndex>) {
        let (entries, attached) = read.map(|read| (read.entries, read.attached)).unzip();
        if let Some(attached) = attached.filter(|attached: &Vec<Digest>| !attached.is_empty()) {
            self.attached.insert(index.clone(), attached);
        }
        self.add_entries(index, entries);
    }

    /// Returns the blobs of attestations that indexes list.
    pub(super) fn attached(&self) -> impl Iterator<Item = &Digest> {
        self.attached.values().flatten()
    }

    /// Returns whether the engine has attestations that an index lists.
    pub(super) fn has_attached(&self, index: &Digest) -> bool {
        self.attached.contains_key(index)
    }

    /// Forgets the entries of those of these indexes that no image has come with, and no tag stands for.
    pub(super) fn forget_unused(&mut self, indexes: &[Digest]) {
        for index in indexes {
            let is_it = |used: &Option<Digest>| used.as_ref() == Some(index);
            if self.tags.values().any(|tag| is_it(&tag.index))
                || self.by_id.values().any(|image| is_it(&image.origin.index))
            {
                continue;
            }
            self.unreadable_indexes.remove(index);
            self.attached.remove(index);
            for entry in self.entries.remove(index).iter().flat_map(|all| all.iter()) {
                if let Some(listing) = self.listing.get_mut(&entry.digest) {
                    listing.remove(index);
                    if listing.is_empty() {
                        self.listing.remove(&entry.digest);
                    }
                }
            }
        }
    }

    /// Returns whether an index lists a manifest.
    pub(super) fn is_listed(&self, manifest: &Digest) -> bool {
        self.listing.contains_key(manifest)
    }

    /// Returns the record of an image that has these tags besides those that name it already.
    pub(super) fn record(&self, image: &Image, more: &[(String, Option<Digest>)]) -> ImageRecord {
        let known = self.named(&image.id).map(|(name, tag)| (name, &tag.index));
        let more = more.iter().map(|(name, index)| (name, index));
        ImageRecord::of(image, known.chain(more))
    }

    /// Returns the image that has come with a manifest.
    pub(super) fn with_manifest(&self, digest: &Digest) -> Option<&Arc<Image>> {
        let image = self.by_id.get(self.by_manifest.get(digest)?)?;
        // It may have come with others since.
        image
            .manifests()
            .any(|manifest| manifest == digest)
            .then_some(image)
    }

    /// Returns the index that a tag (a full name) stands for, if it stands for one.
    pub(super) fn index_of(&self, tag: &str) -> Option<&Digest> {
        self.tags.get(tag)?.index.as_ref()
    }

    /// Returns the image that a tag (a full name) names.
    fn default_of(&self, tag: &str) -> Option<&Arc<Image>> {
        self.by_id.get(&self.tags.get(tag)?.image)
    }

    /// Returns whether a tag (a full name) names an image.
    pub(super) fn names(&self, tag: &str, id: &Digest) -> bool {
        self.tags.get(tag).is_some_and(|tag| tag.image == *id)
    }

    /// Returns the tags that name an image.
    pub(super) fn named<'a>(
        &'a self,
        id: &'a Digest,
    ) -> impl Iterator<Item = (&'a String, &'a Tag)> {
        self.tags.iter().filter(move |(_, tag)| tag.image == *id)
    }

    /// Returns the entries of an index.
    pub(super) fn entries(&self, index: Option<&Digest>) -> &[Descriptor] {
        index
            .and_then(|index| self.entries.get(index))
            .map_or(&[][..], |entries| &entries[..])
    }

    /// Returns an image with the platform that an index says it is for, or else its configuration.
    fn variant(&self, image: &Arc<Image>, index: Option<&Digest>) -> Variant {
        Variant {
            platform: self.platform(image, index),
            image: image.clone(),
        }
    }

    fn platform(&self, image: &Image, index: Option<&Digest>) -> Platform {
        let is_it =
            |entry: &&Descriptor| image.manifests().any(|manifest| *manifest == entry.digest);
        let entry = self.entries(index).iter().find(is_it);
        let platform = entry.and_then(|entry| entry.platform.clone());
        platform.unwrap_or_else(|| Platform::of(&image.config))
    }

    /// Returns the images that a tag stands for, the default one first; none if there is no such tag.
    pub(super) fn variants(&self, tag: &str) -> Vec<Variant> {
        let Some(image) = self.default_of(tag) else {
            return Vec::new();
        };
        let index = self.index_of(tag);
        let mut found = vec![self.variant(image, index)];
        for entry in self.entries(index) {
            if let Some(other) = self.with_manifest(&entry.digest)
                && found.iter().all(|known| known.image.id != other.id)
            {
                found.push(self.variant(other, index));
            }
        }
        found
    }

    /// Returns whether a tag, which is to stand for an index now that this image of it has come, still
    /// names another one: it has stood for the same index, and its image suits this host at least as well.
    pub(super) fn keeps_default(&self, tag: &str, index: Option<&Digest>, new: &Image) -> bool {
        let Some(old) = self.default_of(tag) else {
            return false;
        };
        if index.is_none() || self.index_of(tag) != index || old.id == new.id {
            return false;
        }
        let (old, new) = (self.platform(old, index), self.platform(new, index));
        Platform::host().choose([(&old, true), (&new, false)]) == Some(true)
    }

    /// Returns whether a tag stands for an image, among others.
    pub(super) fn covers(&self, tag: &str, image: &Image) -> bool {
        let covers = |tag: &Tag| tag.covers(image, &self.indexes_of(image));
        self.tags.get(tag).is_some_and(covers)
    }

    /// Returns the indexes that list an image.
    fn indexes_of(&self, image: &Image) -> BTreeSet<&Digest> {
        let listing = image.manifests().filter_map(|one| self.listing.get(one));
        listing.flatten().collect()
    }

    /// Returns the tags that stand for an image.
    pub(super) fn tags_of<'a>(&'a self, image: &'a Image) -> impl Iterator<Item = &'a String> {
        let indexes = self.indexes_of(image);
        let tags = self.tags.iter();
        tags.filter_map(move |(name, tag)| tag.covers(image, &indexes).then_some(name))
    }

    /// Returns whether a tag stands for an image, or may: that of an index which could not be read. The
    /// tags `except` do not count.
    pub(super) fn is_needed(&self, image: &Image, except: &[String]) -> bool {
        let indexes = self.indexes_of(image);
        let mut tags = self.tags.iter();
        tags.any(|(name, tag)| {
            let is_unknown = |index: &Digest| self.unreadable_indexes.contains(index);
            let may_cover = || {
                let came_with_one = image.manifests().next().is_some();
                came_with_one && tag.index.as_ref().is_some_and(is_unknown)
            };
            (tag.covers(image, &indexes) || may_cover()) && !except.contains(name)
        })
    }

    /// Returns the tags of a repository, by full name.
    pub(super) fn tags_in(&self, repository: &str) -> impl Iterator<Item = (&String, &Tag)> {
        let prefix = format!("{repository}:");
        let tags = self.tags.range(prefix.clone()..);
        tags.take_while(move |(tag, _)| tag.starts_with(&prefix))
    }

    /// Returns all images as they are listed: those that tags name, and those that none stands for.
    pub(super) fn rows(&self) -> Vec<Row<'_>> {
        let mut named: BTreeMap<&Digest, Row<'_>> = BTreeMap::new();
        let mut covered = BTreeSet::new();
        for (tag, Tag { image: id, .. }) in &self.tags {
            let variants = self.variants(tag);
            covered.extend(variants.iter().map(|variant| variant.image.id.clone()));
            let row = named.entry(id).or_insert_with(|| Row {
                tags: Vec::new(),
                variants: Vec::new(),
            });
            row.tags.push(tag);
            for variant in variants {
                if row
                    .variants
                    .iter()
                    .all(|known| known.image.id != variant.image.id)
                {
                    row.variants.push(variant);
                }
            }
        }
        let rest = self
            .by_id
            .values()
            .filter(|image| !covered.contains(&image.id));
        let rest = rest.map(|image| Row {
            tags: Vec::new(),
            variants: vec![self.variant(image, image.origin.index.as_ref())],
        });
        let rest: Vec<Row<'_>> = rest.collect();
        named.into_values().chain(rest).collect()
    }

    /// Returns the image with this id, or those that came with this manifest or index.
    fn by_digest(&self, digest: &Digest) -> Vec<&Arc<Image>> {
        let came_with =
            |image: &&Arc<Image>| image.origin.blobs().any(|document| document == digest);
        match self.by_id.get(digest) {
            Some(image) => vec![image],
            None => self.by_id.values().filter(came_with).collect(),
        }
    }

    /// Returns the images with this digest that the repository `name` has: those that were pulled by
    /// it, or else those with a tag.
    fn in_repository(&self, name: &str, digest: &Digest) -> Vec<&Arc<Image>> {
        let is_known = |image: &&Arc<Image>| {
            let mut known = image.repo_digests.iter();
            known.any(|known| known.name() == name && known.digest.as_ref() == Some(digest))
        };
        let is_tagged =
            |image: &&Arc<Image>| self.tags_in(name).any(|(tag, _)| self.covers(tag, image));
        let mut found: Vec<_> = self.by_id.values().filter(is_known).collect();
        if found.is_empty() {
            found = self.by_digest(digest);
            found.retain(is_tagged);
        }
        found
    }

    /// Returns the images that an index lists, that for this host first.
    fn by_platform(&self, found: &[&Arc<Image>]) -> Vec<Variant> {
        let variant = |image: &&Arc<Image>| self.variant(image, image.origin.index.as_ref());
        let mut found: Vec<Variant> = found.iter().map(variant).collect();
        let platforms = found.iter().map(|variant| &variant.platform);
        let best = Platform::host().choose(platforms.zip(0..));
        if let Some(best) = best {
            found[..=best].rotate_right(1);
        }
        found
    }

    /// Returns an image that is named by its id, with those that its tags stand for.
    fn of_id(&self, image: &Arc<Image>) -> Vec<Variant> {
        let mut found = vec![self.variant(image, image.origin.index.as_ref())];
        let tags = self.named(&image.id);
        for variant in tags.flat_map(|(tag, _)| self.variants(tag)) {
            if found.iter().all(|known| known.image.id != variant.image.id) {
                found.push(variant);
            }
        }
        found
    }

    /// Finds an image by name, id or unique prefix of the id, or by the digest of the manifest or
    /// index that it came with, alone or after a repository that has it. Returns the image, and after
    /// it those for other platforms that the name stands for, too.
    ///
    /// # Errors
    /// Returns an error if the name is malformed, if there is no such image, or if the prefix is
    /// ambiguous.
    pub(super) fn find(&self, name: &str) -> Result<Vec<Variant>> {
        let some = |found: Vec<Variant>| (!found.is_empty()).then_some(found);
        if let Ok(id) = name.parse::<Digest>() {
            let found = match self.by_id.get(&id) {
                Some(image) => self.of_id(image),
                None => self.by_platform(&self.by_digest(&id)),
            };
            return some(found).ok_or_else(|| Error::no_such_image(name));
        }
        let by_name = if name.starts_with("sha256:") {
            None
        } else {
            name.parse::<Reference>().ok()
        };
        if let Some(reference) = &by_name {
            let found = match &reference.digest {
                // As with Docker, the tag does not matter: its image may have changed.
                Some(digest) => self.by_platform(&self.in_repository(&reference.name(), digest)),
                None => self.variants(&reference.clone().with_default_tag().to_string()),
            };
            if let Some(found) = some(found) {
                return Ok(found);
            }
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if !prefix.is_empty() && prefix.bytes().all(is_hex) {
            let mut matches = self
                .by_id
                .values()
                .filter(|image| image.id.hex().starts_with(prefix));
            match (matches.next(), matches.next()) {
                (Some(image), None) => return Ok(self.of_id(image)),
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
}

/// Returns the image that is for a platform, of those that a name stands for; without one the first.
///
/// # Errors
/// Returns [`Error::NotFound`] if none is.
pub(super) fn choose(found: &[Variant], wanted: Option<&Platform>, name: &str) -> Result<Variant> {
    let chosen = match wanted {
        None => found.first(),
        Some(wanted) => {
            let candidates = found.iter().map(|variant| (&variant.platform, variant));
            wanted.choose(candidates)
        }
    };
    let wanted = || wanted.map_or_else(String::new, ToString::to_string);
    chosen.cloned().ok_or_else(|| lacks(found, &wanted(), name))
}

/// Returns the image that is for exactly a platform, of those that a name stands for.
///
/// # Errors
/// Returns [`Error::NotFound`] if none is.
pub(super) fn choose_equal<'a>(
    found: &'a [Variant],
    wanted: &Platform,
    name: &str,
) -> Result<&'a Variant> {
    let mut equal = found.iter().filter(|variant| wanted.is(&variant.platform));
    let chosen = equal.next();
    chosen.ok_or_else(|| lacks(found, &wanted.to_string(), name))
}

/// Returns the error for a name that stands for no image for a platform.
fn lacks(found: &[Variant], wanted: &str, name: &str) -> Error {
    Error::NotFound(match found {
        [only] => format!(
            "image with reference {name} was found but its platform ({}) does not match the specified platform ({wanted})",
            only.platform
        ),
        _ => format!(
            "image with reference {name} was found but does not provide the specified platform ({wanted})"
        ),
    })
}
