//! An image, and its record in the store.

use std::collections::{BTreeMap, BTreeSet};

use whelk_image::archive::Origin;
use whelk_image::{Digest, ImageConfig, Reference};

use crate::records::ImageRecord;

/// An image the engine has.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    pub id: Digest,
    pub config: ImageConfig,
    /// The manifest and index that the image came with.
    pub origin: Origin,
    /// Further manifests by which indexes list it: other blobs of the same content.
    pub other_manifests: Vec<Digest>,
    /// Names with the digest of the manifest or index that a registry has for the image.
    pub repo_digests: Vec<Reference>,
    /// Image that it was committed from, which may have been removed since.
    pub parent: Option<Digest>,
    /// Size of the file contents in all layers, in bytes.
    pub size: u64,
    /// Time of its last tag, in nanoseconds since the epoch; 0 for never.
    pub tagged_at: i64,
}

impl ImageRecord {
    /// Returns the record of an image with its tags (full names), and the index that each stands for.
    pub(super) fn of<'a>(
        image: &Image,
        tags: impl IntoIterator<Item = (&'a String, &'a Option<Digest>)>,
    ) -> Self {
        let others = tags
            .into_iter()
            .map(|(name, index)| (name.clone(), index.clone()));
        let others: BTreeMap<String, Option<Digest>> = others.collect();
        let origin = &image.origin.index;
        Self {
            id: image.id.clone(),
            size: image.size,
            tagged_at: image.tagged_at,
            manifest: image.origin.manifest.clone(),
            index: image.origin.index.clone(),
            other_manifests: image.other_manifests.clone(),
            tag_indexes: others
                .into_iter()
                .filter(|(_, index)| index != origin)
                .collect(),
            repo_digests: image
                .repo_digests
                .iter()
                .map(Reference::to_string)
                .collect(),
            parent: image.parent.clone(),
        }
    }

    /// Returns the index that a tag of the image (a full name) stands for.
    pub(super) fn index_of(&self, tag: &str) -> Option<Digest> {
        let own = self.tag_indexes.get(tag);
        own.cloned().unwrap_or_else(|| self.index.clone())
    }

    pub(super) fn image(self, config: ImageConfig) -> Image {
        let names = self.repo_digests.iter();
        Image {
            repo_digests: names.filter_map(|name| name.parse().ok()).collect(),
            id: self.id,
            config,
            origin: Origin {
                manifest: self.manifest,
                index: self.index,
            },
            other_manifests: self.other_manifests,
            parent: self.parent,
            size: self.size,
            tagged_at: self.tagged_at,
        }
    }
}

impl Image {
    /// Returns the manifests that it has come with.
    pub(super) fn manifests(&self) -> impl Iterator<Item = &Digest> {
        self.origin.manifest.iter().chain(&self.other_manifests)
    }

    /// Keeps only those of its further manifests that are in use.
    pub(super) fn keep_manifests(&mut self, is_used: impl Fn(&Digest) -> bool) {
        let mut seen: BTreeSet<Digest> = self.origin.manifest.iter().cloned().collect();
        self.other_manifests
            .retain(|manifest| is_used(manifest) && seen.insert(manifest.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{decode, encode};

    #[test]
    fn records_of_earlier_versions_open() {
        let id = Digest::of(b"config");
        let old = format!(r#"{{"id":"{id}","size":5,"tagged_at":7}}"#);
        let record: ImageRecord = decode(old.as_bytes()).unwrap();
        assert_eq!(encode(&record).unwrap(), old);
        assert_eq!(record.index_of("a:1"), None);
        let image = record.image(ImageConfig::default());
        assert_eq!((image.id, image.size, image.tagged_at), (id, 5, 7));
        assert_eq!(
            (image.origin, image.repo_digests),
            (Origin::default(), vec![])
        );
    }

    #[test]
    fn a_record_keeps_what_registries_know_of_the_image() {
        let digest = Digest::of(b"manifest");
        let image = Image {
            id: Digest::of(b"config"),
            config: ImageConfig::default(),
            origin: Origin {
                manifest: Some(digest.clone()),
                index: Some(Digest::of(b"index")),
            },
            other_manifests: vec![Digest::of(b"others")],
            repo_digests: vec![
                format!("docker.io/library/busybox@{digest}")
                    .parse()
                    .unwrap(),
            ],
            parent: Some(Digest::of(b"parent")),
            size: 5,
            tagged_at: 7,
        };
        let other = Some(Digest::of(b"other"));
        let indexes = [
            ("a:1", &other),
            ("a:2", &None),
            ("a:3", &image.origin.index),
        ];
        let tags = indexes.map(|(name, index)| (name.to_owned(), index));
        let tags = tags.iter().map(|(name, index)| (name, *index));
        let text = encode(&ImageRecord::of(&image, tags)).unwrap();
        let record: ImageRecord = decode(text.as_bytes()).unwrap();
        for (name, index) in indexes {
            assert_eq!(record.index_of(name), *index, "{name}");
        }
        // As in earlier versions, the index of the origin need not be said.
        assert_eq!(record.tag_indexes.len(), 2);
        assert_eq!(record.image(ImageConfig::default()), image);
    }
}
