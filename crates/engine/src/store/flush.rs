//! Group commit: committed changes are flushed to disk before a request is answered, so that they
//! survive a power failure.
//!
//! With `synchronous=NORMAL` a commit is in SQLite's log, but possibly only in the page cache. A
//! flush calls fdatasync(2) on the log, for all commits so far. Requests that arrive during a flush
//! wait for the next one and share it. `synchronous=FULL` would flush each commit separately, under
//! the store's lock and on the API's threads.
//!
//! Commits of `--rm` containers are not waited for: neither they nor their data need to survive a
//! power failure.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use whelk_sys::sync::IgnorePoison as _;

use whelk_sys::fs;

use super::RecordStore;
use crate::error::{Error, Result};

/// The state of flushes.
#[derive(Debug)]
pub(super) struct Flushes {
    /// SQLite's log. SQLite does not replace the file while the store is open.
    log: File,
    /// Number of lasting commits so far, and how many of them are on disk.
    wanted: AtomicU64,
    done: AtomicU64,
    /// Files and directories to sync with the next flush.
    files: Mutex<BTreeSet<PathBuf>>,
    /// Held during a flush.
    turn: tokio::sync::Mutex<()>,
    /// The error of a failed sync. The kernel reports a write error once, and drops the pages:
    /// later syncs succeed although data is lost. So nothing is acknowledged from then on.
    failed: OnceLock<String>,
    /// Notified after each commit, for the background flush.
    changed: tokio::sync::Notify,
}

impl Flushes {
    pub(super) fn new(root: &Path, log: &Path) -> Result<Self> {
        // The log's directory entry may be new too.
        sync(root)?;
        Ok(Self {
            log: fs::open(log)?,
            wanted: AtomicU64::default(),
            done: AtomicU64::default(),
            files: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
            failed: OnceLock::new(),
            changed: tokio::sync::Notify::new(),
        })
    }

    fn files(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.files.lock().ignore_poison()
    }

    /// Syncs the files, and then the log.
    ///
    /// # Errors
    /// Returns an error if a file cannot be opened or its file system not be synced, which the next
    /// flush tries again, or if the sync of a file fails, which is kept in `failed`.
    fn sync_all(&self) -> Result<()> {
        // A statement of its own, so that the lock is not held during the syncs.
        let files = std::mem::take(&mut *self.files());
        let mut unsynced = Ok(());
        for path in files {
            if let Err(error) = self.sync_file(&path) {
                self.files().insert(path);
                unsynced = unsynced.and(Err(error));
            }
        }
        self.log
            .sync_data()
            .map_err(fs::at("fdatasync", super::LOG))
            .map_err(|error| self.fail(&error.into()))?;
        unsynced
    }

    /// Syncs a file. If it cannot be opened (no descriptor is free, or it is a socket), its whole
    /// file system is synced instead, by the log's descriptor if it is the same one.
    fn sync_file(&self, path: &Path) -> Result<()> {
        let opened = match fs::open(path) {
            Ok(file) => {
                let synced = file.sync_all().map_err(fs::at("fsync", path));
                return synced.map_err(|error| self.fail(&error.into()));
            }
            Err(error) => error,
        };
        // A file that was deleted meanwhile does not need to be synced.
        if opened.is_not_found() || opened.source.kind() == ErrorKind::NotADirectory {
            return Ok(());
        }
        let device = |metadata: Metadata| metadata.dev();
        let own = self.log.metadata().map(device).ok();
        let unsynced = |error: &fs::PathError| {
            Error::internal(format!(
                "the change is made, but not all of it could be written to disk yet: {error}"
            ))
        };
        if own.is_some() && own == fs::metadata(path).map(device).ok() {
            // Not `fail`: syncfs(2) also reports errors of files that are not the engine's. Those of
            // the engine's files are reported again by fsync(2).
            let synced = rustix::fs::syncfs(&self.log).map_err(fs::at("syncfs", super::LOG));
            return synced.map_err(|error| unsynced(&error));
        }
        Err(unsynced(&opened))
    }

    /// Records and logs the first failed sync, and returns its error.
    fn fail(&self, error: &Error) -> Error {
        let text = format!(
            "the engine's store could not be written to disk: {error}; restart the engine when the disk is repaired"
        );
        tracing::error!("{text}");
        Error::internal(self.failed.get_or_init(|| text).clone())
    }
}

impl RecordStore {
    /// Counts a commit. With `lasting` the request is not answered before it is on disk.
    pub(super) fn committed(&self, lasting: bool) {
        if lasting {
            self.flushes.wanted.fetch_add(1, Ordering::AcqRel);
        }
        self.flushes.changed.notify_one();
    }

    /// Counts a commit of networks or images, and schedules their copy.
    pub(super) fn changed(&self) {
        self.copies.put_rest();
        self.committed(true);
    }

    /// Schedules the commits so far, and these files and directories, to be on disk before the next
    /// answer.
    pub fn keep(&self, files: impl IntoIterator<Item = PathBuf>) {
        self.flushes.files().extend(files);
        self.committed(true);
    }

    /// Waits until all lasting commits are on disk. Returns at once if they are.
    ///
    /// # Errors
    /// Returns an error if the disk fails, or has failed before.
    pub async fn flushed(self: &Arc<Self>) -> Result<()> {
        let wanted = self.flushes.wanted.load(Ordering::Acquire);
        if self.is_flushed(wanted)? {
            return Ok(());
        }
        let _turn = self.flushes.turn.lock().await;
        if self.is_flushed(wanted)? {
            return Ok(());
        }
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.flush(false))
            .await
            .map_err(|error| Error::internal(error.to_string()))?
    }

    /// Flushes commits that no request waits for, and writes all copies, for as long as the engine
    /// runs.
    pub(crate) async fn flush_in_background(self: Arc<Self>) {
        /// Delay after a commit: records of short-lived containers are deleted by then, and cost no
        /// flush.
        const QUIET: Duration = Duration::from_secs(1);
        /// Interval for trying again what has failed.
        const RETRY: Duration = Duration::from_secs(5);
        let mut logged = String::new();
        loop {
            let changed = self.flushes.changed.notified();
            if self.is_behind() {
                let _ = tokio::time::timeout(RETRY, changed).await;
            } else {
                changed.await;
            }
            tokio::time::sleep(QUIET).await;
            let failure = self.flush_all().await.err().map(|error| error.to_string());
            let failure = failure.unwrap_or_default();
            if !failure.is_empty() && failure != logged {
                tracing::error!("flush the store: {failure}");
            }
            logged = failure;
        }
    }

    /// Whether files or copies wait for being written though no commit is new. Nothing can be written
    /// after a failed sync.
    fn is_behind(&self) -> bool {
        self.flushes.failed.get().is_none()
            && (!self.flushes.files().is_empty() || self.copies.failure().is_some())
    }

    /// Returns what is wrong with the store, for the user.
    pub(crate) fn problems(&self) -> Vec<String> {
        let failed = self.flushes.failed.get().cloned();
        let stale = self.copies.failure().map(|error| {
            format!(
                "copies of the engine's records, which `whelk system repair` uses, are out of date \
                 ({error}); they are written again when that is possible"
            )
        });
        failed.into_iter().chain(stale).collect()
    }

    /// Flushes everything, and writes all copies.
    pub(crate) async fn flush_all(self: &Arc<Self>) -> Result<()> {
        let _turn = self.flushes.turn.lock().await;
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.flush(true))
            .await
            .map_err(|error| Error::internal(error.to_string()))?
    }

    fn is_flushed(&self, wanted: u64) -> Result<bool> {
        match self.flushes.failed.get() {
            Some(text) => Err(Error::internal(text.clone())),
            None => Ok(self.flushes.done.load(Ordering::Acquire) >= wanted),
        }
    }

    /// Syncs the log, and then writes copies of records: those that are due, or all. The caller
    /// holds `turn`.
    pub(super) fn flush(&self, all: bool) -> Result<()> {
        let wanted = self.flushes.wanted.load(Ordering::Acquire);
        if !self.is_flushed(wanted)? {
            whelk_sys::step();
            let written = self.flushes.sync_all();
            whelk_sys::step();
            written?;
            self.flushes.done.fetch_max(wanted, Ordering::AcqRel);
        }
        whelk_sys::in_background(|| self.write_copies(all));
        Ok(())
    }
}

/// Syncs a file or directory to disk.
pub(super) fn sync(path: &Path) -> Result<()> {
    Ok(fs::open(path)?.sync_all().map_err(fs::at("fsync", path))?)
}

#[cfg(test)]
mod tests {
    use super::super::{RecordStore, new_root};
    use super::*;

    #[test]
    fn a_path_that_cannot_be_opened_is_synced_with_its_file_system() {
        let place = new_root("unopened");
        let root = place.path();
        let store = RecordStore::open(root).unwrap();
        let (loops, file) = (root.join("loop"), root.join("file"));
        std::os::unix::fs::symlink(&loops, &loops).unwrap();
        fs::write(&file, "").unwrap();
        store.keep([loops, file.join("below"), root.join("gone")]);
        store.flush(false).unwrap();
        drop(store);
    }

    #[test]
    fn a_path_of_another_disk_that_cannot_be_opened_is_synced_later() {
        use std::os::unix::fs::MetadataExt;
        let place = new_root("retry");
        let root = place.path();
        let store = RecordStore::open(root).unwrap();
        // open(2) of a socket fails with ENXIO.
        let shm = PathBuf::from(format!("/dev/shm/whelk-retry-{}", std::process::id()));
        let shm = whelk_sys::Scratch::at(shm).unwrap();
        let socket = shm.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let device = |path| fs::metadata(path).unwrap().dev();
        assert_ne!(device(root), device(socket.as_path()));
        store.keep([socket.clone(), root.join("gone")]);
        for _ in 0..2 {
            let error = store.flush(false).unwrap_err().to_string();
            assert!(error.contains("whelk-retry"), "{error}");
        }
        drop(listener);
        fs::remove_file(&socket).unwrap();
        store.flush(false).unwrap();
        drop(store);
    }
}
