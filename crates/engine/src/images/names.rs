//! The names of images.

use std::sync::Arc;

use whelk_image::{Digest, Reference};

use super::index::{Index, choose};
use super::{Image, Images};
use crate::error::Result;
use crate::events::now;
use crate::records::ImageRecord;

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
        self.uses.note(&id);
        self.publish("tag", &id, reference.familiar());
        Ok(())
    }

    /// Records an image, and that these tags (full names) name it. Returns its id, and the images that
    /// tags were taken from.
    pub(super) fn assign(
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
    pub(super) fn forget_tag(&self, index: &mut Index, id: &Digest, tag: &str) -> Result<()> {
        let image = index.by_id.get(id);
        if let Some(image) = image.filter(|image| image.tag_indexes.contains_key(tag)) {
            let mut image = Image::clone(image);
            image.tag_indexes.remove(tag);
            self.store.put_image(&ImageRecord::of(&image), &[])?;
            index.put(Arc::new(image));
        }
        Ok(())
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
            .is_some_and(|full| self.read().tags.get(&full) == Some(id))
    }
}
