//! Group commit: what was committed is made to survive a loss of power before somebody is told that
//! it is done.
//!
//! With `synchronous=NORMAL` a commit is in SQLite's log, but perhaps only in the kernel's memory.
//! A flush writes that log out (`fdatasync`), for all commits up to then: whoever comes while one
//! is under way waits for the next and shares it. That is what `synchronous=FULL` does for each
//! commit by itself, under the store's lock and on the API's own threads.
//!
//! Containers that are removed at their end do not ask for it: neither they nor their data are
//! there after a loss of power.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use whelk_sys::fs;

use super::Store;
use crate::error::{Error, Result};

#[derive(Debug)]
pub(super) struct Flushes {
    /// SQLite's log. The file stays the same for as long as the store is open.
    log: File,
    /// How many commits there were that must last, and how many of them are on disk.
    wanted: AtomicU64,
    done: AtomicU64,
    /// Files and directories that must be on disk with the next commits.
    files: Mutex<BTreeSet<PathBuf>>,
    /// Held while something is flushed.
    turn: tokio::sync::Mutex<()>,
    /// Why the log, or a file, could not be written. The kernel says so once, and what was lost
    /// then stays lost: nothing is acknowledged from then on.
    failed: OnceLock<String>,
    /// Something was committed for which nobody may be waiting.
    changed: tokio::sync::Notify,
}

impl Flushes {
    pub(super) fn new(root: &Path, log: &Path) -> Result<Self> {
        // The log's name in its directory is as new as the log.
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
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the files and then the log out.
    ///
    /// # Errors
    /// A file cannot be opened, which is tried again with the next flush; or the disk's error,
    /// which stays in `failed`.
    fn write_out(&self) -> Result<()> {
        loop {
            // In a statement of its own: the lock must not be held while writing.
            let next = self.files().pop_first();
            let Some(path) = next else { break };
            match fs::open(&path) {
                Ok(file) => file
                    .sync_all()
                    .map_err(fs::at("fsync", &path))
                    .map_err(|error| self.fail(&error.into()))?,
                // One that is gone by now was not needed.
                Err(error)
                    if error.is_not_found() || error.source.kind() == ErrorKind::NotADirectory => {}
                Err(error) => {
                    self.files().insert(path);
                    return Err(Error::internal(format!(
                        "the engine's store could not be written to disk yet: {error}"
                    )));
                }
            }
        }
        self.log
            .sync_data()
            .map_err(fs::at("fdatasync", super::LOG))
            .map_err(|error| self.fail(&error.into()))
    }

    fn fail(&self, error: &Error) -> Error {
        let text = format!(
            "the engine's store could not be written to disk: {error}; start the engine anew when the disk is well"
        );
        tracing::error!("{text}");
        Error::internal(self.failed.get_or_init(|| text).clone())
    }
}

impl Store {
    /// Takes note of a commit. `lasting`: whoever asked for it must not be answered before it is on
    /// disk.
    pub(super) fn committed(&self, lasting: bool) {
        if lasting {
            self.flushes.wanted.fetch_add(1, Ordering::AcqRel);
        }
        self.flushes.changed.notify_one();
    }

    /// Takes note of a commit about networks or images.
    pub(super) fn changed(&self) {
        self.copies.put_rest();
        self.committed(true);
    }

    /// Has what was committed until now, and these files and directories, be on disk before the
    /// next answer.
    pub fn keep(&self, files: impl IntoIterator<Item = PathBuf>) {
        self.flushes.files().extend(files);
        self.committed(true);
    }

    /// Waits until all that was committed, and must last, is on disk. At once where there is
    /// nothing of that kind.
    ///
    /// # Errors
    /// The disk's.
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

    /// Flushes behind what nobody waits for, and writes all copies, as long as the engine runs.
    pub(crate) async fn keep_flushed(self: Arc<Self>) {
        /// Short-lived containers are gone by then, and cost nothing.
        const QUIET: Duration = Duration::from_secs(1);
        loop {
            self.flushes.changed.notified().await;
            tokio::time::sleep(QUIET).await;
            if let Err(error) = self.flush_all().await {
                tracing::error!("{error}");
                if self.flushes.failed.get().is_none() {
                    self.flushes.changed.notify_one();
                }
            }
        }
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

    /// Writes the log out, and then copies of what it says: those that are due, or all. The turn is
    /// held.
    pub(super) fn flush(&self, all: bool) -> Result<()> {
        let wanted = self.flushes.wanted.load(Ordering::Acquire);
        if !self.is_flushed(wanted)? {
            whelk_sys::step();
            let written = self.flushes.write_out();
            whelk_sys::step();
            written?;
            self.flushes.done.fetch_max(wanted, Ordering::AcqRel);
        }
        self.write_copies(all);
        Ok(())
    }
}

/// Writes a file or directory out.
pub(super) fn sync(path: &Path) -> Result<()> {
    Ok(fs::open(path)?.sync_all().map_err(fs::at("fsync", path))?)
}
