//! Image archives: `save` writes them and `load` reads them, in Docker's and OCI's layouts;
//! `import` reads a root file system archive.

mod attached;
mod docker;
mod import;
mod legacy;
mod load;
mod manifest;
mod oci;
mod packed;
mod parts;
mod save;

use serde::{Deserialize, Serialize};

use crate::bounded::{self, MAX_LAYERS, MAX_NAMES};
use crate::descriptor::Descriptor;

pub use attached::{Attached, attach, index};
pub use import::{Import, import};
pub use load::{Loaded, Named, Origin, load};
pub use manifest::{Described, describe};
pub use packed::{Blob, Compression, Form, IndexAnnotations, Packed, Packing};
pub use save::{Saved, save};

/// Index annotations with the full image name, and with the tag only.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
const TAG_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// An index annotation with the time at which the image was made.
const CREATED_ANNOTATION: &str = "org.opencontainers.image.created";

/// An entry of Docker's `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    /// Encoded as `null` if empty, as Docker does.
    #[serde(
        default,
        deserialize_with = "bounded::list::<_, _, MAX_NAMES>",
        serialize_with = "null_if_empty"
    )]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_LAYERS>")]
    layers: Vec<String>,
    /// The image that it was made from, if the archive has that one, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    /// Layer descriptors by digest. Ignored when reading: digests are computed from the content.
    #[serde(
        default,
        skip_deserializing,
        skip_serializing_if = "std::collections::BTreeMap::is_empty"
    )]
    layer_sources: std::collections::BTreeMap<String, Descriptor>,
}

fn null_if_empty<S: serde::Serializer>(list: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    if list.is_empty() {
        serializer.serialize_none()
    } else {
        list.serialize(serializer)
    }
}
