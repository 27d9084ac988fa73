//! Images.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{HealthConfig, ManifestDescriptor, OciPlatform, Set, is_default};

/// An element of the response of `GET /images/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageSummary {
    /// The number of containers that use it; -1 if it was not counted.
    pub containers: i64,
    /// Seconds since the epoch.
    pub created: i64,
    pub id: String,
    pub labels: Option<BTreeMap<String, String>>,
    pub parent_id: String,
    pub repo_digests: Option<Vec<String>>,
    pub repo_tags: Vec<String>,
    /// The size of layers shared with other images in bytes; -1 if it was not requested.
    pub shared_size: i64,
    /// In bytes.
    pub size: u64,
    /// The same as `size`. Not in version 1.44 and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
    /// If they were requested. Since version 1.47.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifests: Option<Vec<ImageManifestSummary>>,
}

/// A manifest of an image: one of those that its index lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageManifestSummary {
    /// The manifest's digest.
    #[serde(rename = "ID")]
    pub id: String,
    pub descriptor: ManifestDescriptor,
    /// True if the store has the image of the manifest.
    pub available: bool,
    pub size: ImageManifestSize,
    /// `image`, `attestation` or `unknown`.
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_data: Option<ImageManifestImage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attestation_data: Option<ImageManifestAttestation>,
}

/// Sizes in bytes of the content of a manifest that is in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageManifestSize {
    /// Blobs.
    pub content: u64,
    /// Blobs and unpacked layers.
    pub total: u64,
}

/// The image of a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageManifestImage {
    pub platform: OciPlatform,
    /// If it was requested. Since version 1.54.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<ImageIdentity>,
    /// Ids of the containers that use it.
    pub containers: Vec<String>,
    pub size: ImageManifestImageSize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageManifestImageSize {
    /// The unpacked layers in bytes.
    pub unpacked: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageManifestAttestation {
    /// The digest of the manifest that it is about.
    #[serde(rename = "For")]
    pub about: String,
}

/// The response of `GET /images/{name}/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageInspect {
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    /// Omitted if empty in version 1.52 and later, as are the comment, version and author.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    pub created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    pub architecture: String,
    pub os: String,
    /// In bytes.
    pub size: u64,
    pub graph_driver: DriverData,
    #[serde(rename = "RootFS")]
    pub root_fs: RootFs,
    pub metadata: ImageMetadata,
    pub config: ImageConfig,
    #[serde(skip_serializing_if = "is_default")]
    pub variant: String,
    /// The same as `size`. Not in version 1.44 and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
    /// The container from which a classic build created the image. Not in version 1.45 and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The configuration of the container from which a classic build created the image. Not in
    /// version 1.45 and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_config: Option<ImageConfig>,
    /// If they were requested. Since version 1.48.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifests: Option<Vec<ImageManifestSummary>>,
    /// Since version 1.53.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<ImageIdentity>,
}

/// The origin of an image, whatever names it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageIdentity {
    /// The repositories that it was pulled from or pushed to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pull: Vec<PullIdentity>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PullIdentity {
    pub repository: String,
}

/// The driver of a container's or image's layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DriverData {
    pub data: Option<BTreeMap<String, String>>,
    pub name: String,
}

/// The layers of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RootFs {
    #[serde(rename = "Type")]
    pub kind: String,
    pub layers: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageMetadata {
    /// Go's zero time if it was never tagged.
    pub last_tag_time: String,
}

/// Defaults for containers of an image. Before version 1.52, some fields are `null` or empty instead
/// of omitted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    #[serde(flatten)]
    pub container_fields: Option<ImageConfigContainerFields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Set::is_empty")]
    pub exposed_ports: Set,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Option<Vec<String>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Option<Vec<String>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Option<Vec<String>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Option<Set>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Option<BTreeMap<String, String>>>,
    #[serde(skip_serializing_if = "is_default")]
    pub stop_signal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_build: Option<Option<Vec<String>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    #[serde(skip_serializing_if = "is_default")]
    pub args_escaped: bool,
}

/// The fields of a container's configuration that [`ImageConfig`] has before version 1.50. They are
/// always empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfigContainerFields {
    pub hostname: String,
    pub domainname: String,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub image: String,
}

/// An element of the response of `GET /images/{name}/history`: a step of the image's build.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageHistoryResponseItem {
    pub comment: String,
    /// Seconds since the epoch.
    pub created: i64,
    pub created_by: String,
    /// `<missing>` except for the last step.
    pub id: String,
    /// The size of its layer in bytes; 0 if it has none.
    pub size: u64,
    pub tags: Option<Vec<String>>,
}

/// A name or an ID that was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageDeleteResponseItem {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untagged: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<String>,
}

/// The response of `POST /images/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImagePruneResponse {
    pub images_deleted: Option<Vec<ImageDeleteResponseItem>>,
    /// In bytes.
    pub space_reclaimed: u64,
}

/// The response of `POST /build/cache/import`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BuildCacheImportResponse {
    #[serde(rename = "ID")]
    pub id: String,
}

/// The response of `POST /build/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BuildPruneResponse {
    pub caches_deleted: Option<Vec<String>>,
    /// In bytes.
    pub space_reclaimed: u64,
}
