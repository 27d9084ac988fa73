//! The engine's records in SQLite: columns for the keys, JSON for the rest.
//!
//! ```text
//! containers(id, name unique, record)   networks(id, name unique, record)   volumes(name, record)
//! images(id, record)   tags(name, image)   meta(key, value)
//! ```
//! One connection behind a lock: a commit takes about 20 µs (WAL, synchronous=NORMAL) and survives
//! any crash of the engine. [`RecordStore::flushed`] makes committed changes survive a power
//! failure too; the API waits for it before it answers, and concurrent requests share one flush
//! ([`flush`]). Space for the log and the tables is reserved in advance: on a file system that
//! overwrites in place containers can then be stopped and removed even if the disk is full.
//!
//! A store that is missing or damaged although there are containers is refused ([`check`]). Copies
//! of the records are kept in the containers' directories and the root ([`copies`]), from which
//! [`repair`] can rebuild the store.

mod check;
mod copies;
mod flush;
mod opening;
mod repair;
mod tables;
mod verify;

use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use rusqlite::Connection;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::error::Result;

pub(crate) use check::{FILE, LOG, damaged};
pub(crate) use copies::read_copy;
pub(crate) use opening::Found;
pub use repair::{Repaired, repair};

/// The open store of an engine.
#[derive(Debug)]
pub struct RecordStore {
    connection: Mutex<Connection>,
    flushes: flush::Flushes,
    copies: copies::Copies,
}

impl RecordStore {
    /// Opens the store below an engine's root, or creates it in a new root.
    ///
    /// # Errors
    /// As [`Found::check`] and [`Found::open`].
    pub fn open(root: &Path) -> Result<Self> {
        Found::check(root)?.open()
    }

    /// Locks the connection for a step.
    fn connection(&self) -> Result<MutexGuard<'_, Connection>> {
        whelk_sys::fallible_step().map_err(fs::at("open", FILE))?;
        // After a panic under the lock there is no incomplete transaction: SQLite has rolled it
        // back.
        Ok(self.connection.lock().ignore_poison())
    }

    /// Executes statements for a test, such as one that lets others fail.
    #[cfg(test)]
    pub(crate) fn execute(&self, statements: &str) {
        let connection = self.connection().unwrap();
        connection.execute_batch(statements).unwrap();
    }
}

/// Creates an empty root directory for a test.
#[cfg(test)]
fn new_root(name: &str) -> whelk_sys::Scratch {
    whelk_sys::Scratch::temporary(&format!("store-{name}")).unwrap()
}
