//! The references of an image, and which of them a name selects.

use std::collections::BTreeSet;
use std::sync::Arc;

use whelk_image::Reference;

use crate::error::{Error, Result};
use crate::images::{Image, Images};
use crate::records::ImageRecord;

/// References of an image: full names with a tag, and names with a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct References {
    pub(super) tags: Vec<String>,
    pub(super) digests: Vec<Reference>,
    /// They were selected by a name, and not by the image's id.
    pub(super) is_named: bool,
}

impl References {
    /// Returns whether an image with them is only removed by its id if that is forced. As in Docker,
    /// one tag is not several references, nor are digests in its repository.
    pub(super) fn are_several(&self) -> bool {
        let tags = self.tags.iter().map(|tag| tag.rsplit_once(':'));
        let tags = tags.map(|split| split.map_or("", |(repository, _)| repository));
        let digests = self.digests.iter().map(Reference::name);
        let repositories: BTreeSet<String> = tags.map(str::to_owned).chain(digests).collect();
        self.tags.len() > 1 || repositories.len() > 1
    }
}

impl Images {
    /// Returns the references of an image: its tags, and the digests that registries have for it.
    pub(super) fn references_of(&self, image: &Image) -> References {
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
    pub(super) fn selected(&self, name: &str, image: &Image) -> Result<Option<References>> {
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
    pub(super) fn untag(&self, image: &Image, references: References) -> Result<Vec<String>> {
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
        self.store.put_image(&ImageRecord::of(&rest), &[])?;
        index.put(Arc::new(rest));
        Ok(())
    }
}
