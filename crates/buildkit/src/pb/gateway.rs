//! `moby.buildkit.v1.frontend` and `moby.buildkit.v1.apicaps`.

use std::collections::BTreeMap;

use prost::{Message, Oneof};
use whelk_llb::pb::{
    Definition, HostIp, Meta, Mount, Platform, Range, SecretEnv, SourceInfo, SourceOp,
    WorkerConstraints,
};

use super::control::{CacheOptionsEntry, WorkerRecord};
use super::files::Stat;
use super::policy::Policy;
use super::{RpcStatus, Timestamp, Unused};

#[derive(Clone, PartialEq, Message)]
pub struct PongResponse {
    #[prost(message, repeated, tag = "1")]
    pub frontend_api_caps: Vec<ApiCap>,
    #[prost(message, repeated, tag = "2")]
    pub llb_caps: Vec<ApiCap>,
    #[prost(message, repeated, tag = "3")]
    pub workers: Vec<WorkerRecord>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ApiCap {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bool, tag = "2")]
    pub enabled: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct SolveRequest {
    #[prost(message, optional, tag = "1")]
    pub definition: Option<Definition>,
    #[prost(string, tag = "2")]
    pub frontend: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub frontend_opt: BTreeMap<String, String>,
    /// Whether the answer may be [`SolveResponse::result`].
    #[prost(bool, tag = "5")]
    pub allow_result_return: bool,
    /// Whether references may be [`Ref`].
    #[prost(bool, tag = "6")]
    pub allow_result_array_ref: bool,
    #[prost(message, repeated, tag = "12")]
    pub cache_imports: Vec<CacheOptionsEntry>,
    #[prost(btree_map = "string, message", tag = "13")]
    pub frontend_inputs: BTreeMap<String, Definition>,
    /// Whether the answer waits for the result.
    #[prost(bool, tag = "14")]
    pub evaluate: bool,
    #[prost(message, repeated, tag = "15")]
    pub source_policies: Vec<Policy>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SolveResponse {
    #[prost(string, tag = "1")]
    pub r#ref: String,
    #[prost(message, optional, tag = "3")]
    pub result: Option<Result>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Result {
    #[prost(oneof = "result::Kind", tags = "1, 2, 3, 4")]
    pub kind: Option<result::Kind>,
    #[prost(btree_map = "string, bytes", tag = "10")]
    pub metadata: BTreeMap<String, Vec<u8>>,
    #[prost(btree_map = "string, message", tag = "12")]
    pub attestations: BTreeMap<String, Attestations>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Attestations {
    #[prost(message, repeated, tag = "1")]
    pub attestation: Vec<Attestation>,
}

/// What is said about a result.
#[derive(Clone, PartialEq, Message)]
pub struct Attestation {
    /// 0 a predicate in a file, 1 a directory of in-toto statements.
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(btree_map = "string, bytes", tag = "2")]
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// The result that has the file or the directory.
    #[prost(message, optional, tag = "3")]
    pub r#ref: Option<Ref>,
    #[prost(string, tag = "4")]
    pub path: String,
    #[prost(string, tag = "5")]
    pub in_toto_predicate_type: String,
    #[prost(message, repeated, tag = "6")]
    pub in_toto_subjects: Vec<InTotoSubject>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct InTotoSubject {
    /// 0 the result itself, 1 what has these digests.
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(string, repeated, tag = "2")]
    pub digest: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
}

pub mod result {
    use super::{Oneof, Ref, RefMap, RefNames};

    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        #[prost(string, tag = "1")]
        RefName(String),
        #[prost(message, tag = "2")]
        RefNames(RefNames),
        #[prost(message, tag = "3")]
        Ref(Ref),
        #[prost(message, tag = "4")]
        Refs(RefMap),
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct RefNames {
    #[prost(btree_map = "string, string", tag = "1")]
    pub refs: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Ref {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub def: Option<Definition>,
}

/// References by platform.
#[derive(Clone, PartialEq, Message)]
pub struct RefMap {
    #[prost(btree_map = "string, message", tag = "1")]
    pub refs: BTreeMap<String, Ref>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReturnRequest {
    #[prost(message, optional, tag = "1")]
    pub result: Option<Result>,
    #[prost(message, optional, tag = "2")]
    pub error: Option<RpcStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct InputsResponse {
    #[prost(btree_map = "string, message", tag = "1")]
    pub definitions: BTreeMap<String, Definition>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ResolveImageConfigRequest {
    #[prost(string, tag = "1")]
    pub r#ref: String,
    #[prost(message, optional, tag = "2")]
    pub platform: Option<Platform>,
    #[prost(string, tag = "3")]
    pub resolve_mode: String,
    #[prost(string, tag = "4")]
    pub log_name: String,
    /// 0 a registry, 1 an OCI layout.
    #[prost(int32, tag = "5")]
    pub resolver_type: i32,
    #[prost(message, repeated, tag = "8")]
    pub source_policies: Vec<Policy>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResolveImageConfigResponse {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(bytes = "vec", tag = "2")]
    pub config: Vec<u8>,
    #[prost(string, tag = "3")]
    pub r#ref: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ResolveSourceMetaRequest {
    #[prost(message, optional, tag = "1")]
    pub source: Option<SourceOp>,
    #[prost(message, optional, tag = "2")]
    pub platform: Option<Platform>,
    #[prost(string, tag = "3")]
    pub log_name: String,
    #[prost(string, tag = "4")]
    pub resolve_mode: String,
    #[prost(message, optional, tag = "5")]
    pub git: Option<ResolveSourceGitRequest>,
    #[prost(message, optional, tag = "7")]
    pub http: Option<ResolveSourceHttpRequest>,
    #[prost(message, repeated, tag = "8")]
    pub source_policies: Vec<Policy>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ResolveSourceGitRequest {
    #[prost(bool, tag = "1")]
    pub return_object: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ResolveSourceHttpRequest {
    /// Another digest than SHA-256 of the file alone.
    #[prost(message, optional, tag = "1")]
    pub checksum_request: Option<Unused>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ResolveSourceMetaResponse {
    #[prost(message, optional, tag = "1")]
    pub source: Option<SourceOp>,
    #[prost(message, optional, tag = "2")]
    pub image: Option<ResolveSourceImageResponse>,
    #[prost(message, optional, tag = "3")]
    pub git: Option<ResolveSourceGitResponse>,
    #[prost(message, optional, tag = "4")]
    pub http: Option<ResolveSourceHttpResponse>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResolveSourceGitResponse {
    /// Of the commit, or of the annotated tag that names it.
    #[prost(string, tag = "1")]
    pub checksum: String,
    #[prost(string, tag = "2")]
    pub r#ref: String,
    /// Empty unless the reference is an annotated tag.
    #[prost(string, tag = "3")]
    pub commit_checksum: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResolveSourceHttpResponse {
    #[prost(string, tag = "1")]
    pub checksum: String,
    #[prost(string, tag = "2")]
    pub filename: String,
    #[prost(message, optional, tag = "3")]
    pub last_modified: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResolveSourceImageResponse {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(bytes = "vec", tag = "2")]
    pub config: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReadFileRequest {
    #[prost(string, tag = "1")]
    pub r#ref: String,
    #[prost(string, tag = "2")]
    pub file_path: String,
    #[prost(message, optional, tag = "3")]
    pub range: Option<FileRange>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct FileRange {
    #[prost(int64, tag = "1")]
    pub offset: i64,
    #[prost(int64, tag = "2")]
    pub length: i64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReadFileResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReadDirRequest {
    #[prost(string, tag = "1")]
    pub r#ref: String,
    #[prost(string, tag = "2")]
    pub dir_path: String,
    #[prost(string, tag = "3")]
    pub include_pattern: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReadDirResponse {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<Stat>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatFileRequest {
    #[prost(string, tag = "1")]
    pub r#ref: String,
    #[prost(string, tag = "2")]
    pub path: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct StatFileResponse {
    #[prost(message, optional, tag = "1")]
    pub stat: Option<Stat>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct EvaluateRequest {
    #[prost(string, tag = "1")]
    pub r#ref: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct WarnRequest {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub level: i64,
    #[prost(bytes = "vec", tag = "3")]
    pub short: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub detail: Vec<Vec<u8>>,
    #[prost(string, tag = "5")]
    pub url: String,
    #[prost(message, optional, tag = "6")]
    pub info: Option<SourceInfo>,
    #[prost(message, repeated, tag = "7")]
    pub ranges: Vec<Range>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NewContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// With the results that they show ([`Mount::result_id`]).
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    /// A [`whelk_llb::pb::NetMode`].
    #[prost(int32, tag = "3")]
    pub network: i32,
    #[prost(message, optional, tag = "4")]
    pub platform: Option<Platform>,
    #[prost(message, optional, tag = "5")]
    pub constraints: Option<WorkerConstraints>,
    #[prost(message, repeated, tag = "6")]
    pub extra_hosts: Vec<HostIp>,
    #[prost(string, tag = "7")]
    pub hostname: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReleaseContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// What either side says of a process.
#[derive(Clone, PartialEq, Message)]
pub struct ExecMessage {
    #[prost(string, tag = "1")]
    pub process_id: String,
    #[prost(oneof = "exec::Input", tags = "2, 3, 4, 5, 6, 7, 8")]
    pub input: Option<exec::Input>,
}

pub mod exec {
    use super::{ExitMessage, FdMessage, InitMessage, Oneof, ResizeMessage, SignalMessage, Unused};

    #[allow(clippy::large_enum_variant, reason = "there is one of them at a time")]
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Input {
        /// Starts a process.
        #[prost(message, tag = "2")]
        Init(InitMessage),
        /// Bytes of a stream.
        #[prost(message, tag = "3")]
        File(FdMessage),
        #[prost(message, tag = "4")]
        Resize(ResizeMessage),
        #[prost(message, tag = "5")]
        Started(Unused),
        #[prost(message, tag = "6")]
        Exit(ExitMessage),
        /// The last message of a process.
        #[prost(message, tag = "7")]
        Done(Unused),
        #[prost(message, tag = "8")]
        Signal(SignalMessage),
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct InitMessage {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(message, optional, tag = "2")]
    pub meta: Option<Meta>,
    /// The streams that are connected: 0, 1, 2.
    #[prost(uint32, repeated, tag = "3")]
    pub fds: Vec<u32>,
    #[prost(bool, tag = "4")]
    pub tty: bool,
    /// A [`whelk_llb::pb::SecurityMode`].
    #[prost(int32, tag = "5")]
    pub security: i32,
    #[prost(message, repeated, tag = "6")]
    pub secretenv: Vec<SecretEnv>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct FdMessage {
    #[prost(uint32, tag = "1")]
    pub fd: u32,
    #[prost(bool, tag = "2")]
    pub eof: bool,
    #[prost(bytes = "vec", tag = "3")]
    pub data: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ResizeMessage {
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    #[prost(uint32, tag = "2")]
    pub cols: u32,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct SignalMessage {
    /// Without `SIG`.
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ExitMessage {
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// Set for any other code than 0.
    #[prost(message, optional, tag = "2")]
    pub error: Option<RpcStatus>,
}
