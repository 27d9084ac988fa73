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
use self::layer::{Brought, Layer};
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
    /// Fail, instead of pushing the image for this host alone, if something of an index is missing.
    pub is_whole: bool,
    /// The image that is pushed without a tag: by its digest alone.
    pub untagged: Option<Digest>,
}

/// The result of pushing a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Empty if the image has none.
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
                .client()
                .push(reference, request.credentials.clone()),
            credentials: request.credentials.clone(),
            reference: reference.clone(),
            progress: progress.clone(),
            is_exact: false,
            is_whole: request.is_whole,
        };
        let mut known = Known::new();
        if let Some(id) = &request.untagged {
            pushed(&push.untagged(id, &mut known).await?);
            self.publish_as("push", id, reference.familiar(), reference.familiar_name());
            return Ok(());
        }
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

/// The blobs of layers that are in the repository, by diff ID. Foreign layers have none there.
type Known = BTreeMap<Digest, Vec<Descriptor>>;

/// What is read of an image to push it.
struct Parts {
    config: Bytes,
    /// The manifest that it came with, and its bytes.
    original: Option<(Manifest, Vec<u8>)>,
}

/// A push to a repository.
#[derive(Clone)]
struct Push {
    images: Arc<Images>,
    repository: Repository,
    credentials: Credentials,
    reference: Reference,
    progress: Progress,
    /// Layers are brought as the manifests list them, because attestations refer to these, or clients were told of the manifest.
    is_exact: bool,
    is_whole: bool,
}

impl Push {
    /// Pushes what a tag stands for.
    async fn tag(
        &self,
        name: &Reference,
        platform: Option<&Platform>,
        known: &mut Known,
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
        // A manifest stands in for the index that lists it alone.
        let (own, listed) = match listed {
            Some((digest, entries)) if entries.iter().all(|entry| entry.digest == digest) => {
                (Some(digest), None)
            }
            listed => (None, listed),
        };
        let mut missing = None;
        if let (None, Some((digest, entries))) = (platform, &listed) {
            let missing_entries = self.missing(entries).await?;
            if missing_entries.is_empty()
                || self.attestations(&found[0].image, &missing_entries).await
            {
                return self.index(name, digest, entries, known).await;
            }
            if self.is_whole {
                let missing = missing_entries.iter();
                let missing: Vec<&str> = missing.map(|entry| entry.digest.as_str()).collect();
                let text = format!("index {digest}: cannot bring {}", missing.join(", "));
                return Err(Error::Conflict(text));
            }
            let index = self.read(digest).await?;
            let parsed = descriptor::Index::parse(&index)?;
            let size = index.len() as u64;
            missing = Some(Descriptor::new(parsed.kind(), digest.clone(), size));
        }
        // As with Docker: of several, the one for this host.
        let host = Platform::host();
        let wanted = platform.or(Some(&host).filter(|_| found.len() > 1));
        let chosen = choose(&found, wanted, &name.familiar())?;
        let tag = name.tag.clone().unwrap_or_default();
        let exact = Self {
            is_exact: own.is_some(),
            ..self.clone()
        };
        let own = own.as_ref();
        let manifest = exact.manifest(&chosen.image, own, name, known).await?;
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

    /// Pushes an image without a tag.
    async fn untagged(&self, id: &Digest, known: &mut Known) -> Result<Pushed> {
        let image = self.images.get(id)?;
        let name = &self.reference;
        let manifest = self.manifest(&image, None, name, known).await?;
        let size = manifest.bytes.len() as u64;
        let (digest, instead_of) = (manifest.digest.clone(), manifest.instead_of.clone());
        self.put(&Version::Digest(digest.clone()), manifest).await?;
        self.note_digest(id, name, &digest).await?;
        Ok(Pushed {
            tag: String::new(),
            digest,
            size,
            instead_of,
            part_of: None,
        })
    }

    /// Returns what an index lists and neither the engine nor the registry has.
    async fn missing(&self, entries: &[Descriptor]) -> Result<Vec<Descriptor>> {
        let mut missing = Vec::new();
        for entry in entries {
            if self.images.read().with_manifest(&entry.digest).is_some() {
                continue;
            }
            if !self.has_manifest(&entry.digest).await? {
                missing.push(entry.clone());
            }
        }
        Ok(missing)
    }

    /// Returns whether the repository has a manifest with the blobs that it lists, which a registry may
    /// have lost since.
    async fn has_image(&self, digest: &Digest) -> Result<bool> {
        if !self.has_manifest(digest).await? {
            return Ok(false);
        }
        let version = Version::Digest(digest.clone());
        let document = self.repository.manifest(&version).await;
        let document = document.map_err(refusals::of_request)?;
        let Ok(manifest) = Manifest::parse(&document.bytes) else {
            return Ok(true);
        };
        let layers = manifest.layers.iter().filter(|layer| layer.urls.is_empty());
        for blob in std::iter::once(&manifest.config).chain(layers) {
            let has_blob = self.repository.has_blob(&blob.digest).await;
            if !has_blob.map_err(refusals::of_request)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns whether the repository has a manifest.
    async fn has_manifest(&self, digest: &Digest) -> Result<bool> {
        let version = Version::Digest(digest.clone());
        let found = self.repository.digest(&version).await;
        Ok(found.map_err(refusals::of_request)?.is_some())
    }

    /// Reads a blob of the store.
    async fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let (images, digest) = (self.images.clone(), digest.clone());
        blocking(move || Ok(images.files.content.read(&digest)?)).await
    }

    /// Pushes the images that an index lists, and the index under a tag. What the registry has stays as
    /// it is.
    async fn index(
        &self,
        name: &Reference,
        original: &Digest,
        entries: &[Descriptor],
        known: &mut Known,
    ) -> Result<Pushed> {
        let bytes = self.read(original).await?;
        let exact = Self {
            is_exact: self.images.read().has_attached(original),
            ..self.clone()
        };
        let mut pushed = Vec::new();
        // What has become of each manifest.
        let mut replaced: BTreeMap<Digest, Descriptor> = BTreeMap::new();
        for entry in entries {
            let image = self.images.read().with_manifest(&entry.digest).cloned();
            let Some(image) = image else { continue };
            if self.has_image(&entry.digest).await? {
                for layer in image.layers() {
                    let mut item = layer::item(&self.progress, layer, 0);
                    item.enter(State::LayerExists);
                }
                pushed.push(image.id.clone());
                continue;
            }
            let listed = Some(&entry.digest);
            let manifest = exact.manifest(&image, listed, name, known).await?;
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
        known: &mut Known,
    ) -> Result<ToPut> {
        let held = Arc::new(Held::take(&self.images));
        let parts = self.parts(image, listed, &held, name).await?;
        let layers = self.layers(image, &parts, &held, known).await?;
        // The image's id is its SHA-256 digest; its manifest may have another one.
        let named = parts.original.as_ref();
        let named = named.map_or_else(|| image.id.clone(), |(own, _)| own.config.digest.clone());
        let Parts { config, original } = parts;
        let (media_type, bytes, instead_of) = document(original, image, &config, layers.iter())?;
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

    /// Reads what is needed of an image, and keeps its layers from being removed while `held` exists.
    async fn parts(
        &self,
        image: &Arc<Image>,
        listed: Option<&Digest>,
        held: &Arc<Held>,
        name: &Reference,
    ) -> Result<Parts> {
        let (images, image, held) = (self.images.clone(), image.clone(), held.clone());
        let listed = listed.filter(|listed| image.other_manifests.contains(listed));
        let (listed, name) = (listed.cloned(), name.familiar());
        blocking(move || {
            let lease = held.lease()?;
            let layers = &image.config.rootfs.diff_ids;
            let snapshots = &images.files.snapshots;
            if !layers.iter().all(|layer| snapshots.claim(lease, layer)) {
                return Err(Error::no_such_image(&name));
            }
            let listed = listed.and_then(|listed| images.read_manifest(&image, &listed));
            let original = listed.or_else(|| images.manifest_of(&image));
            Ok(Parts {
                config: images.files.content.read(&image.id)?.into(),
                original: original.filter(|(own, _)| own.layers.len() == layers.len()),
            })
        })
        .await
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

    /// Pushes the layers of an image in parallel, and adds their blobs to `known`. Returns the blob of
    /// each layer. After an error, the others are cancelled.
    async fn layers(
        &self,
        image: &Arc<Image>,
        parts: &Parts,
        held: &Arc<Held>,
        known: &mut Known,
    ) -> Result<Vec<Descriptor>> {
        let origin = self.images.origin_of(image, &self.reference);
        let original = parts.original.as_ref().map(|(manifest, _)| manifest);
        let own = |at: usize| original.map(|manifest| &manifest.layers[at]);
        let ids = &image.config.rootfs.diff_ids;
        // The same files may be in several layers, and those have different blobs.
        let key = |at: usize| (ids[at].clone(), own(at).map(|blob| blob.digest.clone()));
        let (mut found, mut seen) = (BTreeMap::new(), BTreeSet::new());
        let mut tasks = JoinSet::new();
        // From the topmost down, in Docker's order.
        for at in (0..ids.len()).rev() {
            if !seen.insert(key(at)) {
                continue;
            }
            let layer = Layer {
                push: self.clone(),
                image: image.clone(),
                diff_id: ids[at].clone(),
                own: own(at).cloned(),
                known: known.get(&ids[at]).cloned().unwrap_or_default(),
                held: held.clone(),
                origin: origin.clone(),
            };
            layer.item(0).enter(State::Preparing);
            tasks.spawn(async move { (at, layer.bring().await) });
        }
        while let Some(outcome) = tasks.join_next().await {
            let (at, brought) = outcome.map_err(|error| Error::internal(error.to_string()))?;
            let Brought { blob, is_foreign } = brought?;
            if !is_foreign {
                known.entry(ids[at].clone()).or_default().push(blob.clone());
            }
            found.insert(key(at), blob);
        }
        Ok((0..ids.len())
            .filter_map(|at| found.get(&key(at)).cloned())
            .collect())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(error.to_string()))?
}
