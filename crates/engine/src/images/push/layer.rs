//! Pushes one layer: finds its blob in the registry, mounts it, has it sent from its origin, or compresses
//! and sends it.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use whelk_image::descriptor::{self, Descriptor};
use whelk_image::digest::Hashing;
use whelk_image::progress::{Item, State};
use whelk_image::{Digest, Progress, Reference};
use whelk_registry::Source;
use whelk_sys::sync::IgnorePoison as _;

use super::relay::Origin;
use super::{Push, blocking};
use crate::error::{Error, Result};
use crate::images::pull::{Held, LAYERS};
use crate::images::transfers::wait_state;
use crate::images::{Image, Images, refusals};

/// Maximum number of compressed pieces of a layer that wait to be sent.
pub(super) const QUEUE: usize = 4;
/// For each layer, maximum number of blobs that the registry is asked for, and of repositories that it
/// is asked to mount one from.
const MAX_CANDIDATES: usize = 4;
/// Number of digits of a diff ID that identify a layer in progress reports.
const SHOWN: usize = 12;

/// A compressed form of a layer that the registry may have.
#[derive(Clone, Debug)]
struct Candidate {
    descriptor: Descriptor,
    /// The manifest to push lists it.
    is_own: bool,
    /// Paths of other repositories of the same registry that have contained it.
    repositories: BTreeSet<String>,
}

impl Images {
    /// Returns the blobs that the registry of `target` may have for a layer: first `own`, which the
    /// manifest to push lists, and then others of `image`. Blocking.
    fn candidates(
        &self,
        image: &Image,
        diff_id: &Digest,
        own: Option<&Descriptor>,
        target: &Reference,
    ) -> Vec<Candidate> {
        let candidate = |descriptor: &Descriptor, repositories| Candidate {
            is_own: own.is_some_and(|own| own.digest == descriptor.digest),
            descriptor: descriptor.clone(),
            repositories,
        };
        let mut found: Vec<Candidate> = Vec::new();
        found.extend(own.map(|own| candidate(own, BTreeSet::new())));
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
            for manifest in image.manifests() {
                let manifest = self.read_manifest(image, manifest);
                let Some((manifest, _)) = manifest.filter(|(m, _)| m.layers.len() == layers.len())
                else {
                    continue;
                };
                let descriptor = &manifest.layers[at];
                let mut known = found.iter_mut();
                match known.find(|known| known.descriptor.digest == descriptor.digest) {
                    Some(known) => known.repositories.extend(repositories.clone()),
                    None => found.push(candidate(descriptor, repositories.clone())),
                }
            }
            if found.len() >= MAX_CANDIDATES {
                break;
            }
        }
        found.truncate(MAX_CANDIDATES);
        // The blob of an earlier push, perhaps to these repositories.
        if let Some((digest, size)) = self.files.snapshots.compressed(diff_id)
            && found.iter().all(|known| known.descriptor.digest != digest)
        {
            let kind = format!("{}+gzip", descriptor::LAYER);
            found.push(candidate(&Descriptor::new(kind, digest, size), everywhere));
        }
        found
    }
}

/// A layer to push.
pub(super) struct Layer {
    pub(super) push: Push,
    pub(super) image: Arc<Image>,
    pub(super) diff_id: Digest,
    /// Its blob in the manifest to push, if there is one.
    pub(super) own: Option<Descriptor>,
    /// Blobs of it that are in the repository.
    pub(super) known: Vec<Descriptor>,
    pub(super) held: Arc<Held>,
    /// Where its blob can be fetched.
    pub(super) origin: Option<Arc<Origin>>,
}

/// The blob of a layer.
pub(super) struct Brought {
    pub(super) blob: Descriptor,
    /// It is not in the registry, but at URLs of its own.
    pub(super) is_foreign: bool,
}

/// Returns what reports the progress of a layer.
pub(super) fn item(progress: &Progress, diff_id: &Digest, size: u64) -> Item {
    progress.item(&diff_id.hex()[..SHOWN], State::Preparing, size)
}

impl Layer {
    pub(super) fn item(&self, size: u64) -> Item {
        item(&self.push.progress, &self.diff_id, size)
    }

    /// Pushes the layer unless the registry has it.
    pub(super) async fn bring(self) -> Result<Brought> {
        if let Some(foreign) = self.foreign() {
            self.item(0).enter(State::SkippedForeign);
            return Ok(Brought {
                blob: foreign.clone(),
                is_foreign: true,
            });
        }
        if let Some(known) = self.known() {
            self.item(0).enter(State::LayerExists);
            return Ok(Brought {
                blob: known.clone(),
                is_foreign: false,
            });
        }
        let blob = self.find_or_send().await.map_err(|error| {
            // A registry's own text is shown without a prefix, as in Docker.
            match error {
                Failure::Registry(error) => refusals::of_request(error),
                Failure::Own(error) => error.prefixed(&format!("push layer {}", self.diff_id)),
            }
        })?;
        Ok(Brought {
            blob,
            is_foreign: false,
        })
    }

    /// Returns the descriptor of a layer that is at URLs of its own, and not meant for registries.
    fn foreign(&self) -> Option<&Descriptor> {
        let layer = self.own.as_ref()?;
        let kinds = &LAYERS[2..];
        let is_foreign = kinds.iter().any(|kind| layer.media_type.starts_with(kind));
        (is_foreign && !layer.urls.is_empty()).then_some(layer)
    }

    /// Returns the blob of the layer that is in the repository already: its own, if it has one.
    fn known(&self) -> Option<&Descriptor> {
        let is_right = |known: &&Descriptor| {
            let own = self.own.as_ref();
            own.is_none_or(|own| own.digest == known.digest)
        };
        self.known.iter().find(is_right)
    }

    /// Finds the layer's own blob in the registry, or else another that is there already, or sends one.
    /// The own blob is worth a request more, because with another one the manifest changes.
    async fn find_or_send(&self) -> std::result::Result<Descriptor, Failure> {
        let layer = (self.push.reference.name(), self.diff_id.clone());
        let waiting = || self.item(0).enter(State::Waiting);
        let uploads = &self.push.images.uploads;
        // Another push of the layer may have sent it meanwhile.
        let _claim = uploads.claim(layer, waiting).await.map_err(Failure::Own)?;
        let candidates = {
            let (images, image) = (self.push.images.clone(), self.image.clone());
            let (diff_id, own) = (self.diff_id.clone(), self.own.clone());
            let target = self.push.reference.clone();
            blocking(move || Ok(images.candidates(&image, &diff_id, own.as_ref(), &target)))
                .await
                .map_err(Failure::Own)?
        };
        let (own, others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|one| one.is_own);
        if let Some(found) = self.find(&own).await? {
            return Ok(found);
        }
        let is_exact = self.push.is_exact && self.own.is_some();
        if let Some(known) = self.known.first().filter(|_| !is_exact) {
            self.item(0).enter(State::LayerExists);
            return Ok(known.clone());
        }
        if !is_exact && let Some(found) = self.find(&others).await? {
            return Ok(found);
        }
        match self.relay().await? {
            Some(same) => Ok(same),
            None => self.send().await,
        }
    }

    /// Returns a blob of these that the repository has, or takes over from another of the registry.
    async fn find(
        &self,
        candidates: &[Candidate],
    ) -> std::result::Result<Option<Descriptor>, Failure> {
        let repository = &self.push.repository;
        for Candidate { descriptor, .. } in candidates {
            if repository.has_blob(&descriptor.digest).await? {
                self.item(0).enter(State::LayerExists);
                return Ok(Some(descriptor.clone()));
            }
        }
        let mut left = MAX_CANDIDATES;
        for Candidate {
            descriptor,
            repositories,
            ..
        } in candidates
        {
            for from in repositories.iter().take(left) {
                if repository.mount(&descriptor.digest, from).await? {
                    self.item(0).mounted(from);
                    return Ok(Some(descriptor.clone()));
                }
            }
            left = left.saturating_sub(repositories.len());
        }
        Ok(None)
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
pub(super) enum Failure {
    Registry(whelk_registry::Error),
    Own(Error),
}

impl From<whelk_registry::Error> for Failure {
    fn from(error: whelk_registry::Error) -> Self {
        Self::Registry(error)
    }
}
