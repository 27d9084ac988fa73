//! Stores the changes of a container as a layer.
//!
//! Three threads work at the same time: one writes the archive, one hashes it, one unpacks it.

use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{ScopedJoinHandle, scope};

use whelk_sys::fs;

use super::apply::apply_digested;
use super::export::export_layer;
use super::{Form, Layer, Snapshots};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::leases::Lease;

/// Pieces that wait for a thread. This bounds the memory of one layer.
pub(super) const WAITING: usize = 4;

impl Snapshots {
    /// Stores the changes in `upper`, an overlay's upper directory, as a layer, and holds it in `lease`.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, or if the layer cannot be stored.
    pub fn commit(&self, lease: &Lease, upper: &Path) -> Result<Layer> {
        match self.commit_as(self.form, lease, upper) {
            Err(Error::TooLarge(text)) => {
                tracing::info!("{text}; {} is kept as a directory", upper.display());
                self.commit_as(Form::Directories, lease, upper)
            }
            committed => committed,
        }
    }

    fn commit_as(&self, form: Form, lease: &Lease, upper: &Path) -> Result<Layer> {
        let scratch = self.staging.scratch()?;
        let disk =
            rustix::fs::statvfs(scratch.path()).map_err(fs::at("statvfs", scratch.path()))?;
        let room = disk.f_bavail.saturating_mul(disk.f_frsize);
        // Whether reading ended because storing did.
        let is_cut = AtomicBool::new(false);
        let applied = scope(|threads| {
            let (archive, unhashed) = sync_channel(WAITING);
            let (hashed, receiver) = sync_channel(WAITING);
            let is_cut = &is_cut;
            let exported = threads.spawn(move || {
                export_layer(upper, room, |piece| {
                    archive.send(piece).map_err(|_| {
                        is_cut.store(true, Ordering::Relaxed);
                        io::ErrorKind::BrokenPipe.into()
                    })
                })
            });
            let hasher = threads.spawn(move || hash(&unhashed, &hashed));
            // Dropped when it has been read: that ends the other threads, if they are not at their end.
            let pieces = Pieces::of(receiver);
            let digest = |pieces| {
                drop(pieces);
                joined(hasher)
            };
            let applied = apply_digested(pieces, scratch.path(), form, &self.budget, digest);
            match (applied, joined(exported).flatten()) {
                // The other one's error follows from this.
                (Err(error), Err(_)) if is_cut.load(Ordering::Relaxed) => Err(error),
                (_, Err(error)) | (Err(error), Ok(())) => Err(error),
                (Ok(applied), Ok(())) => Ok(applied),
            }
        })?;
        self.keep(lease, &scratch, applied)
    }
}

pub(super) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> Result<T> {
    let panicked = |_| Error::invalid("a thread that reads the layer has panicked");
    thread.join().map_err(panicked)
}

/// Hashes pieces and passes them on. Ends when no more come, or when nobody takes them.
fn hash(pieces: &Receiver<Vec<u8>>, hashed: &SyncSender<Vec<u8>>) -> Digest {
    let mut hash = Hasher::new(Algorithm::Sha256);
    for piece in pieces {
        hash.update(&piece);
        if hashed.send(piece).is_err() {
            break;
        }
    }
    hash.finish()
}

/// Reads an archive from the thread that writes it.
pub(super) struct Pieces {
    receiver: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Pieces {
    pub(super) fn of(receiver: Receiver<Vec<u8>>) -> Self {
        Self {
            receiver,
            piece: Vec::new(),
            at: 0,
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.receiver.recv() {
                Ok(piece) => (self.piece, self.at) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
