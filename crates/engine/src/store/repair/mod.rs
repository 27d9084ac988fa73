//! Rebuilds the store while no engine runs, from the readable records of the old store and the
//! copies in the directories.
//!
//! Nothing is deleted. The new store is created beside the old one and replaces it atomically,
//! after the old one was linked or moved to `lost+found/store-<time>`. An interrupted repair can be
//! run again.

mod old;
mod rebuild;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};
use serde_json::Value;
use whelk_sys::{Scratch, fs};

use super::check::{FILE, REBUILT};
use super::copies::REST;
use super::flush::sync;
use super::opening::migrate;
use crate::error::Result;
use crate::events::now;
use crate::instance::lost_and_found;
use crate::records::{self, encode};

use old::{Found, Old, find_containers, keep_records, read_rest};
use rebuild::{Rebuilt, rebuild};

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

#[cfg(test)]
mod tests {
    use super::super::new_root;
    use super::super::{LOG, RecordStore};
    use super::*;

    #[test]
    fn an_intact_store_needs_no_copy_to_be_repaired() {
        let place = new_root("intact");
        let root = place.path();
        drop(RecordStore::open(root).unwrap());
        // Cannot be read as a file.
        fs::create_dir(root.join(REST), 0o700).unwrap();
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
        fs::write(root.join(REST), copy).unwrap();
        let report = repair(root).unwrap();
        let old = "in the old store cannot be read";
        let copy = format!("in {} cannot be read", root.join(REST).display());
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
}
