//! The manifests of the images that a name stands for, those that the engine lacks, too.

use std::collections::BTreeSet;
use std::sync::Arc;

use whelk_image::descriptor::{self, Descriptor};
use whelk_image::{Digest, Platform};

use super::index::{Index, Row};
use super::{Image, Images};

/// The annotations by which BuildKit's attestations refer to the manifest that they are about.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const ATTESTATION: &str = "attestation-manifest";
pub(super) const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// A manifest that an index lists, or that of an image without an index.
#[derive(Clone, Debug)]
pub struct ListedManifest {
    pub descriptor: Descriptor,
    pub kind: ManifestKind,
    /// Size of what the engine has of it without its layers, in bytes: those are not kept as blobs.
    pub content: u64,
}

#[derive(Clone, Debug)]
pub enum ManifestKind {
    Image {
        platform: Platform,
        /// The image, if the engine has it.
        image: Option<Arc<Image>>,
    },
    /// What is said about the image with a manifest.
    Attestation(Digest),
    Unknown,
}

/// Returns whether an entry of an index is what BuildKit says about an image.
pub(super) fn is_attestation(entry: &Descriptor) -> bool {
    let kind = entry.annotations.get(REFERENCE_TYPE);
    kind.is_some_and(|kind| kind == ATTESTATION)
}

impl Images {
    /// Returns the manifests of the images that belong to a listed image: those of the indexes of its
    /// tags. An image that has come without a manifest has none.
    pub fn manifests(&self, image: &Arc<Image>) -> Vec<ListedManifest> {
        let index = self.read();
        let tags = index.named(&image.id).map(|(tag, _)| tag).collect();
        let row = Row {
            tags,
            variants: Vec::new(),
        };
        self.manifests_of(&index, &row, image)
    }

    pub(super) fn manifests_of(
        &self,
        index: &Index,
        row: &Row<'_>,
        image: &Arc<Image>,
    ) -> Vec<ListedManifest> {
        let mut found: Vec<ListedManifest> = Vec::new();
        let mut seen = BTreeSet::new();
        for tag in &row.tags {
            for entry in index.entries(index.index_of(tag)) {
                if seen.insert(&entry.digest) {
                    found.push(self.listed(index, entry));
                }
            }
        }
        let own = image.origin.manifest.as_ref();
        let is_missing = |own: &&Digest| !seen.contains(own);
        if let Some(own) = own.filter(is_missing) {
            found.extend(self.own(index, image, own));
        }
        found
    }

    fn listed(&self, index: &Index, entry: &Descriptor) -> ListedManifest {
        let image = index.with_manifest(&entry.digest);
        let kind = if is_attestation(entry) {
            let about = entry.annotations.get(REFERENCE_DIGEST);
            let about = about.and_then(|digest| digest.parse().ok());
            about.map_or(ManifestKind::Unknown, ManifestKind::Attestation)
        } else if entry.is_index() {
            ManifestKind::Unknown
        } else {
            let platform = entry.platform.clone();
            let own = image.map(|image| Platform::of(&image.config));
            ManifestKind::Image {
                platform: platform.or(own).unwrap_or_default(),
                image: image.cloned(),
            }
        };
        ListedManifest {
            content: image.map_or(0, |image| entry.size + self.size_of(&image.id)),
            descriptor: entry.clone(),
            kind,
        }
    }

    /// Returns the manifest of an image that no index of its tags lists.
    fn own(&self, index: &Index, image: &Arc<Image>, digest: &Digest) -> Option<ListedManifest> {
        let entries = index.entries(image.origin.index.as_ref());
        if let Some(entry) = entries.iter().find(|entry| entry.digest == *digest) {
            return Some(self.listed(index, entry));
        }
        let (manifest, bytes) = self.manifest_of(image)?;
        let media_type = match manifest.media_type.as_str() {
            "" => descriptor::MANIFEST,
            other => other,
        };
        let entry = Descriptor::new(media_type, digest.clone(), bytes.len() as u64);
        Some(self.listed(index, &entry))
    }

    /// Returns the size of a blob in bytes; 0 if it cannot be read.
    fn size_of(&self, digest: &Digest) -> u64 {
        let path = self.files.content.path(digest);
        whelk_sys::fs::metadata(&path).map_or(0, |file| file.len())
    }
}
