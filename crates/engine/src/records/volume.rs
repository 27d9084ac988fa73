//! Volumes on disk, with the field names of the Engine API.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::stored::forms;
use crate::volumes;

forms! { VolumeRecord => volumes::VolumeRecord }

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "volumes::VolumeRecord"
)]
struct VolumeRecord {
    name: String,
    driver: String,
    created_at: i64,
    labels: Option<BTreeMap<String, String>>,
    options: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "is_empty")]
    mountpoint: PathBuf,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    mounts: BTreeSet<String>,
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}
