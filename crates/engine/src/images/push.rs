//! Pushes images to registries.
//!
//! The store does not keep the compressed blobs of layers. If the registry has the blob that a layer was
//! pulled as, or pushed as before, nothing is sent. Otherwise that blob is fetched from the registry that it
//! was pulled from, if this is near, and sent at the same time. Else the layer's archive is generated from
//! its files, verified, compressed and sent. If a blob's digest then differs from the one in the image's
//! manifest, the pushed manifest lists the new one, and has another digest itself.

mod attestations;
mod documents;
mod layer;
mod relay;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use whelk_image::descriptor::{self, Descriptor, Manifest};
use whelk_image::progress::State;
use whelk_image::{Digest, Platform, Progress, Reference};
use whelk_registry::{Credentials, Repository, Version};

use self::documents::{ToPut, document, relisted};
use self::layer::Layer;
use super::index::choose;
use super::pull::Held;
use super::transfers::Transfers;
use super::{Image, Images, refusals};
use crate::error::{Error, Result};

/// The uploads of an engine, by repository and the layer's diff ID.
pub(super) type Uploads = Transfers<(String, Digest)>;

/// The parameters of a push.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// Without a tag it selects all tags of the repository.
    pub reference: Reference,
    /// The platform whose image is pushed alone. Without, all that a tag stands for is.
    pub platform: Option<Platform>,
    pub credentials: Credentials,
}

/// The result of pushing a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    pub tag: String,
    /// Of the manifest or index.
    pub digest: Digest,
    /// Of the manifest or index, in bytes.
    pub size: u64,
    /// The manifest or index that was to be pushed, if the layers gave another one.
    pub instead_of: Option<Digest>,
    /// The index that the tag stands for, and the only manifest of it that was pushed: the engine does
    /// not have all that it lists, nor does the registry.
    pub part_of: Option<(Descriptor, Descriptor)>,
}

impl Images {
    /// Pushes the image of a tag, or of all tags of a repository. `pushed` is called after each. If the
    /// future is dropped, blobs that were sent completely stay in the registry.
    ///
    /// # Errors
    /// Returns an error if there is no such tag, if the image cannot be read, or if a request to the
    /// registry fails.
    pub async fn push(
        self: &Arc<Self>,
        request: &PushRequest,
        progress: &Progress,
        mut pushed: impl FnMut(&Pushed),
    ) -> Result<()> {
        let reference = &request.reference;
        let push = Push {
            images: self.clone(),
            repository: self
                .downloads
                .client
                .push(reference, request.credentials.clone()),
            credentials: request.credentials.clone(),
            reference: reference.clone(),
            progress: progress.clone(),
        };
        let mut known = BTreeMap::new();
        let mut last = None;
        for (name, id) in self.to_push(reference)? {
            pushed(
                &push
                    .tag(&name, request.platform.as_ref(), &mut known)
                    .await?,
            );
            last = Some(id);
        }
        if let Some(id) = last {
            let (actor, name) = (reference.familiar(), reference.familiar_name());
            if reference.tag.is_some() {
                self.publish_as("push", &id, actor, name);
            } else {
                // All tags: the event is no image's.
                let attributes = [("name".to_owned(), name)].into();
                self.events.publish("image", "push", actor, attributes);
            }
        }
        Ok(())
    }

    /// Returns the tags to push, with their images.
    fn to_push(&self, reference: &Reference) -> Result<Vec<(Reference, Digest)>> {
        if reference.digest.is_some() {
            return Err(Error::invalid("cannot push a digest reference"));
        }
        let mut tags = self.tags_of(reference);
        if tags.is_empty() {
            return Err(Error::NotFound(format!(
                "An image does not exist locally with the tag: {}",
                reference.familiar_name()
            )));
        }
        if reference.tag.is_some() {
            tags.retain(|(name, _)| name.tag == reference.tag);
            if tags.is_empty() {
                return Err(Error::NotFound(format!(
                    "tag does not exist: {}",
                    reference.familiar()
                )));
            }
        }
        Ok(tags)
    }

    /// Returns the manifest that an image came with, and its bytes.
    pub(super) fn manifest_of(&self, image: &Image) -> Option<(Manifest, Vec<u8>)> {
        self.read_manifest(image, image.origin.manifest.as_ref()?)
    }

    /// Returns one of the manifests that an image came with, and its bytes.
    fn read_manifest(&self, image: &Image, digest: &Digest) -> Option<(Manifest, Vec<u8>)> {
        let bytes = self.files.content.read(digest);
        let bytes = bytes
            .inspect_err(|error| tracing::warn!("image {}: manifest: {error}", image.id))
            .ok()?;
        Some((Manifest::parse(&bytes).ok()?, bytes))
    }
}

/// A push to a repository.
#[derive(Clone)]
struct Push {
    images: Arc<Images>,
    repository: Repository,
    credentials: Credentials,
    reference: Reference,
    progress: Progress,
}

impl Push {
    /// Pushes what a tag stands for. `known` has the blobs of layers in the registry, by diff ID.
    async fn tag(
        &self,
        name: &Reference,
        platform: Option<&Platform>,
        known: &mut BTreeMap<Digest, Descriptor>,
    ) -> Result<Pushed> {
        let full = name.to_string();
        let (found, listed) = {
            let index = self.images.read();
            let digest = index.index_of(&full);
            let entries = index.entries(digest).to_vec();
            let listed = digest.filter(|_| !entries.is_empty()).cloned();
            (
                index.variants(&full),
                listed.map(|digest| (digest, entries)),
            )
        };
        if found.is_empty() {
            return Err(Error::no_such_image(&name.familiar()));
        }
        let mut missing = None;
        if let (None, Some((digest, entries))) = (platform, &listed) {
            let missing_entries = self.missing(entries).await?;
            if missing_entries.is_empty()
                || self.attestations(&found[0].image, &missing_entries).await
            {
                return self.index(name, digest, entries, known).await;
            }
            let index = self.images.files.content.read(digest)?;
            let kind = match descriptor::Index::parse(&index)?.media_type.as_str() {
                "" => descriptor::INDEX.to_owned(),
                other => other.to_owned(),
            };
            missing = Some(Descriptor::new(kind, digest.clone(), index.len() as u64));
        }
        // As with Docker: of several, the one for this host.
        let host = Platform::host();
        let wanted = platform.or(Some(&host).filter(|_| found.len() > 1));
        let chosen = choose(&found, wanted, &name.familiar())?;
        let tag = name.tag.clone().unwrap_or_default();
        let manifest = self.manifest(&chosen.image, None, name, known).await?;
        let size = manifest.bytes.len() as u64;
        let selected = Descriptor::new(manifest.media_type.clone(), manifest.digest.clone(), size);
        let (digest, instead_of) = (manifest.digest.clone(), manifest.instead_of.clone());
        self.put(&Version::Tag(tag.clone()), manifest).await?;
        self.note_digest(&chosen.image.id, name, &digest).await?;
        Ok(Pushed {
            tag,
            digest,
            size,
            instead_of,
            part_of: missing.map(|index| (index, selected)),
        })
    }

    /// Returns what an index lists and neither the engine nor the registry has.
    async fn missing(&self, entries: &[Descriptor]) -> Result<Vec<Descriptor>> {
        let mut missing = Vec::new();
        for entry in entries {
            if self.images.read().with_manifest(&entry.digest).is_some() {
                continue;
            }
            let version = Version::Digest(entry.digest.clone());
            let found = self.repository.digest(&version).await;
            if found.map_err(refusals::of_request)?.is_none() {
                missing.push(entry.clone());
            }
        }
        Ok(missing)
    }

    /// Pushes the images that an index lists, and the index under a tag. What is only in the registry
    /// stays as it is.
    async fn index(
        &self,
        name: &Reference,
        original: &Digest,
        entries: &[Descriptor],
        known: &mut BTreeMap<Digest, Descriptor>,
    ) -> Result<Pushed> {
        let bytes = self.images.files.content.read(original)?;
        let mut pushed = Vec::new();
        // What has become of each manifest.
        let mut replaced: BTreeMap<Digest, Descriptor> = BTreeMap::new();
        for entry in entries {
            let image = self.images.read().with_manifest(&entry.digest).cloned();
            let Some(image) = image else { continue };
            let listed = Some(&entry.digest);
            let manifest = self.manifest(&image, listed, name, known).await?;
            let is_same = entry.digest.is_of(&manifest.bytes);
            if !is_same {
                let size = manifest.bytes.len() as u64;
                let other = Descriptor::new(&manifest.media_type, manifest.digest.clone(), size);
                replaced.insert(entry.digest.clone(), other);
            }
            let digest = if is_same {
                &entry.digest
            } else {
                &manifest.digest
            };
            let version = Version::Digest(digest.clone());
            self.put(&version, manifest).await?;
            pushed.push(image.id.clone());
        }
        let (media_type, document) = relisted(bytes, &replaced)?;
        let tag = name.tag.clone().unwrap_or_default();
        let (digest, size) = (Digest::of(&document), document.len() as u64);
        self.repository
            .put_manifest(&Version::Tag(tag.clone()), &media_type, document)
            .await
            .map_err(refusals::of_request)?;
        for id in pushed {
            self.note_digest(&id, name, &digest).await?;
        }
        Ok(Pushed {
            tag,
            instead_of: Some(original.clone()).filter(|_| !replaced.is_empty()),
            digest,
            size,
            part_of: None,
        })
    }

    /// Brings an image into the registry, except for its manifest, which is returned: that which an index
    /// lists, if one is given.
    async fn manifest(
        &self,
        image: &Arc<Image>,
        listed: Option<&Digest>,
        name: &Reference,
        known: &mut BTreeMap<Digest, Descriptor>,
    ) -> Result<ToPut> {
        let held = Arc::new(Held::take(&self.images));
        let lease = held.lease()?;
        let layers = &image.config.rootfs.diff_ids;
        let snapshots = &self.images.files.snapshots;
        if !layers.iter().all(|layer| snapshots.claim(lease, layer)) {
            return Err(Error::no_such_image(&name.familiar()));
        }
        let config = self.images.files.content.read(&image.id)?;
        let listed = listed.filter(|listed| image.other_manifests.contains(listed));
        let original = listed.and_then(|listed| self.images.read_manifest(image, listed));
        let original = original
            .or_else(|| self.images.manifest_of(image))
            .filter(|(manifest, _)| manifest.layers.len() == layers.len());
        self.layers(image, &held, known).await?;
        let descriptors = layers.iter().filter_map(|layer| known.get(layer));
        // The image's id is its SHA-256 digest; its manifest may have another one.
        let named = original.as_ref();
        let named = named.map_or_else(|| image.id.clone(), |(own, _)| own.config.digest.clone());
        let (media_type, bytes, instead_of) = document(original, image, &config, descriptors)?;
        let config = Bytes::from(config);
        let has_config = self.repository.has_blob(&named).await;
        if !has_config.map_err(refusals::of_request)? {
            let uploaded = self.repository.upload_bytes(&named, &config).await;
            uploaded.map_err(refusals::of_request)?;
        }
        Ok(ToPut {
            digest: Digest::of(&bytes),
            media_type,
            bytes,
            instead_of,
        })
    }

    async fn put(&self, version: &Version, manifest: ToPut) -> Result<()> {
        let put = self
            .repository
            .put_manifest(version, &manifest.media_type, manifest.bytes);
        put.await.map_err(refusals::of_request)
    }

    /// Records what the registry knows an image by now.
    async fn note_digest(&self, id: &Digest, name: &Reference, digest: &Digest) -> Result<()> {
        let by_digest = Reference {
            tag: None,
            digest: Some(digest.clone()),
            ..name.clone()
        };
        let (images, id) = (self.images.clone(), id.clone());
        blocking(move || images.add_repo_digest(&id, by_digest)).await
    }

    /// Pushes the layers of an image in parallel, and adds them to `known`. After an error, the others
    /// are cancelled.
    async fn layers(
        &self,
        image: &Arc<Image>,
        held: &Arc<Held>,
        known: &mut BTreeMap<Digest, Descriptor>,
    ) -> Result<()> {
        let origin = self.images.origin_of(image, &self.reference);
        let mut seen = BTreeSet::new();
        let mut tasks = JoinSet::new();
        // From the topmost down, in Docker's order.
        for diff_id in image.config.rootfs.diff_ids.iter().rev() {
            if !seen.insert(diff_id) {
                continue;
            }
            let layer = Layer {
                push: self.clone(),
                image: image.clone(),
                diff_id: diff_id.clone(),
                held: held.clone(),
                origin: origin.clone(),
            };
            if known.contains_key(diff_id) {
                layer.item(0).enter(State::LayerExists);
            } else {
                layer.item(0).enter(State::Preparing);
                tasks.spawn(layer.bring());
            }
        }
        while let Some(outcome) = tasks.join_next().await {
            let (diff_id, descriptor) =
                outcome.unwrap_or_else(|error| Err(Error::internal(error.to_string())))?;
            known.insert(diff_id, descriptor);
        }
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(error.to_string()))?
}
