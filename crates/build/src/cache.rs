//! What earlier builds have left: results, and the keys that they are known by.
//!
//! ```text
//! <root>/build/build.db   results(id, outputs, canonical, boot, created, used, uses, text)   keys(key → result)
//!                         ingredients(place, at, text)   what the steps' keys were made of (`explain`)   salt(value)
//! ```
//! One of a result's keys is *canonical*: the one with the content of what the operation reads of other steps, if
//! that is known. What stands on the result is found by it, too.
//!
//! A result is recorded when its layers are in the image store. They need not be flushed: the record says in which
//! boot it was made until they are, and is not used in another one. A database that is damaged is set aside, and the cache
//! is empty then.

mod ingredients;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, OptionalExtension as _, params};
use whelk_image::{Digest as LayerDigest, Lease, Store};
use whelk_llb::Digest;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::Builder;
use crate::error::{Error, Result};
use crate::usage::CollectionAtEnd;

/// Changes when the tables do: an older cache is not read.
const VERSION: i64 = 3;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS results (
        id INTEGER PRIMARY KEY AUTOINCREMENT, outputs TEXT NOT NULL, canonical BLOB NOT NULL, boot TEXT NOT NULL,
        created INTEGER NOT NULL, used INTEGER NOT NULL, uses INTEGER NOT NULL, text TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS keys (key BLOB PRIMARY KEY, result INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS keys_by_result ON keys(result);
    CREATE TABLE IF NOT EXISTS ingredients (place BLOB PRIMARY KEY, at INTEGER NOT NULL, text TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS ingredients_by_time ON ingredients(at);
";

/// An output of an operation: a stack of layers, the lowest first, with when each was made (nanoseconds since the epoch; 0 for
/// those of an image).
pub(crate) type Layered = Vec<(LayerDigest, i64)>;

/// The outputs of an operation; `None` for one that was not needed when the others were taken of an imported cache.
pub(crate) type Outputs = Vec<Option<Layered>>;

/// A result in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CachedResult {
    pub outputs: Outputs,
    pub canonical: Digest,
    /// The canonical key is what an imported cache says, and not known to be true.
    pub is_foreign: bool,
}

impl CachedResult {
    /// Returns whether it has all of these outputs.
    pub fn has(&self, outputs: &[usize]) -> bool {
        let mut outputs = outputs.iter();
        outputs.all(|output| self.outputs.get(*output).is_some_and(Option::is_some))
    }
}

/// The cache of an engine.
#[derive(Debug)]
pub struct Cache {
    state: Mutex<State>,
    /// How often each result is in use by builds. Taken behind `state` by those who take both: the end of a use does not
    /// wait for the disk.
    in_use: Mutex<BTreeMap<i64, usize>>,
    /// Reads what does not have to be up to date, beside builds. There is none if the database is in memory.
    reader: Option<Mutex<Connection>>,
    boot: String,
    salt: Vec<u8>,
}

#[derive(Debug)]
struct State {
    connection: Connection,
    layers: Layers,
}

/// The layers of all results: what holds each, and the number of results that have it.
#[derive(Debug, Default)]
struct Layers(HashMap<LayerDigest, (Lease, usize)>);

impl Layers {
    /// Holds the layers of a result. Returns one that does not exist; then none is held.
    fn add(&mut self, store: &Store, outputs: &Outputs) -> std::result::Result<(), LayerDigest> {
        let layers = distinct(outputs);
        let new = layers.iter().filter(|layer| !self.0.contains_key(**layer));
        let mut held = Vec::new();
        for layer in new {
            let lease = store.leases.take();
            if !store.snapshots.claim(&lease, layer) {
                return Err((*layer).clone());
            }
            held.push(((*layer).clone(), (lease, 0)));
        }
        self.0.extend(held);
        for layer in layers {
            if let Some((_, count)) = self.0.get_mut(layer) {
                *count += 1;
            }
        }
        Ok(())
    }

    /// Releases the layers of a removed result.
    fn remove(&mut self, outputs: &Outputs) {
        for layer in distinct(outputs) {
            if let Some((_, count)) = self.0.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(layer);
                }
            }
        }
    }
}

fn distinct(outputs: &Outputs) -> HashSet<&LayerDigest> {
    let layers = outputs.iter().flatten().flatten();
    layers.map(|(layer, _)| layer).collect()
}

/// A result, for those who look at the cache.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub id: i64,
    pub outputs: Outputs,
    /// Nanoseconds since the epoch.
    pub created: i64,
    pub used: i64,
    pub uses: u64,
    pub text: String,
    pub in_use: bool,
}

/// The results that a build uses or has made. They are not removed to keep to a budget meanwhile. The uses are recorded at its
/// end.
#[derive(Debug)]
pub(crate) struct Uses {
    cache: Arc<Cache>,
    ids: Mutex<Vec<i64>>,
    /// Results that were made meanwhile, whose uses are not counted.
    made: Mutex<Vec<i64>>,
    /// Dropped when nothing is in use any more.
    collection: Option<CollectionAtEnd>,
}

impl Uses {
    /// Has the build cache kept to its budget when these uses have ended.
    pub fn then_collect(mut self, builder: &Arc<Builder>) -> Self {
        self.collection = Some(CollectionAtEnd::new(builder));
        self
    }
}

impl Drop for Uses {
    fn drop(&mut self) {
        let ids = std::mem::take(&mut *self.ids.lock().ignore_poison());
        let made = std::mem::take(&mut *self.made.lock().ignore_poison());
        self.cache.end_uses(&made);
        if ids.is_empty() {
            return;
        }
        self.cache.end_uses(&ids);
        let (cache, collection) = (self.cache.clone(), self.collection.take());
        let write = move || {
            cache.count_uses(&ids);
            // What was used just now is not what goes first.
            drop(collection);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(write)),
            Err(_) => write(),
        }
    }
}

impl Cache {
    /// Opens the cache below an engine's root, and holds its layers in `store`. A damaged database is discarded. If there can be
    /// none, as on a full disk, the cache is in memory until the engine ends.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be created.
    pub fn open(root: &Path, store: &Store) -> Result<Self> {
        let directory = root.join("build");
        fs::create_dir_all(&directory, 0o700)?;
        let path = directory.join("build.db");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let opened = match Database::open(&path, store, &boot) {
            Err(error) if is_damage(&error) => {
                tracing::error!("the build cache {} is discarded: {error}", path.display());
                for suffix in ["", "-wal", "-shm"] {
                    fs::remove_if_exists(directory.join(format!("build.db{suffix}")))?;
                }
                Database::open(&path, store, &boot)
            }
            opened => opened,
        };
        let opened = opened.or_else(|error| {
            let path = path.display();
            tracing::error!(
                "the build cache {path} cannot be opened, and an empty one is used until the next start, when the results that were in it may be lost: {error}"
            );
            Database::in_memory()
        });
        let Database {
            connection,
            reader,
            salt,
            layers,
        } = opened.map_err(failed("create a build cache"))?;
        Ok(Self {
            reader: reader.map(Mutex::new),
            state: Mutex::new(State { connection, layers }),
            in_use: Mutex::default(),
            boot,
            salt,
        })
    }

    /// Begins to note what a build uses.
    pub(crate) fn uses(self: &Arc<Self>) -> Uses {
        Uses {
            cache: self.clone(),
            ids: Mutex::default(),
            made: Mutex::default(),
            collection: None,
        }
    }

    /// The id of this boot.
    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// Returns the result of a key, if it has the outputs that are needed; `uses` keeps it. `lease` holds its layers from then
    /// on.
    pub(crate) fn find(
        &self,
        key: &Digest,
        needed: &[usize],
        lease: &Lease,
        uses: &Uses,
    ) -> Option<CachedResult> {
        let state = self.state.lock().ignore_poison();
        let found = find(&state.connection, key).unwrap_or_else(|error| {
            tracing::warn!("read the build cache: {error}");
            None
        });
        // Under the lock, so that no removal comes between.
        let (id, found) = found.filter(|(_, found)| found.has(needed))?;
        *self.in_use.lock().ignore_poison().entry(id).or_default() += 1;
        uses.ids.lock().ignore_poison().push(id);
        for (layer, _) in found.outputs.iter().flatten().flatten() {
            lease.hold(layer);
        }
        Some(found)
    }

    fn end_uses(&self, ids: &[i64]) {
        let mut in_use = self.in_use.lock().ignore_poison();
        for id in ids {
            if let Some(count) = in_use.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    in_use.remove(id);
                }
            }
        }
    }

    fn count_uses(&self, ids: &[i64]) {
        let mut state = self.state.lock().ignore_poison();
        if let Err(error) = count_uses(&mut state.connection, ids) {
            tracing::warn!("write to the build cache: {error}");
        }
    }

    /// Records a result under its keys, of which the last is the canonical one, and holds its layers in `store`. A result
    /// that one of the keys had before is replaced.
    ///
    /// # Errors
    /// Returns an error if a layer does not exist, or if the disk fails.
    pub(crate) fn insert(
        &self,
        store: &Store,
        keys: &[Digest],
        outputs: &Outputs,
        text: &str,
    ) -> Result<()> {
        self.insert_used(store, keys, outputs, text, &[])
    }

    /// Like [`insert`](Self::insert), for a result that builds use, which keep it.
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    pub(crate) fn insert_used(
        &self,
        store: &Store,
        keys: &[Digest],
        outputs: &Outputs,
        text: &str,
        users: &[Arc<Uses>],
    ) -> Result<()> {
        let mut state = self.state.lock().ignore_poison();
        let state = &mut *state;
        let held = state.layers.add(store, outputs);
        held.map_err(|layer| Error::internal(format!("layer {layer} is missing")))?;
        let inserted = insert(&mut state.connection, keys, outputs, text, &self.boot);
        let (id, gone) = inserted.map_err(|error| {
            state.layers.remove(outputs);
            failed("write to the build cache")(error)
        })?;
        for user in users {
            *self.in_use.lock().ignore_poison().entry(id).or_default() += 1;
            user.made.lock().ignore_poison().push(id);
        }
        for outputs in gone {
            state.layers.remove(&outputs);
        }
        Ok(())
    }

    /// Records a further key of the result that `known` has.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub(crate) fn alias(&self, key: &Digest, known: &Digest) -> Result<()> {
        let mut state = self.state.lock().ignore_poison();
        let replaced =
            alias(&mut state.connection, key, known).map_err(failed("write to the build cache"))?;
        if let Some(outputs) = replaced {
            state.layers.remove(&outputs);
        }
        Ok(())
    }

    /// Returns all results, the oldest first.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub(crate) fn rows(&self) -> Result<Vec<Row>> {
        let read = match &self.reader {
            Some(reader) => rows(&reader.lock().ignore_poison()),
            None => rows(&self.state.lock().ignore_poison().connection),
        };
        let mut rows = read.map_err(failed("read the build cache"))?;
        let in_use = self.in_use.lock().ignore_poison();
        for row in &mut rows {
            row.in_use = in_use.contains_key(&row.id);
        }
        Ok(rows)
    }

    /// Removes those of these results that no build uses, and returns them. Nothing of the cache holds their layers any
    /// more then.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub(crate) fn remove(&self, ids: &[i64]) -> Result<Vec<i64>> {
        let mut state = self.state.lock().ignore_poison();
        let ids: Vec<i64> = {
            let in_use = self.in_use.lock().ignore_poison();
            let ids = ids.iter().filter(|id| !in_use.contains_key(id));
            ids.copied().collect()
        };
        let gone =
            remove(&mut state.connection, &ids).map_err(failed("write to the build cache"))?;
        for outputs in gone {
            state.layers.remove(&outputs);
        }
        Ok(ids)
    }

    /// Returns the number of the newest result.
    pub(crate) fn newest(&self) -> i64 {
        let state = self.state.lock().ignore_poison();
        let select = "SELECT coalesce(max(id), 0) FROM results";
        let newest = state.connection.query_row(select, [], |row| row.get(0));
        newest.unwrap_or(0)
    }

    /// Notes that what was recorded up to a result is on disk.
    pub(crate) fn flushed(&self, newest: i64) {
        let state = self.state.lock().ignore_poison();
        let update = "UPDATE results SET boot = '' WHERE id <= ?1 AND boot <> ''";
        if let Err(error) = state.connection.execute(update, [newest]) {
            tracing::warn!("write to the build cache: {error}");
        }
    }
}

fn failed(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
    move |error| Error::internal(format!("{operation}: {error}"))
}

/// Returns whether a database is of no use any more; other errors, such as those of a full disk, pass.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    let code = error.sqlite_error_code();
    matches!(code, Some(DatabaseCorrupt | NotADatabase))
}

/// A database, with what is read of it when it is opened.
struct Database {
    connection: Connection,
    reader: Option<Connection>,
    salt: Vec<u8>,
    layers: Layers,
}

impl Database {
    fn open(path: &Path, store: &Store, boot: &str) -> rusqlite::Result<Self> {
        let connection = connect(path)?;
        Ok(Self {
            salt: ingredients::salt(&connection)?,
            layers: hold(&connection, store, boot)?,
            reader: Some(Connection::open(path)?),
            connection,
        })
    }

    fn in_memory() -> rusqlite::Result<Self> {
        let connection = Connection::open_in_memory()?;
        connection.execute_batch(TABLES)?;
        Ok(Self {
            salt: ingredients::salt(&connection)?,
            layers: Layers::default(),
            reader: None,
            connection,
        })
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit may be lost with the power; the database stays whole.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version != VERSION {
        connection.execute_batch("DROP TABLE IF EXISTS results; DROP TABLE IF EXISTS keys;")?;
        connection.pragma_update(None, "user_version", VERSION)?;
    }
    connection.execute_batch(TABLES)?;
    let check: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0))?;
    if check == "ok" {
        Ok(connection)
    } else {
        Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
            Some(check),
        ))
    }
}

/// Removes the results that cannot be used any more, and returns the layers of the others.
fn hold(connection: &Connection, store: &Store, boot: &str) -> rusqlite::Result<Layers> {
    let mut layers = Layers::default();
    let mut lost = Vec::new();
    let mut select = connection.prepare("SELECT id, outputs, boot FROM results")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let (id, outputs, made): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let is_flushed = made.is_empty() || made == boot;
        let outputs = parse(&outputs).filter(|_| is_flushed);
        if outputs.is_none_or(|outputs| layers.add(store, &outputs).is_err()) {
            lost.push(id);
        }
    }
    for id in lost {
        delete(connection, id)?;
    }
    Ok(layers)
}

/// Removes a result with its keys, and returns it.
fn delete(connection: &Connection, id: i64) -> rusqlite::Result<Option<Outputs>> {
    let outputs: Option<String> = connection
        .prepare_cached("SELECT outputs FROM results WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    for delete in [
        "DELETE FROM keys WHERE result = ?1",
        "DELETE FROM results WHERE id = ?1",
    ] {
        connection.prepare_cached(delete)?.execute([id])?;
    }
    Ok(outputs.and_then(|outputs| parse(&outputs)))
}

fn find(connection: &Connection, key: &Digest) -> rusqlite::Result<Option<(i64, CachedResult)>> {
    let select =
        "SELECT id, outputs, canonical FROM results JOIN keys ON result = id WHERE key = ?1";
    let found: Option<(i64, String, Vec<u8>)> = connection
        .prepare_cached(select)?
        .query_row([key.as_bytes().as_slice()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    Ok(found.and_then(|(id, outputs, canonical)| {
        let outputs = parse(&outputs)?;
        let canonical = Digest::from_bytes(canonical.try_into().ok()?);
        let found = CachedResult {
            outputs,
            canonical,
            is_foreign: false,
        };
        Some((id, found))
    }))
}

fn count_uses(connection: &mut Connection, ids: &[i64]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let update = "UPDATE results SET used = ?1, uses = uses + 1 WHERE id = ?2";
        let mut update = transaction.prepare_cached(update)?;
        let now = whelk_engine::events::now();
        for id in ids {
            update.execute(params![now, id])?;
        }
    }
    transaction.commit()
}

fn insert(
    connection: &mut Connection,
    keys: &[Digest],
    outputs: &Outputs,
    text: &str,
    boot: &str,
) -> rusqlite::Result<(i64, Vec<Outputs>)> {
    let transaction = connection.transaction()?;
    let now = whelk_engine::events::now();
    let canonical = keys.last().map_or(&[][..], |key| key.as_bytes().as_slice());
    transaction.execute(
        "INSERT INTO results (outputs, canonical, boot, created, used, uses, text)
         VALUES (?1, ?2, ?3, ?4, ?4, 0, ?5)",
        params![encode(outputs), canonical, boot, now, text],
    )?;
    let id = transaction.last_insert_rowid();
    let mut gone = Vec::new();
    for key in keys {
        gone.extend(give(&transaction, key, id)?);
    }
    transaction.commit()?;
    Ok((id, gone))
}

fn alias(
    connection: &mut Connection,
    key: &Digest,
    known: &Digest,
) -> rusqlite::Result<Option<Outputs>> {
    let transaction = connection.transaction()?;
    let gone = match result_of(&transaction, known)? {
        Some(id) => give(&transaction, key, id)?,
        None => None,
    };
    transaction.commit()?;
    Ok(gone)
}

fn result_of(connection: &Connection, key: &Digest) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT result FROM keys WHERE key = ?1")?
        .query_row([key.as_bytes().as_slice()], |row| row.get(0))
        .optional()
}

/// Gives a key to a result. The one that had it is removed if it has no other: nobody would find it. Returns that one.
fn give(connection: &Connection, key: &Digest, id: i64) -> rusqlite::Result<Option<Outputs>> {
    let replaced = result_of(connection, key)?.filter(|replaced| *replaced != id);
    connection.execute(
        "INSERT OR REPLACE INTO keys (key, result) VALUES (?1, ?2)",
        params![key.as_bytes().as_slice(), id],
    )?;
    let Some(replaced) = replaced else {
        return Ok(None);
    };
    let has_key = "SELECT EXISTS (SELECT 1 FROM keys WHERE result = ?1)";
    if connection.query_row(has_key, [replaced], |row| row.get(0))? {
        return Ok(None);
    }
    delete(connection, replaced)
}

fn rows(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let select = "SELECT id, outputs, created, used, uses, text FROM results ORDER BY id";
    let mut select = connection.prepare(select)?;
    let rows = select.query_map([], |row| {
        Ok(Row {
            id: row.get(0)?,
            outputs: parse(&row.get::<_, String>(1)?).unwrap_or_default(),
            created: row.get(2)?,
            used: row.get(3)?,
            uses: row.get::<_, i64>(4)?.try_into().unwrap_or(0),
            text: row.get(5)?,
            in_use: false,
        })
    })?;
    rows.collect()
}

fn remove(connection: &mut Connection, ids: &[i64]) -> rusqlite::Result<Vec<Outputs>> {
    let transaction = connection.transaction()?;
    let mut gone = Vec::new();
    for id in ids {
        gone.extend(delete(&transaction, *id)?);
    }
    transaction.commit()?;
    Ok(gone)
}

fn encode(outputs: &Outputs) -> String {
    let layer = |(layer, created): &(LayerDigest, i64)| (layer.to_string(), *created);
    let stack = |layers: &Layered| -> Vec<(String, i64)> { layers.iter().map(layer).collect() };
    let stacks = outputs.iter();
    let stacks: Vec<Option<Vec<(String, i64)>>> =
        stacks.map(|output| output.as_ref().map(stack)).collect();
    serde_json::to_string(&stacks).unwrap_or_default()
}

fn parse(text: &str) -> Option<Outputs> {
    let stacks: Vec<Option<Vec<(String, i64)>>> = serde_json::from_str(text).ok()?;
    let layer =
        |(layer, created): (String, i64)| Some((layer.parse::<LayerDigest>().ok()?, created));
    let stack =
        |layers: Vec<(String, i64)>| -> Option<Layered> { layers.into_iter().map(layer).collect() };
    let output = |output: Option<Vec<(String, i64)>>| match output {
        Some(layers) => Some(Some(stack(layers)?)),
        None => Some(None),
    };
    stacks.into_iter().map(output).collect()
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    struct Root(Scratch);

    impl Root {
        fn new(name: &str) -> Self {
            Self(Scratch::temporary(&format!("build-cache-{name}")).unwrap())
        }

        fn open(&self) -> (Arc<Cache>, Store) {
            let store = Store::open(self.0.path()).unwrap();
            let cache = Cache::open(self.0.path(), &store).unwrap();
            (Arc::new(cache), store)
        }

        /// Adds an empty layer that is complete enough for the cache.
        fn layer(&self, name: &str) -> LayerDigest {
            let digest = LayerDigest::of(name.as_bytes());
            let path = self.0.path().join("layers").join(digest.hex());
            fs::create_dir_all(path.join("fs"), 0o755).unwrap();
            digest
        }
    }

    fn find(cache: &Arc<Cache>, store: &Store, key: &Digest) -> Option<Outputs> {
        let found = cache.find(key, &[0], &store.leases.take(), &cache.uses());
        found.map(|found| found.outputs)
    }

    #[test]
    fn what_a_build_uses_is_not_removed() {
        let root = Root::new("used");
        let (cache, store) = root.open();
        let key = Digest::of(b"1");
        let outputs = vec![Some(vec![(root.layer("one"), 7)])];
        cache.insert(&store, &[key], &outputs, "RUN x").unwrap();
        let uses = cache.uses();
        assert!(
            cache
                .find(&key, &[0], &store.leases.take(), &uses)
                .is_some()
        );
        let row = &cache.rows().unwrap()[0];
        assert_eq!(
            (row.text.as_str(), row.uses, row.in_use),
            ("RUN x", 0, true)
        );
        assert!(cache.remove(&[row.id]).unwrap().is_empty());
        drop(uses);
        assert_eq!(cache.rows().unwrap()[0].uses, 1);
        assert_eq!(cache.remove(&[row.id]).unwrap(), [row.id]);
        assert_eq!(find(&cache, &store, &key), None);
    }

    #[test]
    fn without_a_database_the_cache_is_in_memory() {
        let root = Root::new("memory");
        fs::create_dir_all(root.0.path().join("build/build.db"), 0o700).unwrap();
        let (cache, store) = root.open();
        let key = Digest::of(b"1");
        let outputs = vec![Some(vec![(root.layer("one"), 7)])];
        cache.insert(&store, &[key], &outputs, "RUN x").unwrap();
        assert_eq!(cache.rows().unwrap().len(), 1);
        assert_eq!(find(&cache, &store, &key), Some(outputs));
    }

    #[test]
    fn the_end_of_a_use_does_not_wait_for_the_disk() {
        let root = Root::new("uses");
        let (cache, store) = root.open();
        let key = Digest::of(b"1");
        let outputs = vec![Some(vec![(root.layer("one"), 7)])];
        cache.insert(&store, &[key], &outputs, "").unwrap();
        let uses = cache.uses();
        assert!(
            cache
                .find(&key, &[0], &store.leases.take(), &uses)
                .is_some()
        );
        let id = cache.rows().unwrap()[0].id;
        // As while something is written.
        let state = cache.state.lock().unwrap();
        cache.end_uses(&[id]);
        drop(state);
        assert!(!cache.rows().unwrap()[0].in_use);
    }

    #[test]
    fn results_stay_with_their_layers() {
        let root = Root::new("results");
        let (cache, store) = root.open();
        let layers = ["one", "two"].map(|name| root.layer(name));
        let outputs = vec![
            Some(layers.iter().map(|layer| (layer.clone(), 7)).collect()),
            None,
            Some(vec![]),
        ];
        let [first, second, third] = [b"1", b"2", b"3"].map(|key| Digest::of(key));
        cache.insert(&store, &[first], &outputs, "RUN x").unwrap();
        cache.alias(&second, &first).unwrap();
        cache.alias(&third, &third).unwrap();
        drop((cache, store));
        let (cache, store) = root.open();
        assert!(
            store.leases.holds(&layers[0]),
            "until the result is removed"
        );
        let lease = store.leases.take();
        for key in [first, second] {
            let find = |needed: &[usize]| cache.find(&key, needed, &lease, &cache.uses());
            assert_eq!((find(&[1]), find(&[0, 3])), (None, None));
            let found = find(&[0, 2]).unwrap();
            assert_eq!((&found.outputs, found.canonical), (&outputs, first));
        }
        assert_eq!(cache.find(&third, &[], &lease, &cache.uses()), None);
        drop((cache, store));
        fs::remove_tree(root.0.path().join("layers").join(layers[1].hex())).unwrap();
        let (cache, store) = root.open();
        assert_eq!(find(&cache, &store, &first), None);
        assert!(!store.leases.holds(&layers[0]));
    }

    #[test]
    fn a_result_without_keys_is_removed() {
        let root = Root::new("replaced");
        let (cache, store) = root.open();
        let keys = [b"1", b"2", b"3"].map(|key| Digest::of(key));
        let outputs = vec![Some(vec![(root.layer("one"), 7)])];
        for keys in [&keys[..1], &keys[1..]] {
            cache.insert(&store, keys, &outputs, "").unwrap();
        }
        // The first result's only key becomes one of the second.
        cache.alias(&keys[0], &keys[2]).unwrap();
        assert_eq!(cache.rows().unwrap().len(), 1);
        let layer = &outputs[0].as_ref().unwrap()[0].0;
        assert!(store.leases.holds(layer), "the other result has it, too");
        assert!(find(&cache, &store, &keys[0]).is_some());
        // One of its three keys is replaced: it stays.
        cache.insert(&store, &keys[..1], &outputs, "").unwrap();
        let rows = cache.rows().unwrap();
        assert_eq!(rows.len(), 2);
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        for (id, is_held) in ids.into_iter().zip([true, false]) {
            cache.remove(&[id]).unwrap();
            assert_eq!(store.leases.holds(layer), is_held);
        }
        let missing = vec![Some(vec![(LayerDigest::of(b"missing"), 7)])];
        assert!(cache.insert(&store, &keys, &missing, "").is_err());
        assert!(cache.rows().unwrap().is_empty());
    }

    #[test]
    fn what_was_not_flushed_is_lost_with_the_boot() {
        let root = Root::new("boot");
        let keys = [b"1", b"2"].map(|key| Digest::of(key));
        let (cache, store) = root.open();
        let outputs = vec![Some(vec![(root.layer("one"), 7)])];
        cache.insert(&store, &keys[..1], &outputs, "").unwrap();
        cache.flushed(i64::MAX);
        cache.insert(&store, &keys[1..], &outputs, "").unwrap();
        let update = "UPDATE results SET boot = 'other' WHERE boot <> ''";
        let state = cache.state.lock().unwrap();
        assert_eq!(state.connection.execute(update, []).unwrap(), 1);
        drop(state);
        drop((cache, store));
        let (cache, store) = root.open();
        let found = keys.map(|key| find(&cache, &store, &key).is_some());
        assert_eq!(found, [true, false]);
    }

    #[test]
    fn a_damaged_cache_is_empty() {
        let root = Root::new("damaged");
        let key = Digest::of(b"1");
        for damage in [
            &b"not a database, but long enough to be read as one"[..],
            b"",
        ] {
            let (cache, store) = root.open();
            let outputs = vec![Some(vec![(root.layer("one"), 7)])];
            cache.insert(&store, &[key], &outputs, "").unwrap();
            drop((cache, store));
            let directory = root.0.path().join("build");
            for suffix in ["-wal", "-shm"] {
                fs::remove_if_exists(directory.join(format!("build.db{suffix}"))).unwrap();
            }
            fs::write(directory.join("build.db"), damage).unwrap();
            let (cache, store) = root.open();
            assert_eq!(find(&cache, &store, &key), None);
        }
    }
}
