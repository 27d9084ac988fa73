//! Pulls images from registries.
//!
//! Layers are transferred in parallel. Each is downloaded, verified, decompressed and unpacked at the
//! same time. If the pull fails or is cancelled, the received bytes and the complete layers stay in the
//! store for a day, and the next pull resumes with them, even after the engine was killed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use whelk_image::archive::{Loaded, Origin};
use whelk_image::content::MAX_CONFIG_SIZE;
use whelk_image::descriptor::{self, Descriptor, Index, Manifest};
use whelk_image::progress::State;
use whelk_image::{Digest, ImageConfig, Lease, Platform, Progress, Reference, Store};
use whelk_registry::{Client, Credentials, Document, Kind, Repository, Version, Wait};
use whelk_sys::sync::IgnorePoison as _;

use super::{Image, Images};
use crate::error::{Error, Result};
use crate::instance::RegistrySettings;

/// Maximum depth of indexes that list indexes.
const MAX_DEPTH: usize = 3;
/// Maximum number of received pieces of a layer that wait to be unpacked. Each has at most about 100 KB.
const QUEUE: usize = 16;

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

/// The running downloads of layers, at most one for each layer.
#[derive(Debug)]
pub(super) struct Downloads {
    pub(super) client: Arc<Client>,
    permits: Arc<Semaphore>,
    /// A lock for each layer that is being downloaded, by diff ID. Other pulls of the layer wait for it.
    coming: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Downloads {
    pub(super) fn new(settings: RegistrySettings) -> Result<Self> {
        Ok(Self {
            client: Client::new(settings.client)
                .map_err(|error| Error::invalid(error.to_string()))?,
            permits: Arc::new(Semaphore::new(settings.downloads.max(1))),
            coming: Mutex::default(),
        })
    }

    /// Waits until no other pull downloads the layer, and for one of the limited number of parallel
    /// downloads. `waiting` is called before each wait.
    async fn claim(&self, diff_id: &Digest, waiting: impl Fn()) -> Result<Claim> {
        let turn = self.turn(diff_id);
        let turn = match turn.clone().try_lock_owned() {
            Ok(turn) => turn,
            Err(_) => {
                waiting();
                turn.lock_owned().await
            }
        };
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                waiting();
                let permit = self.permits.clone().acquire_owned().await;
                permit.map_err(|error| Error::internal(error.to_string()))?
            }
        };
        Ok(Claim {
            _turn: turn,
            _permit: permit,
        })
    }

    fn turn(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut coming = self.coming.lock().ignore_poison();
        // Locks without another holder belong to finished downloads.
        coming.retain(|_, turn| Arc::strong_count(turn) > 1);
        coming.entry(diff_id.clone()).or_default().clone()
    }
}

/// The right to download a layer. The thread that unpacks the layer shares it, because it ends later
/// than a cancelled pull.
#[derive(Debug)]
struct Claim {
    _turn: OwnedMutexGuard<()>,
    _permit: OwnedSemaphorePermit,
}

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
}

/// The lease of a pull or push, shared by its threads. When the last one has ended, unused content is
/// removed, apart from layers that another pull may resume with.
#[derive(Debug)]
pub(super) struct Held {
    /// `None` only during `drop`.
    lease: Option<Lease>,
    images: Arc<Images>,
}

impl Held {
    pub(super) fn take(images: &Arc<Images>) -> Self {
        Self {
            lease: Some(images.files.leases.take()),
            images: images.clone(),
        }
    }

    pub(super) fn lease(&self) -> Result<&Lease> {
        let lease = self.lease.as_ref();
        lease.ok_or_else(|| Error::internal("the transfer has ended"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.lease.take());
        let images = self.images.clone();
        // Without a runtime the engine is ending. Its next start removes unused content.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || images.collect_garbage());
        }
    }
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
        let repository = self
            .downloads
            .client
            .pull(reference, request.credentials.clone())
            .map_err(|error| told(reference, error))?;
        let held = Arc::new(Held::take(self));
        let remote = self.locate(&repository, request, held.lease()?).await?;
        begun();
        self.bring(&repository, request, remote, &held, progress)
            .await
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
        self.layers(repository, reference, &layers, held, progress)
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
                .map_err(|error| told(reference, error))?,
        };
        let get = async |version: Version| match &version {
            Version::Digest(digest) if let Some(kept) = self.kept(lease, digest) => Ok(kept),
            version => repository
                .manifest(version)
                .await
                .map_err(|error| told(reference, error)),
        };
        let named = get(known.map_or(wanted, Version::Digest)).await?;
        let mut document = named.clone();
        let mut index = None;
        for _ in 0..=MAX_DEPTH {
            if !document.is_index() {
                let manifest = Manifest::parse(&document.bytes)?;
                check_types(&manifest)
                    .map_err(|error| error.prefixed(&format!("pull {}", reference.familiar())))?;
                return Ok(Remote {
                    named,
                    document,
                    manifest,
                    index,
                });
            }
            let chosen = choose(&Index::parse(&document.bytes)?, request)?;
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
        while let Some(piece) = blob.next(|_| {}).await.map_err(plain)? {
            content.extend_from_slice(&piece);
        }
        let digest = Digest::of(&content);
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
        let manifest = content.put(lease, &remote.document.bytes)?;
        let index = match &remote.index {
            Some(index) => Some(content.put(lease, &index.bytes)?),
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
        let known = self.find(&reference.to_string()).ok();
        let is_new = known.is_none_or(|known| known.id != id);
        let loaded = Loaded {
            id: id.clone(),
            origin: Origin {
                manifest: Some(manifest),
                index,
            },
            config,
            names: Vec::from_iter(is_tag.then_some(name)),
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

/// A layer to download.
#[derive(Clone)]
struct Layer {
    images: Arc<Images>,
    repository: Repository,
    diff_id: Digest,
    descriptor: Descriptor,
    held: Arc<Held>,
    progress: Progress,
}

impl Layer {
    fn item(&self) -> whelk_image::progress::Item {
        const SHOWN: usize = 12;
        let id = &self.descriptor.digest.hex()[..SHOWN];
        self.progress.item(id, State::Pulling, self.descriptor.size)
    }

    async fn bring(self) -> Result<()> {
        let downloads = &self.images.downloads;
        let waiting = || self.item().enter(State::Waiting);
        let claim = Arc::new(downloads.claim(&self.diff_id, waiting).await?);
        // Another pull may have downloaded it meanwhile.
        if !self
            .files()
            .snapshots
            .claim(self.held.lease()?, &self.diff_id)
        {
            self.transfers(&claim)
                .await
                .map_err(|error| error.prefixed(&format!("layer {}", self.descriptor.digest)))?;
        }
        self.item().enter(State::PullComplete);
        Ok(())
    }

    fn files(&self) -> &Store {
        &self.images.files
    }

    /// Downloads and unpacks the layer. If its content is wrong because of a mirror or of a damaged
    /// partial blob, this is repeated without them.
    async fn transfers(&self, claim: &Arc<Claim>) -> Result<()> {
        let mut repository = self.repository.clone();
        loop {
            let (error, resumed) = match self.transfer(&repository, claim).await {
                Ok(()) => return Ok(()),
                Err(Failure::Transfer(error)) => return Err(error),
                Err(Failure::Content { error, resumed }) => (error, resumed),
            };
            match repository.without_mirrors() {
                // A mirror may have sent the wrong content.
                Some(registry) => repository = registry,
                // The partial blob of an earlier attempt may be damaged. It was removed.
                None if resumed => {}
                None => return Err(error),
            }
            tracing::warn!(
                "layer {}: {error}; it is fetched again",
                self.descriptor.digest
            );
        }
    }

    /// Downloads and unpacks the layer.
    async fn transfer(
        &self,
        repository: &Repository,
        claim: &Arc<Claim>,
    ) -> std::result::Result<(), Failure> {
        let Descriptor { digest, size, .. } = &self.descriptor;
        let (sender, pieces) = mpsc::channel(QUEUE);
        let (layer, claim) = (self.clone(), claim.clone());
        // The blocking thread reads the partial blob, and sends its length as the offset.
        let (tell, offset) = tokio::sync::oneshot::channel();
        let unpack = tokio::task::spawn_blocking(move || {
            let unpacked = layer.unpack(tell, pieces);
            drop(claim);
            unpacked
        });
        if let Ok(offset) = offset.await {
            let mut item = self.item();
            item.enter(State::Downloading);
            item.advance(offset, false);
            let waiting = |wait: Wait| self.item().enter(wait_state(wait));
            let mut blob = repository.blob(digest, *size, offset);
            loop {
                let piece = blob.next(waiting).await;
                match &piece {
                    Ok(Some(piece)) => item.advance(piece.len() as u64, false),
                    Ok(None) => {
                        self.item().enter(State::DownloadComplete);
                        self.item().enter(State::Extracting);
                        break;
                    }
                    Err(_) => {}
                }
                let is_over = piece.is_err();
                let Some(piece) = piece.transpose() else {
                    break;
                };
                // The receiver ends early only with an error, which it returns.
                if sender.send(piece).await.is_err() || is_over {
                    break;
                }
            }
        }
        drop(sender);
        unpack
            .await
            .unwrap_or_else(|error| Err(Failure::Transfer(Error::internal(error.to_string()))))
    }

    /// Unpacks the layer from the partial blob of an earlier attempt, and from `pieces`. Blocking.
    fn unpack(
        &self,
        tell: tokio::sync::oneshot::Sender<u64>,
        pieces: mpsc::Receiver<whelk_registry::Result<Bytes>>,
    ) -> std::result::Result<(), Failure> {
        let transfer = |error: whelk_image::Error| Failure::Transfer(error.into());
        let Descriptor { digest, size, .. } = &self.descriptor;
        let store = self.files();
        let lease = self.held.lease().map_err(Failure::Transfer)?;
        let writer = store
            .content
            .writer(lease, digest, Some(*size))
            .map_err(transfer)?;
        let offset = writer.offset();
        let mut blob = writer
            .tee(Pieces {
                pieces,
                piece: Bytes::new(),
                left: size - offset,
            })
            .map_err(transfer)?;
        // Without a receiver the pull was cancelled, which the first read reports.
        let _ = tell.send(offset);
        let applied = store.snapshots.apply(lease, &mut blob, Some(&self.diff_id));
        let outcome = match applied.and_then(|_| blob.drain()) {
            Ok(()) => {
                // The next attempt needs the layer, and no longer the partial blob.
                store
                    .snapshots
                    .mark_pending(&self.diff_id)
                    .map_err(transfer)?;
                blob.finish()
            }
            Err(error @ whelk_image::Error::Invalid(_)) if !blob.is_interrupted() => {
                blob.abort();
                Err(error)
            }
            // The disk may be full: the received content is not at fault.
            Err(error) => return Err(transfer(error)),
        };
        outcome.map_err(|error| Failure::Content {
            error: error.into(),
            resumed: offset > 0,
        })
    }
}

fn wait_state(wait: Wait) -> State {
    // Shown in whole seconds.
    let seconds = wait.time.as_millis().div_ceil(1000);
    let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
    if wait.is_asked {
        State::Delayed { seconds }
    } else {
        State::Retrying { seconds }
    }
}

/// Why a layer could not be downloaded and unpacked.
enum Failure {
    /// It was not received completely, or could not be stored. The received part is kept.
    Transfer(Error),
    /// Its content is wrong. The received part was removed.
    Content {
        error: Error,
        /// The content began with the partial blob of an earlier attempt.
        resumed: bool,
    },
}

/// Reads the pieces of a blob in the order in which they arrive.
struct Pieces {
    pieces: mpsc::Receiver<whelk_registry::Result<Bytes>>,
    piece: Bytes,
    /// Bytes that are missing.
    left: u64,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => return Err(error.into()),
                None if self.left == 0 => return Ok(0),
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the pull was cancelled",
                    ));
                }
            }
        }
        let count = self.piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

/// Converts a registry's error, without the request that failed.
fn plain(error: whelk_registry::Error) -> Error {
    let text = error.to_string();
    match error.kind() {
        Kind::NotFound => Error::NotFound(text),
        Kind::Denied => Error::Denied(text),
        Kind::TooManyRequests | Kind::Unavailable => Error::Unavailable(text),
        Kind::Invalid => Error::Invalid(text),
    }
}

/// Converts a registry's error about the manifest of a reference to Docker's text, which clients
/// search for words.
fn told(reference: &Reference, error: whelk_registry::Error) -> Error {
    let cause = error
        .reported()
        .map_or_else(|| error.cause(), ToString::to_string);
    let code = error.reported().map_or("", |reported| &reported.code);
    match (error.kind(), code) {
        (Kind::NotFound, "NAME_UNKNOWN") => Error::NotFound(format!(
            "repository {} not found: {cause}",
            reference.familiar_name()
        )),
        (Kind::NotFound, _) => Error::NotFound(format!(
            "manifest for {} not found: {cause}",
            reference.familiar()
        )),
        // The registry requires a login, or does not know the user.
        (Kind::Denied, "UNAUTHORIZED") => Error::Denied(cause),
        (Kind::Denied, "") => Error::Denied(error.to_string()),
        (Kind::Denied, _) => Error::NotFound(format!(
            "pull access denied for {}, repository does not exist or may require 'docker login': {cause}",
            reference.familiar_name()
        )),
        _ => plain(error).prefixed(&format!("pull {}", reference.familiar())),
    }
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
