//! Transfer of images: `load`, `import` and `save`.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::Arc;

use whelk_image::archive::{self, Import, Loaded, Saved};
use whelk_image::{Digest, Lease, Platform, Progress, Reference};
use whelk_text::signal;

use super::{Image, Images, Index};
use crate::error::{Error, Result};
use crate::events::now;
use crate::records::ImageRecord;

/// A name that a load has moved from another image to the loaded one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    pub name: String,
    pub old: Digest,
}

impl Images {
    /// Loads the images of an archive, or those for a platform. Returns each with the names that it
    /// has taken from other images. Blocking.
    ///
    /// # Errors
    /// Returns an error if the archive is invalid, or if the store fails.
    pub fn load(
        &self,
        input: impl Read + Send,
        platform: Option<&Platform>,
        progress: &Progress,
    ) -> Result<Vec<(Loaded, Vec<Renamed>)>> {
        self.with_lease(|lease| {
            let loaded = archive::load(&self.files, lease, input, platform, progress)?;
            // The files must be on disk before a record refers to them.
            self.files.sync()?;
            let mut results = Vec::with_capacity(loaded.len());
            for image in loaded {
                let renamed = self.record(&image, None, None)?;
                self.publish("load", &image.id, image.id.to_string());
                results.push((image, renamed));
            }
            Ok(results)
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
            for name in &loaded.names {
                self.publish("tag", &loaded.id, name.familiar());
            }
            self.publish("import", &loaded.id, loaded.id.to_string());
            Ok(loaded.id)
        })
    }

    /// Records a pulled image. `digest` is its name with the digest in the registry.
    pub(super) fn record_pulled(&self, loaded: &Loaded, digest: Reference) -> Result<()> {
        let tagged_at = loaded.names.first().map(|_| now());
        self.record(loaded, tagged_at, Some(digest)).map(drop)
    }

    /// Adds a name with a digest in a registry to an image.
    pub(super) fn add_repo_digest(&self, id: &Digest, digest: Reference) -> Result<()> {
        let mut index = self.write();
        let image = index.by_id.get(id);
        // It may have been removed while it was pushed.
        let Some(image) = image.filter(|image| !image.repo_digests.contains(&digest)) else {
            return Ok(());
        };
        let mut image = Image::clone(image);
        image.repo_digests.push(digest);
        self.store.put_image(&ImageRecord::of(&image), &[])?;
        index.by_id.insert(id.clone(), Arc::new(image));
        Ok(())
    }

    /// Records an image whose files are in the store, with its names. An existing image keeps its
    /// digests in registries, and without `tagged_at` the time of its last tag. Returns the names
    /// taken from other images.
    fn record(
        &self,
        loaded: &Loaded,
        tagged_at: Option<i64>,
        digest: Option<Reference>,
    ) -> Result<Vec<Renamed>> {
        let names: Vec<String> = loaded.names.iter().map(Reference::to_string).collect();
        // Locked until the end, so that no other change of a name comes between the store and the
        // index.
        let mut index = self.write();
        let known = index.by_id.get(&loaded.id);
        let origin = match known {
            // The known origin is kept if the archive has no manifest, or if a registry has the image
            // by the digest of the known one.
            Some(known)
                if digest.is_none()
                    && (loaded.origin.manifest.is_none() || !known.repo_digests.is_empty()) =>
            {
                &known.origin
            }
            _ => &loaded.origin,
        };
        let mut repo_digests = known.map_or_else(Vec::new, |known| known.repo_digests.clone());
        let is_known = |digest: &&Reference| repo_digests.contains(digest);
        let added = digest.clone().filter(|digest| !is_known(&digest));
        repo_digests.extend(added);
        let image = Image {
            id: loaded.id.clone(),
            config: loaded.config.clone(),
            origin: origin.clone(),
            repo_digests,
            size: loaded.size,
            tagged_at: tagged_at
                .or(known.map(|known| known.tagged_at))
                .unwrap_or(0),
        };
        let record = ImageRecord::of(&image);
        self.store.put_image(&record, &names)?;
        index.unreadable.remove(&loaded.id);
        index.by_id.insert(loaded.id.clone(), Arc::new(image));
        if let Some(digest) = &digest {
            self.take_digest(&mut index, digest, &loaded.id)?;
        }
        for layer in &loaded.config.rootfs.diff_ids {
            if let Err(error) = self.files.snapshots.clear_pending(layer) {
                // Its content then stays for up to a day after the removal of the image.
                tracing::warn!("image {}: {error}", loaded.id);
            }
        }
        let mut renamed = Vec::new();
        for (name, reference) in names.into_iter().zip(&loaded.names) {
            if let Some(old) = index
                .tags
                .insert(name, loaded.id.clone())
                .filter(|old| *old != loaded.id)
            {
                renamed.push(Renamed {
                    name: reference.familiar(),
                    old,
                });
            }
        }
        Ok(renamed)
    }

    /// Removes a digest in a registry from all images but one. As in Docker, an index's digest names
    /// only the image that was pulled last, of those for several platforms.
    fn take_digest(&self, index: &mut Index, digest: &Reference, id: &Digest) -> Result<()> {
        let others = index
            .by_id
            .values_mut()
            .filter(|image| image.id != *id && image.repo_digests.contains(digest));
        for other in others {
            let mut rest = Image::clone(other);
            rest.repo_digests.retain(|known| known != digest);
            self.store.put_image(&ImageRecord::of(&rest), &[])?;
            *other = Arc::new(rest);
        }
        Ok(())
    }

    /// Runs `work`, which adds layers under the lease, and then images that use them. Afterwards unused
    /// layers are removed.
    fn with_lease<T>(&self, work: impl FnOnce(&Lease) -> Result<T>) -> Result<T> {
        let lease = self.files.leases.take();
        let outcome = work(&lease);
        drop(lease);
        self.collect_garbage();
        outcome
    }

    /// Returns the images that `save NAME…` writes, each with the names it was requested by. A name
    /// without a tag selects all tags of the repository.
    ///
    /// # Errors
    /// Returns an error if an image does not exist, or is not for `platform`.
    pub fn to_save(&self, names: &[String], platform: Option<&Platform>) -> Result<Vec<Saved>> {
        let mut images: Vec<Saved> = Vec::new();
        let mut add = |image: Arc<Image>, name: Option<Reference>| {
            if let Some(platform) =
                platform.filter(|platform| !platform.is(&Platform::of(&image.config)))
            {
                return Err(Error::NotFound(format!(
                    "no suitable export target found for platform {platform}"
                )));
            }
            let at = images
                .iter()
                .position(|known| known.id == image.id)
                .unwrap_or_else(|| {
                    images.push(Saved {
                        id: image.id.clone(),
                        names: Vec::new(),
                    });
                    images.len() - 1
                });
            images[at].names.extend(name);
            Ok(())
        };
        for name in names {
            let tagged: Vec<(Reference, Digest)> = match name.parse::<Reference>() {
                Ok(reference) if reference.tag.is_none() && reference.digest.is_none() => {
                    self.tags_of(&reference)
                }
                _ => Vec::new(),
            };
            if tagged.is_empty() {
                let image = self.find(name)?;
                let by_name = self.is_name_of(name, &image.id);
                let reference = if by_name {
                    Some(name.parse::<Reference>()?)
                } else {
                    None
                };
                add(
                    image,
                    reference.map(|reference| Reference {
                        digest: None,
                        ..reference.with_default_tag()
                    }),
                )?;
            }
            for (reference, id) in tagged {
                add(self.get(&id)?, Some(reference))?;
            }
        }
        for image in &mut images {
            let mut seen = BTreeSet::new();
            image.names.retain(|name| seen.insert(name.clone()));
        }
        Ok(images)
    }

    /// Returns all tags of a repository, with the ids of their images.
    pub(super) fn tags_of(&self, repository: &Reference) -> Vec<(Reference, Digest)> {
        let index = self.read();
        let name = repository.name();
        let tags = index.tags_in(&name);
        tags.filter_map(|(name, id)| Some((name.parse().ok()?, id.clone())))
            .collect()
    }

    /// Writes an image archive. Blocking.
    ///
    /// # Errors
    /// Returns an error if an image cannot be read, or if the output fails.
    pub fn save(&self, images: &[Saved], output: impl Write) -> Result<()> {
        archive::save(&self.files, images, output)?;
        for image in images {
            self.publish("save", &image.id, image.id.to_string());
        }
        Ok(())
    }
}
