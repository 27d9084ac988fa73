//! Image archives: `save` writes them and `load` reads them, in Docker's and OCI's layouts;
//! `import` reads a root file system archive.

mod docker;
mod import;
mod legacy;
mod load;
mod oci;
mod parts;
mod save;

use serde::{Deserialize, Serialize};

use crate::bounded::{self, MAX_LAYERS, MAX_NAMES};
use crate::digest::Digest;

pub use import::{Import, import};
pub use load::{Loaded, load};
pub use save::{Saved, save};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Index annotations with the full image name, and with the tag only.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
const TAG_ANNOTATION: &str = "org.opencontainers.image.ref.name";

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
    /// Layer descriptors by digest. Ignored when reading: digests are computed from the content.
    #[serde(
        default,
        skip_deserializing,
        skip_serializing_if = "std::collections::BTreeMap::is_empty"
    )]
    layer_sources: std::collections::BTreeMap<String, Descriptor>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An OCI index.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_NAMES>")]
    manifests: Vec<Descriptor>,
}

/// An OCI manifest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    config: Descriptor,
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_LAYERS>")]
    layers: Vec<Descriptor>,
}

fn null_if_empty<S: serde::Serializer>(list: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    if list.is_empty() {
        serializer.serialize_none()
    } else {
        list.serialize(serializer)
    }
}
