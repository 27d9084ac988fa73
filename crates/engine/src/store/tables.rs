//! Reads and writes the records in the store's tables.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use super::RecordStore;
use super::check::damaged;
use crate::error::Result;
use crate::model::ContainerRecord;
use crate::model::network::NetworkRecord;
use crate::model::volume::VolumeRecord;
use crate::records::{self, ImageRecord, Stored, encode};

impl RecordStore {
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

    /// Returns a value of the table `meta`.
    pub fn meta(&self, key: &str) -> Result<Option<String>> {
        let connection = self.connection()?;
        let found = connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
            row.get(0)
        });
        Ok(found.optional()?)
    }

    /// Sets a value of the table `meta`. Nothing is written if it is the same.
    pub fn set_meta(&self, key: &str, value: &str) -> Result<()> {
        let connection = self.connection()?;
        let changed = connection.execute(
            "INSERT INTO meta VALUES(?1, ?2) ON CONFLICT(key) DO UPDATE SET value = ?2 WHERE value != ?2",
            params![key, value],
        )?;
        drop(connection);
        if changed > 0 {
            self.changed();
        }
        Ok(())
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
pub(super) fn read_containers(
    root: &Path,
    connection: &Connection,
) -> Result<Vec<ContainerRecord>> {
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

#[cfg(test)]
mod tests {
    use super::super::new_root;
    use super::*;

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
}
