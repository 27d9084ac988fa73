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
mod repair;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use whelk_sys::sync::IgnorePoison as _;

use rusqlite::{Connection, OptionalExtension, params};
use whelk_sys::fs;

use crate::error::Result;
use crate::model::ContainerRecord;
use crate::model::network::NetworkRecord;
use crate::model::volume::VolumeRecord;
use crate::records::{self, ImageRecord, SCHEMA_VERSION, Stored, encode};

pub(crate) use check::{FILE, LOG, damaged};
pub(crate) use copies::read_copy;
pub use repair::{Repaired, repair};

/// Space reserved for the log, and for new pages of the tables, in bytes: as much as SQLite logs
/// before a checkpoint (1000 pages of 4 KiB).
const RESERVE: u64 = 4 << 20;

/// The open store of an engine.
#[derive(Debug)]
pub struct RecordStore {
    connection: Mutex<Connection>,
    flushes: flush::Flushes,
    copies: copies::Copies,
}

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

    /// Adds a container. The caller has checked that the name is free; the table enforces it.
    pub fn insert_container(&self, record: &ContainerRecord) -> Result<()> {
        let text = encode(record)?;
        self.connection()?
            .prepare_cached("INSERT INTO containers VALUES(?1, ?2, ?3)")?
            .execute(params![record.id, record.name, text])?;
        self.copies.put(&record.id, text, true);
        self.committed(!record.host.auto_remove);
        Ok(())
    }

    /// Saves a container's record.
    pub fn update_container(&self, record: &ContainerRecord) -> Result<()> {
        self.put_container(record, false)
    }

    /// Like [`RecordStore::update_container`], and writes the copy with the next flush instead of
    /// later.
    pub fn update_container_and_copy(&self, record: &ContainerRecord) -> Result<()> {
        self.put_container(record, true)
    }

    fn put_container(&self, record: &ContainerRecord, redefined: bool) -> Result<()> {
        let text = encode(record)?;
        let changed = self
            .connection()?
            .prepare_cached("UPDATE containers SET name = ?2, record = ?3 WHERE id = ?1")?
            .execute(params![record.id, record.name, text])?;
        if changed > 0 {
            self.copies.put(&record.id, text, redefined);
            self.committed(!record.host.auto_remove);
        }
        Ok(())
    }

    /// Deletes a container's record. With `lasting` the API waits until the deletion survives a
    /// power failure, which is not needed for a `--rm` container.
    pub fn delete_container(&self, id: &str, lasting: bool) -> Result<()> {
        self.connection()?
            .prepare_cached("DELETE FROM containers WHERE id = ?1")?
            .execute([id])?;
        self.copies.forget(id);
        self.committed(lasting);
        Ok(())
    }

    pub fn containers(&self) -> Result<Vec<ContainerRecord>> {
        read_containers(self.copies.root(), &*self.connection()?)
    }

    pub fn put_network(&self, record: &NetworkRecord) -> Result<()> {
        self.connection()?.execute(
            "INSERT INTO networks VALUES(?1, ?2, ?3) ON CONFLICT(id) DO UPDATE SET record = ?3",
            params![record.id, record.name, encode(record)?],
        )?;
        self.changed();
        Ok(())
    }

    pub fn delete_network(&self, id: &str) -> Result<()> {
        self.connection()?
            .execute("DELETE FROM networks WHERE id = ?1", [id])?;
        self.changed();
        Ok(())
    }

    pub fn networks(&self) -> Result<Vec<NetworkRecord>> {
        self.all("networks", "id")
    }

    /// Saves a volume's record. Nothing waits for its flush: it survives a power failure after the
    /// flush of a later lasting commit, or of [`RecordStore::keep`].
    pub fn put_volume(&self, record: &VolumeRecord) -> Result<()> {
        self.connection()?.execute(
            "INSERT OR REPLACE INTO volumes VALUES(?1, ?2)",
            params![record.name, encode(record)?],
        )?;
        self.volume_changed(record);
        Ok(())
    }

    /// Deletes a volume's record. Flushed as [`RecordStore::put_volume`].
    pub fn delete_volume(&self, record: &VolumeRecord) -> Result<()> {
        self.connection()?
            .execute("DELETE FROM volumes WHERE name = ?1", [&record.name])?;
        self.volume_changed(record);
        Ok(())
    }

    fn volume_changed(&self, record: &VolumeRecord) {
        // A local volume's directory has a copy of its record.
        if !record.is_local() {
            self.copies.put_rest();
        }
        self.committed(false);
    }

    pub fn volumes(&self) -> Result<Vec<VolumeRecord>> {
        self.all("volumes", "name")
    }

    /// Adds or replaces an image and its names, taking the names from other images.
    pub(crate) fn put_image(&self, record: &ImageRecord, names: &[String]) -> Result<()> {
        let mut connection = self.connection()?;
        let transaction = connection.transaction()?;
        transaction.execute(
            "INSERT INTO images VALUES(?1, ?2) ON CONFLICT(id) DO UPDATE SET record = ?2",
            params![record.id.as_str(), encode(record)?],
        )?;
        for name in names {
            transaction.execute(
                "INSERT OR REPLACE INTO tags VALUES(?1, ?2)",
                params![name, record.id.as_str()],
            )?;
        }
        transaction.commit()?;
        drop(connection);
        self.changed();
        Ok(())
    }

    pub fn delete_tag(&self, name: &str) -> Result<()> {
        self.connection()?
            .execute("DELETE FROM tags WHERE name = ?1", [name])?;
        self.changed();
        Ok(())
    }

    pub fn delete_image(&self, id: &str) -> Result<()> {
        self.connection()?
            .execute("DELETE FROM images WHERE id = ?1", [id])?;
        self.changed();
        Ok(())
    }

    pub(crate) fn images(&self) -> Result<Vec<ImageRecord>> {
        self.all("images", "id")
    }

    /// Returns all names with the ids of their images.
    pub fn tags(&self) -> Result<Vec<(String, String)>> {
        let connection = self.connection()?;
        let mut statement =
            connection.prepare_cached("SELECT name, image FROM tags ORDER BY name")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Returns a value of the table `meta`, which `make` creates at the first call.
    pub fn get_or_set_meta(&self, key: &str, make: impl FnOnce() -> String) -> Result<String> {
        let connection = self.connection()?;
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

    /// Returns all records of a table.
    ///
    /// # Errors
    /// As [`read_all`].
    fn all<T: Stored>(&self, table: &str, key: &str) -> Result<Vec<T>> {
        let decode = |text: &str| records::decode(text.as_bytes());
        read_all(
            self.copies.root(),
            &*self.connection()?,
            (table, key),
            decode,
        )
    }
}

/// Returns the containers' records, migrated.
///
/// # Errors
/// As [`read_all`].
fn read_containers(root: &Path, connection: &Connection) -> Result<Vec<ContainerRecord>> {
    let migrate = |text: &str| records::container(text.as_bytes(), root);
    read_all(root, connection, ("containers", "id"), migrate)
}

/// Returns all records of a table, which is given with the column of its key.
///
/// # Errors
/// Returns an error if any record cannot be read: without it the object's files would look unused.
fn read_all<T, E: std::fmt::Display>(
    root: &Path,
    connection: &Connection,
    (table, key): (&str, &str),
    read: impl Fn(&str) -> std::result::Result<T, E>,
) -> Result<Vec<T>> {
    let mut statement = connection.prepare(&format!("SELECT {key}, record FROM {table}"))?;
    let rows = statement.query_map([], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
    })?;
    let mut records = Vec::new();
    for row in rows {
        let (id, text) = row?;
        let record = read(&text);
        // Without the record's text, which may contain secrets.
        records.push(record.map_err(|error| {
            damaged(
                root,
                &format!("record {id} of {table} cannot be read: {error}"),
            )
        })?);
    }
    Ok(records)
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
fn migrate(connection: &mut Connection, from: u32) -> Result<()> {
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
    use whelk_image::Scratch;

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

    fn new_root(name: &str) -> Scratch {
        let root = std::env::temp_dir().join(format!("whelk-store-{name}-{}", std::process::id()));
        Scratch::at(root).unwrap()
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

    #[test]
    fn an_intact_store_needs_no_copy_to_be_repaired() {
        let place = new_root("intact");
        let root = place.path();
        drop(RecordStore::open(root).unwrap());
        // Cannot be read as a file.
        fs::create_dir(root.join(copies::REST), 0o700).unwrap();
        let report = repair(root).unwrap();
        assert!(
            report.lines[0].contains("nothing was changed"),
            "{report:?}"
        );
        fs::remove_file(root.join(LOG)).unwrap();
        fs::write(root.join(LOG), "").unwrap();
        let error = repair(root).unwrap_err().to_string();
        assert!(error.contains("store.json: is a directory"), "{error}");
    }

    #[test]
    fn a_repair_names_the_records_that_it_cannot_read() {
        let place = new_root("named");
        let root = place.path();
        let store = RecordStore::open(root).unwrap();
        store
            .connection()
            .unwrap()
            .execute_batch(
                r#"INSERT INTO containers VALUES('one', 'one', '{"password": "secret"');
                   INSERT INTO networks VALUES('two', 'two', 'secret');
                   INSERT INTO networks VALUES('four', 'four', '{"Name": "four"}');
                   INSERT INTO networks VALUES('five', 'five', '{"Name": "other", "Id": "other"}');
                   INSERT INTO networks VALUES('six', 'six', '[]');
                   INSERT INTO networks VALUES('seven', 'seven', '{"Name": "seven", "Id": "seven"}');
                   INSERT INTO images VALUES('sha256:1', '{"size": 1}');
                   INSERT INTO volumes VALUES('three', '{"Name": "three", ');"#,
            )
            .unwrap();
        drop(store);
        // The copy has valid JSON that is no record, too.
        let copy =
            r#"{"networks": [{"Name": "eight"}, 9], "volumes": [{"Name": "ten", "Driver": "x"}]}"#;
        fs::write(root.join(copies::REST), copy).unwrap();
        let report = repair(root).unwrap();
        let old = "in the old store cannot be read";
        let copy = format!("in {} cannot be read", root.join(copies::REST).display());
        for (line, expected) in report.lines.iter().zip([
            format!("the record of container one {old}: "),
            format!("the record of network five {old}: it is the record of other"),
            format!("the record of network four {old}: it names no object"),
            format!("the record of network six {old}: "),
            format!("the record of network two {old}: "),
            format!("the record of image sha256:1 {old}: missing field `id`"),
            format!("the record of volume three {old}: "),
            format!("the record of network no. 1 {copy}: it names no object"),
            format!("the record of network no. 2 {copy}: invalid type: integer `9`"),
        ]) {
            assert!(line.starts_with(&expected), "{line}\n{expected}");
        }
        let store = RecordStore::open(root).unwrap();
        let networks = store.networks().unwrap();
        assert_eq!(
            networks
                .iter()
                .map(|network| network.name.as_str())
                .collect::<Vec<_>>(),
            ["seven"]
        );
        assert_eq!(store.volumes().unwrap().len(), 1);
        drop(store);
        assert!(
            report.lines.iter().all(|line| !line.contains("secret")),
            "{report:?}"
        );
        assert!(
            RecordStore::open(root)
                .unwrap()
                .containers()
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn an_unreadable_record_is_named_without_its_content() {
        let place = new_root("unreadable");
        let root = place.path();
        let store = RecordStore::open(root).unwrap();
        store
            .connection()
            .unwrap()
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
    }

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
        let socket = PathBuf::from(format!("/dev/shm/whelk-retry-{}", std::process::id()));
        drop(fs::remove_if_exists(&socket));
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

    #[test]
    fn a_copy_that_cannot_be_written_is_written_later() {
        let place = new_root("copies");
        let root = place.path();
        let store = RecordStore::open(root).unwrap();
        let record = serde_json::json!({
            "id": "one", "name": "first", "created_at": 0, "image": "",
            "config": {}, "host": {}, "state": {},
        });
        let record: ContainerRecord = records::decode(record.to_string().as_bytes()).unwrap();
        // A file in the place of the directory.
        let directory = root.join("containers/one");
        fs::create_dir_all(root.join("containers"), 0o700).unwrap();
        fs::write(&directory, "").unwrap();
        store.insert_container(&record).unwrap();
        store.flush(false).unwrap();
        assert!(
            store.problems()[0].contains("out of date"),
            "{:?}",
            store.problems()
        );
        fs::remove_file(&directory).unwrap();
        fs::create_dir_all(&directory, 0o700).unwrap();
        // Nothing is due at the flush for another request, which does not end the warning.
        store.flush(false).unwrap();
        assert_eq!(store.problems().len(), 1);
        store.flush(true).unwrap();
        assert_eq!(store.problems(), Vec::<String>::new());
        assert_eq!(read_copy(root, &directory).unwrap().unwrap().name, "first");
        drop(store);
    }
}
