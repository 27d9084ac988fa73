//! Fetches the layers of a result that an imported cache has, and records it.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use whelk_image::descriptor::Descriptor;
use whelk_image::digest::Hashing;
use whelk_image::progress::{Item, State};
use whelk_image::{Lease, Progress as Reports};
use whelk_registry::Pace;

use super::imports::{Offer, Offered};
use super::source::Source;
use crate::cache::{CachedResult, Outputs};
use crate::error::{Error, Result};
use crate::solver::{Job, names};
use crate::{Builder, blocking};

/// Number of pieces of a layer that wait to be unpacked.
const QUEUE: usize = 16;

/// The time in which the minimum of bytes must come of a blob, for which a thread waits.
const WINDOW: Duration = Duration::from_secs(120);

/// Number of layers that are fetched at the same time for a step.
const PARALLEL: usize = 3;

/// Number of digits of a digest that identify a layer in progress reports.
const SHOWN: usize = 12;

impl Builder {
    /// Returns the result of an imported cache for a step, once its layers are here; `None` if it cannot be had, of which the
    /// client is told.
    pub(crate) async fn take_offer(
        self: &Arc<Self>,
        job: &Job,
        index: usize,
        offer: Offer,
    ) -> Option<CachedResult> {
        let error = match self.fetch_offer(job, index, &offer).await {
            Ok(found) => return Some(found),
            Err(error) => error,
        };
        job.imports.forget(&offer);
        let step = names::alone(&job.graph.nodes[index]);
        let work = format!(
            "fetching the result of {step} from the cache {}",
            offer.name
        );
        let _ = job.progress.begin(work).end(Err::<(), _>(error));
        None
    }

    async fn fetch_offer(
        self: &Arc<Self>,
        job: &Job,
        index: usize,
        offer: &Offer,
    ) -> Result<CachedResult> {
        let source = job.imports.source(offer);
        let source = source.ok_or_else(|| Error::internal("an offer of no cache"))?;
        let mut seen = HashSet::new();
        let all = offer.outputs.iter().flatten().flatten();
        let distinct = all.filter(|one| seen.insert(&one.diff_id));
        let missing: Vec<Offered> = {
            let (builder, lease) = (self.clone(), job.lease.clone());
            let layers: Vec<Offered> = distinct.cloned().collect();
            blocking(move || {
                let snapshots = &builder.store().snapshots;
                let is_missing = |one: &Offered| !snapshots.claim(&lease, &one.diff_id);
                Ok(layers.into_iter().filter(is_missing).collect())
            })
            .await?
        };
        let reports = crate::sources::reports(&job.progress, job.graph.nodes[index].digest);
        let fetches = missing.into_iter().map(|layer| {
            let (builder, lease, reports) = (self.clone(), job.lease.clone(), reports.clone());
            async move {
                let fetched = builder.fetch_layer(source, &layer, &lease, &reports).await;
                if let (Err(_), Some(blob)) = (&fetched, &layer.blob) {
                    job.imports.forget_blob(offer, &blob.digest);
                }
                fetched
            }
        });
        let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(PARALLEL);
        while let Some(fetched) = fetches.next().await {
            fetched?;
        }
        // 0 stands for layers of base images.
        let bases = job.sources.base_layers();
        let layered = |one: &Offered| {
            let is_base = bases.contains(&one.diff_id);
            (
                one.diff_id.clone(),
                if is_base { 0 } else { one.created.max(1) },
            )
        };
        let outputs = offer.outputs.iter();
        let outputs: Outputs = outputs
            .map(|output| Some(output.as_ref()?.iter().map(layered).collect()))
            .collect();
        let text = names::alone(&job.graph.nodes[index]);
        let (builder, key) = (self.clone(), offer.key);
        let kept = outputs.clone();
        blocking(move || {
            // Only under the key that was looked up: other keys that the cache names for it cannot be verified.
            builder.cache.insert(builder.store(), &[key], &kept, &text)
        })
        .await?;
        // Looked up as a use of the build, so that it is not removed before the end of that.
        let (builder, lease, key) = (self.clone(), job.lease.clone(), offer.key);
        let uses = job.uses.clone();
        let held = blocking(move || Ok(builder.cache.find(&key, &[], &lease, &uses))).await?;
        held.ok_or_else(|| Error::internal("a result that was just recorded is gone"))?;
        Ok(CachedResult {
            outputs,
            canonical: offer.canonical,
            is_foreign: offer.canonical != offer.key,
        })
    }

    /// Fetches and unpacks a layer.
    async fn fetch_layer(
        self: &Arc<Self>,
        source: &Source,
        layer: &Offered,
        lease: &Arc<Lease>,
        reports: &Reports,
    ) -> Result<()> {
        let missing = || Error::invalid(format!("layer {} is in no blob", layer.diff_id));
        let blob = layer.blob.as_ref().ok_or_else(missing)?;
        let id = &blob.digest.hex()[..SHOWN];
        let mut to_directory = false;
        loop {
            let mut item = reports.item(id, State::Pulling, blob.size);
            item.enter(State::Downloading);
            let unpacked = self.unpack(source, (layer, blob), lease, to_directory, &mut item);
            match unpacked.await? {
                Unpacked::TooLarge if !to_directory => to_directory = true,
                Unpacked::TooLarge => {
                    let text = format!("layer {} has too many files", layer.diff_id);
                    return Err(Error::invalid(text));
                }
                Unpacked::Done => {
                    item.enter(State::DownloadComplete);
                    return Ok(());
                }
            }
        }
    }

    async fn unpack(
        self: &Arc<Self>,
        source: &Source,
        (layer, blob): (&Offered, &Descriptor),
        lease: &Arc<Lease>,
        to_directory: bool,
        item: &mut Item,
    ) -> Result<Unpacked> {
        let turn = self.transfers.clone().acquire_owned().await;
        let turn = turn.map_err(|error| Error::internal(error.to_string()))?;
        let (sender, pieces) = mpsc::channel(QUEUE);
        let (builder, lease) = (self.clone(), lease.clone());
        let (diff_id, digest, size) = (layer.diff_id.clone(), blob.digest.clone(), blob.size);
        let unpacking = tokio::spawn(blocking(move || {
            let _turn = turn;
            let received = Received {
                pieces,
                piece: Bytes::new(),
                left: size,
            };
            let mut input = Hashing::with(digest.algorithm(), received);
            let snapshots = &builder.store().snapshots;
            let applied = match to_directory {
                true => snapshots.apply_to_directory(&lease, &mut input, Some(&diff_id)),
                false => snapshots.apply(&lease, &mut input, Some(&diff_id)),
            };
            match applied {
                Err(whelk_image::Error::TooLarge(_)) => return Ok(Unpacked::TooLarge),
                result => drop(result?),
            }
            let rest = io::copy(&mut input, &mut io::sink());
            rest.map_err(|error| Error::invalid(format!("blob {digest}: {error}")))?;
            let (found, ..) = input.finish();
            match found == digest {
                true => Ok(Unpacked::Done),
                false => Err(Error::invalid(format!(
                    "blob {digest} has the digest {found}"
                ))),
            }
        }));
        let receiving = async {
            let mut pieces = source.blob(blob).await?;
            let mut pace = Pace::new(WINDOW);
            loop {
                let next = pace.wait(pieces.next(), |next| {
                    Some(next.as_ref()?.as_ref().ok()?.len())
                });
                let next = next
                    .await
                    .map_err(|slow| Error::invalid(format!("blob {}: {slow}", blob.digest)))?;
                let Some(piece) = next.transpose()? else {
                    break;
                };
                item.advance(piece.len() as u64, false);
                // The unpacking has failed, and its error is returned below.
                if sender.send(piece).await.is_err() {
                    break;
                }
            }
            Ok::<_, Error>(())
        };
        let received = receiving.await;
        drop(sender);
        let unpacked = unpacking.await;
        received?;
        unpacked.map_err(|error| Error::internal(error.to_string()))?
    }
}

enum Unpacked {
    Done,
    /// It has too many files for an image.
    TooLarge,
}

/// Reads the pieces of a blob, which has `left` bytes more.
struct Received {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
    left: u64,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) if piece.len() as u64 > self.left => {
                    return Err(io::Error::other("it is longer than it should be"));
                }
                Some(piece) => {
                    self.left -= piece.len() as u64;
                    self.piece = piece;
                }
                None if self.left == 0 => return Ok(0),
                None => {
                    let text = "it ends too early";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
            }
        }
        let count = self.piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
