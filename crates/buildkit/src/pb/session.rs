//! The services of a client's session: `moby.filesync.v1` (authentication), `moby.buildkit.secrets.v1`, `moby.sshforward.v1` and
//! `moby.exporter.v1`.

use std::collections::BTreeMap;

use prost::Message;

use super::control::Exporter;

/// Asks for outputs of a result, which has these references.
#[derive(Clone, PartialEq, Message)]
pub struct FindExportersRequest {
    #[prost(btree_map = "string, bytes", tag = "1")]
    pub metadata: BTreeMap<String, Vec<u8>>,
    #[prost(string, repeated, tag = "2")]
    pub refs: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FindExportersResponse {
    #[prost(message, repeated, tag = "1")]
    pub exporters: Vec<Exporter>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct CredentialsRequest {
    #[prost(string, tag = "1")]
    pub host: String,
}

/// Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub struct CredentialsResponse {
    #[prost(string, tag = "1")]
    pub username: String,
    #[prost(string, tag = "2")]
    pub secret: String,
}

impl std::fmt::Debug for CredentialsResponse {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("CredentialsResponse(…)")
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct CheckAgentRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct GetSecretRequest {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub struct GetSecretResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

impl std::fmt::Debug for GetSecretResponse {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("GetSecretResponse(…)")
    }
}
