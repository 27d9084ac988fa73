//! Events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A line of the response of `GET /events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EventMessage {
    /// The action, from before events had types. Not in version 1.52 and later.
    #[serde(rename = "status", skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The container's or image's ID. Not in version 1.52 and later.
    #[serde(rename = "id", skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The container's image. Not in version 1.52 and later.
    #[serde(rename = "from", skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The type of the object: `container`, `image`.
    #[serde(rename = "Type")]
    pub kind: String,
    pub action: String,
    pub actor: EventActor,
    #[serde(rename = "scope")]
    pub scope: String,
    /// Seconds since the epoch.
    #[serde(rename = "time")]
    pub time: i64,
    /// Nanoseconds since the epoch.
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

/// The object that an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EventActor {
    #[serde(rename = "ID")]
    pub id: String,
    pub attributes: BTreeMap<String, String>,
}
