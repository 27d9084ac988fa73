//! Downloads of blobs from upstream, each shared by all requests for the blob.
//!
//! A download goes on when its clients leave, for a while, because the next one wants the blob too. What
//! has come in is in the store's partial file, where requests read it and where the next download
//! continues, also after the process was killed. The blob's last byte is sent only after its digest was
//! verified, so no client gets the whole of a wrong blob.
//!
//! A download has files only while it runs. Clients wait for the first bytes before they get a response, so
//! that one that fails earlier is an error with a status.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use whelk_image::content::Writer;
use whelk_image::{Digest, Lease};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::blocking::blocking;
use crate::body::{Outgoing, PIECE};
use crate::error::{Error, Kind, Result};
use crate::names::RepositoryName;
use crate::records::Registry;

/// Number of pieces that wait to be written.
const QUEUE: usize = 64;
/// How long a client waits for the first bytes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Limits of the downloads of a cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Maximum number of downloads that run.
    pub running: usize,
    /// Maximum number of downloads that wait for others to end.
    pub waiting: usize,
    /// How long a download goes on without a client.
    pub unread: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            running: 32,
            waiting: 256,
            unread: Duration::from_secs(60),
        }
    }
}

/// A blob that is being downloaded, for one client.
#[derive(Clone, Debug)]
pub(crate) struct Download {
    /// In bytes.
    size: u64,
    state: watch::Receiver<State>,
}

#[derive(Clone, Debug)]
enum State {
    /// Nothing has arrived yet.
    Waiting,
    /// The file has this many bytes.
    Running(Arc<File>, u64),
    /// The blob is verified.
    Done(Arc<File>),
    /// Nothing can be read any more.
    Failed(Arc<Error>),
}

/// The downloads of a cache.
#[derive(Clone, Debug)]
pub(crate) struct Downloads(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Locked for moments only: requests for a blob do not wait for the disk work of others.
    entries: Mutex<BTreeMap<Digest, Entry>>,
    limits: Limits,
    turns: Semaphore,
    bytes_since_collection: AtomicU64,
    has_grown: Notify,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    /// Its receivers are the clients.
    state: Arc<watch::Sender<State>>,
    /// The repositories that get the blob, as far as they have not got it.
    repositories: BTreeSet<RepositoryName>,
}

impl Default for Downloads {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Downloads {
    pub(crate) fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared {
            entries: Mutex::default(),
            limits,
            turns: Semaphore::new(limits.running),
            bytes_since_collection: AtomicU64::new(0),
            has_grown: Notify::new(),
        }))
    }

    /// Returns the number of downloads that run or wait.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.0.entries.lock().ignore_poison().len()
    }

    /// Waits until so many bytes have arrived since the last time.
    pub(crate) async fn wait_for_growth(&self, bytes: u64) {
        let count = &self.0.bytes_since_collection;
        loop {
            let has_grown = self.0.has_grown.notified();
            if count.load(Ordering::Relaxed) >= bytes {
                count.store(0, Ordering::Relaxed);
                return;
            }
            has_grown.await;
        }
    }

    /// Joins the download of a blob that upstream has in this repository, or begins it, and waits for its
    /// first bytes.
    ///
    /// # Errors
    /// Returns [`Kind::TooManyRequests`] if too many downloads wait already, and the download's error if it
    /// fails before its first bytes.
    pub(crate) async fn join(
        &self,
        registry: &Arc<Registry>,
        repository: &RepositoryName,
        digest: &Digest,
        size: u64,
        remote: &whelk_registry::Repository,
    ) -> Result<Download> {
        let mut download = self.enter(registry, repository, digest, size, remote)?;
        let has_begun = |state: &State| !matches!(state, State::Waiting);
        let begun = tokio::time::timeout(PATIENCE, download.state.wait_for(has_begun)).await;
        let begun = begun.map(|state| state.map(|state| state.clone()));
        match begun {
            Ok(Ok(State::Failed(error))) => Err(error.kind.error(error.text.clone())),
            Ok(Ok(_)) => Ok(download),
            Ok(Err(_)) => {
                let text = format!("the download of blob {digest} has ended");
                Err(Kind::Internal.error(text))
            }
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                let text = format!("upstream: nothing of blob {digest} has arrived in {seconds} s");
                Err(Kind::Unavailable.error(text))
            }
        }
    }

    fn enter(
        &self,
        registry: &Arc<Registry>,
        repository: &RepositoryName,
        digest: &Digest,
        size: u64,
        remote: &whelk_registry::Repository,
    ) -> Result<Download> {
        let mut entries = self.0.entries.lock().ignore_poison();
        if let Some(entry) = entries.get_mut(digest) {
            if entry.size != size {
                let text = format!("upstream: blob {digest} has two sizes");
                return Err(Kind::BadUpstream.error(text));
            }
            entry.repositories.insert(repository.clone());
            let state = entry.state.subscribe();
            return Ok(Download { size, state });
        }
        let limits = self.0.limits;
        if entries.len() >= limits.running + limits.waiting {
            let text = "too many blobs are being downloaded from upstream; try again later";
            return Err(Kind::TooManyRequests.error(text));
        }
        let (sender, state) = watch::channel(State::Waiting);
        let sender = Arc::new(sender);
        let entry = Entry {
            size,
            state: sender.clone(),
            repositories: [repository.clone()].into(),
        };
        entries.insert(digest.clone(), entry);
        let task = Task {
            shared: self.0.clone(),
            registry: registry.clone(),
            digest: digest.clone(),
            size,
            state: sender,
        };
        tokio::spawn(task.run(remote.clone()));
        Ok(Download { size, state })
    }
}

/// A download at work.
struct Task {
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    digest: Digest,
    size: u64,
    state: Arc<watch::Sender<State>>,
}

impl Drop for Task {
    /// Removes the entry of a task that has panicked.
    fn drop(&mut self) {
        let mut entries = self.entries();
        let own = entries.get(&self.digest);
        if own.is_some_and(|own| Arc::ptr_eq(&own.state, &self.state)) {
            entries.remove(&self.digest);
        }
    }
}

/// How receiving has ended.
enum Received {
    /// The store has the blob.
    Complete(Arc<File>),
    /// No client reads it any more. What has come in is left to the next download.
    Unread,
}

impl Task {
    async fn run(self, remote: whelk_registry::Repository) {
        let lease = Arc::new(self.registry.store.leases.take());
        let received = loop {
            match self.receive(&lease, &remote).await {
                Ok(Received::Unread) if self.leave() => {
                    tracing::debug!("download of blob {}: no client reads it", self.digest);
                    return;
                }
                // A client has joined at the last moment.
                Ok(Received::Unread) => {}
                Ok(Received::Complete(file)) => break Ok(file),
                Err(error) => break Err(error),
            }
        };
        let outcome = match received {
            Ok(file) => self.link().await.map(|()| file),
            Err(error) => {
                self.entries().remove(&self.digest);
                Err(error)
            }
        };
        // The links hold the blob now.
        drop(lease);
        self.state.send_replace(match outcome {
            Ok(file) => State::Done(file),
            Err(error) => {
                tracing::warn!("download of blob {}: {error}", self.digest);
                State::Failed(Arc::new(error))
            }
        });
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Entry>> {
        self.shared.entries.lock().ignore_poison()
    }

    /// Removes the download unless it has a client. Returns whether it is removed.
    fn leave(&self) -> bool {
        // Clients are added while the entries are locked.
        let mut entries = self.entries();
        let is_unread = self.state.is_closed();
        if is_unread {
            entries.remove(&self.digest);
        }
        is_unread
    }

    /// Waits until there was no client for a while.
    async fn unread(&self) {
        loop {
            self.state.closed().await;
            tokio::time::sleep(self.shared.limits.unread).await;
            if self.state.is_closed() {
                return;
            }
        }
    }

    /// Links the blob in all repositories that have asked for it. Requests that come after that find
    /// it there.
    async fn link(&self) -> Result<()> {
        let mut outcome = Ok(());
        loop {
            let names = {
                let mut entries = self.entries();
                let entry = entries.get_mut(&self.digest);
                let names = entry.map(|entry| std::mem::take(&mut entry.repositories));
                let Some(names) = names.filter(|names| !names.is_empty()) else {
                    entries.remove(&self.digest);
                    return outcome;
                };
                names
            };
            let (registry, digest) = (self.registry.clone(), self.digest.clone());
            let linked = blocking(move || {
                registry.sync_blob(&digest)?;
                let linked = names.iter().map(|name| registry.link_blob(name, &digest));
                // Each repository is tried, whatever became of the others.
                linked.fold(Ok(()), Result::and)
            });
            outcome = outcome.and(linked.await);
        }
    }

    /// Receives the blob, verifies it and gives it its name, unless another repository has it.
    async fn receive(
        &self,
        lease: &Arc<Lease>,
        remote: &whelk_registry::Repository,
    ) -> Result<Received> {
        let turn = tokio::select! {
            turn = self.shared.turns.acquire() => turn,
            () = self.unread() => return Ok(Received::Unread),
        };
        let _turn = turn.map_err(|error| Kind::Internal.error(error.to_string()))?;
        let (registry, lease) = (self.registry.clone(), lease.clone());
        let (digest, size) = (self.digest.clone(), self.size);
        let opened = blocking(move || open(&registry, &lease, &digest, size)).await?;
        let (writer, file) = match opened {
            Opened::Stored(file) => return Ok(Received::Complete(file)),
            Opened::Writer(writer, file) => (*writer, file),
        };
        let mut blob = remote.blob(&self.digest, self.size, writer.offset());
        let (sender, pieces) = mpsc::channel(QUEUE);
        let (shared, state, written) = (self.shared.clone(), self.state.clone(), file.clone());
        let write = blocking(move || {
            write(writer, pieces, |length, offset| {
                let count = &shared.bytes_since_collection;
                count.fetch_add(length, Ordering::Relaxed);
                shared.has_grown.notify_waiters();
                state.send_replace(State::Running(written.clone(), offset));
            })
        });
        // The sender is dropped at the end, which ends the other side.
        let send = async move {
            let mut unread = pin!(self.unread());
            loop {
                let piece = tokio::select! {
                    piece = blob.next(|_| {}) => piece,
                    () = &mut unread => return Ok::<bool, Error>(false),
                };
                let piece = piece.map_err(|error| super::from_upstream(error, Kind::BlobUnknown));
                let Some(piece) = piece? else {
                    return Ok(true);
                };
                // Otherwise the other side has an error.
                if sender.send(piece).await.is_err() {
                    return Ok(true);
                }
            }
        };
        let (sent, written) = tokio::join!(send, write);
        let writer = written?;
        // After an error, what has come in is left to the next download.
        if !sent? {
            return Ok(Received::Unread);
        }
        blocking(move || Ok(writer.commit()?)).await?;
        Ok(Received::Complete(file))
    }
}

enum Opened {
    Stored(Arc<File>),
    Writer(Box<Writer>, Arc<File>),
}

/// Opens a blob that another repository has, or what has arrived of it. Blocking.
fn open(registry: &Registry, lease: &Lease, digest: &Digest, size: u64) -> Result<Opened> {
    let content = &registry.store.content;
    if content.claim(lease, digest) {
        let path = content.path(digest);
        let file = fs::open(&path)?;
        let length = file.metadata().map_err(fs::at("stat", &path))?.len();
        if length == size {
            return Ok(Opened::Stored(Arc::new(file)));
        }
        if !registry.set_aside_if_damaged(digest)? {
            let text = format!("upstream: blob {digest} has {length} bytes, not {size}");
            return Err(Kind::BadUpstream.error(text));
        }
    }
    let writer = content.writer(lease, digest, Some(size))?;
    let file = Arc::new(writer.file()?);
    Ok(Opened::Writer(Box::new(writer), file))
}

/// Writes what comes in. `written` is called after each piece, with its length and that of the file. Blocking.
fn write(
    mut writer: Writer,
    mut pieces: mpsc::Receiver<Bytes>,
    written: impl Fn(u64, u64),
) -> Result<Writer> {
    while let Some(piece) = pieces.blocking_recv() {
        writer.write_all(&piece).map_err(|error| {
            Error::from(whelk_image::Error::Io {
                operation: "write blob".into(),
                source: error,
            })
        })?;
        written(piece.len() as u64, writer.offset());
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
            let (file, available) = download.available(at).await?;
            let size = left.min(available).min(PIECE as u64);
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

    /// Waits until there are bytes to be sent from `position` on, and returns the file and how many.
    async fn available(&mut self, position: u64) -> io::Result<(Arc<File>, u64)> {
        let (last, size) = (self.size.saturating_sub(1), self.size);
        let end = |state: &State| match state {
            State::Running(_, arrived) => (*arrived).min(last),
            State::Done(_) => size,
            State::Waiting | State::Failed(_) => 0,
        };
        let ended = |state: &State| matches!(state, State::Failed(_)) || end(state) > position;
        let gone = |_| io::Error::other("the download has ended");
        let state = self.state.wait_for(ended).await.map_err(gone)?.clone();
        let available = end(&state).saturating_sub(position);
        match state {
            State::Running(file, _) | State::Done(file) if available > 0 => Ok((file, available)),
            _ => Err(io::Error::other("the download has failed")),
        }
    }
}
