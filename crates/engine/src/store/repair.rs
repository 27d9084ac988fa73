//! Rebuilds the store while no engine runs, from the readable records of the old store and the
//! copies in the directories.
//!
//! Nothing is deleted. The new store is created beside the old one and replaces it atomically,
//! after the old one was linked or moved to `lost+found/store-<time>`. An interrupted repair can be
//! run again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};
use serde_json::Value;
use whelk_image::{Algorithm, ImageConfig, Reference, Scratch};
use whelk_sys::fs;

use super::check::{FILE, REBUILT, wrong_file};
use super::copies::{REST, Rest};
use super::flush::sync;
use super::{migrate, read_copy};
use crate::error::{Error, Result};
use crate::events::now;
use crate::instance::lost_and_found;
use crate::model::ContainerRecord;
use crate::model::network::NetworkRecord;
use crate::model::volume::VolumeRecord;
use crate::records::{self, ImageRecord, decode, encode};

/// A new store that is being created, and one that is complete.
const UNFINISHED: &str = "store.db.unfinished";
const NEW: &str = "store.db.new";

/// The report of a repair, in lines for the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    pub lines: Vec<String>,
}

impl Repaired {
    fn report(&mut self, line: String) {
        self.lines.push(line);
    }
}

/// Rebuilds the store below `root`, unless it is intact and has records of all containers. The
/// caller holds the root's lock.
///
/// # Errors
/// Returns an error if the root cannot be read or written. Everything that existed before still
/// exists then.
pub fn repair(root: &Path) -> Result<Repaired> {
    let mut report = Repaired::default();
    if fs::exists(root.join(NEW)) {
        report.report("finishing an earlier repair that was interrupted".into());
    } else {
        // Not with the store of images, which changes the root when it is opened.
        fs::create_dir_all(root.join("tmp"), 0o700)?;
        let scratch = Scratch::at(root.join(format!("tmp/repair-{}", now())))?;
        let mut old = Old::read(root, scratch.path())?;
        drop(scratch);
        old.rest.check_version(&root.join(FILE))?;
        let found = find_containers(root)?;
        let known: BTreeSet<&str> = (old.rest.volumes.iter())
            .filter_map(|volume| volume["Name"].as_str())
            .collect();
        records::refuse_newer_volumes(&root.join("volumes"), |name| known.contains(name))?;
        let is_lost = |(id, found): (&String, &Found)| {
            found
                .record
                .as_ref()
                .is_some_and(|record| !record.host.auto_remove)
                && found.is_in_place(root)
                && !old.containers.contains_key(id)
        };
        if old.is_intact && found.iter().any(is_lost) {
            old.is_intact = false;
            old.wrong = Some(
                "the engine's store lacks containers: it is older than their directories".into(),
            );
        }
        let mut copy = read_rest(root, !old.is_intact)?;
        if old.is_intact
            && found
                .iter()
                .all(|(id, found)| found.record.is_none() || old.containers.contains_key(id))
        {
            report.report(
                "the store is intact and has a record of every container: nothing was changed"
                    .into(),
            );
            return Ok(report);
        }
        if let Some(wrong) = &old.wrong {
            report.report(wrong.clone());
        }
        report.lines.append(&mut old.unreadable);
        if let Some(copy) = &mut copy {
            keep_records(copy, &root.join(REST), &mut report);
        }
        let images = whelk_image::Store::open(root)?;
        let rebuilt = rebuild(old, copy, &found, &images, root, &mut report)?;
        write(root, &rebuilt)?;
        for record in &rebuilt.containers {
            let path = root.join("containers").join(&record.id);
            if let Some(found) = found
                .get(&record.id)
                .filter(|found| !found.is_in_place(root))
            {
                fs::rename(&found.path, &path)?;
                report.report(format!(
                    "container {} is restored from {}",
                    record.name,
                    found.path.display()
                ));
            }
        }
        fs::rename(root.join(UNFINISHED), root.join(NEW))?;
    }
    let old_files = replace_store(root)?;
    report.report(format!(
        "the old store's files are in {}",
        old_files.display()
    ));
    Ok(report)
}

/// The readable content of the old store.
#[derive(Debug, Default)]
struct Old {
    wrong: Option<String>,
    /// Whether all of it could be read.
    is_intact: bool,
    /// What could not be read, for the report.
    unreadable: Vec<String>,
    meta: BTreeMap<String, String>,
    containers: BTreeMap<String, ContainerRecord>,
    rest: Rest,
}

impl Old {
    /// Reads the store from a copy, because SQLite changes the files that it opens.
    fn read(root: &Path, scratch: &Path) -> Result<Self> {
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

/// # Errors
/// Returns an error if the record with this key is that of another object, `found`.
fn is_of(key: &str, found: &str) -> std::result::Result<(), String> {
    if key == found {
        return Ok(());
    }
    Err(format!("it is the record of {found}"))
}

/// Removes what is no record from the copy [`REST`], and reports it.
fn keep_records(rest: &mut Rest, path: &Path, report: &mut Repaired) {
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
struct Found {
    path: PathBuf,
    record: Option<ContainerRecord>,
}

impl Found {
    /// Returns whether the directory is in `containers`, and not in `lost+found`.
    fn is_in_place(&self, root: &Path) -> bool {
        self.path.parent() == Some(&root.join("containers"))
    }
}

/// Returns all directories of containers by name, including those in `lost+found`.
fn find_containers(root: &Path) -> Result<BTreeMap<String, Found>> {
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

/// The content of the new store.
#[derive(Debug, Default)]
struct Rebuilt {
    containers: Vec<ContainerRecord>,
    rest: Rest,
}

fn rebuild(
    mut old: Old,
    copy: Option<Rest>,
    found: &BTreeMap<String, Found>,
    images: &whelk_image::Store,
    root: &Path,
    report: &mut Repaired,
) -> Result<Rebuilt> {
    let mut containers = BTreeMap::new();
    let (mut from_store, mut from_directories) = (0, 0);
    for (id, found) in found {
        let known = old.containers.remove(id);
        // A copy is at most about a second older than the store was; records of a damaged store may
        // be of any age.
        let (first, second) = if old.is_intact {
            (&known, &found.record)
        } else {
            (&found.record, &known)
        };
        match first.as_ref().or(second.as_ref()) {
            Some(record) => {
                let is_known = if old.is_intact {
                    known.is_some()
                } else {
                    found.record.is_none()
                };
                if is_known {
                    from_store += 1
                } else {
                    from_directories += 1
                }
                containers.insert(id.clone(), record.clone());
            }
            None => report.report(format!(
                "{} has no copy of a container's record: it is left unchanged",
                found.path.display()
            )),
        }
    }
    for (id, record) in std::mem::take(&mut old.containers) {
        if old.is_intact {
            from_store += 1;
            containers.insert(id, record);
        } else {
            report.report(format!(
                "container {} ({id}) has no directory: it is left out",
                record.name
            ));
        }
    }
    report.report(format!(
        "containers: {from_directories} from their directories, {from_store} from the old store"
    ));
    let mut containers: Vec<ContainerRecord> = containers.into_values().collect();
    make_names_unique(&mut containers, report);
    let mut rest = rest(&mut old, copy, root, report);
    find_images(images, &mut rest, report)?;
    if rest.tags.is_empty() {
        name_images(&containers, &mut rest);
    }
    report_missing_networks(&containers, &rest, report);
    report.report(format!(
        "networks: {}; images: {}, with {} names",
        rest.networks.len(),
        rest.images.len(),
        rest.tags.len()
    ));
    Ok(Rebuilt { containers, rest })
}

/// Renames containers so that names are unique. Of several with one name the oldest keeps it.
fn make_names_unique(containers: &mut [ContainerRecord], report: &mut Repaired) {
    containers.sort_by_key(|record| record.created_at);
    let mut names = BTreeSet::new();
    for record in containers {
        if !names.insert(record.name.clone()) {
            let name = format!(
                "{}-{}",
                record.name,
                record.id.chars().take(12).collect::<String>()
            );
            report.report(format!(
                "container {} has the same name as another one: it is renamed to {name}",
                record.name
            ));
            names.insert(name.clone());
            record.name = name;
        }
    }
}

/// Returns the records of networks, images, names and plugins' volumes: from the old store if it is
/// intact, else from the copy [`REST`], else what can be read of the old store.
fn rest(old: &mut Old, copy: Option<Rest>, root: &Path, report: &mut Repaired) -> Rest {
    let left = std::mem::take(&mut old.rest);
    if old.is_intact {
        return left;
    }
    let mut rest = copy.unwrap_or_else(|| {
        report.report(format!(
            "{} is missing or damaged: networks and names of images are taken from the old store",
            root.join(REST).display()
        ));
        Rest::default()
    });
    if rest.networks.is_empty() {
        rest.networks = left.networks;
    }
    if rest.images.is_empty() {
        rest.images = left.images;
    }
    if rest.tags.is_empty() {
        rest.tags = left.tags;
    }
    for (key, value) in left.meta {
        rest.meta.entry(key).or_insert(value);
    }
    // Local volumes are described by their directories, so only those with a directory are added.
    let exists = |volume: &Value| {
        volume["Name"]
            .as_str()
            .is_some_and(|name| fs::exists(root.join("volumes").join(name)))
    };
    let known: BTreeSet<String> = rest
        .volumes
        .iter()
        .filter_map(|volume| volume["Name"].as_str().map(str::to_owned))
        .collect();
    let is_known = |volume: &Value| {
        volume["Name"]
            .as_str()
            .is_some_and(|name| known.contains(name))
    };
    rest.volumes.extend(
        left.volumes
            .into_iter()
            .filter(|volume| !is_known(volume) && exists(volume)),
    );
    rest
}

/// Reads the copy [`REST`]. Returns `None` if there is no valid one, or if it cannot be read and is
/// not `needed`.
///
/// # Errors
/// Returns an error if a newer engine has written it.
fn read_rest(root: &Path, needed: bool) -> Result<Option<Rest>> {
    let path = root.join(REST);
    match fs::read(&path) {
        Ok(text) => Rest::parse(&text, &path),
        Err(error) if error.is_not_found() || !needed => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Adds images without a record whose configuration and layers exist.
fn find_images(images: &whelk_image::Store, rest: &mut Rest, report: &mut Repaired) -> Result<()> {
    let id_of = |image: &Value| image["id"].as_str().unwrap_or_default().to_owned();
    let known: BTreeSet<String> = rest.images.iter().map(id_of).collect();
    let mut found = 0;
    let ids = images.content.list()?.into_iter();
    for digest in ids.filter(|digest| digest.algorithm() == Algorithm::Sha256) {
        let config = images
            .content
            .read(&digest)
            .and_then(|content| ImageConfig::parse(&content));
        let Ok(config) = config else { continue };
        let layers = &config.rootfs.diff_ids;
        if known.contains(digest.as_str())
            || !layers.iter().all(|layer| images.snapshots.has(layer))
        {
            continue;
        }
        let size = layers
            .iter()
            .map(|layer| images.snapshots.size(layer).unwrap_or(0))
            .sum();
        let record = ImageRecord {
            id: digest,
            size,
            tagged_at: 0,
            manifest: None,
            index: None,
            other_manifests: Vec::new(),
            tag_indexes: BTreeMap::new(),
            repo_digests: Vec::new(),
        };
        rest.images.push(
            serde_json::from_str(&encode(&record)?)
                .map_err(|error| Error::internal(error.to_string()))?,
        );
        found += 1;
    }
    if found > 0 {
        report.report(format!("images: {found} found by their files"));
    }
    Ok(())
}

/// Names images by the names that containers were created with, if no names are known.
fn name_images(containers: &[ContainerRecord], rest: &mut Rest) {
    for record in containers {
        let Ok(reference) = record.config.image.parse::<Reference>() else {
            continue;
        };
        let is_id = record
            .image
            .trim_start_matches("sha256:")
            .starts_with(record.config.image.trim_start_matches("sha256:"));
        if reference.digest.is_none() && !is_id && !record.image.is_empty() {
            rest.tags
                .entry(reference.with_default_tag().to_string())
                .or_insert_with(|| record.image.clone());
        }
    }
}

/// Reports networks that containers use and that have no record.
fn report_missing_networks(containers: &[ContainerRecord], rest: &Rest, report: &mut Repaired) {
    let known: BTreeSet<&str> = rest
        .networks
        .iter()
        .filter_map(|network| network["Name"].as_str())
        .chain(["bridge", "host", "none"])
        .collect();
    for record in containers {
        for network in record
            .networks
            .keys()
            .filter(|network| !known.contains(network.as_str()))
        {
            report.report(format!(
                "network {network} of container {} has no record: create it again",
                record.name
            ));
        }
    }
}

/// Writes the new store, and syncs it, under a name that no engine opens.
fn write(root: &Path, rebuilt: &Rebuilt) -> Result<()> {
    let path = root.join(UNFINISHED);
    fs::remove_if_exists(&path)?;
    fs::remove_if_exists(root.join(format!("{UNFINISHED}-journal")))?;
    let mut connection = Connection::open(&path)?;
    connection.execute_batch(&format!(
        "PRAGMA synchronous = FULL; PRAGMA user_version = {REBUILT};"
    ))?;
    migrate(&mut connection, 0)?;
    let transaction = connection.transaction()?;
    for record in &rebuilt.containers {
        transaction.execute(
            "INSERT INTO containers VALUES(?1, ?2, ?3)",
            params![record.id, record.name, encode(record)?],
        )?;
    }
    let field = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    for network in &rebuilt.rest.networks {
        let values = params![
            field(network, "Id"),
            field(network, "Name"),
            network.to_string()
        ];
        transaction.execute("INSERT OR IGNORE INTO networks VALUES(?1, ?2, ?3)", values)?;
    }
    for image in &rebuilt.rest.images {
        transaction.execute(
            "INSERT OR IGNORE INTO images VALUES(?1, ?2)",
            params![field(image, "id"), image.to_string()],
        )?;
    }
    for (name, image) in &rebuilt.rest.tags {
        transaction.execute(
            "INSERT OR IGNORE INTO tags SELECT ?1, id FROM images WHERE id = ?2",
            params![name, image],
        )?;
    }
    for volume in &rebuilt.rest.volumes {
        transaction.execute(
            "INSERT OR IGNORE INTO volumes VALUES(?1, ?2)",
            params![field(volume, "Name"), volume.to_string()],
        )?;
    }
    for (key, value) in rebuilt.rest.meta.iter().filter(|(key, _)| *key != "schema") {
        transaction.execute(
            "INSERT OR REPLACE INTO meta VALUES(?1, ?2)",
            params![key, value],
        )?;
    }
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error)?;
    sync(&path)?;
    sync(root)
}

/// Deletes the files of an interrupted repair. The store was valid and is in use, so that they are
/// older than the store.
pub(super) fn discard_unfinished(root: &Path) -> Result<()> {
    for path in [
        root.join(NEW),
        root.join(UNFINISHED),
        root.join(format!("{UNFINISHED}-journal")),
    ] {
        fs::remove_if_exists(path)?;
    }
    Ok(())
}

/// Moves the old store to `lost+found`, and replaces it by the new one. Returns the directory of
/// the old files.
fn replace_store(root: &Path) -> Result<PathBuf> {
    let aside = lost_and_found(root).join(format!("store-{}", now()));
    fs::create_dir_all(&aside, 0o700)?;
    // The log first: SQLite would apply it to the new database.
    for suffix in ["-wal", "-journal", "-shm"] {
        let name = format!("{FILE}{suffix}");
        if fs::exists(root.join(&name)) {
            fs::rename(root.join(&name), aside.join(&name))?;
        }
    }
    if fs::exists(root.join(FILE)) {
        fs::hard_link(root.join(FILE), aside.join(FILE))?;
    }
    sync(root)?;
    fs::rename(root.join(NEW), root.join(FILE))?;
    sync(root)?;
    Ok(aside)
}
