//! Images on disk.

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
}

super::stored::forms! { ImageRecord => ImageRecord }
