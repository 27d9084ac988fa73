//! Volumes on disk, with the field names of the Engine API.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use whelk_sys::fs;

use super::stored::{Read, Written, forms};
use super::{SCHEMA_VERSION, Unreadable, newer, text, to_text};
use crate::error::Result;
use crate::model::volume;

/// The file beside a volume's data with a copy of its record, from which a volume without a record
/// is restored.
pub(crate) const DESCRIPTION: &str = "volume.json";

forms! { VolumeRecord => volume::VolumeRecord }

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "volume::VolumeRecord"
)]
struct VolumeRecord {
    name: String,
    #[serde(with = "text")]
    driver: volume::VolumeDriverName,
    created_at: i64,
    labels: Option<BTreeMap<String, String>>,
    options: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "is_empty")]
    mountpoint: PathBuf,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    mounts: BTreeSet<String>,
}

/// The copy of the record in a volume's directory (`volume.json`), with the version that it is
/// written in.
#[derive(Serialize)]
struct Description<'a> {
    #[serde(rename = "Version")]
    version: u32,
    #[serde(flatten)]
    record: Written<'a, volume::VolumeRecord>,
}

/// Returns the text of `volume.json`.
pub(crate) fn describe_volume(record: &volume::VolumeRecord) -> Result<String> {
    to_text(&Description {
        version: SCHEMA_VERSION,
        record: Written(record),
    })
}

/// Reads `volume.json`.
fn described_volume(text: &[u8]) -> std::result::Result<volume::VolumeRecord, Unreadable> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Versioned {
        /// Not written before version 3; the form was the same.
        version: Option<u32>,
    }
    match serde_json::from_slice(text)? {
        Versioned {
            version: Some(version),
        } if version > SCHEMA_VERSION => Err(Unreadable::Newer(version)),
        Versioned { .. } => {
            let Read(record) = serde_json::from_slice(text)?;
            Ok(record)
        }
    }
}

/// Reads the record in a volume's directory. Returns `None` if there is no valid one.
///
/// # Errors
/// Returns an error if a newer engine has written it.
pub(crate) fn read_description(path: &Path) -> Result<Option<volume::VolumeRecord>> {
    const LARGEST: u64 = 1 << 20;
    let Ok(text) = fs::read_at_most(path, LARGEST) else {
        return Ok(None);
    };
    match described_volume(&text) {
        Ok(record) => Ok(Some(record)),
        Err(Unreadable::Invalid(_)) => Ok(None),
        Err(Unreadable::Newer(version)) => Err(newer(&path.display().to_string(), version)),
    }
}

/// Checks the descriptions of the volumes below `directory` that are not known, which opening the
/// volumes would restore.
///
/// # Errors
/// Returns an error if a newer engine has written one.
pub(crate) fn refuse_newer(directory: &Path, is_known: impl Fn(&str) -> bool) -> Result<()> {
    if !fs::exists(directory) {
        return Ok(());
    }
    for entry in fs::list(directory)? {
        if let Ok(name) = entry.file_name().into_string()
            && volume::check_name(&name).is_ok()
            && !is_known(&name)
        {
            read_description(&entry.path().join(DESCRIPTION))?;
        }
    }
    Ok(())
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn drivers_are_written_by_name() {
        for (name, is_local) in [("local", true), ("", true), ("rclone", false)] {
            let given = json!({"Name": "data", "Driver": name});
            let Read(record): Read<volume::VolumeRecord> = serde_json::from_value(given).unwrap();
            assert_eq!(record.is_local(), is_local, "{name}");
            let written = serde_json::to_value(Written(&record)).unwrap();
            assert_eq!(written["Driver"], if is_local { "local" } else { name });
        }
    }

    #[test]
    fn rejects_descriptions_of_newer_engines() {
        let record = volume::VolumeRecord {
            name: "data".into(),
            driver: "local".into(),
            ..Default::default()
        };
        let text = describe_volume(&record).unwrap();
        assert_eq!(described_volume(text.as_bytes()).unwrap(), record);
        let mut value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["Version"], SCHEMA_VERSION);
        let read = |value: &Value| described_volume(value.to_string().as_bytes());
        value["Version"] = json!(SCHEMA_VERSION + 1);
        assert!(matches!(read(&value), Err(Unreadable::Newer(_))));
        value.as_object_mut().unwrap().remove("Version");
        assert_eq!(read(&value).unwrap(), record);
    }
}
