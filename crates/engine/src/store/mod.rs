//! The engine's records in SQLite: typed columns for what is looked up, JSON for the rest.
//!
//! ```text
//! containers(id, name unique, record)   networks(id, name unique, record)   volumes(name, record)
//! images(id, record)   tags(name, image)   meta(key, value)
//! ```
//! One connection behind a lock: a commit takes some 20 µs (WAL, synchronous=NORMAL) and survives
//! any crash of the engine. [`Store::flushed`] makes what was committed survive a loss of power
//! too; the API waits for it before it answers, and concurrent requests share one flush
//! ([`flush`]). Log and tables are larger than they need be: where the file system overwrites in
//! place they can be written on a full disk too, and there containers have to be stopped and
//! removed.
//!
//! A store that is missing or damaged while there are containers is refused ([`check`]). What it
//! says is also kept beside what it is about ([`copies`]), so that [`repair`] can rebuild it.

mod check;
mod copies;
mod flush;
mod repair;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Serialize, de::DeserializeOwned};
use whelk_sys::fs;

use crate::error::{Error, Result};
use crate::model::Record;
use crate::networks::NetworkRecord;
use crate::volumes::VolumeRecord;

pub(crate) use check::{FILE, LOG, damaged};
pub(crate) use copies::described;
pub use repair::{Repaired, repair};

/// The version of the tables and records that this engine writes. Each step up has a migration.
pub const SCHEMA_VERSION: u32 = 3;

/// How much room the log has at least, and the tables beside what is in them: as much as is logged
/// before SQLite starts the log over.
const RESERVE: u64 = 4 << 20;

#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    flushes: flush::Flushes,
    copies: copies::Copies,
}

/// A store that was looked through, and not changed yet.
pub(crate) struct Found {
    root: PathBuf,
    connection: Connection,
    is_rebuilt: bool,
    /// The ids of all containers.
    pub(crate) containers: BTreeSet<String>,
    /// The machine has not been started anew since an engine last had this store open.
    pub(crate) is_same_boot: bool,
}

impl Found {
    /// # Errors
    /// A store that is missing or damaged where there are containers, volumes or images.
    pub(crate) fn look(root: &Path) -> Result<Self> {
        check::files(root)?;
        let (connection, is_rebuilt) = check::open(root, &root.join(FILE))?;
        let is_new: bool = connection.query_row(
            "SELECT count(*) = 0 FROM sqlite_master WHERE name = 'containers'",
            [],
            |row| row.get(0),
        )?;
        let (mut containers, mut is_same_boot) = (BTreeSet::new(), false);
        if !is_new {
            let mut statement = connection.prepare("SELECT id FROM containers")?;
            containers = statement
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            is_same_boot = known_boot(&connection)?
                .is_some_and(|known| boot().is_ok_and(|boot| boot == known));
        }
        Ok(Self {
            root: root.to_owned(),
            connection,
            is_rebuilt,
            containers,
            is_same_boot,
        })
    }

    /// # Errors
    /// One that a newer engine has written. It is left as it is.
    pub(crate) fn open(self) -> Result<Store> {
        let Self {
            root,
            mut connection,
            is_rebuilt,
            is_same_boot,
            ..
        } = self;
        connection.execute_batch(
            // One connection of one process: it needs no file that others would follow it by
            // (`-shm`).
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000;
             PRAGMA foreign_keys = ON;
             DROP TABLE IF EXISTS reserve;
             CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;",
        )?;
        migrate(&mut connection)?;
        let log = root.join(LOG);
        if (fs::metadata(&log)?.len() < RESERVE || free(&connection)? < RESERVE / 2)
            && let Err(error) = make_room(&connection)
        {
            tracing::warn!("the engine's store has no reserve: {error}");
        }
        if !is_same_boot || is_rebuilt {
            // Not only in the log: if that is lost, it is known all the same that there was one.
            connection.execute_batch("PRAGMA user_version = 0; PRAGMA wal_checkpoint(PASSIVE)")?;
        }
        repair::discard_unfinished(&root)?;
        let flushes = flush::Flushes::new(&root, &log)?;
        Ok(Store {
            connection: Mutex::new(connection),
            flushes,
            copies: copies::Copies::new(&root),
        })
    }
}

impl Store {
    /// Opens the store below an engine's root, or creates it in a new root.
    ///
    /// # Errors
    /// As [`Found::look`] and [`Found::open`].
    pub fn open(root: &Path) -> Result<Self> {
        Found::look(root)?.open()
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        whelk_sys::step();
        // A panic while the lock was held left no half-done transaction: SQLite rolls it back.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes in which boot of the machine the store was last found to agree with the containers'
    /// directories: from now on, until the next boot, a directory that no record names means that
    /// the store has lost a record.
    pub(crate) fn note_boot(&self) -> Result<()> {
        let (connection, boot) = (self.connection(), boot()?);
        if known_boot(&connection)?.as_ref() != Some(&boot) {
            connection.execute("INSERT OR REPLACE INTO meta VALUES('boot', ?1)", [boot])?;
            // Not only in the log, which may be lost.
            connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)")?;
        }
        Ok(())
    }

    /// Adds a container. The name must be free: that is the caller's to have checked, and the
    /// table's to insist on.
    pub fn insert_container(&self, record: &Record) -> Result<()> {
        let text = encode(record)?;
        self.connection()
            .prepare_cached("INSERT INTO containers VALUES(?1, ?2, ?3)")?
            .execute(params![record.id, record.name, text])?;
        self.copies.put(&record.id, text, true);
        self.committed(!record.host.auto_remove);
        Ok(())
    }

    /// Saves a container's record.
    pub fn update_container(&self, record: &Record) -> Result<()> {
        self.put_container(record, false)
    }

    /// The same with its copy, which is written with the next flush and not some time later.
    pub fn update_container_and_copy(&self, record: &Record) -> Result<()> {
        self.put_container(record, true)
    }

    fn put_container(&self, record: &Record, redefined: bool) -> Result<()> {
        let text = encode(record)?;
        let changed = self
            .connection()
            .prepare_cached("UPDATE containers SET name = ?2, record = ?3 WHERE id = ?1")?
            .execute(params![record.id, record.name, text])?;
        if changed > 0 {
            self.copies.put(&record.id, text, redefined);
            self.committed(!record.host.auto_remove);
        }
        Ok(())
    }

    /// `lasting`: the removal must survive a loss of power. That of a container which was to be
    /// removed at its end need not.
    pub fn delete_container(&self, id: &str, lasting: bool) -> Result<()> {
        self.connection()
            .prepare_cached("DELETE FROM containers WHERE id = ?1")?
            .execute([id])?;
        self.copies.forget(id);
        self.committed(lasting);
        Ok(())
    }

    pub fn containers(&self) -> Result<Vec<Record>> {
        self.all("containers", "id")
    }

    pub fn put_network(&self, record: &NetworkRecord) -> Result<()> {
        self.connection().execute(
            "INSERT INTO networks VALUES(?1, ?2, ?3) ON CONFLICT(id) DO UPDATE SET record = ?3",
            params![record.id, record.name, encode(record)?],
        )?;
        self.changed();
        Ok(())
    }

    pub fn delete_network(&self, id: &str) -> Result<()> {
        self.connection()
            .execute("DELETE FROM networks WHERE id = ?1", [id])?;
        self.changed();
        Ok(())
    }

    pub fn networks(&self) -> Result<Vec<NetworkRecord>> {
        self.all("networks", "id")
    }

    /// Saves a volume's record. It survives a loss of power once something is flushed that is
    /// committed later, or [`Store::keep`] was called.
    pub fn put_volume(&self, record: &VolumeRecord) -> Result<()> {
        self.connection().execute(
            "INSERT OR REPLACE INTO volumes VALUES(?1, ?2)",
            params![record.name, encode(record)?],
        )?;
        self.volume_changed(record);
        Ok(())
    }

    /// As [`Store::put_volume`].
    pub fn delete_volume(&self, record: &VolumeRecord) -> Result<()> {
        self.connection()
            .execute("DELETE FROM volumes WHERE name = ?1", [&record.name])?;
        self.volume_changed(record);
        Ok(())
    }

    fn volume_changed(&self, record: &VolumeRecord) {
        // What a directory describes needs no other copy.
        if record.driver != crate::volumes::LOCAL {
            self.copies.put_rest();
        }
        self.committed(false);
    }

    pub fn volumes(&self) -> Result<Vec<VolumeRecord>> {
        self.all("volumes", "name")
    }

    /// Adds or replaces an image and gives it names, taking them from others that had them.
    pub fn put_image<T: Serialize>(&self, id: &str, record: &T, names: &[String]) -> Result<()> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        transaction.execute(
            "INSERT INTO images VALUES(?1, ?2) ON CONFLICT(id) DO UPDATE SET record = ?2",
            params![id, encode(record)?],
        )?;
        for name in names {
            transaction.execute(
                "INSERT OR REPLACE INTO tags VALUES(?1, ?2)",
                params![name, id],
            )?;
        }
        transaction.commit()?;
        drop(connection);
        self.changed();
        Ok(())
    }

    pub fn delete_tag(&self, name: &str) -> Result<()> {
        self.connection()
            .execute("DELETE FROM tags WHERE name = ?1", [name])?;
        self.changed();
        Ok(())
    }

    pub fn delete_image(&self, id: &str) -> Result<()> {
        self.connection()
            .execute("DELETE FROM images WHERE id = ?1", [id])?;
        self.changed();
        Ok(())
    }

    pub fn images<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        self.all("images", "id")
    }

    /// Every name with the image it stands for.
    pub fn tags(&self) -> Result<Vec<(String, String)>> {
        let connection = self.connection();
        let mut statement =
            connection.prepare_cached("SELECT name, image FROM tags ORDER BY name")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// A value the engine keeps about itself, made at the first call.
    pub fn get_or_set_meta(&self, key: &str, make: impl FnOnce() -> String) -> Result<String> {
        let connection = self.connection();
        let found: Option<String> = connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
                row.get(0)
            })
            .optional()?;
        if let Some(found) = found {
            return Ok(found);
        }
        let value = make();
        connection.execute("INSERT INTO meta VALUES(?1, ?2)", params![key, value])?;
        drop(connection);
        self.changed();
        Ok(value)
    }

    /// # Errors
    /// A record that cannot be read: whatever it was about must not be taken for nobody's.
    fn all<T: DeserializeOwned>(&self, table: &str, key: &str) -> Result<Vec<T>> {
        let connection = self.connection();
        let mut statement =
            connection.prepare_cached(&format!("SELECT {key}, record FROM {table}"))?;
        let rows = statement.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        let mut records = Vec::new();
        for row in rows {
            let (id, text) = row?;
            let record = serde_json::from_str(&text);
            // Without its text, which may hold secrets.
            records.push(record.map_err(|error| {
                damaged(
                    self.copies.root(),
                    &format!("record {id} of {table} cannot be read: {error}"),
                )
            })?);
        }
        Ok(records)
    }
}

/// The room in the tables, in bytes.
fn free(connection: &Connection) -> Result<u64> {
    let query = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size";
    let free: i64 = connection.query_row(query, [], |row| row.get(0))?;
    Ok(u64::try_from(free).unwrap_or(0))
}

/// Makes the log and the tables as large as they may become before long.
fn make_room(connection: &Connection) -> Result<()> {
    // Not as one transaction: what is gone again when it ends would not be written at all. And with
    // a small cache: what it takes stays the process's.
    Ok(connection.execute_batch(&format!(
        "PRAGMA cache_size = -64; CREATE TABLE reserve AS SELECT zeroblob({RESERVE}); DROP TABLE reserve; PRAGMA cache_size = -2000"
    ))?)
}

/// Which run of the machine this is.
fn boot() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// In which run of the machine an engine last had a store open.
fn known_boot(connection: &Connection) -> Result<Option<String>> {
    Ok(connection
        .query_row("SELECT value FROM meta WHERE key = 'boot'", [], |row| {
            row.get(0)
        })
        .optional()?)
}

fn migrate(connection: &mut Connection) -> Result<()> {
    let transaction = connection.transaction()?;
    let found: Option<String> = transaction
        .query_row("SELECT value FROM meta WHERE key = 'schema'", [], |row| {
            row.get(0)
        })
        .optional()?;
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
        transaction
            .execute_batch("CREATE TABLE networks(id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL) WITHOUT ROWID;")?;
    }
    if found < 3 {
        transaction.execute_batch(
            "CREATE TABLE volumes(name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;",
        )?;
    }
    transaction.execute(
        "INSERT OR REPLACE INTO meta VALUES('schema', ?1)",
        [SCHEMA_VERSION.to_string()],
    )?;
    Ok(transaction.commit()?)
}

fn encode<T: Serialize>(record: &T) -> Result<String> {
    serde_json::to_string(record)
        .map_err(|error| Error::internal(format!("the engine's store: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_store_is_left_alone() {
        let root = std::env::temp_dir().join(format!("whelk-store-{}", std::process::id()));
        fs::create_dir_all(&root, 0o700).unwrap();
        Store::open(&root)
            .unwrap()
            .connection()
            .execute("UPDATE meta SET value = '99' WHERE key = 'schema'", [])
            .unwrap();
        let error = Store::open(&root).unwrap_err();
        assert!(error.to_string().contains("newer"), "{error}");
        fs::remove_tree(&root).unwrap();
    }

    fn new_root(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("whelk-store-{name}-{}", std::process::id()));
        drop(fs::remove_tree(&root));
        fs::create_dir_all(&root, 0o700).unwrap();
        root
    }

    #[test]
    fn a_start_that_fails_does_not_record_the_boot() {
        let root = new_root("boot");
        drop(Store::open(&root).unwrap());
        assert!(!Found::look(&root).unwrap().is_same_boot);
        Store::open(&root).unwrap().note_boot().unwrap();
        assert!(Found::look(&root).unwrap().is_same_boot);
        fs::remove_tree(&root).unwrap();
    }

    #[test]
    fn an_unfinished_repair_is_discarded_when_the_store_is_opened() {
        let root = new_root("unfinished");
        drop(Store::open(&root).unwrap());
        for name in [
            "store.db.new",
            "store.db.unfinished",
            "store.db.unfinished-journal",
        ] {
            fs::write(root.join(name), "old").unwrap();
        }
        drop(Store::open(&root).unwrap());
        let left: Vec<_> = fs::list(&root)
            .unwrap()
            .iter()
            .map(|entry| entry.file_name())
            .collect();
        assert!(
            !left
                .iter()
                .any(|name| name.to_string_lossy().starts_with("store.db.")),
            "{left:?}"
        );
        fs::remove_tree(&root).unwrap();
    }

    #[test]
    fn an_unreadable_record_is_named_without_its_content() {
        let root = new_root("unreadable");
        let store = Store::open(&root).unwrap();
        store
            .connection()
            .execute(
                "INSERT INTO containers VALUES('one', 'one', '{\"password\": \"secret\"')",
                [],
            )
            .unwrap();
        let error = store.containers().unwrap_err().to_string();
        assert!(
            error.contains("record one of containers cannot be read") && !error.contains("secret"),
            "{error}"
        );
        drop(store);
        fs::remove_tree(&root).unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_opened_is_synced_later() {
        let root = new_root("retry");
        let store = Store::open(&root).unwrap();
        let (loops, file) = (root.join("loop"), root.join("file"));
        std::os::unix::fs::symlink(&loops, &loops).unwrap();
        fs::write(&file, "").unwrap();
        store.keep([loops.clone(), file.join("below"), root.join("gone")]);
        for _ in 0..2 {
            let error = store.flush(false).unwrap_err().to_string();
            assert!(error.contains("loop"), "{error}");
        }
        fs::remove_file(&loops).unwrap();
        fs::write(&loops, "").unwrap();
        store.flush(false).unwrap();
        drop(store);
        fs::remove_tree(&root).unwrap();
    }
}
