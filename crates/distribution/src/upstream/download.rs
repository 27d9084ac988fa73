//! Downloads of blobs from upstream, each shared by all requests for the blob.
//!
//! A download belongs to no request: it goes on when clients leave, because the next one wants the blob
//! too. What has come in is in the store's partial file, where requests read it and where the next
//! download continues, also after the process was killed. The blob's last byte is sent only after
//! its digest was verified, so no client gets the whole of a wrong blob.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::sync::{Mutex, Notify, Semaphore, mpsc, watch};
use whelk_image::content::Writer;
use whelk_image::{Digest, Lease};

use crate::blocking::blocking;
use crate::body::Outgoing;
use crate::error::{Error, Kind, Result};
use crate::names::Repository;
use crate::records::Registry;

/// Maximum number of downloads at a time.
const MOST: usize = 32;
/// Number of pieces that wait to be written.
const QUEUE: usize = 64;
/// Number of bytes that are read at a time.
const PIECE: u64 = 256 << 10;

/// A blob for a response.
pub(crate) enum Fetched {
    Stored(File, u64),
    Arriving(Download),
}

/// A blob that is being downloaded.
#[derive(Clone, Debug)]
pub(crate) struct Download {
    /// In bytes.
    pub size: u64,
    /// The file that is being written.
    file: Arc<File>,
    state: watch::Receiver<State>,
}

#[derive(Clone, Debug)]
enum State {
    /// This many bytes have arrived.
    Running(u64),
    /// The blob is verified.
    Done,
    Failed,
}

/// The downloads that run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Downloads(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    running: Mutex<BTreeMap<Digest, Running>>,
    turns: Semaphore,
    /// Bytes that have arrived since the last collection.
    fresh: AtomicU64,
    arrived: Notify,
}

#[derive(Debug)]
struct Running {
    download: Download,
    /// The repositories that get the blob.
    repositories: BTreeSet<Repository>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            turns: Semaphore::new(MOST),
            fresh: AtomicU64::new(0),
            arrived: Notify::new(),
        }
    }
}

impl Downloads {
    /// Waits until so many bytes have arrived since the last time.
    pub(crate) async fn arrived(&self, bytes: u64) {
        loop {
            let arrived = self.0.arrived.notified();
            if self.0.fresh.load(Ordering::Relaxed) >= bytes {
                self.0.fresh.store(0, Ordering::Relaxed);
                return;
            }
            arrived.await;
        }
    }

    /// Joins the download of a blob that upstream has in this repository, or begins it.
    pub(crate) async fn join(
        &self,
        registry: &Arc<Registry>,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        remote: &whelk_registry::Repository,
    ) -> Result<Fetched> {
        let mut running = self.0.running.lock().await;
        if let Some(found) = running.get_mut(digest) {
            if found.download.size != size {
                let text = format!("upstream: blob {digest} has two sizes");
                return Err(Kind::BadUpstream.error(text));
            }
            found.repositories.insert(repository.clone());
            return Ok(Fetched::Arriving(found.download.clone()));
        }
        let (own, name, wanted) = (registry.clone(), repository.clone(), digest.clone());
        let begun = blocking(move || begin(&own, &name, &wanted, size)).await?;
        let (writer, lease, file) = match begun {
            Begun::Stored(file, size) => return Ok(Fetched::Stored(file, size)),
            Begun::Writer(writer, lease, file) => (writer, lease, file),
        };
        let (tell, state) = watch::channel(State::Running(writer.offset()));
        let download = Download {
            size,
            file: Arc::new(file),
            state,
        };
        let entry = Running {
            download: download.clone(),
            repositories: [repository.clone()].into(),
        };
        running.insert(digest.clone(), entry);
        let task = Task {
            shared: self.0.clone(),
            registry: registry.clone(),
            digest: digest.clone(),
            size,
            tell,
        };
        tokio::spawn(task.run(*writer, lease, remote.clone()));
        Ok(Fetched::Arriving(download))
    }
}

enum Begun {
    Stored(File, u64),
    Writer(Box<Writer>, Lease, File),
}

/// Opens a blob that another repository has, or what has arrived of it.
fn begin(
    registry: &Registry,
    repository: &Repository,
    digest: &Digest,
    size: u64,
) -> Result<Begun> {
    let content = &registry.store.content;
    let lease = registry.store.leases.take();
    if content.claim(&lease, digest) {
        registry.link_blob(repository, digest)?;
        let (file, size) = registry.open_blob(repository, digest)?;
        return Ok(Begun::Stored(file, size));
    }
    let writer = content.writer(&lease, digest, Some(size))?;
    let file = writer.file()?;
    Ok(Begun::Writer(Box::new(writer), lease, file))
}

/// A download at work.
struct Task {
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    digest: Digest,
    size: u64,
    tell: watch::Sender<State>,
}

impl Task {
    async fn run(self, writer: Writer, lease: Lease, remote: whelk_registry::Repository) {
        let before = writer.offset();
        let received = self.receive(writer, &remote).await;
        // Whoever comes from here on finds the blob, or begins anew.
        let mut running = self.shared.running.lock().await;
        let entry = running.remove(&self.digest);
        let (registry, digest) = (self.registry.clone(), self.digest.clone());
        let outcome = match (received, entry) {
            (Ok(()), Some(entry)) => {
                let link = move || {
                    registry.sync_blob(&digest)?;
                    let linked = entry.repositories.iter();
                    let linked = linked.map(|name| registry.link_blob(name, &digest));
                    // Each repository is tried, whatever became of the others.
                    linked.fold(Ok(()), Result::and)
                };
                blocking(link).await
            }
            (outcome, _) => outcome,
        };
        drop(running);
        // The links hold the blob now.
        drop(lease);
        match outcome {
            Ok(()) => {
                let arrived = self.size.saturating_sub(before);
                self.shared.fresh.fetch_add(arrived, Ordering::Relaxed);
                self.shared.arrived.notify_waiters();
                self.tell.send_replace(State::Done);
            }
            Err(error) => {
                tracing::warn!("download of blob {}: {error}", self.digest);
                self.tell.send_replace(State::Failed);
            }
        }
    }

    /// Receives the blob, verifies it and gives it its name.
    async fn receive(&self, writer: Writer, remote: &whelk_registry::Repository) -> Result<()> {
        let turn = self.shared.turns.acquire().await;
        let _turn = turn.map_err(|error| Kind::Internal.error(error.to_string()))?;
        let mut blob = remote.blob(&self.digest, self.size, writer.offset());
        let (sender, pieces) = mpsc::channel(QUEUE);
        let tell = self.tell.clone();
        let write = blocking(move || write(writer, pieces, &tell));
        // The sender is dropped at the end, which ends the other side.
        let send = async move {
            loop {
                match blob.next(|_| {}).await {
                    Ok(Some(piece)) => {
                        if sender.send(piece).await.is_err() {
                            return None;
                        }
                    }
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                }
            }
        };
        let (failure, written) = tokio::join!(send, write);
        let writer = written?;
        match failure {
            // What has come in is left to the next download.
            Some(error) => Err(super::failed(error, Kind::BlobUnknown)),
            None => blocking(move || Ok(writer.commit()?)).await,
        }
    }
}

/// Writes what comes in. Blocking.
fn write(
    mut writer: Writer,
    mut pieces: mpsc::Receiver<Bytes>,
    tell: &watch::Sender<State>,
) -> Result<Writer> {
    while let Some(piece) = pieces.blocking_recv() {
        writer.write_all(&piece).map_err(|error| {
            Error::from(whelk_image::Error::Io {
                operation: "write blob".into(),
                source: error,
            })
        })?;
        tell.send_replace(State::Running(writer.offset()));
    }
    Ok(writer)
}

impl Download {
    /// Returns a body of `length` bytes of the blob, from `first`, as they arrive. It is aborted if the
    /// download fails.
    pub(crate) fn body(self, first: u64, length: u64) -> Outgoing {
        let pieces = stream::try_unfold((self, first, length), async |(mut download, at, left)| {
            if left == 0 {
                return Ok(None);
            }
            let available = download.available(at).await?;
            let size = left.min(available).min(PIECE);
            let file = download.file.clone();
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; usize::try_from(size).unwrap_or_default()];
                file.read_exact_at(&mut piece, at).map(|()| piece)
            });
            let piece = read.await.map_err(io::Error::other)??;
            let frame = Frame::data(Bytes::from(piece));
            Ok::<_, io::Error>(Some((frame, (download, at + size, left - size))))
        });
        StreamBody::new(pieces).boxed_unsync()
    }

    /// Waits until there are bytes to be sent from `position` on, and returns how many.
    async fn available(&mut self, position: u64) -> io::Result<u64> {
        let last = self.size.saturating_sub(1);
        let size = self.size;
        let end = |state: &State| match state {
            State::Running(arrived) => (*arrived).min(last),
            State::Done => size,
            State::Failed => 0,
        };
        let ended = |state: &State| matches!(state, State::Failed) || end(state) > position;
        let gone = |_| io::Error::other("the download has ended");
        let state = self.state.wait_for(ended).await.map_err(gone)?.clone();
        end(&state)
            .checked_sub(position)
            .filter(|count| *count > 0)
            .ok_or_else(|| io::Error::other("the download has failed"))
    }
}
