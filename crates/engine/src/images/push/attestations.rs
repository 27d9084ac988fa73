//! Brings the attestations that an index lists into a registry, so that the index can be pushed. The store
//! has those of images that were built here. Others are fetched from where the image was pulled from, or mounted.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use whelk_image::descriptor::{Descriptor, Manifest};
use whelk_image::{Digest, Reference};
use whelk_registry::{Credentials, Repository, Version};

use super::Push;
use crate::images::Image;
use crate::images::manifests::is_attestation;

/// Maximum size of the blobs of an attestation in bytes. They are kept in memory.
const MAX_SIZE: u64 = 64 << 20;
/// How long one attestation may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A repository that an image was pulled from.
struct Place {
    reference: Reference,
    repository: Repository,
    /// Blobs of it can be mounted.
    is_same_registry: bool,
}

impl Push {
    /// Brings manifests that an index lists, and that are neither here nor in the registry. Returns
    /// whether they are there now; others than attestations are not brought.
    pub(super) async fn attestations(&self, image: &Image, missing: &[Descriptor]) -> bool {
        if !missing.iter().all(is_attestation) {
            return false;
        }
        let places: Vec<Place> = self.places(image).collect();
        for entry in missing {
            let mut is_there = match self.own_attestation(&entry.digest).await {
                Ok(is_there) => is_there,
                Err(cause) => {
                    tracing::warn!("push: attestation {}: {cause}", entry.digest);
                    false
                }
            };
            for place in &places {
                if is_there {
                    break;
                }
                let outcome = timeout(PATIENCE, self.attestation(place, &entry.digest)).await;
                let outcome = outcome.unwrap_or_else(|_| Err("it takes too long".into()));
                match outcome {
                    Ok(()) => {
                        is_there = true;
                        break;
                    }
                    Err(cause) => tracing::info!(
                        "push: attestation {} of {}: {cause}",
                        entry.digest,
                        place.reference.name()
                    ),
                }
            }
            if !is_there {
                return false;
            }
        }
        true
    }

    fn places(&self, image: &Image) -> impl Iterator<Item = Place> {
        let target = &self.reference;
        let is_other = |known: &&Reference| known.name() != target.name();
        let known = image.repo_digests.iter().filter(is_other);
        known.filter_map(|reference| {
            let is_same_registry = reference.domain == target.domain;
            // Credentials are for the registry to which they were given.
            let credentials = if is_same_registry {
                self.credentials.clone()
            } else {
                Credentials::default()
            };
            let client = self.images.downloads.client();
            Some(Place {
                repository: client.pull(reference, credentials).ok()?,
                reference: reference.clone(),
                is_same_registry,
            })
        })
    }

    /// Brings an attestation that the store has. Returns whether it has it.
    async fn own_attestation(&self, digest: &Digest) -> Result<bool, String> {
        let content = &self.images.files.content;
        if !whelk_sys::fs::exists(content.path(digest)) {
            return Ok(false);
        }
        let read = async |digest: &Digest| {
            let (path, digest) = (content.path(digest), digest.clone());
            let read = tokio::task::spawn_blocking(move || {
                let bytes = whelk_sys::fs::read_at_most(path, MAX_SIZE);
                let bytes = bytes.map_err(|error| error.to_string())?;
                match digest.is_of(&bytes) {
                    true => Ok(bytes),
                    false => Err(format!("blob {digest} is damaged")),
                }
            });
            read.await.map_err(|error| error.to_string())?
        };
        let text = |error: whelk_registry::Error| error.to_string();
        let bytes = read(digest).await?;
        let manifest = Manifest::parse(&bytes).map_err(|error| error.to_string())?;
        for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
            let target = &self.repository;
            if !target.has_blob(&blob.digest).await.map_err(text)? {
                let content = Bytes::from(read(&blob.digest).await?);
                let uploaded = target.upload_bytes(&blob.digest, &content).await;
                uploaded.map_err(text)?;
            }
        }
        let version = Version::Digest(digest.clone());
        let put = self
            .repository
            .put_manifest(&version, manifest.kind(), bytes);
        put.await.map_err(text)?;
        Ok(true)
    }

    /// Brings one attestation with its blobs, which are verified.
    async fn attestation(&self, place: &Place, digest: &Digest) -> Result<(), String> {
        let text = |error: whelk_registry::Error| error.to_string();
        let version = Version::Digest(digest.clone());
        let document = place.repository.manifest(&version).await.map_err(text)?;
        if document.is_index() {
            return Err("it is an index".into());
        }
        let manifest = Manifest::parse(&document.bytes).map_err(|error| error.to_string())?;
        let blobs = || std::iter::once(&manifest.config).chain(&manifest.layers);
        if blobs().map(|blob| blob.size).fold(0, u64::saturating_add) > MAX_SIZE {
            return Err("it is too large".into());
        }
        for blob in blobs() {
            let target = &self.repository;
            if target.has_blob(&blob.digest).await.map_err(text)? {
                continue;
            }
            let path = &place.reference.path;
            if place.is_same_registry && target.mount(&blob.digest, path).await.map_err(text)? {
                continue;
            }
            let mut source = place.repository.blob(&blob.digest, blob.size, 0);
            let mut content = Vec::new();
            while let Some(piece) = source.next(|_| {}).await.map_err(text)? {
                content.extend_from_slice(&piece);
            }
            if !blob.digest.is_of(&content) {
                return Err(format!("blob {} has another digest", blob.digest));
            }
            let content = Bytes::from(content);
            let uploaded = target.upload_bytes(&blob.digest, &content).await;
            uploaded.map_err(text)?;
        }
        let put = self
            .repository
            .put_manifest(&version, &document.media_type, document.bytes);
        put.await.map_err(text)
    }
}
