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
use whelk_image::{Digest, Reference};
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
    /// Paths of other repositories of the same registry that have contained it.
    repositories: BTreeSet<String>,
}

impl Images {
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
}

/// A layer to push.
pub(super) struct Layer {
    pub(super) push: Push,
    pub(super) image: Arc<Image>,
    pub(super) diff_id: Digest,
    pub(super) held: Arc<Held>,
    /// Where its blob can be fetched.
    pub(super) origin: Option<Arc<Origin>>,
}

impl Layer {
    pub(super) fn item(&self, size: u64) -> Item {
        let id = &self.diff_id.hex()[..SHOWN];
        self.push.progress.item(id, State::Preparing, size)
    }

    /// Pushes the layer unless the registry has it. Returns its diff ID and its blob in the registry.
    pub(super) async fn bring(self) -> Result<(Digest, Descriptor)> {
        let descriptor = self.find_or_send().await.map_err(|error| {
            // A registry's own text is shown without a prefix, as in Docker.
            match error {
                Failure::Registry(error) => refusals::of_request(error),
                Failure::Own(error) => error.prefixed(&format!("push layer {}", self.diff_id)),
            }
        })?;
        Ok((self.diff_id, descriptor))
    }

    /// Returns the descriptor of the layer in the manifest that its image came with.
    pub(super) fn own_blob(&self) -> Option<Descriptor> {
        let layers = &self.image.config.rootfs.diff_ids;
        let at = layers.iter().position(|layer| *layer == self.diff_id)?;
        let (manifest, _) = self.push.images.manifest_of(&self.image)?;
        let is_whole = manifest.layers.len() == layers.len();
        manifest.layers.get(at).filter(|_| is_whole).cloned()
    }

    /// Returns the descriptor of a layer that is at URLs of its own, and not meant for registries.
    fn foreign(&self) -> Option<Descriptor> {
        let layer = self.own_blob()?;
        let kinds = &LAYERS[2..];
        let is_foreign = kinds.iter().any(|kind| layer.media_type.starts_with(kind));
        (is_foreign && !layer.urls.is_empty()).then_some(layer)
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
        match self.relay().await? {
            Some(same) => Ok(same),
            None => self.send().await,
        }
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
