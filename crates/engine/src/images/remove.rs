//! Removing images' names, and images with their last name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use whelk_sys::sync::IgnorePoison as _;

use whelk_image::{Digest, Platform, Reference};

use super::index::choose;
use super::list::until;
use super::{Image, Images};
use crate::error::{Error, Result};
use crate::filters::Filters;
use crate::records::ImageRecord;

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

/// References of an image: full names with a tag, and names with a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct References {
    tags: Vec<String>,
    digests: Vec<Reference>,
    /// They were selected by a name, and not by the image's id.
    is_named: bool,
}

impl References {
    /// Returns whether an image with them is only removed by its id if that is forced. As in Docker,
    /// one tag is not several references, nor are digests in its repository.
    fn are_several(&self) -> bool {
        let tags = self.tags.iter().map(|tag| tag.rsplit_once(':'));
        let tags = tags.map(|split| split.map_or("", |(repository, _)| repository));
        let digests = self.digests.iter().map(Reference::name);
        let repositories: BTreeSet<String> = tags.map(str::to_owned).chain(digests).collect();
        self.tags.len() > 1 || repositories.len() > 1
    }
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
        if gone.is_named {
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

    /// Removes digests in registries from an image's record.
    fn forget_digests(&self, image: &Image, is_gone: impl Fn(&Reference) -> bool) -> Result<()> {
        let mut index = self.write();
        let Some(known) = index.by_id.get(&image.id) else {
            return Ok(());
        };
        let mut rest = Image::clone(known);
        rest.repo_digests.retain(|digest| !is_gone(digest));
        self.store.put_image(&ImageRecord::of(&rest), &[])?;
        index.put(Arc::new(rest));
        Ok(())
    }

    /// Returns the references of an image: its tags, and the digests that registries have for it.
    fn references_of(&self, image: &Image) -> References {
        let index = self.read();
        let tags = index.tags.iter().filter(|(_, id)| **id == image.id);
        References {
            tags: tags.map(|(name, _)| name.clone()).collect(),
            digests: image.repo_digests.clone(),
            is_named: false,
        }
    }

    /// Returns the references of `image` that its name `name` selects; `None` for an id, which
    /// selects the image. As with Docker, a repository's digest without a tag selects all of the
    /// image's references in the repository, and the image's last tag in a repository also the digests.
    fn selected(&self, name: &str, image: &Image) -> Result<Option<References>> {
        if !self.is_name_of(name, &image.id) && !name.contains('@') {
            return Ok(None);
        }
        let reference = name.parse::<Reference>()?.with_default_tag();
        let repository = reference.name();
        let References {
            mut tags, digests, ..
        } = self.references_of(image);
        let prefix = format!("{repository}:");
        tags.retain(|tag| tag.starts_with(&prefix));
        let in_repository = tags.len();
        if let Some(wanted) = &reference.tag {
            tags.retain(|tag| tag[prefix.len()..] == **wanted);
        }
        if reference.tag.is_some() && tags.is_empty() && in_repository > 0 {
            return Err(Error::no_such_image(&reference.familiar()));
        }
        let in_it = |digest: &&Reference| digest.name() == repository;
        let is_named = |digest: &Reference| digest.digest == reference.digest;
        // Without a tag in the repository, only the named digest is selected.
        let only_named = in_repository == 0 && digests.iter().filter(in_it).any(is_named);
        let is_selected = |digest: &Reference| {
            tags.len() == in_repository && in_it(&digest) && (!only_named || is_named(digest))
        };
        let digests = digests
            .iter()
            .filter(|digest| is_selected(digest))
            .cloned()
            .collect();
        Ok(Some(References {
            tags,
            digests,
            is_named: true,
        }))
    }

    /// Removes references of an image. Returns them in the familiar form.
    fn untag(&self, image: &Image, references: References) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for full in references.tags {
            self.store.delete_tag(&full)?;
            {
                let mut index = self.write();
                index.tags.remove(&full);
                self.forget_tag(&mut index, &image.id, &full)?;
            }
            self.publish("untag", &image.id, image.id.to_string());
            let reference = full.parse::<Reference>();
            removed.push(reference.map_or(full, |name| name.familiar()));
        }
        if !references.digests.is_empty() {
            self.forget_digests(image, |digest| references.digests.contains(digest))?;
            for digest in &references.digests {
                self.publish("untag", &image.id, image.id.to_string());
                removed.push(digest.familiar());
            }
        }
        Ok(removed)
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
        let images: Vec<Arc<Image>> = self.read().by_id.values().cloned().collect();
        for image in images {
            let names = self.names_of(&image.id);
            if !names.is_empty() && !all
                || !filters.labels(&image.config.config.labels)
                || before.is_some_and(|before| !image.created_before(before))
            {
                continue;
            }
            // Before the removal, after which another collection may remove the layers. With an image
            // others may go that its names stand for.
            let found = self.read().find(image.id.as_str()).unwrap_or_default();
            let members = found.iter().map(|variant| &*variant.image);
            let sizes: Vec<(Digest, Vec<(Digest, u64)>)> = members
                .map(|member| (member.id.clone(), self.layer_sizes(member)))
                .collect();
            // Tag by tag, as single removals would: an image in use keeps its last tag. What is left
            // is removed by the image's id: a digest in a registry may be that of other images, too.
            for name in names.into_iter().chain([image.id.to_string()]) {
                let is_id = name == image.id.as_str();
                let is_kept =
                    || !users(&image.id).is_empty() || !self.names_of(&image.id).is_empty();
                if is_id && is_kept() {
                    continue;
                }
                let force = if is_id {
                    Force::SeveralReferences
                } else {
                    Force::Nothing
                };
                match self.remove_one(&name, force, &users) {
                    Ok(gone) => {
                        for (member, layers) in &sizes {
                            if gone.contains(&Removed::Deleted(member.clone())) {
                                free.extend(layers.iter().cloned());
                            }
                        }
                        removed.extend(gone);
                    }
                    // In use, or removed meanwhile.
                    Err(Error::Conflict(_) | Error::NotFound(_)) => {}
                    Err(error) => {
                        failure.get_or_insert(error);
                    }
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
        // A prune also removes the content of unfinished pulls.
        self.collect_older(Duration::ZERO);
        match failure {
            Some(error) => Err(error),
            None => Ok((removed, free.values().sum())),
        }
    }
}

impl Images {
    /// Returns the layers of an image with their sizes in bytes.
    fn layer_sizes(&self, image: &Image) -> Vec<(Digest, u64)> {
        let layers = image.layers().into_iter();
        let size = |layer: &Digest| Some((layer.clone(), self.files.snapshots.size(layer).ok()?));
        layers.filter_map(size).collect()
    }
}

/// A removal of an image, or of some of its references.
struct Removal<'a> {
    image: &'a Image,
    /// The name that was given.
    name: &'a str,
    /// All references of the image.
    all: &'a References,
    /// The references that the name selects; `None` for an id, which selects the image.
    selected: Option<&'a References>,
    users: &'a [ImageUser],
    /// The containers that use images which are removed with it.
    others: &'a [ImageUser],
}

impl Removal<'_> {
    /// Returns whether it removes the image's last references.
    fn is_last(&self) -> bool {
        self.selected.is_none_or(|selected| {
            (&selected.tags, &selected.digests) == (&self.all.tags, &self.all.digests)
        })
    }

    /// Checks that the image can be removed. The conflicts are checked in Docker's order: those that
    /// cannot be forced come first.
    fn check_conflicts(&self, force: Force) -> Result<()> {
        let short = &self.image.id.hex()[..12];
        let user = |running: bool| {
            let mut users = self.users.iter().chain(self.others);
            let user = users.find(|user| user.is_running == running);
            user.map(|user| &user.container[..12])
        };
        let conflict = |text: String| Err(Error::conflict(format!("conflict: unable to {text}")));
        let is_forced = force == Force::All;
        if self.selected.is_some() {
            let own = self.users.first().filter(|_| self.is_last());
            let user = own.or(self.others.first());
            return match user.filter(|_| !is_forced) {
                Some(user) => conflict(format!(
                    "remove repository reference {:?} (must force) - container {} is using its referenced image {short}",
                    self.name,
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
        if self.all.are_several() && force == Force::Nothing {
            return conflict(format!(
                "delete {short} (must be forced) - image is referenced in multiple repositories"
            ));
        }
        match user(false).filter(|_| !is_forced) {
            Some(user) => conflict(format!(
                "delete {short} (must be forced) - image is being used by stopped container {user}"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_image::ImageConfig;
    use whelk_image::archive::Origin;
    use whelk_sys::fs;

    use super::*;
    use crate::store::RecordStore;

    /// Images with these tags and digests of registries. They have a manifest of their own each, and
    /// one index.
    struct Case {
        images: Arc<Images>,
        root: std::path::PathBuf,
    }

    impl Drop for Case {
        fn drop(&mut self) {
            let _ = fs::remove_tree(&self.root);
        }
    }

    impl Case {
        fn new(name: &str, images: &[(&[&str], &[&str])]) -> Self {
            let root = format!("whelk-images-{name}-{}", std::process::id());
            let root = std::env::temp_dir().join(root);
            fs::create_dir(&root, 0o700).unwrap();
            let store = Arc::new(RecordStore::open(&root).unwrap());
            let case = Self {
                images: Images::open(&root, store, Arc::default(), Default::default()).unwrap(),
                root,
            };
            for (number, (tags, digests)) in images.iter().enumerate() {
                let manifest = Digest::of(format!("manifest {number}").as_bytes());
                let digests = digests.iter().map(|name| format!("{name}@{manifest}"));
                let image = Image {
                    id: Digest::of(format!("config {number}").as_bytes()),
                    config: ImageConfig::default(),
                    other_manifests: Vec::new(),
                    tag_indexes: BTreeMap::new(),
                    repo_digests: digests.map(|name| name.parse().unwrap()).collect(),
                    origin: Origin {
                        manifest: Some(manifest),
                        index: Some(Digest::of(b"index")),
                    },
                    size: 0,
                    tagged_at: 0,
                };
                let full = |tag: &&str| tag.parse::<Reference>().unwrap().to_string();
                let tags: Vec<String> = tags.iter().map(full).collect();
                let record = ImageRecord::of(&image);
                case.images.store.put_image(&record, &tags).unwrap();
                let mut index = case.images.write();
                let tags = tags.into_iter().map(|tag| (tag, image.id.clone()));
                index.tags.extend(tags);
                index.put(Arc::new(image));
            }
            case
        }

        /// Removes a name, in which `#N` is the manifest's digest of an image and `#` the index's.
        /// Returns what was untagged, and `deleted`, or the error.
        fn remove(&self, name: &str) -> Vec<String> {
            let digest = |number: u32| Digest::of(format!("manifest {number}").as_bytes());
            let name = name.replace("#0", digest(0).as_str());
            let name = name.replace("#1", digest(1).as_str());
            let name = name.replace('#', Digest::of(b"index").as_str());
            match self.images.remove(&name, false, &[], |_| Vec::new()) {
                Ok(removed) => removed
                    .into_iter()
                    .map(|removed| match removed {
                        Removed::Untagged(name) => name.replace(digest(0).as_str(), "#0"),
                        Removed::Deleted(_) => "deleted".into(),
                        Removed::DeletedLayer(_) => "layer".into(),
                    })
                    .collect(),
                Err(error) => vec![error.to_string().replace(digest(0).as_str(), "#0")],
            }
        }
    }

    #[test]
    fn a_name_with_a_digest_selects_references_and_not_the_image() {
        let case = Case::new(
            "references",
            &[(&["a:1", "a:2", "b:1"], &["a", "registry.test/c"])],
        );
        assert_eq!(case.remove("a:3@#0"), ["No such image: a:3@#0"]);
        assert_eq!(case.remove("a:1@#0"), ["a:1"]);
        // The last tag in its repository takes the digest there with it.
        assert_eq!(case.remove("a:2@#0"), ["a:2", "a@#0"]);
        assert_eq!(case.remove("a@#0"), ["No such image: a@#0"]);
        assert_eq!(case.remove("b:1"), ["b:1"]);
        assert_eq!(
            case.remove("registry.test/c@#0"),
            ["registry.test/c@#0", "deleted"]
        );
        assert!(case.images.store.images().unwrap().is_empty());
        // Without a tag: all of the repository.
        let case = Case::new("repository", &[(&["a:1", "a:2", "b:1"], &[])]);
        assert_eq!(case.remove("a@#0"), ["a:1", "a:2"]);
        assert_eq!(case.remove("b@#0"), ["b:1", "deleted"]);
    }

    #[test]
    fn a_digest_of_several_images_selects_what_a_repository_has() {
        let case = Case::new(
            "repositories",
            &[(&["a:1", "c:1"], &[]), (&["b:1", "c:2"], &[])],
        );
        assert_eq!(case.remove("d@#").len(), 1);
        assert_eq!(case.remove("a@#"), ["a:1"]);
        assert_eq!(case.remove("c@#1"), ["c:2"]);
        assert_eq!(case.remove("b:1@#"), ["b:1", "deleted"]);
        assert_eq!(case.remove("c@#"), ["c:1", "deleted"]);
    }

    #[test]
    fn an_id_with_references_in_several_repositories_must_be_forced() {
        for (index, (tags, digests, is_removed)) in [
            (&[] as &[&str], &[] as &[&str], true),
            (&["a:1"], &[], true),
            (&["a:1"], &["a"], true),
            (&[], &["a"], true),
            (&["a:1", "a:2"], &[], false),
            (&["a:1"], &["registry.test/a"], false),
            (&["localhost:5000/a:1"], &["localhost:5000/a"], true),
            (&[], &["a", "b"], false),
            (&["a:1"], &["a", "b"], false),
        ]
        .into_iter()
        .enumerate()
        {
            let case = Case::new(&format!("several-{index}"), &[(tags, digests)]);
            let removed = case.remove(Digest::of(b"config 0").as_str());
            let expected = if is_removed {
                removed.last().is_some_and(|last| last == "deleted")
            } else {
                removed
                    .concat()
                    .ends_with("image is referenced in multiple repositories")
            };
            assert!(expected, "{tags:?} {digests:?}: {removed:?}");
            // A prune removes it nevertheless.
            let pruned = case.images.prune(true, &Filters::default(), |_| Vec::new());
            assert_eq!(
                pruned.unwrap().0.is_empty(),
                is_removed,
                "{tags:?} {digests:?}"
            );
            assert!(case.images.store.images().unwrap().is_empty());
        }
    }

    #[test]
    fn each_removed_tag_is_published_though_the_next_one_fails() {
        let case = Case::new("untag", &[(&["a:1", "a:2"], &[])]);
        let published = || {
            let (past, _) = case.images.events.subscribe();
            past.iter().filter(|event| event.action == "untag").count()
        };
        // The store refuses to delete the second tag.
        let forbid = "CREATE TRIGGER kept BEFORE DELETE ON tags WHEN OLD.name LIKE '%:2' BEGIN SELECT RAISE(FAIL, 'kept'); END";
        case.images.store.execute(forbid);
        let id = Digest::of(b"config 0");
        let removed = case.images.remove(id.as_str(), true, &[], |_| Vec::new());
        assert!(removed.is_err(), "{removed:?}");
        assert_eq!(published(), 1);
    }

    #[test]
    fn a_prune_removes_only_images_without_a_tag_though_they_share_a_digest() {
        let case = Case::new("shared", &[(&[], &[]), (&["a:1"], &[]), (&[], &[])]);
        let index: Reference = format!("a@{}", Digest::of(b"index")).parse().unwrap();
        let mut ids = Vec::new();
        for image in case.images.write().by_id.values_mut() {
            Arc::make_mut(image).repo_digests = vec![index.clone()];
            ids.push(image.id.clone());
        }
        let prune = |all| case.images.prune(all, &Filters::default(), |_| Vec::new());
        let (removed, _) = prune(false).unwrap();
        let deleted = |id: &Digest| removed.contains(&Removed::Deleted(id.clone()));
        assert_eq!(
            ids.iter().filter(|id| deleted(id)).count(),
            2,
            "{removed:?}"
        );
        assert_eq!(case.remove("a:1").last().unwrap(), "deleted");
    }

    #[test]
    fn a_digest_is_removed_and_not_another_of_its_repository() {
        let case = Case::new("two", &[(&[], &["a"])]);
        let other: Reference = format!("a@{}", Digest::of(b"other")).parse().unwrap();
        for image in case.images.write().by_id.values_mut() {
            Arc::make_mut(image).repo_digests.push(other.clone());
        }
        assert_eq!(case.remove("a@#0"), ["a@#0"]);
        assert_eq!(case.remove(&other.familiar()).last().unwrap(), "deleted");
    }

    #[test]
    fn a_prune_of_all_removes_references_of_every_kind() {
        let case = Case::new("prune", &[(&["a:1"], &["a", "registry.test/c"])]);
        let pruned = case.images.prune(true, &Filters::default(), |_| Vec::new());
        let (removed, _) = pruned.unwrap();
        assert!(
            matches!(removed.last(), Some(Removed::Deleted(_))),
            "{removed:?}"
        );
        assert_eq!(removed.len(), 4);
    }
}
