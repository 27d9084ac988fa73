//! Opens the store: checks its schema version, migrates its tables and reserves space.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rusqlite::{Connection, OptionalExtension};
use whelk_sys::fs;

use super::check::{FILE, LOG, damaged};
use super::tables::read_containers;
use super::{RecordStore, check, copies, flush, repair};
use crate::error::Result;
use crate::records::{self, SCHEMA_VERSION};

/// Space reserved for the log, and for new pages of the tables, in bytes: as much as SQLite logs
/// before a checkpoint (1000 pages of 4 KiB).
const RESERVE: u64 = 4 << 20;

/// A store that was checked, and not changed yet.
pub(crate) struct Found {
    root: PathBuf,
    connection: Connection,
    is_rebuilt: bool,
    schema: u32,
    /// The ids of all containers.
    pub(crate) containers: BTreeSet<String>,
    /// The names of all volumes.
    pub(crate) volumes: BTreeSet<String>,
    /// Whether the host was not rebooted since an engine last recorded that the store and the
    /// containers' directories agree.
    pub(crate) is_same_boot: bool,
}

impl Found {
    /// Checks the store below an engine's root without changing it.
    ///
    /// # Errors
    /// Returns an error if the store is missing or damaged although there are containers, volumes
    /// or images, if a newer engine has written it, or if it must be migrated and the record of a
    /// container cannot be.
    pub(crate) fn check(root: &Path) -> Result<Self> {
        check::files(root)?;
        let (connection, is_rebuilt) = check::open(root, &root.join(FILE))?;
        let schema = schema(root, &connection)?;
        let containers = keys(&connection, "containers", "id")?;
        let is_same_boot = containers.is_some()
            && known_boot(&connection)?.is_some_and(|known| boot().is_ok_and(|boot| boot == known));
        let volumes = keys(&connection, "volumes", "name")?;
        if containers.is_some() && schema < SCHEMA_VERSION {
            // An earlier engine can open the store as long as its tables are not migrated.
            read_containers(root, &connection)?;
        }
        Ok(Self {
            root: root.to_owned(),
            connection,
            is_rebuilt,
            schema,
            containers: containers.unwrap_or_default(),
            volumes: volumes.unwrap_or_default(),
            is_same_boot,
        })
    }

    /// Opens the store: migrates it, and reserves space.
    pub(crate) fn open(self) -> Result<RecordStore> {
        let Self {
            root,
            mut connection,
            is_rebuilt,
            schema,
            is_same_boot,
            ..
        } = self;
        connection.execute_batch(
            // With a single connection in exclusive locking mode SQLite needs no shared memory
            // (`-shm`).
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000;
             PRAGMA foreign_keys = ON;
             DROP TABLE IF EXISTS reserve;",
        )?;
        migrate(&mut connection, schema)?;
        let log = root.join(LOG);
        if (fs::metadata(&log)?.len() < RESERVE || free_bytes(&connection)? < RESERVE / 2)
            && let Err(error) = reserve_space(&connection)
        {
            tracing::warn!("reserve space for the engine's store: {error}");
        }
        if !is_same_boot || is_rebuilt {
            // Written to the database file: if the log is lost, the file's header still shows that
            // there was one.
            connection.execute_batch("PRAGMA user_version = 0; PRAGMA wal_checkpoint(PASSIVE)")?;
        }
        repair::discard_unfinished(&root)?;
        let flushes = flush::Flushes::new(&root, &log)?;
        Ok(RecordStore {
            connection: Mutex::new(connection),
            flushes,
            copies: copies::Copies::new(&root),
        })
    }
}

impl RecordStore {
    /// Records the current boot id, after the store was found to agree with the containers'
    /// directories. Until the next boot a directory without a record then means that the store has
    /// lost one.
    pub(crate) fn note_boot(&self) -> Result<()> {
        let (connection, boot) = (self.connection()?, boot()?);
        if known_boot(&connection)?.as_ref() != Some(&boot) {
            connection.execute("INSERT OR REPLACE INTO meta VALUES('boot', ?1)", [boot])?;
            // Written to the database file, because the log may be lost.
            connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)")?;
        }
        Ok(())
    }
}

/// Returns the keys of a table, or `None` if the store does not have it yet.
fn keys(connection: &Connection, table: &str, key: &str) -> Result<Option<BTreeSet<String>>> {
    let exists: bool = connection.query_row(
        "SELECT count(*) > 0 FROM sqlite_master WHERE name = ?1",
        [table],
        |row| row.get(0),
    )?;
    if !exists {
        return Ok(None);
    }
    let mut statement = connection.prepare(&format!("SELECT {key} FROM {table}"))?;
    let keys = statement.query_map([], |row| row.get(0))?;
    Ok(Some(keys.collect::<rusqlite::Result<_>>()?))
}

/// Returns the size of the free pages, in bytes.
fn free_bytes(connection: &Connection) -> Result<u64> {
    let query = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size";
    let free: i64 = connection.query_row(query, [], |row| row.get(0))?;
    Ok(u64::try_from(free).unwrap_or(0))
}

/// Grows the log and the tables by [`RESERVE`].
fn reserve_space(connection: &Connection) -> Result<()> {
    // Not in one transaction: SQLite would not write pages that are freed when it ends. With a
    // small cache, because the process keeps the memory of a large one.
    Ok(connection.execute_batch(&format!(
        "PRAGMA cache_size = -64; CREATE TABLE reserve AS SELECT zeroblob({RESERVE}); DROP TABLE reserve; PRAGMA cache_size = -2000"
    ))?)
}

/// Returns the id of the current boot.
fn boot() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Returns the boot id that [`RecordStore::note_boot`] last recorded.
fn known_boot(connection: &Connection) -> Result<Option<String>> {
    Ok(connection
        .query_row("SELECT value FROM meta WHERE key = 'boot'", [], |row| {
            row.get(0)
        })
        .optional()?)
}

/// Returns the store's schema version; 0 for a new store.
///
/// # Errors
/// Returns an error if it is newer than [`SCHEMA_VERSION`], or no version.
fn schema(root: &Path, connection: &Connection) -> Result<u32> {
    let has_meta: bool = connection.query_row(
        "SELECT count(*) > 0 FROM sqlite_master WHERE name = 'meta'",
        [],
        |row| row.get(0),
    )?;
    if !has_meta {
        return Ok(0);
    }
    let found: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE key = 'schema'", [], |row| {
            row.get(0)
        })
        .optional()?;
    let Some(found) = found else { return Ok(0) };
    let what = format!("the engine's store {}", root.join(FILE).display());
    match found.parse() {
        Ok(version) if version > SCHEMA_VERSION => Err(records::newer(&what, version)),
        Ok(version) => Ok(version),
        Err(_) => Err(damaged(
            root,
            &format!("{what} is damaged: its schema version is {found:?}"),
        )),
    }
}

/// Creates the tables, or migrates those of schema version `from`.
pub(super) fn migrate(connection: &mut Connection, from: u32) -> Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;",
    )?;
    records::create_tables(&transaction, from)?;
    transaction.execute(
        "INSERT OR REPLACE INTO meta VALUES('schema', ?1)",
        [SCHEMA_VERSION.to_string()],
    )?;
    Ok(transaction.commit()?)
}

#[cfg(test)]
mod tests {
    use super::super::{copies, new_root};
    use super::*;

    #[test]
    fn rejects_a_store_of_a_newer_engine_and_leaves_it_unchanged() {
        let place = new_root("newer");
        let root = place.path();
        for (version, expected) in [("99", "newer"), ("x", "is damaged")] {
            RecordStore::open(root)
                .unwrap()
                .connection()
                .unwrap()
                .execute("UPDATE meta SET value = ?1 WHERE key = 'schema'", [version])
                .unwrap();
            let content = || {
                [FILE, LOG, copies::REST].map(|name| fs::read(root.join(name)).unwrap_or_default())
            };
            let before = content();
            let error = RecordStore::open(root).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(content() == before, "{version}: the files were changed");
            fs::remove_tree(root).unwrap();
            fs::create_dir_all(root, 0o700).unwrap();
        }
    }

    #[test]
    fn migrates_the_tables_of_earlier_versions() {
        let tables = |connection: &Connection| -> Vec<(String, String)> {
            let query = "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name";
            let mut statement = connection.prepare(query).unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            rows.unwrap().collect::<rusqlite::Result<_>>().unwrap()
        };
        let place = new_root("migrate");
        let root = place.path();
        let store = RecordStore::open(root).unwrap();
        let wanted = tables(&store.connection().unwrap());
        let image = format!(r#"{{"id": "sha256:{}", "size": 1}}"#, "0".repeat(64));
        store
            .connection().unwrap()
            .execute_batch(&format!(
                "DROP TABLE volumes; DROP TABLE networks; INSERT INTO images VALUES('one', '{image}');
                 UPDATE meta SET value = '1' WHERE key = 'schema'",
            ))
            .unwrap();
        drop(store);
        let store = RecordStore::open(root).unwrap();
        assert_eq!(tables(&store.connection().unwrap()), wanted);
        assert_eq!(
            schema(root, &store.connection().unwrap()).unwrap(),
            SCHEMA_VERSION
        );
        assert_eq!(store.images().unwrap().len(), 1);
        drop(store);
    }

    #[test]
    fn a_record_that_cannot_be_migrated_is_named_before_anything_is_changed() {
        let place = new_root("malformed");
        let root = place.path();
        let record = serde_json::json!({
            "version": 2, "id": "one", "name": "one", "created_at": 0, "image": "", "config": {},
            "host": {"Binds": ["no-target"]}, "state": {},
        });
        RecordStore::open(root)
            .unwrap()
            .connection()
            .unwrap()
            .execute_batch(&format!(
                "INSERT INTO containers VALUES('one', 'one', '{record}');
                 UPDATE meta SET value = '2' WHERE key = 'schema'",
            ))
            .unwrap();
        let content = || [FILE, LOG].map(|name| fs::read(root.join(name)).unwrap());
        let before = content();
        let error = RecordStore::open(root).unwrap_err().to_string();
        assert!(
            error.contains("record one of containers cannot be read: its mounts: ")
                && error.contains("whelk system repair"),
            "{error}"
        );
        assert!(content() == before, "the files were changed");
    }

    #[test]
    fn a_start_that_fails_does_not_record_the_boot() {
        let place = new_root("boot");
        let root = place.path();
        drop(RecordStore::open(root).unwrap());
        assert!(!Found::check(root).unwrap().is_same_boot);
        RecordStore::open(root).unwrap().note_boot().unwrap();
        assert!(Found::check(root).unwrap().is_same_boot);
    }

    #[test]
    fn an_unfinished_repair_is_discarded_when_the_store_is_opened() {
        let place = new_root("unfinished");
        let root = place.path();
        drop(RecordStore::open(root).unwrap());
        for name in [
            "store.db.new",
            "store.db.unfinished",
            "store.db.unfinished-journal",
        ] {
            fs::write(root.join(name), "old").unwrap();
        }
        drop(RecordStore::open(root).unwrap());
        let left: Vec<_> = fs::list(root)
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
    }
}
