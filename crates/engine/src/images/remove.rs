//! Removing images' names, and images with their last name.

mod conflicts;
mod prune;
mod references;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use whelk_sys::sync::IgnorePoison as _;

use whelk_image::{Digest, Platform, Reference};

use self::conflicts::Removal;
use self::references::References;
use super::index::choose;
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
        for platform in platforms {
            self.find_for(name, Some(platform))?;
        }
        let force = if force { Force::All } else { Force::Nothing };
        let mut removed = Vec::new();
        if platforms.is_empty() {
            removed = self.remove_one(name, force, &users)?;
        }
        for platform in platforms {
            removed.extend(self.remove_for(name, force, platform, &users)?);
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
        let (others, shared) = self.belonging(&image, selected.as_ref().unwrap_or(&all));
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
        let repositories: BTreeSet<String> = gone.digests.iter().map(Reference::name).collect();
        let removed = self.untag(&image, gone)?;
        let mut removed: Vec<Removed> = removed.into_iter().map(Removed::Untagged).collect();
        // An image used by a container is not deleted: without a name it stays as a dangling image.
        if last && is_unused {
            removed.extend(self.delete(&image)?);
        }
        for other in others {
            let is_gone = |digest: &Reference| is_whole || repositories.contains(&digest.name());
            if other.repo_digests.iter().all(is_gone) && users(&other.id).is_empty() {
                removed.extend(self.delete(&other)?);
            } else {
                self.forget_digests(&other, is_gone)?;
            }
        }
        for other in shared {
            self.forget_digests(&other, |digest| repositories.contains(&digest.name()))?;
        }
        drop(pins);
        Ok(removed)
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
        let is_free = |other: &Arc<Image>| {
            let mut tags = index.tags_of(other);
            tags.all(|tag| gone.tags.contains(tag))
        };
        found.retain(|other| seen.insert(other.id.clone()));
        found.into_iter().partition(is_free)
    }

    /// Removes the image for a platform of those that a name stands for. The name stays, unless it is the
    /// only one.
    fn remove_for(
        &self,
        name: &str,
        force: Force,
        platform: &Platform,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<Vec<Removed>> {
        let found = self.read().find(name)?;
        let image = choose(&found, Some(platform), name)?.image;
        if found.len() == 1 {
            return self.remove_one(name, force, users);
        }
        let pins = self.pins.lock().ignore_poison();
        let all = self.references_of(&image);
        let removal = Removal {
            image: &image,
            name,
            all: &all,
            selected: None,
            users: &users(&image.id),
            others: &[],
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
            ..all
        };
        alone.digests.clear();
        for tag in all.tags {
            if !self.leave_to_others(&image, &tag)? {
                alone.tags.push(tag);
            }
        }
        let removed = self.untag(&image, alone)?;
        let mut removed: Vec<Removed> = removed.into_iter().map(Removed::Untagged).collect();
        removed.extend(self.delete(&image)?);
        drop(pins);
        Ok(removed)
    }

    /// Lets a tag of an image name another one that it stands for. Returns whether there is one.
    fn leave_to_others(&self, image: &Image, tag: &str) -> Result<bool> {
        let mut index = self.write();
        let mut others = index.variants(tag);
        others.retain(|other| other.image.id != image.id);
        let platforms = others.iter().map(|other| (&other.platform, other));
        let best = Platform::host().choose(platforms).or(others.first());
        let Some(best) = best else {
            return Ok(false);
        };
        let mut heir = Image::clone(&best.image);
        heir.set_index(tag, index.index_of(tag).cloned());
        self.assign(&mut index, heir, &[tag.to_owned()])?;
        Ok(true)
    }

    /// Deletes an image's record. Its files are deleted by the next [`Images::collect_garbage`]. Returns
    /// the steps.
    fn delete(&self, image: &Image) -> Result<Vec<Removed>> {
        {
            // Locked for the change of both store and index, so that a concurrent tag sees the
            // image in both or in neither.
            let mut index = self.write();
            self.store.delete_image(image.id.as_str())?;
            index.remove(&image.id);
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
