//! Reads what can be read of the old store, and the copies of its records.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use whelk_sys::fs;

use super::super::check::{FILE, wrong_file};
use super::super::copies::{REST, Rest, read_copy};
use super::Repaired;
use crate::error::Result;
use crate::instance::lost_and_found;
use crate::model::ContainerRecord;
use crate::model::network::NetworkRecord;
use crate::model::volume::VolumeRecord;
use crate::records::{self, ImageRecord, decode};

/// The readable content of the old store.
#[derive(Debug, Default)]
pub(super) struct Old {
    pub(super) wrong: Option<String>,
    /// Whether all of it could be read.
    pub(super) is_intact: bool,
    /// What could not be read, for the report.
    pub(super) unreadable: Vec<String>,
    pub(super) meta: BTreeMap<String, String>,
    pub(super) containers: BTreeMap<String, ContainerRecord>,
    pub(super) rest: Rest,
}

impl Old {
    /// Reads the store from a copy, because SQLite changes the files that it opens.
    pub(super) fn read(root: &Path, scratch: &Path) -> Result<Self> {
        let mut old = Self {
            wrong: wrong_file(root)?,
            ..Self::default()
        };
        for suffix in ["", "-wal", "-journal"] {
            let name = format!("{FILE}{suffix}");
            if fs::exists(root.join(&name)) {
                fs::write(scratch.join(&name), fs::read(root.join(&name))?)?;
            }
        }
        if !fs::exists(scratch.join(FILE)) {
            return Ok(old);
        }
        let connection = Connection::open(scratch.join(FILE))?;
        let checked: rusqlite::Result<String> =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
        match checked {
            Ok(text) if text == "ok" => old.is_intact = old.wrong.is_none(),
            Ok(text) => drop(
                old.wrong
                    .get_or_insert(format!("the engine's store is damaged: {text}")),
            ),
            Err(error) => drop(
                old.wrong
                    .get_or_insert(format!("the engine's store is damaged: {error}")),
            ),
        }
        let mut table = |name: &str, key: &str, value: &str| {
            let query = format!("SELECT {key}, {value} FROM {name} ORDER BY {key}");
            let (rows, all) = rows(&connection, &query);
            if !all {
                old.is_intact = false;
                old.unreadable.push(format!(
                    "not all of the table of {name} in the old store can be read"
                ));
            }
            rows
        };
        old.meta = table("meta", "key", "value");
        let containers = table("containers", "id", "record");
        let networks = table("networks", "id", "record");
        let images = table("images", "id", "record");
        let tags = table("tags", "name", "image");
        let volumes = table("volumes", "name", "record");
        old.containers = old
            .parse("container", containers, |key, text| {
                let record = records::container(text.as_bytes(), root);
                let record = record.map_err(|error| error.to_string())?;
                is_of(key, &record.id).map(|()| record)
            })
            .into_iter()
            .map(|record| (record.id.clone(), record))
            .collect();
        let mut values = |kind: Kind, rows| {
            old.parse(kind.name(), rows, |key, text| {
                is_of(key, &kind.key(text)?)?;
                serde_json::from_str(text).map_err(|error| error.to_string())
            })
        };
        let networks = values(Kind::Network, networks);
        let images = values(Kind::Image, images);
        let volumes = values(Kind::Volume, volumes);
        old.rest = Rest {
            meta: old.meta.clone(),
            networks,
            images,
            tags,
            volumes,
        };
        Ok(old)
    }

    /// Parses the records of a table, which `read` gets with their keys. Notes those that cannot be
    /// read.
    fn parse<T>(
        &mut self,
        kind: &str,
        rows: BTreeMap<String, String>,
        read: impl Fn(&str, &str) -> std::result::Result<T, String>,
    ) -> Vec<T> {
        let mut parsed = Vec::new();
        for (key, text) in rows {
            match read(&key, &text) {
                Ok(record) => parsed.push(record),
                Err(error) => {
                    self.is_intact = false;
                    self.unreadable.push(format!(
                        "the record of {kind} {key} in the old store cannot be read: {error}"
                    ));
                }
            }
        }
        parsed
    }
}

/// The records that are kept as JSON: a repair leaves their fields as they are.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Network,
    Image,
    Volume,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Image => "image",
            Self::Volume => "volume",
        }
    }

    /// Returns the key of a record.
    ///
    /// # Errors
    /// Returns an error if the engine could not read the record.
    fn key(self, text: &str) -> std::result::Result<String, String> {
        let text = text.as_bytes();
        let key = match self {
            Self::Network => decode(text).map(|NetworkRecord { id, .. }| id),
            Self::Image => decode(text).map(|ImageRecord { id, .. }| id.to_string()),
            Self::Volume => decode(text).map(|VolumeRecord { name, .. }| name),
        };
        let key = key.map_err(|error| error.to_string())?;
        if key.is_empty() {
            return Err("it names no object".into());
        }
        Ok(key)
    }
}

/// Checks that a record is that of the object with its key.
///
/// # Errors
/// Returns an error if it is the record of another object, `found`.
fn is_of(key: &str, found: &str) -> std::result::Result<(), String> {
    if key == found {
        return Ok(());
    }
    Err(format!("it is the record of {found}"))
}

/// Removes entries that are no records from the copy [`REST`], and reports them.
pub(super) fn keep_records(rest: &mut Rest, path: &Path, report: &mut Repaired) {
    for (kind, list) in [
        (Kind::Network, &mut rest.networks),
        (Kind::Image, &mut rest.images),
        (Kind::Volume, &mut rest.volumes),
    ] {
        let mut number = 0;
        list.retain(|value| {
            number += 1;
            let Err(error) = kind.key(&value.to_string()) else {
                return true;
            };
            report.report(format!(
                "the record of {} no. {number} in {} cannot be read: {error}",
                kind.name(),
                path.display()
            ));
            false
        });
    }
}

/// Reads the rows of a table, forwards and, if that fails, backwards. Returns those that could be
/// read, and whether these are all.
fn rows(connection: &Connection, query: &str) -> (BTreeMap<String, String>, bool) {
    let mut found = BTreeMap::new();
    for order in ["ASC", "DESC"] {
        let mut read = || -> rusqlite::Result<()> {
            let mut statement = connection.prepare(&format!("{query} {order}"))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                if let (Ok(key), Ok(value)) = (row.get(0), row.get(1)) {
                    found.insert(key, value);
                }
            }
            Ok(())
        };
        if read().is_ok() {
            return (found, true);
        }
    }
    (found, false)
}

/// A container's directory, with the copy of its record.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) record: Option<ContainerRecord>,
}

impl Found {
    /// Returns whether the directory is in `containers`, and not in `lost+found`.
    pub(super) fn is_in_place(&self, root: &Path) -> bool {
        self.path.parent() == Some(&root.join("containers"))
    }
}

/// Returns all directories of containers by name, including those in `lost+found`.
pub(super) fn find_containers(root: &Path) -> Result<BTreeMap<String, Found>> {
    let mut found = BTreeMap::new();
    for directory in [
        lost_and_found(root).join("containers"),
        root.join("containers"),
    ] {
        if !fs::exists(&directory) {
            continue;
        }
        for entry in fs::list(&directory)? {
            let (path, name) = (
                entry.path(),
                entry.file_name().to_string_lossy().into_owned(),
            );
            let record = read_copy(root, &path)?;
            found.insert(name, Found { path, record });
        }
    }
    Ok(found)
}

/// Reads the copy [`REST`]. Returns `None` if there is no valid one, or if it cannot be read and is
/// not `needed`.
///
/// # Errors
/// Returns an error if a newer engine has written it.
pub(super) fn read_rest(root: &Path, needed: bool) -> Result<Option<Rest>> {
    let path = root.join(REST);
    match fs::read(&path) {
        Ok(text) => Rest::parse(&text, &path),
        Err(error) if error.is_not_found() || !needed => Ok(None),
        Err(error) => Err(error.into()),
    }
}
