//! Removing all images that no container uses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use whelk_image::{Digest, Reference};

use super::{Force, ImageUser, Removed};
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::images::list::until;
use crate::images::{Image, Images};

impl Images {
    /// Removes images that no container uses: those without a name, and with `all` also named ones.
    /// Returns the steps, and the number of bytes freed, without layers that other images share.
    ///
    /// # Errors
    /// Returns the first error of the store. The other images are removed nevertheless.
    pub(crate) fn prune(
        &self,
        all: bool,
        filters: &Filters,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<(Vec<Removed>, u64)> {
        let before = until(filters)?;
        let mut removed = Vec::new();
        let mut free: BTreeMap<Digest, u64> = BTreeMap::new();
        let mut failure = None;
        for (names, members) in self.as_listed() {
            let Some(image) = members.first() else {
                continue;
            };
            if !all && !names.is_empty()
                || !filters.labels(&image.config.config.labels)
                || before.is_some_and(|before| !image.created_before(before))
            {
                continue;
            }
            // Before the removal, after which another collection may remove the layers. With an image
            // others may go that its names stand for.
            let sizes: Vec<(Digest, Vec<(Digest, u64)>)> = members
                .iter()
                .map(|member| (member.id.clone(), self.layer_sizes(member)))
                .collect();
            let (gone, error) = self.remove_unused(image, &users);
            failure = failure.or(error);
            for (member, layers) in &sizes {
                if gone.contains(&Removed::Deleted(member.clone())) {
                    free.extend(layers.iter().cloned());
                }
            }
            removed.extend(gone);
        }
        let kept: BTreeSet<Digest> = self
            .read()
            .by_id
            .values()
            .flat_map(|image| image.config.rootfs.diff_ids.iter().cloned())
            .collect();
        free.retain(|layer, _| !kept.contains(layer));
        // A prune also removes the content of unfinished pulls.
        self.collect_older(Duration::ZERO);
        let freed = free.values().sum();
        self.publish_prune(freed);
        match failure {
            Some(error) => Err(error),
            None => Ok((removed, freed)),
        }
    }

    /// Removes all names of an image, and then the image, as far as no container needs them. Returns the
    /// steps, and the first error of the store.
    pub(in crate::images) fn remove_unused(
        &self,
        image: &Image,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> (Vec<Removed>, Option<Error>) {
        let (mut removed, mut failure) = (Vec::new(), None);
        // Tag by tag, as single removals would: an image in use keeps its last tag. What is left is
        // removed by the image's id: a digest in a registry may be that of other images, too.
        let names = self.names_of(&image.id);
        for name in names.into_iter().chain([image.id.to_string()]) {
            let is_id = name == image.id.as_str();
            let is_kept = || !users(&image.id).is_empty() || self.read().is_needed(image, &[]);
            if is_id && is_kept() {
                continue;
            }
            let force = if is_id {
                Force::SeveralReferences
            } else {
                Force::Nothing
            };
            match self.remove_one(&name, force, &users) {
                Ok(gone) => removed.extend(gone),
                // In use, or removed meanwhile.
                Err(Error::Conflict(_) | Error::NotFound(_)) => {}
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        (removed, failure)
    }

    /// Publishes the event of a prune that has freed so many bytes.
    pub(in crate::images) fn publish_prune(&self, freed: u64) {
        let attributes = [("reclaimed".to_owned(), freed.to_string())].into();
        self.events
            .publish("image", "prune", String::new(), attributes);
    }

    /// Returns the images as lists show them: their names, and those that belong together.
    fn as_listed(&self) -> Vec<(Vec<String>, Vec<Arc<Image>>)> {
        let index = self.read();
        let rows = index.rows().into_iter().map(|row| {
            let names = row.tags.iter().filter_map(|tag| tag.parse().ok());
            let names = names.map(|name: Reference| name.familiar()).collect();
            let members = row.variants.into_iter().map(|variant| variant.image);
            (names, members.collect())
        });
        rows.collect()
    }

    /// Returns the layers of an image with their sizes in bytes.
    fn layer_sizes(&self, image: &Image) -> Vec<(Digest, u64)> {
        let layers = image.layers().into_iter();
        let size = |layer: &Digest| Some((layer.clone(), self.files.snapshots.size(layer).ok()?));
        layers.filter_map(size).collect()
    }
}
