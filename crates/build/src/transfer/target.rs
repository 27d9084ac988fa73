//! Where an exported cache is kept: a store of the client, or a registry.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use whelk_image::archive::Blob;
use whelk_image::descriptor::Descriptor;
use whelk_image::{Digest, Store};
use whelk_registry::{Repository, Source as Upload, Version};
use whelk_sys::sync::IgnorePoison as _;

use super::source::failed;
use crate::client::Client;
use crate::error::{Error, Result};

/// Size of the pieces that are uploaded, in bytes, and number of those that wait.
const PIECE: usize = 256 << 10;
const QUEUE: usize = 4;

/// Writes a blob.
type WriteBlob = Box<dyn FnOnce(&mut dyn Write) -> Result<()> + Send>;

/// A blob that is put into a store of the client.
pub struct OutgoingBlob {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Writes it, on a thread that may block. Not called if the client has it.
    pub write: WriteBlob,
}

impl std::fmt::Debug for OutgoingBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OutgoingBlob({}, {} bytes)", self.digest, self.size)
    }
}

#[derive(Debug)]
pub(super) enum Target {
    /// A store of the client.
    Store {
        client: Arc<dyn Client>,
        name: String,
    },
    Registry {
        repository: Repository,
        version: Version,
    },
}

impl Target {
    /// Returns whether a blob is known to be there.
    pub async fn has(&self, digest: &Digest) -> Result<bool> {
        match self {
            // `put` asks the client.
            Self::Store { .. } => Ok(false),
            Self::Registry { repository, .. } => repository.has_blob(digest).await.map_err(failed),
        }
    }

    /// Puts a blob there, unless it is.
    pub async fn put(&self, store: &Store, mut blob: Blob) -> Result<Descriptor> {
        let descriptor = blob.descriptor.clone();
        let store = store.clone();
        match self {
            Self::Store { client, name } => {
                let write = move |output: &mut dyn Write| Ok(blob.write(&store, output)?);
                let outgoing = OutgoingBlob {
                    digest: descriptor.digest.clone(),
                    size: descriptor.size,
                    write: Box::new(write),
                };
                client.put(name, outgoing).await?;
            }
            Self::Registry { repository, .. } => {
                if !self.has(&descriptor.digest).await? {
                    upload(repository, store, Arc::new(Mutex::new(blob))).await?;
                }
            }
        }
        Ok(descriptor)
    }

    /// Puts the manifest there, by which a cache is found.
    pub async fn publish(&self, store: &Store, media_type: &str, bytes: Vec<u8>) -> Result<()> {
        match self {
            Self::Store { .. } => {
                let manifest = Blob::bytes(media_type, bytes);
                self.put(store, manifest).await.map(drop)
            }
            Self::Registry {
                repository,
                version,
            } => {
                let put = repository.put_manifest(version, media_type, bytes).await;
                put.map_err(failed)
            }
        }
    }
}

/// Uploads a blob to a registry.
///
/// # Errors
/// Returns an error if the registry refuses it, or if it cannot be read.
pub(crate) async fn upload(
    repository: &Repository,
    store: Store,
    blob: Arc<Mutex<Blob>>,
) -> Result<()> {
    let failure: Arc<Mutex<Option<Error>>> = Arc::default();
    // They are aborted when this future is dropped.
    let mut writers = JoinSet::new();
    let open = || {
        let (sender, pieces) = mpsc::channel(QUEUE);
        let (tell, end) = oneshot::channel();
        let (blob, store, failure) = (blob.clone(), store.clone(), failure.clone());
        writers.spawn_blocking(move || {
            let mut blob = blob.lock().ignore_poison();
            let mut output = io::BufWriter::with_capacity(PIECE, Sender(sender));
            let written = blob.write(&store, &mut output).map_err(Error::from);
            let flushed = output.flush();
            match written {
                Ok(()) if flushed.is_ok() => {
                    let Descriptor { digest, size, .. } = &blob.descriptor;
                    let _ = tell.send((digest.clone(), *size));
                }
                // The upload has ended first, and its error counts.
                _ if output.get_ref().0.is_closed() => {}
                Ok(()) => {}
                Err(error) => *failure.lock().ignore_poison() = Some(error),
            }
        });
        Upload { pieces, end }
    };
    let uploaded = repository.upload(open, |_| {}).await;
    if let Some(error) = failure.lock().ignore_poison().take() {
        return Err(error);
    }
    uploaded.map(drop).map_err(failed)
}

/// Sends what is written in pieces.
struct Sender(mpsc::Sender<Bytes>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE);
        let piece = Bytes::copy_from_slice(&bytes[..count]);
        let sent = self.0.blocking_send(piece);
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
