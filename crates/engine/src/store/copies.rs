//! Copies of the records, for a repair: `containers/<id>/container.json` for each container, and
//! one file for networks, images and their names, and volumes of plugins. Local volumes write
//! theirs when they are created.
//!
//! Copies are written at flushes. After a container was created or its settings have changed, that
//! is before the request is answered; after other changes of its record about a second later. Files
//! are replaced atomically, but not synced. A copy that cannot be written, because the disk is full,
//! is tried again by the background flush; the request succeeds without it, and `info` has a warning
//! meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use whelk_sys::sync::IgnorePoison as _;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use whelk_sys::fs;

use super::RecordStore;
use crate::error::{Error, Result};
use crate::model::ContainerRecord;
use crate::records::{self, SCHEMA_VERSION, Unreadable};

/// The copy of a container's record, in its directory.
const CONTAINER_COPY: &str = "container.json";
/// The copy of the other records, in the root directory.
pub(super) const REST: &str = "store.json";
/// Maximum size of a copy that is read, in bytes; the API's limit of a request's body is smaller.
const MAX_SIZE: u64 = 64 << 20;

/// The copies that are to be written.
#[derive(Debug)]
pub(super) struct Copies {
    root: PathBuf,
    pending: Mutex<Pending>,
}

/// The pending copies.
#[derive(Debug, Default)]
struct Pending {
    containers: BTreeMap<String, String>,
    /// Ids of the containers whose copy is due with the next flush.
    due: BTreeSet<String>,
    /// Ids of the containers whose copy is being written.
    written: BTreeSet<String>,
    rest: bool,
    /// Why copies could not be written at the last attempt; `None` if all were.
    failure: Option<String>,
}

/// The content of [`REST`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Rest {
    pub meta: BTreeMap<String, String>,
    pub networks: Vec<Value>,
    pub images: Vec<Value>,
    pub tags: BTreeMap<String, String>,
    pub volumes: Vec<Value>,
}

impl Rest {
    /// Reads the text of a copy. Returns `None` if it is not valid.
    ///
    /// # Errors
    /// Returns an error if a newer engine has written it, whatever its form.
    pub(super) fn parse(text: &[u8], path: &Path) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Versioned {
            meta: Schema,
        }
        #[derive(Deserialize)]
        struct Schema {
            schema: String,
        }
        if let Ok(Versioned { meta }) = serde_json::from_slice(text) {
            Self {
                meta: [("schema".to_owned(), meta.schema)].into(),
                ..Self::default()
            }
            .check_version(path)?;
        }
        Ok(serde_json::from_slice(text).ok())
    }

    /// Checks the schema version, which is in the copy of the table `meta`.
    ///
    /// # Errors
    /// Returns an error if a newer engine has written it.
    pub(super) fn check_version(&self, what: &Path) -> Result<()> {
        let version = self.meta.get("schema").and_then(|text| text.parse().ok());
        match version {
            Some(version) if version > SCHEMA_VERSION => {
                Err(records::newer(&what.display().to_string(), version))
            }
            _ => Ok(()),
        }
    }
}

impl Copies {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            pending: Mutex::default(),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().ignore_poison()
    }

    pub(super) fn put(&self, id: &str, text: String, due: bool) {
        let mut pending = self.pending();
        pending.containers.insert(id.to_owned(), text);
        if due {
            pending.due.insert(id.to_owned());
        }
    }

    pub(super) fn forget(&self, id: &str) {
        let mut pending = self.pending();
        pending.containers.remove(id);
        pending.due.remove(id);
    }

    pub(super) fn put_rest(&self) {
        self.pending().rest = true;
    }

    /// Puts a copy back that could not be written, unless there is a newer one.
    fn put_back(&self, id: String, text: String) {
        self.pending().containers.entry(id).or_insert(text);
    }

    /// Returns why copies could not be written at the last attempt.
    pub(super) fn failure(&self) -> Option<String> {
        self.pending().failure.clone()
    }

    /// Returns whether the copy of a container is going to be written soon. Copies that could not be written are
    /// not waited for.
    fn awaits(&self, id: &str) -> bool {
        let pending = self.pending();
        let is_awaited = pending.containers.contains_key(id) || pending.written.contains(id);
        is_awaited && pending.failure.is_none()
    }

    /// Records the outcome of an attempt to write all copies (`None`: all were written), and logs a
    /// change.
    fn note(&self, failure: Option<String>) {
        let mut pending = self.pending();
        match (&pending.failure, &failure) {
            (None, Some(error)) => {
                tracing::warn!("copy the store's records: {error}; trying again until it succeeds");
            }
            (Some(_), None) => tracing::info!("the copies of the store's records are up to date"),
            _ => {}
        }
        pending.failure = failure;
    }

    /// Takes the copies to write now: those that are due, or all.
    fn take(&self, all: bool) -> (BTreeMap<String, String>, bool) {
        let mut pending = self.pending();
        let rest = std::mem::take(&mut pending.rest);
        let due = std::mem::take(&mut pending.due);
        let taken = if all {
            std::mem::take(&mut pending.containers)
        } else {
            due.into_iter()
                .filter_map(|id| pending.containers.remove_entry(&id))
                .collect()
        };
        pending.written.extend(taken.keys().cloned());
        (taken, rest)
    }
}

impl RecordStore {
    pub(super) fn write_copies(&self, all: bool) {
        let (containers, rest) = self.copies.take(all);
        let mut failure = None;
        for (id, text) in containers {
            let directory = self.copies.root.join("containers").join(&id);
            match fs::replace(directory.join(CONTAINER_COPY), &text, 0o600) {
                Err(error) if !error.is_not_found() => {
                    self.copies.put_back(id.clone(), text);
                    failure = Some(error.to_string());
                }
                // Removed meanwhile.
                _ => {}
            }
            self.copies.pending().written.remove(&id);
        }
        if rest && let Err(error) = self.write_rest() {
            self.copies.put_rest();
            failure = Some(error.to_string());
        }
        // A flush of only some copies cannot tell that the others are up to date.
        if all || failure.is_some() {
            self.copies.note(failure);
        }
    }

    /// Returns whether the copy of a container's record is going to be written soon.
    pub(crate) fn awaits_copy(&self, id: &str) -> bool {
        self.copies.awaits(id)
    }

    fn write_rest(&self) -> Result<()> {
        let rest = read_rest(&*self.connection()?)?;
        let text = serde_json::to_vec(&rest)
            .map_err(|error| Error::internal(format!("{REST}: {error}")))?;
        Ok(fs::replace(self.copies.root.join(REST), text, 0o600)?)
    }

    /// Writes the copies that are missing or differ from the store's records.
    pub(crate) fn update_copies(&self, records: &[ContainerRecord]) -> Result<()> {
        for record in records {
            let text = records::encode(record)?;
            let path = self
                .copies
                .root
                .join("containers")
                .join(&record.id)
                .join(CONTAINER_COPY);
            if fs::read_at_most(path, MAX_SIZE).ok().as_deref() != Some(text.as_bytes()) {
                self.copies.put(&record.id, text, false);
            }
        }
        if !fs::exists(self.copies.root.join(REST)) {
            self.copies.put_rest();
        }
        self.write_copies(true);
        Ok(())
    }
}

/// Reads the rows for [`REST`].
fn read_rest(connection: &Connection) -> Result<Rest> {
    let mut rest = Rest::default();
    let all = |query: &str| -> Result<Vec<(String, String)>> {
        let mut statement = connection.prepare(query)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    };
    let values = |rows: Vec<(String, String)>| {
        rows.into_iter()
            .filter_map(|(_, text)| serde_json::from_str(&text).ok())
            .collect()
    };
    rest.meta = all("SELECT key, value FROM meta")?.into_iter().collect();
    rest.networks = values(all("SELECT id, record FROM networks")?);
    rest.images = values(all("SELECT id, record FROM images")?);
    rest.tags = all("SELECT name, image FROM tags")?.into_iter().collect();
    let volumes: Vec<Value> = values(all("SELECT name, record FROM volumes")?);
    rest.volumes = volumes
        .into_iter()
        .filter(|volume| volume["Driver"] != crate::model::volume::LOCAL)
        .collect();
    Ok(rest)
}

/// Reads the copy of the record in a container's directory. Returns `None` if there is no valid
/// one.
///
/// # Errors
/// Returns an error if a newer engine has written the copy.
pub(crate) fn read_copy(root: &Path, directory: &Path) -> Result<Option<ContainerRecord>> {
    let path = directory.join(CONTAINER_COPY);
    let Ok(text) = fs::read_at_most(&path, MAX_SIZE) else {
        return Ok(None);
    };
    match records::container(&text, root) {
        // A copy of another container's directory has the other's id.
        Ok(record)
            if directory
                .file_name()
                .is_some_and(|name| name == record.id.as_str()) =>
        {
            Ok(Some(record))
        }
        Ok(_) | Err(Unreadable::Invalid(_)) => Ok(None),
        Err(Unreadable::Newer(version)) => {
            Err(records::newer(&path.display().to_string(), version))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RecordStore, new_root};
    use super::*;

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
        assert!(!store.awaits_copy("one"));
        store.insert_container(&record).unwrap();
        assert!(store.awaits_copy("one"));
        store.flush(false).unwrap();
        assert!(!store.awaits_copy("one"), "a copy that cannot be written");
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
