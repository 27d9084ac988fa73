//! The migrations from each schema version to the next.

use std::path::Path;

use rusqlite::Transaction;
use serde::de::Error as _;
use serde_json::Value;

use super::stored::{Read, Written};
use crate::model::HostConfig;
use crate::mounts;

/// A migration to the next version.
struct Migration {
    /// The statements that change the store's tables.
    tables: &'static str,
    /// Changes a container's record.
    container: Option<fn(&mut Value, &Path) -> serde_json::Result<()>>,
}

/// The migrations, each at the index of the version that it starts from.
static MIGRATIONS: [Migration; 3] = [
    Migration {
        tables: "CREATE TABLE containers(id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL) WITHOUT ROWID;
             CREATE TABLE images(id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
             CREATE TABLE tags(name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE) WITHOUT ROWID;",
        container: None,
    },
    Migration {
        tables: "CREATE TABLE networks(id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL) WITHOUT ROWID;",
        container: None,
    },
    Migration {
        tables: "CREATE TABLE volumes(name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;",
        container: Some(plan_mounts),
    },
];

/// The schema version that this engine writes.
pub(crate) const SCHEMA_VERSION: u32 = 3;

/// Returns the migrations from `version` on.
fn from(version: u32) -> impl Iterator<Item = &'static Migration> {
    let numbered = (0..SCHEMA_VERSION).zip(&MIGRATIONS);
    numbered.filter_map(move |(number, migration)| (number >= version).then_some(migration))
}

/// Creates the store's tables, or migrates those of an earlier version; 0 for a new store.
pub(crate) fn create_tables(transaction: &Transaction<'_>, version: u32) -> rusqlite::Result<()> {
    for migration in from(version) {
        transaction.execute_batch(migration.tables)?;
    }
    Ok(())
}

/// Migrates a container's record from an earlier version.
pub(super) fn migrate_container(
    record: &mut Value,
    version: u32,
    root: &Path,
) -> serde_json::Result<()> {
    for migrate in from(version).filter_map(|step| step.container) {
        migrate(record, root)?;
    }
    record["version"] = SCHEMA_VERSION.into();
    Ok(())
}

/// Version 3: a container's mounts are in its record, with the volumes that were found or created
/// for them. Earlier records have them only in the settings.
///
/// # Errors
/// Returns an error if the settings cannot be understood, whatever the host has: the container would
/// start without its mounts, and its volumes would count as unused.
fn plan_mounts(record: &mut Value, root: &Path) -> serde_json::Result<()> {
    let Read(host): Read<HostConfig> = serde_json::from_value(record["host"].clone())?;
    let plans = mounts::plan_recorded(&host, root)
        .map_err(|error| serde_json::Error::custom(format!("its mounts: {error}")))?;
    record["mounts"] = serde_json::to_value(Written(&plans))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_a_migration_to_the_next() {
        assert_eq!(u32::try_from(MIGRATIONS.len()), Ok(SCHEMA_VERSION));
        let left = |version| from(version).count();
        assert_eq!([left(0), left(2), left(SCHEMA_VERSION)], [3, 1, 0]);
    }
}
