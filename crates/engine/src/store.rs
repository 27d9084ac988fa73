//! The engine's records in SQLite: typed columns for what is looked up, JSON for the rest.
//!
//! ```text
//! containers(id, name unique, record)   networks(id, name unique, record)   volumes(name, record)
//! images(id, record)   tags(name, image)   meta(key, value)
//! ```
//! One connection behind a lock: a commit takes some 20 µs (WAL, synchronous=NORMAL) and survives any crash of the
//! engine; a power loss may take the last commits back, never tear one. Log and tables are larger than they need be: where
//! the file system overwrites in place they can be written on a full disk too, and there containers have to be stopped and
//! removed.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};
use crate::model::Record;
use crate::networks::NetworkRecord;
use crate::volumes::VolumeRecord;

/// The version of the tables and records that this engine writes. Each step up has a migration.
pub const SCHEMA_VERSION: u32 = 3;

/// How much room the log has at least, and the tables beside what is in them: as much as is logged before SQLite starts the
/// log over.
const RESERVE: u64 = 4 << 20;

#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens or creates the store.
    ///
    /// # Errors
    /// A store that a newer engine has written: it must not be damaged by one that does not understand it.
    pub fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.execute_batch(
            // One connection of one process: it needs no file that others would follow it by (`-shm`).
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000;
             PRAGMA foreign_keys = ON;
             DROP TABLE IF EXISTS reserve;
             CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;",
        )?;
        // The log stays as large as it is, also when it is not needed any more.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let store = Self { connection: Mutex::new(connection) };
        store.migrate()?;
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        if (whelk_sys::fs::metadata(log)?.len() < RESERVE || store.free()? < RESERVE / 2)
            && let Err(error) = store.make_room()
        {
            tracing::warn!("the engine's store has no reserve: {error}");
        }
        Ok(store)
    }

    /// The room in the tables, in bytes.
    fn free(&self) -> Result<u64> {
        let query = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size";
        let free: i64 = self.connection().query_row(query, [], |row| row.get(0))?;
        Ok(u64::try_from(free).unwrap_or(0))
    }

    /// Makes the log and the tables as large as they may become before long.
    fn make_room(&self) -> Result<()> {
        // Not as one transaction: what is gone again when it ends would not be written at all. And with a small cache: what it
        // takes stays the process's.
        Ok(self.connection().execute_batch(&format!(
            "PRAGMA cache_size = -64; CREATE TABLE reserve AS SELECT zeroblob({RESERVE}); DROP TABLE reserve; PRAGMA cache_size = -2000"
        ))?)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        whelk_sys::step();
        // A panic while the lock was held left no half-done transaction: SQLite rolls it back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn migrate(&self) -> Result<()> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        let found: Option<String> =
            transaction.query_row("SELECT value FROM meta WHERE key = 'schema'", [], |row| row.get(0)).optional()?;
        let found = found.and_then(|text| text.parse().ok()).unwrap_or(0);
        if found > SCHEMA_VERSION {
            return Err(Error::internal(format!(
                "the store has version {found}, this engine knows {SCHEMA_VERSION}: it was written by a newer one"
            )));
        }
        if found < 1 {
            transaction.execute_batch(
                "CREATE TABLE containers(id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL) WITHOUT ROWID;
                 CREATE TABLE images(id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
                 CREATE TABLE tags(name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE) WITHOUT ROWID;",
            )?;
        }
        if found < 2 {
            transaction.execute_batch(
                "CREATE TABLE networks(id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL) WITHOUT ROWID;",
            )?;
        }
        if found < 3 {
            transaction.execute_batch("CREATE TABLE volumes(name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;")?;
        }
        transaction.execute("INSERT OR REPLACE INTO meta VALUES('schema', ?1)", [SCHEMA_VERSION.to_string()])?;
        Ok(transaction.commit()?)
    }

    /// Adds a container. The name must be free: that is the caller's to have checked, and the table's to insist on.
    pub fn insert_container(&self, record: &Record) -> Result<()> {
        self.connection().prepare_cached("INSERT INTO containers VALUES(?1, ?2, ?3)")?.execute(params![
            record.id,
            record.name,
            encode(record)?
        ])?;
        Ok(())
    }

    pub fn update_container(&self, record: &Record) -> Result<()> {
        self.connection().prepare_cached("UPDATE containers SET name = ?2, record = ?3 WHERE id = ?1")?.execute(params![
            record.id,
            record.name,
            encode(record)?
        ])?;
        Ok(())
    }

    pub fn delete_container(&self, id: &str) -> Result<()> {
        self.connection().prepare_cached("DELETE FROM containers WHERE id = ?1")?.execute([id])?;
        Ok(())
    }

    pub fn containers(&self) -> Result<Vec<Record>> {
        self.all("SELECT record FROM containers")
    }

    pub fn put_network(&self, record: &NetworkRecord) -> Result<()> {
        self.connection().execute(
            "INSERT INTO networks VALUES(?1, ?2, ?3) ON CONFLICT(id) DO UPDATE SET record = ?3",
            params![record.id, record.name, encode(record)?],
        )?;
        Ok(())
    }

    pub fn delete_network(&self, id: &str) -> Result<()> {
        self.connection().execute("DELETE FROM networks WHERE id = ?1", [id])?;
        Ok(())
    }

    pub fn networks(&self) -> Result<Vec<NetworkRecord>> {
        self.all("SELECT record FROM networks")
    }

    pub fn put_volume(&self, record: &VolumeRecord) -> Result<()> {
        self.connection().execute("INSERT OR REPLACE INTO volumes VALUES(?1, ?2)", params![record.name, encode(record)?])?;
        Ok(())
    }

    pub fn delete_volume(&self, name: &str) -> Result<()> {
        self.connection().execute("DELETE FROM volumes WHERE name = ?1", [name])?;
        Ok(())
    }

    pub fn volumes(&self) -> Result<Vec<VolumeRecord>> {
        self.all("SELECT record FROM volumes")
    }

    /// Adds or replaces an image and gives it names, taking them from others that had them.
    pub fn put_image<T: Serialize>(&self, id: &str, record: &T, names: &[String]) -> Result<()> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        transaction.execute("INSERT INTO images VALUES(?1, ?2) ON CONFLICT(id) DO UPDATE SET record = ?2", params![id, encode(record)?])?;
        for name in names {
            transaction.execute("INSERT OR REPLACE INTO tags VALUES(?1, ?2)", params![name, id])?;
        }
        Ok(transaction.commit()?)
    }

    pub fn delete_tag(&self, name: &str) -> Result<()> {
        self.connection().execute("DELETE FROM tags WHERE name = ?1", [name])?;
        Ok(())
    }

    pub fn delete_image(&self, id: &str) -> Result<()> {
        self.connection().execute("DELETE FROM images WHERE id = ?1", [id])?;
        Ok(())
    }

    pub fn images<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        self.all("SELECT record FROM images")
    }

    /// Every name with the image it stands for.
    pub fn tags(&self) -> Result<Vec<(String, String)>> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached("SELECT name, image FROM tags ORDER BY name")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// A value the engine keeps about itself, made at the first call.
    pub fn get_or_set_meta(&self, key: &str, make: impl FnOnce() -> String) -> Result<String> {
        let connection = self.connection();
        let found: Option<String> = connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()?;
        if let Some(found) = found {
            return Ok(found);
        }
        let value = make();
        connection.execute("INSERT INTO meta VALUES(?1, ?2)", params![key, value])?;
        Ok(value)
    }

    /// All records that can be read: one that cannot must not keep the engine from the others.
    fn all<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(query)?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        let mut records = Vec::new();
        for row in rows {
            let text = row?;
            match serde_json::from_str(&text) {
                Ok(record) => records.push(record),
                Err(error) => tracing::error!("a record of the engine's store cannot be read: {error}: {text}"),
            }
        }
        Ok(records)
    }
}

fn encode<T: Serialize>(record: &T) -> Result<String> {
    serde_json::to_string(record).map_err(|error| Error::internal(format!("the engine's store: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_store_is_left_alone() {
        let path = std::env::temp_dir().join(format!("whelk-store-{}.db", std::process::id()));
        Store::open(&path).unwrap().connection().execute("UPDATE meta SET value = '99' WHERE key = 'schema'", []).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(error.to_string().contains("newer"), "{error}");
        for suffix in ["", "-wal", "-shm"] {
            let _ = whelk_sys::fs::remove_if_there(format!("{}{suffix}", path.display()));
        }
    }
}
