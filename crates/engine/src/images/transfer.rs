//! Transfer of images: `load`, `import` and `save`.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::{Arc, RwLockWriteGuard};

use whelk_image::archive::{self, Import, Loaded, Saved};
use whelk_image::{Digest, Lease, Platform, Progress, Reference};
use whelk_text::signal;

use super::index::{Index, Variant};
use super::{Image, Images, read_index};
use crate::error::{Error, Result};
use crate::events::now;

/// A name that a load has moved from another image to the loaded one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    pub name: String,
    pub old: Digest,
}

/// Returns whether an image keeps the manifest that it was loaded with: it was built with one that only its new names stand for.
fn keeps_own(known: &Image, built: &Loaded) -> bool {
    let has_own = known.origin.manifest.is_some() && known.origin.index.is_none();
    has_own && built.origin.manifest.is_none() && !built.names.is_empty()
}

impl Images {
    /// Loads the images of an archive, or those for some platforms. Returns each with the names that it
    /// has taken from other images. Blocking.
    ///
    /// # Errors
    /// Returns an error if the archive is invalid, or if the store fails.
    pub fn load(
        &self,
        input: impl Read + Send,
        platforms: &[Platform],
        progress: &Progress,
    ) -> Result<Vec<(Loaded, Vec<Renamed>)>> {
        self.with_lease(|lease| {
            let loaded = archive::load(&self.files, lease, input, platforms, progress)?;
            // The files must be on disk before a record refers to them.
            self.files.sync()?;
            let renamed = self.record_all(&loaded, None)?;
            // Those with names first: the others belong to these.
            let named = loaded.iter().filter(|one| !one.names.is_empty());
            let others = loaded.iter().filter(|one| one.names.is_empty());
            for one in named.chain(others) {
                self.publish("load", &one.id, one.id.to_string());
            }
            Ok(loaded.into_iter().zip(renamed).collect())
        })
    }

    /// Creates an image of one layer from a tar archive of files; `changes` are Dockerfile
    /// instructions. Blocking.
    ///
    /// # Errors
    /// Returns an error if a change is invalid, if the platform is not Linux, or if the archive is
    /// invalid.
    pub fn import(
        &self,
        input: impl Read + Send,
        mut import: Import,
        changes: &[String],
    ) -> Result<Digest> {
        if import
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os != "linux")
        {
            return Err(Error::invalid("operating system is not supported"));
        }
        whelk_image::changes::apply(&mut import.config, changes)?;
        if !import.config.stop_signal.is_empty() {
            signal::parse(&import.config.stop_signal)?;
        }
        self.with_lease(|lease| {
            let loaded = archive::import(&self.files, lease, input, import)?;
            self.files.sync()?;
            self.record(&loaded, loaded.names.first().map(|_| now()), None)?;
            for named in &loaded.names {
                self.publish("tag", &loaded.id, named.name.familiar());
            }
            self.publish("import", &loaded.id, loaded.id.to_string());
            Ok(loaded.id)
        })
    }

    /// Records a pulled image. `digest` is its name with the digest in the registry. As in Docker, this
    /// is no tagging.
    pub(super) fn record_pulled(&self, loaded: &Loaded, digest: Reference) -> Result<()> {
        self.record(loaded, None, Some(digest)).map(drop)
    }

    /// Adds a name with a digest in a registry to an image. Blocking.
    ///
    /// # Errors
    /// Returns an error if it cannot be recorded.
    pub fn add_repo_digest(&self, id: &Digest, digest: Reference) -> Result<()> {
        let mut index = self.write();
        let image = index.by_id.get(id);
        // It may have been removed while it was pushed.
        let Some(image) = image.filter(|image| !image.repo_digests.contains(&digest)) else {
            return Ok(());
        };
        let mut image = Image::clone(image);
        image.repo_digests.push(digest);
        self.store.put_image(&index.record(&image, &[]), &[])?;
        index.put(Arc::new(image));
        Ok(())
    }

    /// Records an image whose files are in the store, with its names. An existing image keeps its
    /// digests in registries, and without `tagged_at` the time of its last tag. A name that stands for
    /// the same index already keeps its default image, if that suits this host better. Returns the names
    /// taken from other images.
    pub(super) fn record(
        &self,
        loaded: &Loaded,
        tagged_at: Option<i64>,
        digest: Option<Reference>,
    ) -> Result<Vec<Renamed>> {
        let mut index = self.write_with(std::slice::from_ref(loaded));
        self.record_in(&mut index, loaded, tagged_at, digest)
    }

    /// As [`Images::record`], of images that belong together. No name stands for some of them only, also after a crash: names
    /// come last, and a prune comes before or after all.
    pub(super) fn record_all(
        &self,
        all: &[Loaded],
        tagged_at: Option<i64>,
    ) -> Result<Vec<Vec<Renamed>>> {
        let mut index = self.write_with(all);
        if all.len() > 1 {
            for loaded in all {
                let unnamed = Loaded {
                    names: Vec::new(),
                    ..loaded.clone()
                };
                self.record_in(&mut index, &unnamed, None, None)?;
            }
        }
        let recorded = all.iter().map(|loaded| match loaded.names.is_empty() {
            true if all.len() > 1 => Ok(Vec::new()),
            _ => self.record_in(&mut index, loaded, tagged_at, None),
        });
        recorded.collect()
    }

    /// Locks the index, which has the entries of the indexes that the images belong to.
    fn write_with(&self, all: &[Loaded]) -> RwLockWriteGuard<'_, Index> {
        let needed: BTreeSet<&Digest> = all.iter().flat_map(Loaded::indexes).collect();
        let is_known = |digest: &Digest| self.read().has_entries(digest);
        let read = needed.iter().filter(|digest| !is_known(digest));
        // Before the lock, which every creation of a container waits for.
        let read = read.map(|digest| (*digest, read_index(&self.files, digest)));
        let read: Vec<_> = read.collect();
        let mut index = self.write();
        for (digest, entries) in read {
            index.add_read(digest, entries);
        }
        for digest in needed {
            // Its last user may be gone since.
            if !index.has_entries(digest) {
                index.add_read(digest, read_index(&self.files, digest));
            }
        }
        index
    }

    /// The index is locked until the end, so that no other change of a name comes between the store and it.
    fn record_in(
        &self,
        index: &mut Index,
        loaded: &Loaded,
        tagged_at: Option<i64>,
        digest: Option<Reference>,
    ) -> Result<Vec<Renamed>> {
        let known = index.by_id.get(&loaded.id);
        let origin = match known {
            // The known origin is kept if the archive has no manifest, if a registry has the image
            // by the digest of the known one, or if other names go on to stand for the known one.
            Some(known)
                if digest.is_none()
                    && (loaded.origin.blobs().next().is_none()
                        || !known.repo_digests.is_empty()
                        || keeps_own(known, loaded)) =>
            {
                &known.origin
            }
            _ => &loaded.origin,
        };
        let mut repo_digests = known.map_or_else(Vec::new, |known| known.repo_digests.clone());
        let is_known = |digest: &&Reference| repo_digests.contains(digest);
        let added = digest.clone().filter(|digest| !is_known(&digest));
        repo_digests.extend(added);
        let known_manifest = known.and_then(|known| known.origin.manifest.clone());
        let mut image = Image {
            id: loaded.id.clone(),
            config: loaded.config.clone(),
            origin: origin.clone(),
            other_manifests: known.map_or_else(Vec::new, |known| known.other_manifests.clone()),
            repo_digests,
            parent: loaded.parent.clone().or_else(|| known?.parent.clone()),
            size: loaded.size,
            tagged_at: tagged_at
                .or(known.map(|known| known.tagged_at))
                .unwrap_or(0),
        };
        image.other_manifests.extend(known_manifest);
        image.other_manifests.extend(loaded.origin.manifest.clone());
        image
            .other_manifests
            .extend(loaded.other_manifests.iter().cloned());
        image.keep_manifests(|manifest| index.is_listed(manifest));
        let mut tags = Vec::with_capacity(loaded.names.len());
        for named in &loaded.names {
            let name = named.name.to_string();
            // An archive of the image that the name means already need not have its index. What is built or imported under the
            // name has none.
            let known = index.tags.get(&name);
            let is_archive = digest.is_none() && tagged_at.is_none();
            let known = known.filter(|tag| is_archive && tag.image == image.id);
            let stands_for = named.index.as_ref();
            let stands_for = stands_for.or(known.and_then(|tag| tag.index.as_ref()));
            if !index.keeps_default(&name, stands_for, &image) {
                tags.push((name, stands_for.cloned()));
            }
        }
        let (_, taken) = self.assign(index, image, &tags)?;
        index.unreadable.remove(&loaded.id);
        self.uses.note(&loaded.id);
        for layer in &loaded.config.rootfs.diff_ids {
            if let Err(error) = self.files.snapshots.clear_pending(layer) {
                // Its content then stays for up to a day after the removal of the image.
                tracing::warn!("image {}: {error}", loaded.id);
            }
        }
        let mut renamed = Vec::new();
        for (tag, old) in taken {
            let image = index.by_id.get(&old);
            // It may be for another platform.
            let is_kept = image.is_some_and(|image| index.covers(&tag, image));
            if let Some(name) = tag.parse::<Reference>().ok().filter(|_| !is_kept) {
                renamed.push(Renamed {
                    name: name.familiar(),
                    old,
                });
            }
        }
        Ok(renamed)
    }

    /// Runs `work`, which adds layers under the lease, and then images that use them. Afterwards unused
    /// layers are removed.
    pub(super) fn with_lease<T>(&self, work: impl FnOnce(&Lease) -> Result<T>) -> Result<T> {
        let lease = self.files.leases.take();
        let outcome = work(&lease);
        drop(lease);
        self.collect_garbage();
        outcome
    }

    /// Returns what `save NAME…` writes: for each name the images that it stands for, or those of them
    /// for `platforms`. A name without a tag selects all tags of the repository.
    ///
    /// # Errors
    /// Returns an error if an image does not exist, or none of a name is for one of the platforms.
    pub fn to_save(&self, names: &[String], platforms: &[Platform]) -> Result<Vec<Saved>> {
        let index = self.read();
        let mut saved: Vec<Saved> = Vec::new();
        let mut add = |name: &str, reference: Option<Reference>| {
            let found = index.find(name)?;
            let mut chosen: Vec<Variant> = Vec::new();
            for platform in platforms {
                let mut suitable = found.iter().filter(|one| platform.is(&one.platform));
                let suitable = suitable.next().ok_or_else(|| {
                    Error::NotFound(format!(
                        "no suitable export target found for platform {platform}"
                    ))
                })?;
                if chosen
                    .iter()
                    .all(|known| known.image.id != suitable.image.id)
                {
                    chosen.push(suitable.clone());
                }
            }
            // An id means one image.
            let is_id = reference.is_none() && !name.contains('@');
            if platforms.is_empty() {
                chosen = found;
                chosen.truncate(if is_id { 1 } else { usize::MAX });
            }
            let parent = chosen.first().and_then(|one| one.image.parent.clone());
            let images = chosen
                .into_iter()
                .map(|one| (one.image.id.clone(), one.platform));
            let images: Vec<(Digest, Platform)> = images.collect();
            match saved.iter_mut().find(|known| known.images == images) {
                Some(known) => {
                    let is_new = |name: &Reference| !known.names.contains(name);
                    let name = reference.filter(is_new);
                    known.names.extend(name);
                }
                None => saved.push(Saved {
                    images,
                    names: Vec::from_iter(reference),
                    parent,
                }),
            }
            Ok::<_, Error>(())
        };
        for name in names {
            let tagged: Vec<Reference> = match name.parse::<Reference>() {
                Ok(reference) if reference.tag.is_none() && reference.digest.is_none() => {
                    let repository = reference.name();
                    let tags = index.tags_in(&repository);
                    tags.filter_map(|(tag, _)| tag.parse().ok()).collect()
                }
                _ => Vec::new(),
            };
            if tagged.is_empty() {
                let full = self.full_name(name);
                let full = full.filter(|full| index.tags.contains_key(full));
                let reference = full.map(|full| full.parse::<Reference>()).transpose()?;
                add(name, reference)?;
            }
            for reference in tagged {
                add(&reference.to_string(), Some(reference))?;
            }
        }
        Ok(saved)
    }

    /// Returns all tags of a repository, with the ids of their images.
    pub(super) fn tags_of(&self, repository: &Reference) -> Vec<(Reference, Digest)> {
        let index = self.read();
        let name = repository.name();
        let tags = index.tags_in(&name);
        tags.filter_map(|(name, tag)| Some((name.parse().ok()?, tag.image.clone())))
            .collect()
    }

    /// Writes an image archive. Blocking.
    ///
    /// # Errors
    /// Returns an error if an image cannot be read, or if the output fails.
    pub fn save(self: &Arc<Self>, images: &[Saved], output: impl Write) -> Result<()> {
        let ids = images.iter().flat_map(|saved| &saved.images);
        let _layers = self.hold_layers(ids.map(|(id, _)| id.clone()));
        archive::save(&self.files, images, output)?;
        let ids = images.iter().filter_map(|saved| saved.images.first());
        for (id, _) in ids {
            self.publish("save", id, id.to_string());
        }
        Ok(())
    }
}
