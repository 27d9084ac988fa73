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
    /// The index that each of its tags stands for, by full name. A tag without one stands for that of
    /// the origin.
    pub tag_indexes: BTreeMap<String, Digest>,
    /// Names with the digest of the manifest or index that a registry has for the image.
    pub repo_digests: Vec<Reference>,
    /// Size of the file contents in all layers, in bytes.
    pub size: u64,
    /// Time of its last tag, in nanoseconds since the epoch; 0 for never.
    pub tagged_at: i64,
}

impl ImageRecord {
    pub(super) fn of(image: &Image) -> Self {
        Self {
            id: image.id.clone(),
            size: image.size,
            tagged_at: image.tagged_at,
            manifest: image.origin.manifest.clone(),
            index: image.origin.index.clone(),
            other_manifests: image.other_manifests.clone(),
            tag_indexes: image.tag_indexes.clone(),
            repo_digests: image
                .repo_digests
                .iter()
                .map(Reference::to_string)
                .collect(),
        }
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
            tag_indexes: self.tag_indexes,
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

    /// Returns the indexes that it has come with and its tags stand for.
    pub(super) fn indexes(&self) -> impl Iterator<Item = &Digest> {
        self.origin.index.iter().chain(self.tag_indexes.values())
    }

    /// Keeps only those of its further manifests that are in use.
    pub(super) fn keep_manifests(&mut self, is_used: impl Fn(&Digest) -> bool) {
        let mut seen: BTreeSet<Digest> = self.origin.manifest.iter().cloned().collect();
        self.other_manifests
            .retain(|manifest| is_used(manifest) && seen.insert(manifest.clone()));
    }

    /// Sets the index that a tag of it (a full name) stands for.
    pub(super) fn set_index(&mut self, tag: &str, index: Option<Digest>) {
        match index {
            Some(index) => self.tag_indexes.insert(tag.to_owned(), index),
            None => self.tag_indexes.remove(tag),
        };
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
            tag_indexes: [("docker.io/library/a:1".to_owned(), Digest::of(b"other"))].into(),
            repo_digests: vec![
                format!("docker.io/library/busybox@{digest}")
                    .parse()
                    .unwrap(),
            ],
            size: 5,
            tagged_at: 7,
        };
        let text = encode(&ImageRecord::of(&image)).unwrap();
        let record: ImageRecord = decode(text.as_bytes()).unwrap();
        assert_eq!(record.image(ImageConfig::default()), image);
    }
}
