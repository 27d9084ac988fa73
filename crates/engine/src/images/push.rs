//! Pushes images to registries.
//!
//! The store does not keep the compressed blobs of layers. If the registry has the blob that a layer was
//! pulled from, or pushed as before, nothing is sent. Otherwise the layer's archive is generated from its
//! files, verified, compressed and sent, all at the same time. If a blob's digest then differs from the
//! one in the image's manifest, the pushed manifest lists the new one, and has another digest itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use whelk_image::descriptor::{self, Descriptor, Manifest};
use whelk_image::digest::Hashing;
use whelk_image::progress::{Item, State};
use whelk_image::{Digest, Platform, Progress, Reference};
use whelk_registry::{Credentials, Repository, Source, Version};
use whelk_sys::sync::IgnorePoison as _;

use super::index::choose;
use super::manifests::REFERENCE_DIGEST;
use super::pull::{DOCKER_CONFIG, Held, LAYERS};
use super::transfers::{Transfers, wait_state};
use super::{Image, Images, refusals};
use crate::error::{Error, Result};

/// Maximum number of compressed pieces of a layer that wait to be sent.
const QUEUE: usize = 4;
/// For each layer, maximum number of blobs that the registry is asked for, and of repositories that it
/// is asked to mount one from.
const MAX_CANDIDATES: usize = 4;
/// Number of digits of a diff ID that identify a layer in progress reports.
const SHOWN: usize = 12;

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

/// A compressed form of a layer that the registry may have.
#[derive(Clone, Debug)]
struct Candidate {
    descriptor: Descriptor,
    /// Paths of other repositories of the same registry that have contained it.
    repositories: BTreeSet<String>,
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
            self.publish_as("push", &id, actor, name);
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

    /// Returns the blobs that the registry `domain` may have for a layer, those of `image` first.
    /// Blocking.
    fn candidates(&self, image: &Image, diff_id: &Digest, target: &Reference) -> Vec<Candidate> {
        let mut found: Vec<Candidate> = Vec::new();
        let mut everywhere = BTreeSet::new();
        let others: Vec<Arc<Image>> = self.read().by_id.values().cloned().collect();
        let others = others.iter().filter(|other| other.id != image.id);
        let sharing = std::iter::once(image).chain(others.map(|other| &**other));
        for image in sharing {
            let layers = &image.config.rootfs.diff_ids;
            let Some(at) = layers.iter().position(|layer| layer == diff_id) else {
                continue;
            };
            let repositories: BTreeSet<String> = image
                .repo_digests
                .iter()
                .filter(|known| known.domain == target.domain && known.path != target.path)
                .map(|known| known.path.clone())
                .collect();
            everywhere.extend(repositories.clone());
            let manifest = self.manifest_of(image);
            let Some((manifest, _)) = manifest.filter(|(m, _)| m.layers.len() == layers.len())
            else {
                continue;
            };
            let descriptor = manifest.layers[at].clone();
            match found
                .iter_mut()
                .find(|known| known.descriptor.digest == descriptor.digest)
            {
                Some(known) => known.repositories.extend(repositories),
                None => found.push(Candidate {
                    descriptor,
                    repositories,
                }),
            }
            if found.len() == MAX_CANDIDATES {
                break;
            }
        }
        // The blob of an earlier push, perhaps to these repositories.
        if let Some((digest, size)) = self.files.snapshots.compressed(diff_id)
            && found.iter().all(|known| known.descriptor.digest != digest)
        {
            let kind = format!("{}+gzip", descriptor::LAYER);
            found.push(Candidate {
                descriptor: Descriptor::new(kind, digest, size),
                repositories: everywhere,
            });
        }
        found
    }

    /// Returns the manifest that an image came with, and its bytes.
    pub(super) fn manifest_of(&self, image: &Image) -> Option<(Manifest, Vec<u8>)> {
        let bytes = self.files.content.read(image.origin.manifest.as_ref()?);
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
            if self.is_complete(entries).await? {
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
        let manifest = self.manifest(&chosen.image, name, known).await?;
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

    /// Returns whether everything that an index lists is here, or in the registry.
    async fn is_complete(&self, entries: &[Descriptor]) -> Result<bool> {
        for entry in entries {
            let is_here = self.images.read().with_manifest(&entry.digest).is_some();
            let version = Version::Digest(entry.digest.clone());
            if !is_here
                && self
                    .repository
                    .digest(&version)
                    .await
                    .map_err(refusals::of_request)?
                    .is_none()
            {
                return Ok(false);
            }
        }
        Ok(true)
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
            let manifest = self.manifest(&image, name, known).await?;
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

    /// Brings an image into the registry, except for its manifest, which is returned.
    async fn manifest(
        &self,
        image: &Arc<Image>,
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
        let original = self
            .images
            .manifest_of(image)
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

/// The manifest of an image that is in the registry otherwise.
struct ToPut {
    digest: Digest,
    media_type: String,
    bytes: Vec<u8>,
    /// The manifest that the image came with, if this is another.
    instead_of: Option<Digest>,
}

/// Returns the media type and the bytes of an index in which some manifests are replaced by others. What
/// refers to a manifest of it refers to the other one then.
fn relisted(bytes: Vec<u8>, replaced: &BTreeMap<Digest, Descriptor>) -> Result<(String, Vec<u8>)> {
    let invalid = |error: serde_json::Error| Error::internal(error.to_string());
    let parsed = descriptor::Index::parse(&bytes)?;
    let media_type = match parsed.media_type.as_str() {
        "" => descriptor::INDEX.to_owned(),
        other => other.to_owned(),
    };
    if replaced.is_empty() {
        return Ok((media_type, bytes));
    }
    let mut entries = parsed.manifests;
    for entry in &mut entries {
        let about = entry.annotations.get_mut(REFERENCE_DIGEST);
        if let Some(about) = about
            && let Some(other) = about
                .parse()
                .ok()
                .and_then(|about| replaced.get::<Digest>(&about))
        {
            *about = other.digest.to_string();
        }
        if let Some(other) = replaced.get(&entry.digest) {
            entry.media_type.clone_from(&other.media_type);
            entry.digest = other.digest.clone();
            entry.size = other.size;
        }
    }
    // What else the index has, such as annotations, is kept.
    let mut whole: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes).map_err(invalid)?;
    whole.insert(
        "manifests".into(),
        serde_json::to_value(&entries).map_err(invalid)?,
    );
    Ok((media_type, serde_json::to_vec(&whole).map_err(invalid)?))
}

/// Returns the media type and the bytes of the manifest to push, and the digest of the image's own
/// manifest if that is a different one. `layers` are the blobs in the registry.
fn document<'a>(
    original: Option<(Manifest, Vec<u8>)>,
    image: &Image,
    config: &[u8],
    layers: impl Iterator<Item = &'a Descriptor>,
) -> Result<(String, Vec<u8>, Option<Digest>)> {
    let invalid = |error: serde_json::Error| Error::internal(error.to_string());
    let Some((mut manifest, bytes)) = original else {
        let config = Descriptor::new(descriptor::CONFIG, image.id.clone(), config.len() as u64);
        let manifest = Manifest::new(config, layers.cloned().collect());
        let bytes = serde_json::to_vec(&manifest).map_err(invalid)?;
        return Ok((descriptor::MANIFEST.into(), bytes, None));
    };
    let is_docker = manifest.config.media_type == DOCKER_CONFIG;
    let media_type = match manifest.media_type.as_str() {
        "" => descriptor::MANIFEST.to_owned(),
        other => other.to_owned(),
    };
    let mut is_same = true;
    for (own, found) in manifest.layers.iter_mut().zip(layers) {
        if own.digest != found.digest {
            is_same = false;
            own.media_type = layer_type(&found.media_type, is_docker);
            own.digest = found.digest.clone();
            own.size = found.size;
        }
    }
    if is_same {
        return Ok((media_type, bytes, None));
    }
    // Other fields of the manifest, such as annotations, are kept.
    let mut whole: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes).map_err(invalid)?;
    let layers = serde_json::to_value(&manifest.layers).map_err(invalid)?;
    whole.insert("layers".into(), layers);
    let changed = serde_json::to_vec(&whole).map_err(invalid)?;
    Ok((media_type, changed, Some(Digest::of(&bytes))))
}

/// Returns the media type of a layer in a manifest with Docker's or with OCI's media types.
fn layer_type(media_type: &str, is_docker: bool) -> String {
    let suffix = LAYERS
        .iter()
        .find_map(|known| media_type.strip_prefix(known))
        .unwrap_or("+gzip");
    let compression = suffix.trim_start_matches(['+', '.']);
    match (compression, is_docker) {
        ("", true) => LAYERS[1].to_owned(),
        ("", false) => LAYERS[0].to_owned(),
        (compression, true) => format!("{}.{compression}", LAYERS[1]),
        (compression, false) => format!("{}+{compression}", LAYERS[0]),
    }
}

/// A layer to push.
struct Layer {
    push: Push,
    image: Arc<Image>,
    diff_id: Digest,
    held: Arc<Held>,
}

impl Layer {
    fn item(&self, size: u64) -> Item {
        let id = &self.diff_id.hex()[..SHOWN];
        self.push.progress.item(id, State::Preparing, size)
    }

    /// Pushes the layer unless the registry has it. Returns its diff ID and its blob in the registry.
    async fn bring(self) -> Result<(Digest, Descriptor)> {
        let descriptor = self.find_or_send().await.map_err(|error| {
            // A registry's own text is shown without a prefix, as in Docker.
            match error {
                Failure::Registry(error) => refusals::of_request(error),
                Failure::Own(error) => error.prefixed(&format!("push layer {}", self.diff_id)),
            }
        })?;
        Ok((self.diff_id, descriptor))
    }

    /// Returns the descriptor of a layer that is at URLs of its own, and not meant for registries.
    fn foreign(&self) -> Option<Descriptor> {
        let layers = &self.image.config.rootfs.diff_ids;
        let at = layers.iter().position(|layer| *layer == self.diff_id)?;
        let (manifest, _) = self.push.images.manifest_of(&self.image)?;
        let is_whole = manifest.layers.len() == layers.len();
        let layer = manifest.layers.get(at).filter(|_| is_whole)?;
        let kinds = &LAYERS[2..];
        let is_foreign = kinds.iter().any(|kind| layer.media_type.starts_with(kind));
        (is_foreign && !layer.urls.is_empty()).then(|| layer.clone())
    }

    async fn find_or_send(&self) -> std::result::Result<Descriptor, Failure> {
        if let Some(foreign) = self.foreign() {
            self.item(0).enter(State::SkippedForeign);
            return Ok(foreign);
        }
        let layer = (self.push.reference.name(), self.diff_id.clone());
        let waiting = || self.item(0).enter(State::Waiting);
        let uploads = &self.push.images.uploads;
        // Another push of the layer may have sent it meanwhile.
        let _claim = uploads.claim(layer, waiting).await.map_err(Failure::Own)?;
        let repository = &self.push.repository;
        let candidates = {
            let (images, image) = (self.push.images.clone(), self.image.clone());
            let (diff_id, target) = (self.diff_id.clone(), self.push.reference.clone());
            blocking(move || Ok(images.candidates(&image, &diff_id, &target)))
                .await
                .map_err(Failure::Own)?
        };
        for candidate in &candidates {
            if repository.has_blob(&candidate.descriptor.digest).await? {
                self.item(0).enter(State::LayerExists);
                return Ok(candidate.descriptor.clone());
            }
        }
        let mut mounts: Vec<(Descriptor, String)> = Vec::new();
        for candidate in candidates {
            let descriptor = &candidate.descriptor;
            mounts.extend(
                candidate
                    .repositories
                    .into_iter()
                    .map(|from| (descriptor.clone(), from)),
            );
        }
        mounts.truncate(MAX_CANDIDATES);
        for (descriptor, from) in mounts {
            if repository.mount(&descriptor.digest, &from).await? {
                self.item(0).mounted(&from);
                return Ok(descriptor);
            }
        }
        self.send().await
    }

    /// Compresses and uploads the layer.
    async fn send(&self) -> std::result::Result<Descriptor, Failure> {
        let files = self.push.images.files.clone();
        let size = files.snapshots.size(&self.diff_id).unwrap_or(0);
        let mut reads = JoinSet::new();
        let failure = Arc::new(std::sync::Mutex::new(None));
        let uploaded = self
            .push
            .repository
            .upload(
                || {
                    let (sender, pieces) = mpsc::channel(QUEUE);
                    let (tell, end) = oneshot::channel();
                    let mut item = self.item(size);
                    item.enter(State::Pushing);
                    let (files, diff_id) = (files.clone(), self.diff_id.clone());
                    let (held, failure) = (self.held.clone(), failure.clone());
                    reads.spawn_blocking(move || {
                        // Holds the lease for as long as the layer is read.
                        let _held = held;
                        let mut hashing = Hashing::new(io::sink());
                        let compressed = files.snapshots.compress(
                            &diff_id,
                            &mut |count| item.advance(count, false),
                            |piece| {
                                io::Write::write_all(&mut hashing, &piece)?;
                                let sent = sender.blocking_send(Bytes::from(piece));
                                sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
                            },
                        );
                        match compressed {
                            Ok(()) => {
                                let (digest, length, _) = hashing.finish();
                                let _ = tell.send((digest, length));
                            }
                            // The push was cancelled.
                            Err(_) if sender.is_closed() => {}
                            Err(error) => *failure.lock().ignore_poison() = Some(error),
                        }
                    });
                    Source { pieces, end }
                },
                |wait| self.item(size).enter(wait_state(wait)),
            )
            .await;
        drop(reads);
        let own = failure.lock().ignore_poison().take();
        if let Some(error) = own {
            return Err(Failure::Own(error.into()));
        }
        let (digest, length) = uploaded?;
        let remembered = files
            .snapshots
            .remember_compressed(&self.diff_id, &digest, length);
        if let Err(error) = remembered {
            tracing::warn!("layer {}: {error}", self.diff_id);
        }
        self.item(0).enter(State::Pushed);
        let kind = format!("{}+gzip", descriptor::LAYER);
        Ok(Descriptor::new(kind, digest, length))
    }
}

/// Why a layer could not be pushed.
enum Failure {
    Registry(whelk_registry::Error),
    Own(Error),
}

impl From<whelk_registry::Error> for Failure {
    fn from(error: whelk_registry::Error) -> Self {
        Self::Registry(error)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(error.to_string()))?
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use whelk_image::ImageConfig;
    use whelk_image::archive::Origin;

    use super::*;

    fn image() -> Image {
        Image {
            id: Digest::of(b"config"),
            config: ImageConfig::default(),
            origin: Origin::default(),
            other_manifests: Vec::new(),
            tag_indexes: BTreeMap::new(),
            repo_digests: Vec::new(),
            size: 0,
            tagged_at: 0,
        }
    }

    #[test]
    fn a_manifest_is_kept_unless_a_layer_is_another() {
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let bytes = json!({
            "schemaVersion": 2,
            "mediaType": descriptor::DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "digest": image().id, "size": 6},
            "layers": [{"mediaType": LAYERS[1], "digest": old, "size": 3, "annotations": {"a": "1"}}],
            "annotations": {"b": "2"},
        })
        .to_string()
        .into_bytes();
        let push = |layer: &Descriptor| {
            let original = (Manifest::parse(&bytes).unwrap(), bytes.clone());
            document(Some(original), &image(), b"config", [layer].into_iter()).unwrap()
        };
        let same = Descriptor::new(LAYERS[1], old.clone(), 3);
        let expected = (descriptor::DOCKER_MANIFEST.to_owned(), bytes.clone(), None);
        assert_eq!(push(&same), expected);
        let other = Descriptor::new(format!("{}+gzip", LAYERS[0]), new.clone(), 4);
        let (media_type, changed, instead_of) = push(&other);
        assert_eq!(media_type, descriptor::DOCKER_MANIFEST);
        assert_eq!(instead_of, Some(Digest::of(&bytes)));
        let mut expected: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        expected["layers"] = json!([{"mediaType": format!("{}.gzip", LAYERS[1]), "digest": new, "size": 4, "annotations": {"a": "1"}}]);
        let changed: serde_json::Value = serde_json::from_slice(&changed).unwrap();
        assert_eq!(changed, expected);
    }

    #[test]
    fn an_index_names_what_was_pushed_instead() {
        let (old, new, other) = (Digest::of(b"old"), Digest::of(b"new"), Digest::of(b"other"));
        let entry = |digest: &Digest, about: &Digest| {
            json!({
                "mediaType": descriptor::MANIFEST, "digest": digest, "size": 3,
                "annotations": {REFERENCE_DIGEST: about}, "platform": {"architecture": "arm64", "os": "linux"},
            })
        };
        let index = |first: &Digest| {
            json!({
                "schemaVersion": 2,
                "manifests": [entry(first, &other), entry(&other, first)],
                "annotations": {"a": "1"},
            })
        };
        let bytes = index(&old).to_string().into_bytes();
        let same = relisted(bytes.clone(), &BTreeMap::new()).unwrap();
        assert_eq!(same, (descriptor::INDEX.to_owned(), bytes.clone()));
        let replaced = Descriptor::new(descriptor::MANIFEST, new.clone(), 3);
        let (_, changed) = relisted(bytes, &[(old, replaced)].into()).unwrap();
        let changed: serde_json::Value = serde_json::from_slice(&changed).unwrap();
        assert_eq!(changed, index(&new));
    }

    #[test]
    fn an_image_without_a_manifest_gets_one() {
        let layer = Descriptor::new(format!("{}+gzip", LAYERS[0]), Digest::of(b"layer"), 4);
        let (media_type, bytes, instead_of) =
            document(None, &image(), b"config", [&layer].into_iter()).unwrap();
        assert_eq!(
            (media_type.as_str(), instead_of),
            (descriptor::MANIFEST, None)
        );
        let manifest = Manifest::parse(&bytes).unwrap();
        assert_eq!(manifest.media_type, descriptor::MANIFEST);
        assert_eq!((manifest.config.size, manifest.layers), (6, vec![layer]));
    }

    #[test]
    fn media_types_of_layers_follow_the_manifest() {
        for (media_type, docker, oci) in [
            (LAYERS[0], LAYERS[1].to_owned(), LAYERS[0].to_owned()),
            (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                format!("{}.zstd", LAYERS[1]),
                format!("{}+zstd", LAYERS[0]),
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                format!("{}.gzip", LAYERS[1]),
                format!("{}+gzip", LAYERS[0]),
            ),
        ] {
            assert_eq!(layer_type(media_type, true), docker);
            assert_eq!(layer_type(media_type, false), oci);
        }
    }
}
