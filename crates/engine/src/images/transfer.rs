//! Images in and out: `load`, `import` and `save`.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::{Arc, PoisonError};

use whelk_image::archive::{self, Import, Loaded, Saved};
use whelk_image::{Digest, Platform, Reference};

use super::{Image, ImageRecord, Images};
use crate::error::{Error, Result};
use crate::events::now;
use crate::signals;

/// A name that an image has lost to one that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    pub name: String,
    pub old: Digest,
}

impl Images {
    /// Reads an image archive: all its images, or those for a platform. Says which names meant
    /// other images before. Blocking.
    pub fn load(
        &self,
        input: impl Read + Send,
        platform: Option<&Platform>,
    ) -> Result<Vec<(Loaded, Vec<Renamed>)>> {
        self.bring_in(|| {
            let loaded = archive::load(&self.files, input, platform)?;
            // Everything is on disk before a record says so.
            self.files.sync()?;
            let mut told = Vec::with_capacity(loaded.len());
            for image in loaded {
                let renamed = self.record(&image, None)?;
                self.publish("load", &image.id, image.id.to_string());
                told.push((image, renamed));
            }
            Ok(told)
        })
    }

    /// Makes an image out of an archive of files; `changes` are Dockerfile instructions. Blocking.
    ///
    /// # Errors
    /// Changes that are wrong, another operating system, a bad archive.
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
            signals::parse(&import.config.stop_signal)?;
        }
        self.bring_in(|| {
            let loaded = archive::import(&self.files, input, import)?;
            self.files.sync()?;
            self.record(&loaded, loaded.names.first().map(|_| now()))?;
            for name in &loaded.names {
                self.publish("tag", &loaded.id, name.familiar());
            }
            self.publish("import", &loaded.id, loaded.id.to_string());
            Ok(loaded.id)
        })
    }

    /// Puts an image that is in the store under its names. Without `tagged_at` a known image keeps
    /// the time of its last tag.
    fn record(&self, loaded: &Loaded, tagged_at: Option<i64>) -> Result<Vec<Renamed>> {
        let names: Vec<String> = loaded.names.iter().map(Reference::to_string).collect();
        // Held to the end: a name must not get another image between the question and the answer.
        let mut index = self.write();
        let tagged_at = tagged_at
            .or(index.by_id.get(&loaded.id).map(|known| known.tagged_at))
            .unwrap_or(0);
        let record = ImageRecord {
            id: loaded.id.clone(),
            size: loaded.size,
            tagged_at,
        };
        self.store.put_image(loaded.id.as_str(), &record, &names)?;
        let image = Image {
            id: loaded.id.clone(),
            config: loaded.config.clone(),
            size: loaded.size,
            tagged_at,
        };
        index.by_id.insert(loaded.id.clone(), Arc::new(image));
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

    /// Carries out what makes layers and then images of them. Meanwhile no layer is removed;
    /// afterwards those are that no image has got.
    fn bring_in<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let outcome = {
            let _incoming = self.incoming.read().unwrap_or_else(PoisonError::into_inner);
            work()
        };
        self.sweep();
        outcome
    }

    /// What `save NAME…` writes: each image with the names it was asked for by. A name without a
    /// tag stands for all tags of that name, whichever images they are of.
    ///
    /// # Errors
    /// An image that is not here, or not for `platform`.
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

    /// All tags of a repository, with the images they are of.
    fn tags_of(&self, repository: &Reference) -> Vec<(Reference, Digest)> {
        let prefix = format!("{}:", repository.name());
        let index = self.read();
        let tags = index
            .tags
            .range(prefix.clone()..)
            .take_while(|(name, _)| name.starts_with(&prefix));
        tags.filter_map(|(name, id)| Some((name.parse().ok()?, id.clone())))
            .collect()
    }

    /// Writes an image archive. Blocking.
    pub fn save(&self, images: &[Saved], output: impl Write) -> Result<()> {
        archive::save(&self.files, images, output)?;
        for image in images {
            self.publish("save", &image.id, image.id.to_string());
        }
        Ok(())
    }
}
