//! Pulls images from registries.
//!
//! Layers are transferred in parallel. Each is downloaded, verified, decompressed and unpacked at the
//! same time. If the pull fails or is cancelled, the received bytes and the complete layers stay in the
//! store for a day, and the next pull resumes with them, even after the engine was killed.

mod downloads;
mod layer;
mod signatures;

use std::collections::BTreeSet;
use std::sync::Arc;
use whelk_sys::sync::IgnorePoison as _;

use tokio::task::JoinSet;
use whelk_image::archive::{Loaded, Named, Origin};
use whelk_image::content::MAX_CONFIG_SIZE;
use whelk_image::descriptor::{self, Descriptor, Index, Manifest};
use whelk_image::progress::State;
use whelk_image::{Digest, ImageConfig, Lease, Platform, Progress, Reference};
use whelk_registry::{Credentials, Document, Repository, Version};
use whelk_trust::Policy;

pub(super) use self::downloads::{Downloads, Held};
use self::layer::Layer;
use super::{Image, Images, refusals};
use crate::error::{Error, Result};

/// Maximum depth of indexes that list indexes.
const MAX_DEPTH: usize = 3;

/// Media types of image configurations. As in Docker, they include wrong ones that some registries and
/// builders use.
const CONFIGS: [&str; 6] = [
    descriptor::CONFIG,
    DOCKER_CONFIG,
    "application/octet-stream",
    "application/json",
    "text/html",
    "",
];
/// Docker's media type of image configurations.
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Media types of layers, without the suffix for the compression.
pub(super) const LAYERS: [&str; 4] = [
    descriptor::LAYER,
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// The result of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Of the manifest or index that the reference names.
    pub digest: Digest,
    /// The reference names another image than before, or one that the engine did not have.
    pub is_new: bool,
    /// A warning for the user.
    pub warning: Option<String>,
}

/// The parameters of a pull.
#[derive(Clone, Debug)]
pub struct PullRequest {
    pub reference: Reference,
    pub platform: Option<Platform>,
    pub credentials: Credentials,
    /// What is required of the image, besides what the engine's own policy requires.
    pub policy: Option<Policy>,
}

/// An image in a registry, for one platform.
struct Remote {
    /// What the reference names: a manifest or an index.
    named: Document,
    document: Document,
    manifest: Manifest,
    /// The innermost index that lists the manifest.
    index: Option<Document>,
}

impl Images {
    /// Pulls an image. `begun` is called once the reference is resolved: earlier errors are about the
    /// request, later ones about the transfer. If the future is dropped, the received parts of layers
    /// are kept for the next pull.
    ///
    /// # Errors
    /// Returns an error if the registry does not have the image, or not for this platform, or if its
    /// content does not match its digests.
    pub async fn pull(
        self: &Arc<Self>,
        request: &PullRequest,
        progress: &Progress,
        begun: impl FnOnce(),
    ) -> Result<Pulled> {
        let reference = &request.reference;
        // All settings before the first request, which may take long.
        let own = self.policy.read().ignore_poison().clone();
        let repository = self
            .downloads
            .client()
            .pull(reference, request.credentials.clone())
            .map_err(|error| refusals::of_manifest(reference, error))?;
        let held = Arc::new(Held::take(self));
        let remote = self.locate(&repository, request, held.lease()?).await?;
        let policies = [&own, &request.policy].into_iter().flatten();
        signatures::verify(&repository, reference, &remote, policies).await?;
        begun();
        self.bring(&repository, request, remote, &held, progress)
            .await
    }

    /// Checks that the signature policy accepts what nobody has signed, as caches of builds.
    ///
    /// # Errors
    /// Returns [`Error::Denied`] if it does not.
    pub fn accepts_unsigned(&self, reference: &Reference) -> Result<()> {
        let policy = self.policy.read().ignore_poison();
        let checked = policy
            .as_ref()
            .map(|policy| policy.check(reference, &[], &[]));
        checked
            .transpose()
            .map(drop)
            .map_err(|error| Error::Denied(format!("use {}: {error}", reference.familiar())))
    }

    /// Returns the references of all tags that a registry has of the repository of `request`.
    ///
    /// # Errors
    /// Returns an error if the registry does not have the repository.
    pub async fn tags_to_pull(&self, request: &PullRequest) -> Result<Vec<Reference>> {
        let reference = &request.reference;
        let repository = self
            .downloads
            .client()
            .pull(reference, request.credentials.clone())
            .map_err(|error| refusals::of_manifest(reference, error))?;
        let tags = repository
            .tags()
            .await
            .map_err(|error| refusals::of_manifest(reference, error))?;
        let mut references = Vec::with_capacity(tags.len());
        for tag in tags {
            whelk_image::reference::check_tag(&tag)?;
            references.push(Reference {
                tag: Some(tag),
                ..reference.clone()
            });
        }
        Ok(references)
    }

    /// Downloads the missing parts of an image, and records it.
    async fn bring(
        self: &Arc<Self>,
        repository: &Repository,
        request: &PullRequest,
        remote: Remote,
        held: &Arc<Held>,
        progress: &Progress,
    ) -> Result<Pulled> {
        let lease = held.lease()?;
        let reference = &request.reference;
        let bytes = self
            .configuration(repository, &remote.manifest.config, lease)
            .await
            .map_err(|error| {
                error.prefixed(&format!("pull {}: configuration", reference.familiar()))
            })?;
        let config = ImageConfig::parse(&bytes)?;
        let warning = check(&config, &remote.manifest, request)?;
        if let Some(warning) = &warning {
            tracing::warn!("pull {}: {warning}", reference.familiar());
        }
        let layers: Vec<(Digest, Descriptor)> = config
            .rootfs
            .diff_ids
            .iter()
            .cloned()
            .zip(remote.manifest.layers.clone())
            .collect();
        // As in Docker, the layers of an image that is here already are not reported.
        let is_known = self.read().by_id.contains_key(&Digest::of(&bytes));
        let shown = if is_known {
            &Progress::default()
        } else {
            progress
        };
        self.layers(repository, reference, &layers, held, shown)
            .await?;
        let pulled = Pulled {
            digest: remote.named.digest.clone(),
            is_new: false,
            warning,
        };
        let (images, held, reference) = (self.clone(), held.clone(), reference.clone());
        let work = move || {
            let is_new = images.keep(held.lease()?, &reference, remote, config, &bytes)?;
            Ok(Pulled { is_new, ..pulled })
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| Error::internal(error.to_string()))?
    }

    /// Resolves a reference to an image. The registry is asked for the digest of a tag, and whether it
    /// has a digest that was not pulled from it before. Documents in the store are not fetched again.
    async fn locate(
        &self,
        repository: &Repository,
        request: &PullRequest,
        lease: &Lease,
    ) -> Result<Remote> {
        let reference = &request.reference;
        let wanted = version(reference)?;
        let known = match &wanted {
            Version::Digest(digest) if self.came_from(reference) => Some(digest.clone()),
            wanted => repository
                .digest(wanted)
                .await
                .map_err(|error| refusals::of_manifest(reference, error))?,
        };
        let get = async |version: Version| match &version {
            Version::Digest(digest) if let Some(kept) = self.kept(lease, digest) => Ok(kept),
            version => repository
                .manifest(version)
                .await
                .map_err(|error| refusals::of_manifest(reference, error)),
        };
        let named = get(known.map_or(wanted, Version::Digest)).await?;
        let named_error = |error: Error| error.prefixed(&format!("pull {}", reference.familiar()));
        let mut document = named.clone();
        let mut index = None;
        for _ in 0..=MAX_DEPTH {
            if !document.is_index() {
                let manifest = Manifest::parse(&document.bytes).map_err(Error::from);
                let manifest = manifest.map_err(named_error)?;
                check_types(&manifest).map_err(named_error)?;
                return Ok(Remote {
                    named,
                    document,
                    manifest,
                    index,
                });
            }
            let parsed = Index::parse(&document.bytes).map_err(Error::from);
            let chosen = choose(&parsed.map_err(named_error)?, request)?;
            let next = get(Version::Digest(chosen)).await?;
            index = Some(std::mem::replace(&mut document, next));
        }
        Err(Error::invalid(format!(
            "pull {}: indexes are nested more than {MAX_DEPTH} levels deep",
            reference.familiar()
        )))
    }

    /// Returns whether an image was pulled by this reference, which has a digest.
    fn came_from(&self, reference: &Reference) -> bool {
        let known = |image: &Arc<Image>| {
            let mut names = image.repo_digests.iter();
            names.any(|name| name.name() == reference.name() && name.digest == reference.digest)
        };
        self.read().by_id.values().any(known)
    }

    /// Returns a manifest or index from the store if it is undamaged, and adds it to the lease.
    fn kept(&self, lease: &Lease, digest: &Digest) -> Option<Document> {
        let content = &self.files.content;
        let bytes = content.claim(lease, digest).then(|| content.read(digest))?;
        Document::kept(digest, bytes.ok()?)
    }

    /// Returns an image's configuration, from the store if that has it undamaged.
    async fn configuration(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        lease: &Lease,
    ) -> Result<Vec<u8>> {
        if self.files.content.claim(lease, &descriptor.digest) {
            match self.files.content.read(&descriptor.digest) {
                Ok(content) => return Ok(content),
                Err(error) => tracing::warn!("{error}; it is fetched again"),
            }
        }
        if descriptor.size > MAX_CONFIG_SIZE {
            return Err(Error::invalid(format!(
                "{} bytes are more than the maximum of {MAX_CONFIG_SIZE}",
                descriptor.size
            )));
        }
        let mut blob = repository.blob(&descriptor.digest, descriptor.size, 0);
        let mut content = Vec::new();
        while let Some(piece) = blob.next(|_| {}).await.map_err(refusals::of_blob)? {
            content.extend_from_slice(&piece);
        }
        let digest = descriptor.digest.algorithm().digest(&content);
        if digest == descriptor.digest {
            Ok(content)
        } else {
            Err(Error::invalid(format!(
                "the content of blob {} has the digest {digest}",
                descriptor.digest
            )))
        }
    }

    /// Downloads the missing layers in parallel. After an error, the others are cancelled.
    async fn layers(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        layers: &[(Digest, Descriptor)],
        held: &Arc<Held>,
        progress: &Progress,
    ) -> Result<()> {
        let lease = held.lease()?;
        let mut seen = BTreeSet::new();
        let mut tasks = JoinSet::new();
        for (diff_id, descriptor) in layers {
            if !seen.insert(diff_id) {
                continue;
            }
            let layer = Layer {
                images: self.clone(),
                repository: repository.clone(),
                diff_id: diff_id.clone(),
                descriptor: descriptor.clone(),
                held: held.clone(),
                progress: progress.clone(),
            };
            if self.files.snapshots.claim(lease, diff_id) {
                layer.item().enter(State::AlreadyExists);
            } else {
                layer.item().enter(State::Pulling);
                tasks.spawn(layer.bring());
            }
        }
        while let Some(outcome) = tasks.join_next().await {
            outcome
                .unwrap_or_else(|error| Err(Error::internal(error.to_string())))
                .map_err(|error| error.prefixed(&format!("pull {}", reference.familiar())))?;
        }
        Ok(())
    }

    /// Records an image whose layers are in the store. Returns whether its name, or the engine, had
    /// another one before. Blocking.
    fn keep(
        &self,
        lease: &Lease,
        reference: &Reference,
        remote: Remote,
        config: ImageConfig,
        bytes: &[u8],
    ) -> Result<bool> {
        let content = &self.files.content;
        let id = content.put(lease, bytes)?;
        // Under the digest by which the registry names it.
        let put = |document: &Document| {
            content.put_as(lease, document.digest.algorithm(), &document.bytes)
        };
        let manifest = put(&remote.document)?;
        let index = match &remote.index {
            Some(index) => Some(put(index)?),
            None => None,
        };
        // The files must be on disk before a record refers to them.
        self.files.sync()?;
        let mut size = 0;
        for diff_id in &config.rootfs.diff_ids {
            size += self.files.snapshots.size(diff_id)?;
        }
        let name = Reference {
            digest: None,
            ..reference.clone()
        };
        // A name with a digest always means this image: it needs no tag.
        let is_tag = reference.digest.is_none();
        let known = self.read().find(&reference.to_string());
        let mut known = known.into_iter().flatten();
        let is_new = known.all(|known| known.image.id != id);
        let loaded = Loaded {
            id: id.clone(),
            origin: Origin {
                manifest: Some(manifest),
                index: index.clone(),
            },
            config,
            other_manifests: Vec::new(),
            parent: None,
            names: Vec::from_iter(is_tag.then_some(Named { name, index })),
            size,
        };
        let digest = Reference {
            tag: None,
            digest: Some(remote.named.digest),
            ..reference.clone()
        };
        self.record_pulled(&loaded, digest)?;
        let (actor, name) = (reference.familiar(), reference.familiar_name());
        self.publish_as("pull", &id, actor, name);
        Ok(is_new)
    }
}

/// Returns the digest of the entry of an index that matches the requested platform best.
fn choose(index: &Index, request: &PullRequest) -> Result<Digest> {
    let wanted = request.platform.clone().unwrap_or_else(Platform::host);
    let candidates = index
        .manifests
        .iter()
        .filter_map(|entry| Some((entry.platform.as_ref()?, entry)));
    let chosen = wanted.choose(candidates).or_else(|| {
        // Entries without a platform may be for any.
        let mut unknown = index
            .manifests
            .iter()
            .filter(|entry| entry.platform.is_none());
        unknown.next().filter(|_| index.manifests.len() == 1)
    });
    match chosen {
        Some(chosen) => Ok(chosen.digest.clone()),
        None => Err(Error::NotFound(format!(
            "no matching manifest for {wanted} in the manifest list entries"
        ))),
    }
}

/// Returns the digest of a reference, or else its tag.
pub(super) fn version(reference: &Reference) -> Result<Version> {
    match (&reference.digest, &reference.tag) {
        (Some(digest), _) => Ok(Version::Digest(digest.clone())),
        (None, Some(tag)) => Ok(Version::Tag(tag.clone())),
        (None, None) => Err(Error::invalid("a registry needs a tag or a digest")),
    }
}

/// Checks that a manifest is that of an image, and not of another artifact.
fn check_types(manifest: &Manifest) -> Result<()> {
    let config = manifest.config.media_type.as_str();
    if !CONFIGS.contains(&config) {
        return Err(Error::Unsupported(format!(
            "this is not an image, but an artifact of type {config:?}"
        )));
    }
    for layer in &manifest.layers {
        let kind = layer.media_type.as_str();
        let plain = LAYERS.iter().find_map(|known| kind.strip_prefix(known));
        if !matches!(plain, Some("" | "+gzip" | ".gzip" | "+zstd" | ".zstd")) {
            return Err(Error::Unsupported(format!(
                "layer {}: the type {kind:?} is not supported",
                layer.digest
            )));
        }
    }
    Ok(())
}

/// Checks that a configuration matches its manifest. Returns a warning, as Docker does, if the image is
/// for another platform than the requested one: without an index there is no choice.
fn check(
    config: &ImageConfig,
    manifest: &Manifest,
    request: &PullRequest,
) -> Result<Option<String>> {
    let name = request.reference.familiar();
    let own = Platform::of(config);
    if own.os != "linux" {
        return Err(Error::invalid(format!(
            "pull {name}: cannot run {own} images on linux"
        )));
    }
    let (expected, found) = (config.rootfs.diff_ids.len(), manifest.layers.len());
    if expected != found {
        return Err(Error::invalid(format!(
            "pull {name}: the manifest has {found} layers, the configuration {expected}"
        )));
    }
    let wanted = request.platform.as_ref();
    Ok(wanted.filter(|wanted| !wanted.runs(&own)).map(|wanted| {
        format!(
            "image with reference {name} was found but its platform ({own}) does not match the specified platform ({wanted})"
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_have_the_types_that_docker_accepts() {
        let digest = Digest::of(b"");
        let manifest = |media_type: &str| {
            let config = Descriptor::new(media_type, digest.clone(), 2);
            Manifest::new(config, vec![Descriptor::new(LAYERS[1], digest.clone(), 2)])
        };
        for media_type in CONFIGS {
            check_types(&manifest(media_type)).unwrap();
        }
        let error = check_types(&manifest("application/vnd.cncf.helm.config.v1+json"));
        assert!(matches!(error, Err(Error::Unsupported(_))));
    }
}
