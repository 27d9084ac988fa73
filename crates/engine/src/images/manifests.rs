//! The manifests of the images that a name stands for, those that the engine lacks, too.

use std::collections::BTreeSet;
use std::sync::Arc;

use whelk_image::descriptor::Descriptor;
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

/// The manifests of a listed image, as far as they are known without reading files.
#[derive(Debug)]
pub(super) struct Manifests {
    /// With the images that the engine has.
    listed: Vec<(Descriptor, Option<Arc<Image>>)>,
    /// The image, if it has come with a manifest that is none of these. How large that is, and of which
    /// kind, is in its file.
    own: Option<Arc<Image>>,
}

impl Manifests {
    pub(super) fn of(index: &Index, row: &Row<'_>, image: &Arc<Image>) -> Self {
        let with_image =
            |entry: &Descriptor| (entry.clone(), index.with_manifest(&entry.digest).cloned());
        let mut listed = Vec::new();
        let mut seen = BTreeSet::new();
        for tag in &row.tags {
            let entries = index.entries(index.index_of(tag)).iter();
            let new = entries.filter(|entry| seen.insert(&entry.digest));
            listed.extend(new.map(with_image));
        }
        let own = image.origin.manifest.as_ref();
        let mut rest = None;
        if let Some(own) = own.filter(|own| !seen.contains(own)) {
            let mut entries = index.entries(image.origin.index.as_ref()).iter();
            match entries.find(|entry| entry.digest == *own) {
                Some(entry) => listed.push(with_image(entry)),
                None => rest = Some(image.clone()),
            }
        }
        Self { listed, own: rest }
    }
}

impl Images {
    /// Returns the manifests of the images that belong to a listed image: those of the indexes of its
    /// tags. An image that has come without a manifest has none. Blocking.
    pub fn manifests(&self, image: &Arc<Image>) -> Vec<ListedManifest> {
        let manifests = {
            let index = self.read();
            let tags = index.named(&image.id).map(|(tag, _)| tag).collect();
            let row = Row {
                tags,
                variants: Vec::new(),
            };
            Manifests::of(&index, &row, image)
        };
        self.described(manifests)
    }

    /// Adds what is in files. Not to be called while the index is locked.
    pub(super) fn described(&self, manifests: Manifests) -> Vec<ListedManifest> {
        let Manifests { mut listed, own } = manifests;
        if let Some(image) = own
            && let Some(digest) = &image.origin.manifest
            && let Some((manifest, bytes)) = self.manifest_of(&image)
        {
            let size = bytes.len() as u64;
            listed.push((
                Descriptor::new(manifest.kind(), digest.clone(), size),
                Some(image),
            ));
        }
        let described = listed
            .into_iter()
            .map(|(entry, image)| self.listed(entry, image));
        described.collect()
    }

    fn listed(&self, entry: Descriptor, image: Option<Arc<Image>>) -> ListedManifest {
        let content = image
            .as_ref()
            .map_or(0, |image| entry.size + self.size_of(&image.id));
        let kind = if is_attestation(&entry) {
            let about = entry.annotations.get(REFERENCE_DIGEST);
            let about = about.and_then(|digest| digest.parse().ok());
            about.map_or(ManifestKind::Unknown, ManifestKind::Attestation)
        } else if entry.is_index() {
            ManifestKind::Unknown
        } else {
            let platform = entry.platform.clone();
            let own = image.as_ref().map(|image| Platform::of(&image.config));
            ManifestKind::Image {
                platform: platform.or(own).unwrap_or_default(),
                image,
            }
        };
        ListedManifest {
            descriptor: entry,
            kind,
            content,
        }
    }

    /// Returns the size of a blob in bytes; 0 if it cannot be read.
    fn size_of(&self, digest: &Digest) -> u64 {
        let path = self.files.content.path(digest);
        whelk_sys::fs::metadata(&path).map_or(0, |file| file.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use whelk_image::ImageConfig;
    use whelk_image::archive::Origin;
    use whelk_image::descriptor::MANIFEST;

    use super::*;

    /// Returns how long it takes to find the manifests of an image whose index has this many entries.
    fn time(entries: usize) -> Duration {
        let (x, tag) = (Digest::of(b"x"), "docker.io/library/a:1".to_owned());
        let entry = |number: usize| {
            let digest = Digest::of(number.to_string().as_bytes());
            Descriptor::new(MANIFEST, digest, 1)
        };
        let image = Arc::new(Image {
            id: Digest::of(b"config"),
            config: ImageConfig::default(),
            origin: Origin {
                manifest: Some(entry(entries - 1).digest),
                index: Some(x.clone()),
            },
            other_manifests: Vec::new(),
            repo_digests: Vec::new(),
            size: 0,
            tagged_at: 0,
            parent: None,
        });
        let mut index = Index::default();
        index.add_entries(&x, Some((0..entries).map(entry).collect()));
        index.put(image.clone());
        let stands_for = crate::images::Tag {
            image: image.id.clone(),
            index: Some(x),
        };
        index.tags.insert(tag.clone(), stands_for);
        let row = Row {
            tags: vec![&tag],
            variants: Vec::new(),
        };
        let run = || {
            let begin = Instant::now();
            let found = Manifests::of(&index, &row, &image);
            let time = begin.elapsed();
            let here = found.listed.iter().filter(|(_, image)| image.is_some());
            assert_eq!((found.listed.len(), here.count()), (entries, 1));
            assert!(found.own.is_none());
            time
        };
        (0..5).map(|_| run()).min().unwrap_or_default()
    }

    /// An index may list 10,000 manifests, and they are found while all images are locked.
    #[test]
    fn the_time_does_not_grow_with_the_square_of_the_entries() {
        let (few, many) = (time(500), time(10_000));
        assert!(many < few * 150, "{few:?} {many:?}");
    }
}
