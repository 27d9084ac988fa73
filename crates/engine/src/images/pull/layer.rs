//! Downloads, verifies and unpacks one layer, all at the same time.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use whelk_image::descriptor::Descriptor;
use whelk_image::progress::State;
use whelk_image::{Digest, Progress, Store};
use whelk_registry::{Repository, Wait};

use super::downloads::Held;
use crate::error::{Error, Result};
use crate::images::Images;
use crate::images::transfers::{Claim, wait_state};

/// Maximum number of received pieces of a layer that wait to be unpacked. Each has at most about 100 KB.
const QUEUE: usize = 16;

/// A layer to download.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) images: Arc<Images>,
    pub(super) repository: Repository,
    pub(super) diff_id: Digest,
    pub(super) descriptor: Descriptor,
    pub(super) held: Arc<Held>,
    pub(super) progress: Progress,
}

impl Layer {
    pub(super) fn item(&self) -> whelk_image::progress::Item {
        const SHOWN: usize = 12;
        let id = &self.descriptor.digest.hex()[..SHOWN];
        self.progress.item(id, State::Pulling, self.descriptor.size)
    }

    pub(super) async fn bring(self) -> Result<()> {
        let downloads = &self.images.downloads;
        let waiting = || self.item().enter(State::Waiting);
        let claim = Arc::new(
            downloads
                .layers
                .claim(self.diff_id.clone(), waiting)
                .await?,
        );
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
    /// partial blob, this is repeated without them. If it has too many files for an image, it is
    /// unpacked to a directory, from the partial blob and what is missing of it.
    async fn transfers(&self, claim: &Arc<Claim>) -> Result<()> {
        let mut repository = self.repository.clone();
        let mut to_directory = false;
        loop {
            let (error, resumed) = match self.transfer(&repository, claim, to_directory).await {
                Ok(()) => return Ok(()),
                Err(Failure::Transfer(error)) => return Err(error),
                Err(Failure::TooLarge) => {
                    to_directory = true;
                    continue;
                }
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
        to_directory: bool,
    ) -> std::result::Result<(), Failure> {
        let Descriptor { digest, size, .. } = &self.descriptor;
        let (sender, pieces) = mpsc::channel(QUEUE);
        let (layer, claim) = (self.clone(), claim.clone());
        // The blocking thread reads the partial blob, and sends its length as the offset.
        let (tell, offset) = tokio::sync::oneshot::channel();
        let unpack = tokio::task::spawn_blocking(move || {
            let unpacked = layer.unpack(tell, pieces, to_directory);
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
        to_directory: bool,
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
        let (snapshots, diff_id) = (&store.snapshots, Some(&self.diff_id));
        let applied = if to_directory {
            snapshots.apply_to_directory(lease, &mut blob, diff_id)
        } else {
            snapshots.apply(lease, &mut blob, diff_id)
        };
        let outcome = match applied.and_then(|_| blob.drain()) {
            Ok(()) => {
                // The next attempt needs the layer, and no longer the partial blob.
                store
                    .snapshots
                    .mark_pending(&self.diff_id)
                    .map_err(transfer)?;
                blob.finish()
            }
            // The received part is kept.
            Err(whelk_image::Error::TooLarge(text)) => {
                tracing::info!("{text}; layer {} is kept as a directory", self.diff_id);
                return Err(Failure::TooLarge);
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

/// Why a layer could not be downloaded and unpacked.
enum Failure {
    /// It was not received completely, or could not be stored. The received part is kept.
    Transfer(Error),
    /// It has too many files for an image. The received part is kept.
    TooLarge,
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
