//! The names of images.

use std::sync::Arc;

use whelk_image::{Digest, Reference};

use super::index::{Index, Tag, choose};
use super::{Image, Images};
use crate::error::Result;
use crate::events::now;

impl Images {
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
            let source = source.filter(|source| index.names(source, &image.id));
            let digest = name.parse::<Reference>().ok().and_then(|name| name.digest);
            let stands_for = match (source, digest) {
                (Some(source), _) => index.index_of(&source).cloned(),
                (None, Some(digest)) if index.has_entries(&digest) => Some(digest),
                // A manifest is that of one image.
                (None, Some(digest)) if image.manifests().any(|own| *own == digest) => None,
                (None, _) => image.origin.index.clone(),
            };
            let image = Image {
                tagged_at: now(),
                ..Image::clone(&image)
            };
            self.assign(&mut index, image, &[(full, stands_for)])?.0
        };
        self.uses.note(&id);
        self.publish("tag", &id, reference.familiar());
        Ok(())
    }

    /// Records an image, and that these tags (full names) name it, each with the index that it stands
    /// for. Returns its id, and the images that tags were taken from.
    pub(super) fn assign(
        &self,
        index: &mut Index,
        image: Image,
        tags: &[(String, Option<Digest>)],
    ) -> Result<(Digest, Vec<(String, Digest)>)> {
        let id = image.id.clone();
        let names: Vec<String> = tags.iter().map(|(name, _)| name.clone()).collect();
        // What another image's record has of the tags does not count any more, and goes when that is
        // written next.
        self.store.put_image(&index.record(&image, tags), &names)?;
        let known = index.by_id.get(&id);
        let mut left = Vec::from_iter(known.and_then(|known| known.origin.index.clone()));
        index.put(Arc::new(image));
        let mut taken = Vec::new();
        for (name, stands_for) in tags {
            let tag = Tag {
                image: id.clone(),
                index: stands_for.clone(),
            };
            let Some(old) = index.tags.insert(name.clone(), tag) else {
                continue;
            };
            left.extend(old.index);
            if old.image != id {
                taken.push((name.clone(), old.image));
            }
        }
        index.forget_unused(&left);
        Ok((id, taken))
    }

    /// Returns the full form of a name, with the default tag if it has none; `None` for one with a
    /// digest.
    pub(super) fn full_name(&self, name: &str) -> Option<String> {
        let reference = name.parse::<Reference>().ok()?;
        (reference.digest.is_none()).then(|| reference.with_default_tag().to_string())
    }

    /// Returns whether `name` is a tag of the image, and not its id or digest.
    pub(super) fn is_name_of(&self, name: &str, id: &Digest) -> bool {
        self.full_name(name)
            .is_some_and(|full| self.read().names(&full, id))
    }
}
