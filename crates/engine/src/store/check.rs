//! Checks for a missing or damaged store. SQLite would create a new one, or continue with what is
//! left, and then everything without a record would be deleted as garbage.

use std::io::Read;
use std::path::Path;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use whelk_sys::fs;

use crate::error::{Error, Result};
use crate::instance::STORE_FILE;

/// The name of the database in an engine's root directory.
pub(crate) const FILE: &str = STORE_FILE;
/// The name of its write-ahead log, which remains after the engine's exit.
pub(crate) const LOG: &str = "store.db-wal";

/// Returns the error of a damaged store, with what to do.
pub(crate) fn damaged(root: &Path, what: &str) -> Error {
    let root = root.display();
    Error::internal(format!(
        "{what}. Nothing was changed, and running containers are left alone. Restore {root}/{FILE} and {root}/{LOG} together from a \
         backup, or rebuild the store from the copies of the records: whelk system repair --root {root}"
    ))
}

/// Checks the store's files.
///
/// # Errors
/// Returns an error if one is missing or damaged, unless the root is new.
pub(super) fn files(root: &Path) -> Result<()> {
    let Some(wrong) = wrong_file(root)? else {
        return Ok(());
    };
    if is_new(root)? {
        Ok(())
    } else {
        Err(damaged(root, &wrong))
    }
}

/// Returns what is wrong with the store's files, or `None`.
pub(super) fn wrong_file(root: &Path) -> Result<Option<String>> {
    const HEADER: usize = 100;
    let path = root.join(FILE);
    let what = format!("the engine's store {}", path.display());
    let Some(header) = read_start(&path, HEADER)? else {
        return Ok(Some(format!("{what} is missing")));
    };
    if header.is_empty() {
        return Ok(Some(format!("{what} is empty")));
    }
    if header.len() < HEADER || !header.starts_with(b"SQLite format 3\0") {
        return Ok(Some(format!("{what} is damaged: it is no SQLite database")));
    }
    // In SQLite's file format a write version (byte 18) of 2 means a write-ahead log. A rebuilt
    // store, which is marked by `user_version` (bytes 60 to 63), has none yet.
    let has_log = header[18] == 2 && header[60..64] != REBUILT.to_be_bytes();
    if !has_log {
        return Ok(None);
    }
    let path = root.join(LOG);
    let what = format!("the log of the engine's store, {},", path.display());
    Ok(match read_start(&path, LOG_HEADER)? {
        None => Some(format!("{what} is missing")),
        Some(header) if header.is_empty() => Some(format!("{what} is empty")),
        Some(header) if !is_log(&header) => Some(format!("{what} is damaged")),
        Some(_) => None,
    })
}

/// `user_version` of a database that [`super::repair()`] has created and no engine has opened yet.
pub(super) const REBUILT: u32 = 1;

const LOG_HEADER: usize = 32;

/// Returns whether this is the header of a write-ahead log: checks the magic number and the
/// checksum (SQLite file format, section 4.1).
fn is_log(header: &[u8]) -> bool {
    if header.len() < LOG_HEADER {
        return false;
    }
    let at = |index: usize| {
        [
            header[index],
            header[index + 1],
            header[index + 2],
            header[index + 3],
        ]
    };
    let word = match u32::from_be_bytes(at(0)) {
        0x377f_0682 => u32::from_le_bytes,
        0x377f_0683 => u32::from_be_bytes,
        _ => return false,
    };
    let (mut first, mut second) = (0u32, 0u32);
    for index in (0..24).step_by(8) {
        first = first.wrapping_add(word(at(index))).wrapping_add(second);
        second = second.wrapping_add(word(at(index + 4))).wrapping_add(first);
    }
    (first, second) == (u32::from_be_bytes(at(24)), u32::from_be_bytes(at(28)))
}

/// Reads the first bytes of a file. Returns `None` if it does not exist.
fn read_start(path: &Path, length: usize) -> Result<Option<Vec<u8>>> {
    let file = match fs::open(path) {
        Err(error) if error.is_not_found() => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(length as u64)
        .read_to_end(&mut bytes)
        .map_err(fs::at("read", path))?;
    Ok(Some(bytes))
}

/// Returns whether the root has nothing yet that the store would have a record of.
fn is_new(root: &Path) -> Result<bool> {
    for directory in [
        "containers",
        "volumes",
        "blobs/sha256",
        "blobs/sha512",
        "layers",
    ] {
        let path = root.join(directory);
        // ext4 creates `lost+found` in the root of a file system, which may be mounted here.
        if fs::exists(&path)
            && fs::list(&path)?
                .iter()
                .any(|entry| entry.file_name() != "lost+found")
        {
            return Ok(false);
        }
    }
    // Networks and names have no files: a valid log shows that there was a store.
    Ok(!read_start(&root.join(LOG), LOG_HEADER)?.is_some_and(|header| is_log(&header)))
}

/// Opens the database and checks it before anything is written. Also returns whether it was
/// rebuilt.
///
/// # Errors
/// Returns an error if the database is damaged.
pub(super) fn open(root: &Path, path: &Path) -> Result<(Connection, bool)> {
    let wrong = |text: &str| {
        damaged(
            root,
            &format!("the engine's store {} is damaged: {text}", path.display()),
        )
    };
    let fail = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            wrong(&error.to_string())
        }
        _ => error.into(),
    };
    let connection = Connection::open(path)?;
    // The log is kept, with its size and content, when the connection is closed.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE")
        .map_err(fail)?;
    let found: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(fail)?;
    if found != "ok" {
        return Err(wrong(&found));
    }
    let version: u32 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(fail)?;
    Ok((connection, version == REBUILT))
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::super::RecordStore;
    use super::*;

    /// Creates a root with an empty store file and a container's directory.
    fn root(name: &str) -> Scratch {
        let root = Scratch::temporary(&format!("check-{name}")).unwrap();
        fs::create_dir_all(root.path().join("containers/one"), 0o700).unwrap();
        fs::write(root.path().join(FILE), "").unwrap();
        root
    }

    fn refused(root: &Path, text: &str) {
        let before = (
            fs::read(root.join(FILE)).ok(),
            fs::read(root.join(LOG)).ok(),
        );
        let error = RecordStore::open(root).unwrap_err().to_string();
        assert!(
            error.contains(text) && error.contains("whelk system repair --root"),
            "{error}"
        );
        assert!(
            (
                fs::read(root.join(FILE)).ok(),
                fs::read(root.join(LOG)).ok()
            ) == before,
            "{text}: the files were changed"
        );
    }

    #[test]
    fn rejects_a_damaged_store_and_leaves_it_unchanged() {
        let place = root("damage");
        let root = place.path();
        refused(root, "is empty");
        fs::remove_file(root.join(FILE)).unwrap();
        refused(root, "is missing");
        fs::rename(root.join("containers/one"), root.join("elsewhere")).unwrap();
        drop(RecordStore::open(root).unwrap());
        fs::rename(root.join("elsewhere"), root.join("containers/one")).unwrap();
        drop(RecordStore::open(root).unwrap());
        let (whole, log) = (
            fs::read(root.join(FILE)).unwrap(),
            fs::read(root.join(LOG)).unwrap(),
        );
        for (file, content, text) in [
            (FILE, vec![], "is empty"),
            (FILE, vec![0; whole.len()], "is no SQLite database"),
            (FILE, b"SQLite".to_vec(), "is no SQLite database"),
            (LOG, vec![], "is empty"),
            (LOG, vec![0; log.len()], "is damaged"),
            (LOG, log[..20].to_vec(), "is damaged"),
        ] {
            fs::write(root.join(file), content).unwrap();
            refused(root, text);
            fs::write(root.join(FILE), &whole).unwrap();
            fs::write(root.join(LOG), &log).unwrap();
        }
        fs::remove_file(root.join(LOG)).unwrap();
        refused(root, "is missing");
        fs::write(root.join(LOG), &log).unwrap();
        drop(RecordStore::open(root).unwrap());
    }

    #[test]
    fn rejects_damaged_tables() {
        let place = root("tables");
        let root = place.path();
        fs::remove_tree(root.join("containers/one")).unwrap();
        fs::remove_file(root.join(FILE)).unwrap();
        let store = RecordStore::open(root).unwrap();
        store
            .connection()
            .unwrap()
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode = DELETE")
            .unwrap();
        drop(store);
        fs::create_dir_all(root.join("containers/one"), 0o700).unwrap();
        let mut content = fs::read(root.join(FILE)).unwrap();
        let page = 4096;
        // The root page of a table.
        content[page..2 * page].fill(0x5a);
        fs::write(root.join(FILE), &content).unwrap();
        refused(root, "is damaged");
    }
}
