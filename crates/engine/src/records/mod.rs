//! The records as they are written to disk: in the store's tables, in the copies beside the
//! containers (`container.json`) and volumes (`volume.json`), and in the copy of all other records
//! (`store.json`).
//!
//! The types in [`crate::model`] are independent of these forms: each has a struct here that names
//! its fields as on disk ([`stored`]).
//!
//! The store has a schema version, and so has each container's record, because a copy can be older
//! or newer than the store. A newer version than [`SCHEMA_VERSION`] is refused, an earlier one
//! migrated ([`migrations`]): the tables when the store is opened, a container's record when it is
//! read.

mod container;
mod host_config;
mod image;
mod migrations;
mod mount;
mod network;
mod set;
mod stored;
mod text;
mod volume;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::{ContainerRecord, Healthcheck};

pub(crate) use image::ImageRecord;
pub(crate) use migrations::{SCHEMA_VERSION, create_tables};
pub(crate) use stored::Stored;
use stored::{Read, Written};
pub(crate) use volume::{
    DESCRIPTION, describe_volume, read_description as read_volume_description,
    refuse_newer as refuse_newer_volumes,
};

/// Returns the error for a root that a newer engine has written.
pub(crate) fn newer(what: &str, found: u32) -> Error {
    Error::internal(format!(
        "{what} has schema version {found}, and this version of whelk supports up to {SCHEMA_VERSION}: a newer one has written it. \
         Nothing was changed, and running containers are left alone. Use that version of whelk, or a newer one"
    ))
}

/// Returns a record's text.
pub(crate) fn encode<T: Stored>(record: &T) -> Result<String> {
    to_text(&Written(record))
}

fn to_text<T: Serialize>(form: &T) -> Result<String> {
    serde_json::to_string(form)
        .map_err(|error| Error::internal(format!("the engine's store: {error}")))
}

/// Reads the health check of an image's configuration, which has the same form as that of a record.
pub(crate) fn image_healthcheck(value: &Value) -> serde_json::Result<Healthcheck> {
    let Read(check) = Read::deserialize(value)?;
    Ok(check)
}

/// Reads a record that has the version of the store.
pub(crate) fn decode<T: Stored>(text: &[u8]) -> serde_json::Result<T> {
    let Read(record) = serde_json::from_slice(text)?;
    Ok(record)
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error(transparent)]
    Invalid(#[from] serde_json::Error),
    #[error("it has schema version {0}, a newer version of whelk has written it")]
    Newer(u32),
}

/// Reads a container's record, and migrates it. `root` is the engine's root.
pub(crate) fn container(
    text: &[u8],
    root: &Path,
) -> std::result::Result<ContainerRecord, Unreadable> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(text)?;
    if version > SCHEMA_VERSION {
        return Err(Unreadable::Newer(version));
    }
    if version == SCHEMA_VERSION {
        return Ok(decode(text)?);
    }
    let mut record: Value = serde_json::from_slice(text)?;
    migrations::migrate_container(&mut record, version, root)?;
    let Read(record) = serde_json::from_value(record)?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(record: Value) -> std::result::Result<ContainerRecord, Unreadable> {
        container(record.to_string().as_bytes(), Path::new("/root"))
    }

    fn record(version: u32, host: Value) -> Value {
        json!({
            "version": version, "id": "one", "name": "first", "created_at": 0, "image": "",
            "config": {}, "host": host, "state": {},
        })
    }

    #[test]
    fn records_without_mounts_get_them_from_the_settings() {
        let host = || json!({"Binds": ["/usr:/here:ro"]});
        for version in [1, 2] {
            let found = read(record(version, host())).unwrap();
            let written: Value = serde_json::from_str(&encode(&found).unwrap()).unwrap();
            assert_eq!(written["version"], SCHEMA_VERSION);
            assert_eq!(found.mounts.len(), 1, "{found:?}");
            assert_eq!(found.mounts[0].target, "/here");
        }
        let found = read(record(SCHEMA_VERSION, host())).unwrap();
        assert!(found.mounts.is_empty(), "its mounts were resolved already");
    }

    #[test]
    fn reads_records_with_sources_that_the_host_lacks() {
        let gone = json!({"Type": "bind", "Source": "/nonexistent/source", "Target": "/gone"});
        let host = json!({"Binds": ["/root/volumes:/own:rprivate,z"], "Mounts": [gone]});
        let found = read(record(2, host)).unwrap();
        let planned = |place: usize| {
            let plan = &found.mounts[place];
            (plan.target.as_str(), plan.propagation.as_str())
        };
        assert_eq!(
            [planned(0), planned(1)],
            // The source is below the engine's root now.
            [("/own", "rslave"), ("/gone", "rprivate")]
        );
    }

    #[test]
    fn a_record_whose_mounts_cannot_be_planned_is_not_read_without_them() {
        let error = read(record(2, json!({"Binds": ["relative:also"]}))).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("its mounts: invalid volume specification"),
            "{error}"
        );
    }

    #[test]
    fn a_record_of_a_newer_engine_is_not_read() {
        let mut newer = record(SCHEMA_VERSION + 1, json!({}));
        newer["config"] = json!("another form");
        let error = read(newer).unwrap_err();
        assert!(matches!(error, Unreadable::Newer(version) if version == SCHEMA_VERSION + 1));
    }
}
