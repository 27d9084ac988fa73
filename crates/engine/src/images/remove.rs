//! Removing images' names, and images with their last name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use whelk_sys::sync::IgnorePoison as _;

use whelk_image::{Digest, Platform, Reference};

use super::list::until;
use super::{Image, Images};
use crate::error::{Error, Result};
use crate::filters::Filters;

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

impl Images {
    /// Removes a name of an image, or with its last name the image.
    ///
    /// `users` returns the containers that use an image: their ids, and whether each runs.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if a container uses the image and `force` does not allow the
    /// removal, and [`Error::NotFound`] if the image is not for `platform`.
    pub(crate) fn remove(
        &self,
        name: &str,
        force: bool,
        platform: Option<&Platform>,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<Vec<Removed>> {
        if name.trim().is_empty() {
            return Err(Error::invalid("image name cannot be blank"));
        }
        self.find_for(name, platform)?;
        let removed = self.remove_one(name, force, users)?;
        if removed
            .iter()
            .any(|removed| matches!(removed, Removed::Deleted(_)))
        {
            self.collect_garbage();
        }
        Ok(removed)
    }

    fn remove_one(
        &self,
        name: &str,
        force: bool,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<Vec<Removed>> {
        let pins = self.pins.lock().ignore_poison();
        let image = self.find(name)?;
        let by_id = !self.is_name_of(name, &image.id);
        let names: Vec<String> = self
            .read()
            .tags
            .iter()
            .filter(|(_, id)| **id == image.id)
            .map(|(name, _)| name.clone())
            .collect();
        let users = users(&image.id);
        let last = by_id || names.len() <= 1;
        check_conflicts(&image, name, &names, by_id, force, &users)?;
        if last && pins.contains_key(&image.id) {
            let short = &image.id.hex()[..12];
            return Err(Error::conflict(format!(
                "conflict: unable to delete {short} - a container of it is being created"
            )));
        }
        let untagged: Vec<String> = if by_id {
            names
        } else {
            names
                .into_iter()
                .filter(|full| self.full_name(name).as_deref() == Some(full))
                .collect()
        };
        let mut removed = Vec::new();
        for full in untagged {
            self.store.delete_tag(&full)?;
            self.write().tags.remove(&full);
            let familiar = full
                .parse::<Reference>()
                .map_or(full, |name| name.familiar());
            self.publish("untag", &image.id, image.id.to_string());
            removed.push(Removed::Untagged(familiar));
        }
        // An image used by a container is not deleted: without a name it stays as a dangling image.
        if last && users.is_empty() {
            self.delete(&image)?;
            removed.push(Removed::Deleted(image.id.clone()));
            removed.extend(
                self.unshared_chains(&image)
                    .into_iter()
                    .map(Removed::DeletedLayer),
            );
        }
        drop(pins);
        Ok(removed)
    }

    /// Returns the full form of a name, with the default tag if it has none; `None` for one with a
    /// digest, which selects an image as its id does.
    fn full_name(&self, name: &str) -> Option<String> {
        let reference = name.parse::<Reference>().ok()?;
        (reference.digest.is_none()).then(|| reference.with_default_tag().to_string())
    }

    /// Returns whether `name` is a name of the image, and not its id.
    pub(super) fn is_name_of(&self, name: &str, id: &Digest) -> bool {
        self.full_name(name)
            .is_some_and(|full| self.read().tags.get(&full) == Some(id))
    }

    /// Deletes an image's record. Its files are deleted by the next [`Images::collect_garbage`].
    fn delete(&self, image: &Image) -> Result<()> {
        {
            // Locked for the change of both store and index, so that a concurrent tag sees the
            // image in both or in neither.
            let mut index = self.write();
            self.store.delete_image(image.id.as_str())?;
            index.by_id.remove(&image.id);
            index.tags.retain(|_, id| *id != image.id);
        }
        self.publish("delete", &image.id, image.id.to_string());
        Ok(())
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

    /// Removes images that no container uses: those without a name, and with `all` also named ones.
    /// Returns the steps, and the number of bytes freed, without layers that other images share.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    pub(crate) fn prune(
        &self,
        all: bool,
        filters: &Filters,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<(Vec<Removed>, u64)> {
        let before = until(filters)?;
        let mut removed = Vec::new();
        let mut free: BTreeMap<Digest, u64> = BTreeMap::new();
        let images: Vec<Arc<Image>> = self.read().by_id.values().cloned().collect();
        for image in images {
            let mut names = self.names_of(&image.id);
            if !names.is_empty() && !all
                || !filters.labels(&image.config.config.labels)
                || before.is_some_and(|before| !image.created_before(before))
            {
                continue;
            }
            // Name by name, as single removals would: an image in use keeps its last name.
            if names.is_empty() && users(&image.id).is_empty() {
                names.push(image.id.to_string());
            }
            // Before the removal, after which another collection may remove the layers.
            let layers = image.layers().into_iter();
            let sizes: Vec<(Digest, u64)> = layers
                .filter_map(|layer| Some((layer.clone(), self.files.snapshots.size(layer).ok()?)))
                .collect();
            for name in names {
                match self.remove_one(&name, false, &users) {
                    Ok(gone) => {
                        if gone.contains(&Removed::Deleted(image.id.clone())) {
                            free.extend(sizes.iter().cloned());
                        }
                        removed.extend(gone);
                    }
                    // In use, or removed meanwhile.
                    Err(Error::Conflict(_) | Error::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let kept: BTreeSet<Digest> = self
            .read()
            .by_id
            .values()
            .flat_map(|image| image.config.rootfs.diff_ids.iter().cloned())
            .collect();
        free.retain(|layer, _| !kept.contains(layer));
        self.collect_garbage();
        Ok((removed, free.values().sum()))
    }
}

/// Checks that an image can be removed. The conflicts are checked in Docker's order: those that
/// cannot be forced come first.
fn check_conflicts(
    image: &Image,
    name: &str,
    names: &[String],
    by_id: bool,
    force: bool,
    users: &[ImageUser],
) -> Result<()> {
    let short = &image.id.hex()[..12];
    let user = |running: bool| {
        users
            .iter()
            .find(|user| user.is_running == running)
            .map(|user| &user.container[..12])
    };
    let conflict = |text: String| Err(Error::conflict(format!("conflict: unable to {text}")));
    if !by_id {
        return match users.first().filter(|_| !force && names.len() <= 1) {
            Some(user) => conflict(format!(
                "remove repository reference {name:?} (must force) - container {} is using its referenced image {short}",
                &user.container[..12]
            )),
            None => Ok(()),
        };
    }
    if let Some(user) = user(true) {
        return conflict(format!(
            "delete {short} (cannot be forced) - image is being used by running container {user}"
        ));
    }
    if names.len() > 1 && !force {
        return conflict(format!(
            "delete {short} (must be forced) - image is referenced in multiple repositories"
        ));
    }
    match user(false).filter(|_| !force) {
        Some(user) => conflict(format!(
            "delete {short} (must be forced) - image is being used by stopped container {user}"
        )),
        None => Ok(()),
    }
}
