//! Removing images' names, and images with their last name.

mod conflicts;
mod prune;
mod references;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_indexes;

use std::collections::BTreeSet;
use std::sync::Arc;

use whelk_sys::sync::IgnorePoison as _;

use whelk_image::{Digest, Platform, Reference};

use self::conflicts::Removal;
use self::references::References;
use super::index::{Index, choose_equal};
use super::{Image, Images};
use crate::error::{Error, Result};

/// One step of a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    Untagged(String),
    Deleted(Digest),
    /// A layer that no other image has on the same lower layers, by its chain id.
    DeletedLayer(Digest),
}

/// A container that was created from an image or mounts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUser {
    /// Its id.
    pub container: String,
    pub is_running: bool,
}

/// Which conflicts a removal ignores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Force {
    Nothing,
    /// That the image has several references.
    SeveralReferences,
    /// All that can be forced.
    All,
}

impl Images {
    /// Removes a name of an image, or with its last name the image, and with it those for other
    /// platforms that the name stands for. With `platforms`, removes only the images for these.
    ///
    /// `users` returns the containers that use an image: their ids, and whether each runs.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if a container uses the image and `force` does not allow the
    /// removal, and [`Error::NotFound`] if the name stands for no image for one of the platforms.
    pub(crate) fn remove(
        &self,
        name: &str,
        force: bool,
        platforms: &[Platform],
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<Vec<Removed>> {
        if name.trim().is_empty() {
            return Err(Error::invalid("image name cannot be blank"));
        }
        let found = self.read().find(name)?;
        let mut chosen: Vec<Digest> = Vec::new();
        for platform in platforms {
            let id = &choose_equal(&found, platform, name)?.image.id;
            if !chosen.contains(id) {
                chosen.push(id.clone());
            }
        }
        let force = if force { Force::All } else { Force::Nothing };
        let mut removed = Vec::new();
        if chosen.is_empty() || chosen.len() == found.len() {
            removed = self.remove_one(name, force, &users)?;
        } else {
            for id in chosen {
                removed.extend(self.remove_member(name, &id, force, &users)?);
            }
        }
        let is_deletion = |removed: &Removed| matches!(removed, Removed::Deleted(_));
        if removed.iter().any(is_deletion) {
            self.collect_garbage();
        }
        Ok(removed)
    }

    fn remove_one(
        &self,
        name: &str,
        force: Force,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<Vec<Removed>> {
        let pins = self.pins.lock().ignore_poison();
        let image = self.find(name)?;
        let all = self.references_of(&image);
        let selected = self.selected(name, &image)?;
        let gone = selected.as_ref().unwrap_or(&all);
        let (others, shared) = self.belonging(&image, gone);
        let is_needed = self.read().is_needed(&image, &gone.tags);
        let removal = Removal {
            image: &image,
            name,
            all: &all,
            selected: selected.as_ref(),
            users: &users(&image.id),
            others: &others
                .iter()
                .flat_map(|other| users(&other.id))
                .collect::<Vec<_>>(),
            is_needed,
        };
        removal.check_conflicts(force)?;
        let last = removal.is_last();
        let is_unused = removal.users.is_empty();
        let mut deleted = others.iter().chain(Some(&image).filter(|_| last));
        if let Some(pinned) = deleted.find(|image| pins.contains_key(&image.id)) {
            let short = &pinned.id.hex()[..12];
            return Err(Error::conflict(format!(
                "conflict: unable to delete {short} - a container of it is being created"
            )));
        }
        let is_whole = selected.is_none();
        let gone = selected.unwrap_or(all);
        let digests = gone.digests.clone();
        let repositories = gone.repositories();
        let removed = self.untag(&image, gone)?;
        let mut removed: Vec<Removed> = removed.into_iter().map(Removed::Untagged).collect();
        // An image used by a container is not deleted: without a name it stays as a dangling image.
        if last && is_unused {
            let is_free = |index: &Index, image: &Image| {
                let is_named = index.named(&image.id).next().is_some();
                let is_needed = is_named || !is_whole && index.is_needed(image, &[]);
                !is_needed && image.repo_digests.is_empty()
            };
            removed.extend(self.delete(&image, is_free)?);
        }
        for other in others {
            let is_gone = |digest: &Reference| is_whole || repositories.contains(&digest.name());
            let mut deleted = Vec::new();
            if users(&other.id).is_empty() {
                let is_free = |index: &Index, other: &Image| {
                    !index.is_needed(other, &[]) && other.repo_digests.iter().all(is_gone)
                };
                deleted = self.delete(&other, is_free)?;
            }
            if deleted.is_empty() {
                self.forget_digests(&other, is_gone)?;
            }
            removed.extend(deleted);
        }
        for other in shared {
            let kept = self.digests_of_tags(&other);
            let left = self.repositories_of(&other);
            let is_gone = |digest: &Reference| {
                let repository = digest.name();
                let has_left = repositories.contains(&repository) && !left.contains(&repository);
                (digests.contains(digest) || has_left) && !kept.contains(digest)
            };
            self.forget_digests(&other, is_gone)?;
        }
        drop(pins);
        Ok(removed)
    }

    /// Returns the digests in registries of the images that the tags of an image name.
    fn digests_of_tags(&self, image: &Image) -> BTreeSet<Reference> {
        let index = self.read();
        let tags = index.tags_of(image).filter_map(|tag| index.tags.get(tag));
        let named = tags.filter_map(|tag| index.by_id.get(&tag.image));
        let digests = named.flat_map(|image| image.repo_digests.iter());
        digests.cloned().collect()
    }

    /// Returns the repositories of the tags that stand for an image.
    fn repositories_of(&self, image: &Image) -> BTreeSet<String> {
        let index = self.read();
        let tags = index.tags_of(image).filter_map(|tag| tag.rsplit_once(':'));
        tags.map(|(repository, _)| repository.to_owned()).collect()
    }

    /// Returns the images that stand for other platforms under references of an image that are to be
    /// removed: those that have no other tag, and the rest.
    fn belonging(&self, image: &Image, gone: &References) -> (Vec<Arc<Image>>, Vec<Arc<Image>>) {
        let index = self.read();
        let by_tag = gone.tags.iter().flat_map(|tag| index.variants(tag));
        let mut found: Vec<Arc<Image>> = by_tag.map(|variant| variant.image).collect();
        // Those that were pulled by digest only.
        let is_named = |other: &&Arc<Image>| {
            let mut digests = other.repo_digests.iter();
            gone.tags.is_empty() && digests.any(|digest| gone.digests.contains(digest))
        };
        if gone.name.is_some() {
            found.extend(index.by_id.values().filter(is_named).cloned());
        }
        let mut seen = BTreeSet::from([image.id.clone()]);
        let is_free = |other: &Arc<Image>| !index.is_needed(other, &gone.tags);
        found.retain(|other| seen.insert(other.id.clone()));
        found.into_iter().partition(is_free)
    }

    /// Removes an image of several that a name stands for. The name stays with the others.
    fn remove_member(
        &self,
        name: &str,
        id: &Digest,
        force: Force,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<Vec<Removed>> {
        let image = self.get(id)?;
        let pins = self.pins.lock().ignore_poison();
        let all = self.references_of(&image);
        let removal = Removal {
            image: &image,
            name,
            all: &all,
            selected: None,
            users: &users(&image.id),
            others: &[],
            is_needed: false,
        };
        // Its names do not matter: others stay. But a container cannot do without it.
        let stopped = removal.users.iter().find(|user| !user.is_running);
        if let Some(user) = stopped.filter(|_| force == Force::All) {
            return Err(Error::conflict(format!(
                "conflict: unable to delete {} (cannot be forced) - image is being used by stopped container {}",
                &image.id.hex()[..12],
                &user.container[..12]
            )));
        }
        removal.check_conflicts(Force::SeveralReferences)?;
        if pins.contains_key(&image.id) {
            let short = &image.id.hex()[..12];
            return Err(Error::conflict(format!(
                "conflict: unable to delete {short} - a container of it is being created"
            )));
        }
        let mut alone = References {
            tags: Vec::new(),
            digests: Vec::new(),
            name: None,
        };
        for tag in all.tags {
            if !self.leave_to_others(&image, &tag)? {
                alone.tags.push(tag);
            }
        }
        let removed = self.untag(&image, alone)?;
        let mut removed: Vec<Removed> = removed.into_iter().map(Removed::Untagged).collect();
        let is_free = |index: &Index, image: &Image| index.named(&image.id).next().is_none();
        removed.extend(self.delete(&image, is_free)?);
        drop(pins);
        Ok(removed)
    }

    /// Lets a tag of an image name another one that it stands for. Returns whether there is one.
    fn leave_to_others(&self, image: &Image, tag: &str) -> Result<bool> {
        let mut index = self.write();
        if !index.names(tag, &image.id) {
            return Ok(true);
        }
        let mut others = index.variants(tag);
        others.retain(|other| other.image.id != image.id);
        let platforms = others.iter().map(|other| (&other.platform, other));
        let best = Platform::host().choose(platforms).or(others.first());
        let Some(best) = best else {
            return Ok(false);
        };
        let heir = Image::clone(&best.image);
        let stands_for = index.index_of(tag).cloned();
        self.assign(&mut index, heir, &[(tag.to_owned(), stands_for)])?;
        Ok(true)
    }

    /// Deletes an image's record, if the image is still free when nothing can change it any more: since
    /// it was chosen, it may have got a name. Its files are deleted by the next
    /// [`Images::collect_garbage`]. Returns the steps.
    fn delete(
        &self,
        image: &Image,
        is_free: impl Fn(&Index, &Image) -> bool,
    ) -> Result<Vec<Removed>> {
        {
            // Locked for the change of both store and index, so that a concurrent tag sees the
            // image in both or in neither.
            let mut index = self.write();
            let known = index.by_id.get(&image.id);
            if !known.is_some_and(|known| is_free(&index, known)) {
                return Ok(Vec::new());
            }
            self.store.delete_image(image.id.as_str())?;
            index.remove(&image.id);
        }
        {
            let mut sizes = self.layer_sizes.lock().ignore_poison();
            sizes.retain(|layer, _| !image.config.rootfs.diff_ids.contains(layer));
        }
        self.publish("delete", &image.id, image.id.to_string());
        let chains = self.unshared_chains(image).into_iter();
        let deleted = Removed::Deleted(image.id.clone());
        Ok([deleted]
            .into_iter()
            .chain(chains.map(Removed::DeletedLayer))
            .collect())
    }

    /// Returns the chain ids of a deleted image's layers that no other image has on the same lower
    /// layers, the topmost first.
    fn unshared_chains(&self, image: &Image) -> Vec<Digest> {
        let layers = &image.config.rootfs.diff_ids;
        let common = |other: &Arc<Image>| {
            other
                .config
                .rootfs
                .diff_ids
                .iter()
                .zip(layers)
                .take_while(|(a, b)| a == b)
                .count()
        };
        let kept = self.read().by_id.values().map(common).max().unwrap_or(0);
        let mut chains: Vec<Digest> = Vec::new();
        for layer in layers {
            let chain = chains.last().map_or_else(
                || layer.clone(),
                |below| Digest::of(format!("{below} {layer}").as_bytes()),
            );
            chains.push(chain);
        }
        chains.split_off(kept).into_iter().rev().collect()
    }
}
