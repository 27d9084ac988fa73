//! Sends the blob that a layer was pulled as from the registry that it was pulled from to another one,
//! so that the pushed image stays the same to the byte.
//!
//! Nobody waits for a distant registry: where it gives much less than what compressing the layer again
//! would give in the same time, the layer is compressed again.

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use whelk_image::descriptor::Descriptor;
use whelk_image::digest::Hashing;
use whelk_image::progress::State;
use whelk_image::{Digest, Reference};
use whelk_registry::{Credentials, Repository, Source};
use whelk_sys::sync::IgnorePoison as _;

use super::layer::{Failure, Layer, QUEUE};
use crate::images::transfers::wait_state;
use crate::images::{Image, Images};

/// How long the registry may keep the push waiting without giving anything.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a blob per second of waiting that are worth it. One thread compresses ten times as fast, but
/// gives another blob.
const LEAST: u64 = 16 << 20;

/// A registry that an image was pulled from.
#[derive(Debug)]
pub(super) struct Origin {
    repository: Repository,
    name: String,
    /// It does not give its blobs, or too slowly.
    is_lost: AtomicBool,
}

impl Images {
    /// Returns where the blobs of an image can be fetched to push it to `target`, which is another
    /// registry. The credentials for the target are not for the origin, which is asked anonymously.
    pub(super) fn origin_of(&self, image: &Image, target: &Reference) -> Option<Arc<Origin>> {
        let came_by = |digest: &Digest| image.origin.blobs().any(|own| own == digest);
        let is_origin = |known: &&Reference| {
            known.domain != target.domain && known.digest.as_ref().is_some_and(came_by)
        };
        let reference = image.repo_digests.iter().find(is_origin)?;
        let client = self.downloads.client();
        let repository = client.pull(reference, Credentials::default()).ok()?;
        Some(Arc::new(Origin {
            repository,
            name: reference.name(),
            is_lost: AtomicBool::new(false),
        }))
    }
}

/// How long may still be waited for a registry that has given some bytes already.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    waited: Duration,
    received: u64,
}

impl Pace {
    fn left(self) -> Duration {
        let earned = Duration::from_millis(self.received / (LEAST / 1000));
        (PATIENCE + earned).saturating_sub(self.waited)
    }
}

impl Origin {
    fn lose(&self, cause: &str) {
        self.is_lost.store(true, Ordering::Relaxed);
        tracing::info!("push: {} does not give its blobs: {cause}", self.name);
    }

    /// Checks that it has a blob, so that no upload begins in vain.
    async fn check(&self, digest: &Digest) -> Result<(), String> {
        match timeout(PATIENCE, self.repository.has_blob(digest)).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(format!("it has no blob {digest}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it does not respond".into()),
        }
    }

    /// Fetches a blob, passes its pieces on and verifies it. `None` as an error means that nobody wants
    /// the pieces any more.
    async fn fetch(
        &self,
        blob: &Descriptor,
        pieces: &mpsc::Sender<Bytes>,
        mut advance: impl FnMut(u64),
    ) -> Result<(), Option<String>> {
        let mut source = self.repository.blob(&blob.digest, blob.size, 0);
        let mut hashing = Hashing::with(blob.digest.algorithm(), io::sink());
        let mut pace = Pace::default();
        loop {
            let begin = Instant::now();
            let piece = timeout(pace.left(), source.next(|_| {})).await;
            pace.waited += begin.elapsed();
            let piece = match piece {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(Some(error.to_string())),
                Err(_) => return Err(Some("it is slower than compressing again".into())),
            };
            pace.received += piece.len() as u64;
            advance(piece.len() as u64);
            hashing
                .write_all(&piece)
                .map_err(|error| Some(error.to_string()))?;
            pieces.send(piece).await.map_err(|_| None)?;
        }
        let (digest, ..) = hashing.finish();
        if digest == blob.digest {
            Ok(())
        } else {
            let Descriptor { digest: named, .. } = blob;
            Err(Some(format!("blob {named} has the digest {digest}")))
        }
    }
}

impl Layer {
    /// Sends the blob that the layer came with from its origin. Returns `None` if that does not give it.
    pub(super) async fn relay(&self) -> Result<Option<Descriptor>, Failure> {
        let origin = self.origin.as_ref();
        let origin = origin.filter(|origin| !origin.is_lost.load(Ordering::Relaxed));
        let (Some(origin), Some(blob)) = (origin, self.own.clone()) else {
            return Ok(None);
        };
        if let Err(cause) = origin.check(&blob.digest).await {
            origin.lose(&cause);
            return Ok(None);
        }
        let mut fetches = JoinSet::new();
        let failure = Arc::new(Mutex::new(None));
        let open = || {
            let (sender, pieces) = mpsc::channel(QUEUE);
            let (tell, end) = oneshot::channel();
            let mut item = self.item(blob.size);
            item.enter(State::Pushing);
            let (origin, blob, failure) = (origin.clone(), blob.clone(), failure.clone());
            fetches.spawn(async move {
                let advance = |count| item.advance(count, false);
                match origin.fetch(&blob, &sender, advance).await {
                    Ok(()) => {
                        let _ = tell.send((blob.digest, blob.size));
                    }
                    Err(None) => {}
                    Err(cause) => *failure.lock().ignore_poison() = cause,
                }
            });
            Source { pieces, end }
        };
        let waiting = |wait| self.item(blob.size).enter(wait_state(wait));
        let uploaded = self.push.repository.upload(open, waiting).await;
        let failure = failure.lock().ignore_poison().take();
        if let Some(cause) = failure {
            origin.lose(&cause);
            return Ok(None);
        }
        uploaded?;
        self.item(0).enter(State::Pushed);
        Ok(Some(blob))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_earns_time_with_what_it_gives() {
        let pace = |waited: u64, received| Pace {
            waited: Duration::from_millis(waited),
            received,
        };
        assert_eq!(Pace::default().left(), PATIENCE);
        assert_eq!(pace(1000, 0).left(), Duration::ZERO);
        assert!(pace(1500, LEAST).left() > Duration::from_millis(490));
        assert_eq!(pace(3000, LEAST).left(), Duration::ZERO);
    }
}
