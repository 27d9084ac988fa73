//! Images on disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use whelk_image::Digest;

/// An image in the store. Its configuration is a blob.
#[derive(Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub(crate) struct ImageRecord {
    pub id: Digest,
    pub size: u64,
    #[serde(default)]
    pub tagged_at: i64,
    // Older records lack these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_manifests: Vec<Digest>,
    /// The index that each of its tags stands for, by full name; `null` for none. A tag that is not
    /// here stands for `index`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tag_indexes: BTreeMap<String, Option<Digest>>,
    /// Full names with a digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repo_digests: Vec<String>,
    /// Image that it was committed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
}

super::stored::forms! { ImageRecord => ImageRecord }
