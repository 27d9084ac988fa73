//! Errors, identifiers, and messages of streams.

use serde::{Deserialize, Serialize};

use crate::{ManifestDescriptor, is_default};

/// The body of an error response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorResponse {
    pub message: String,
}

/// The ID of a created object (`IDResponse`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IdResponse {
    pub id: String,
}

/// A line of the response of an operation that reports its progress, such as `POST /images/load`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StreamMessage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// How far an item is, for clients that draw it themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_detail: Option<ProgressDetail>,
    /// `progress_detail` as a text, for older clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// The item, such as a layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Machine-readable data, such as the tag, digest and size of a pushed manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<Aux>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<ErrorDetail>,
    /// The text of `error_detail`, for older clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The machine-readable data of a progress message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Aux {
    Built(BuildResult),
    /// The progress of a build with BuildKit: a message of its protocol, in base64.
    Trace(String),
    PartOfIndex(Box<PushedPartOfIndex>),
    Pushed(PushResult),
}

/// The image that was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildResult {
    #[serde(rename = "ID")]
    pub id: String,
}

/// A manifest was pushed instead of the index that lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PushedPartOfIndex {
    /// Always `true`.
    pub manifest_pushed_instead_of_index: bool,
    pub original_index: ManifestDescriptor,
    pub selected_manifest: ManifestDescriptor,
}

/// The manifest or index that was pushed under a tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PushResult {
    pub tag: String,
    pub digest: String,
    /// In bytes.
    pub size: u64,
}

/// How far an item is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgressDetail {
    #[serde(skip_serializing_if = "is_default")]
    pub current: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub total: u64,
}

/// An error in a stream, whose response head has already been sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorDetail {
    /// The exit code of the process that has failed.
    #[serde(skip_serializing_if = "is_default")]
    pub code: i32,
    pub message: String,
}
