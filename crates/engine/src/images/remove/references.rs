//! The references of an image, and which of them a name selects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use whelk_image::Reference;

use crate::error::{Error, Result};
use crate::images::{Image, Images};

/// References of an image: full names with a tag, and names with a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct References {
    pub(super) tags: Vec<String>,
    pub(super) digests: Vec<Reference>,
    /// The name by which they were selected, in the familiar form; `None` for the image's id.
    pub(super) name: Option<String>,
}

impl References {
    /// Returns whether an image with them is only removed by its id if that is forced. As in Docker,
    /// one tag is not several references, nor are digests in its repository.
    pub(super) fn are_several(&self) -> bool {
        self.tags.len() > 1 || self.repositories().len() > 1
    }

    /// Returns the repositories that they are in.
    pub(super) fn repositories(&self) -> BTreeSet<String> {
        let tags = self.tags.iter().map(|tag| tag.rsplit_once(':'));
        let tags = tags.map(|split| split.map_or("", |(repository, _)| repository));
        let digests = self.digests.iter().map(Reference::name);
        tags.map(str::to_owned).chain(digests).collect()
    }
}

impl Images {
    /// Returns the references of an image: its tags, and the digests that registries have for it.
    pub(super) fn references_of(&self, image: &Image) -> References {
        let index = self.read();
        let tags = index.named(&image.id);
        References {
            tags: tags.map(|(name, _)| name.clone()).collect(),
            digests: image.repo_digests.clone(),
            name: None,
        }
    }

    /// Returns the references of `image` that its name `name` selects; `None` for an id, which
    /// selects the image. As in Docker, a digest selects what its repository has by it and nothing else,
    /// whatever its tag is, and the last tag in a repository that stands for the image also the digests
    /// there.
    pub(super) fn selected(&self, name: &str, image: &Image) -> Result<Option<References>> {
        if !self.is_name_of(name, &image.id) && !name.contains('@') {
            return Ok(None);
        }
        let reference = name.parse::<Reference>()?;
        let given = reference.familiar();
        let reference = reference.with_default_tag();
        let repository = reference.name();
        let References {
            mut tags,
            mut digests,
            ..
        } = self.references_of(image);
        digests.retain(|digest| digest.name() == repository);
        if reference.digest.is_some() {
            tags.clear();
            digests.retain(|digest| digest.digest == reference.digest);
            if digests.is_empty() {
                return Err(Error::no_such_image(&given));
            }
        } else {
            let prefix = format!("{repository}:");
            tags.retain(|tag| tag.starts_with(&prefix));
            let index = self.read();
            let standing = index.tags_of(image);
            if standing.filter(|tag| tag.starts_with(&prefix)).count() > 1 {
                digests.clear();
            }
            tags.retain(|tag| Some(&tag[prefix.len()..]) == reference.tag.as_deref());
        }
        Ok(Some(References {
            tags,
            digests,
            name: Some(given),
        }))
    }

    /// Removes references of an image, except for tags that are another's meanwhile. Returns them in the
    /// familiar form and in Docker's order, one by a digest as it was given.
    pub(super) fn untag(&self, image: &Image, references: References) -> Result<Vec<String>> {
        // Digests that go with the last tag have no event.
        let is_silent = references.name.is_some() && !references.tags.is_empty();
        let given = references.name.filter(|_| references.tags.is_empty());
        let tags = references.tags.into_iter().map(|tag| (tag, None));
        let digests = references.digests.into_iter();
        let digests = digests.map(|digest| (digest.to_string(), Some(digest)));
        let mut removed = Vec::new();
        for (full, digest) in tags.chain(digests).collect::<BTreeMap<_, _>>() {
            let Some(digest) = digest else {
                {
                    // Locked for the change of both store and index.
                    let mut index = self.write();
                    if !index.names(&full, &image.id) {
                        continue;
                    }
                    self.store.delete_tag(&full)?;
                    index.untag(&full);
                }
                self.publish("untag", &image.id, image.id.to_string());
                let reference = full.parse::<Reference>();
                removed.push(reference.map_or(full, |name| name.familiar()));
                continue;
            };
            self.forget_digests(image, |known| *known == digest)?;
            if !is_silent {
                self.publish("untag", &image.id, image.id.to_string());
            }
            removed.push(given.clone().unwrap_or_else(|| digest.familiar()));
        }
        Ok(removed)
    }

    /// Removes digests in registries from an image's record.
    pub(super) fn forget_digests(
        &self,
        image: &Image,
        is_gone: impl Fn(&Reference) -> bool,
    ) -> Result<()> {
        let mut index = self.write();
        let Some(known) = index.by_id.get(&image.id) else {
            return Ok(());
        };
        let mut rest = Image::clone(known);
        rest.repo_digests.retain(|digest| !is_gone(digest));
        self.store.put_image(&index.record(&rest, &[]), &[])?;
        index.put(Arc::new(rest));
        Ok(())
    }
}
