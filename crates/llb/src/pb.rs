//! The messages of BuildKit's `solver/pb/ops.proto`, as of v0.32.
//!
//! Maps are ordered, and fields are written by their numbers, so that equal operations have equal bytes.

use std::collections::BTreeMap;

use prost::{Enumeration, Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub struct Op {
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<Input>,
    /// `None` in the last operation of a definition, whose input is the result.
    #[prost(oneof = "op::Kind", tags = "2, 3, 4, 5, 6, 7, 8")]
    pub kind: Option<op::Kind>,
    #[prost(message, optional, tag = "10")]
    pub platform: Option<Platform>,
    #[prost(message, optional, tag = "11")]
    pub constraints: Option<WorkerConstraints>,
}

pub mod op {
    use super::{BuildOp, DiffOp, ExecOp, FileOp, MergeOp, Oneof, PassthroughOp, SourceOp};

    #[allow(
        clippy::large_enum_variant,
        reason = "processes are the most frequent operations"
    )]
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        #[prost(message, tag = "2")]
        Exec(ExecOp),
        #[prost(message, tag = "3")]
        Source(SourceOp),
        #[prost(message, tag = "4")]
        File(FileOp),
        #[prost(message, tag = "5")]
        Build(BuildOp),
        #[prost(message, tag = "6")]
        Merge(MergeOp),
        #[prost(message, tag = "7")]
        Diff(DiffOp),
        #[prost(message, tag = "8")]
        Passthrough(PassthroughOp),
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Platform {
    #[prost(string, tag = "1")]
    pub architecture: String,
    #[prost(string, tag = "2")]
    pub os: String,
    #[prost(string, tag = "3")]
    pub variant: String,
    #[prost(string, tag = "4")]
    pub os_version: String,
    #[prost(string, repeated, tag = "5")]
    pub os_features: Vec<String>,
}

/// An output of another operation.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Input {
    /// Digest of the operation's bytes.
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub index: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct WorkerConstraints {
    #[prost(string, repeated, tag = "1")]
    pub filter: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExecOp {
    #[prost(message, optional, tag = "1")]
    pub meta: Option<Meta>,
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    #[prost(enumeration = "NetMode", tag = "3")]
    pub network: i32,
    #[prost(enumeration = "SecurityMode", tag = "4")]
    pub security: i32,
    #[prost(message, repeated, tag = "5")]
    pub secretenv: Vec<SecretEnv>,
    #[prost(message, repeated, tag = "6")]
    pub cdi_devices: Vec<CdiDevice>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Meta {
    #[prost(string, repeated, tag = "1")]
    pub args: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub env: Vec<String>,
    #[prost(string, tag = "3")]
    pub cwd: String,
    #[prost(string, tag = "4")]
    pub user: String,
    #[prost(message, optional, tag = "5")]
    pub proxy_env: Option<ProxyEnv>,
    #[prost(message, repeated, tag = "6")]
    pub extra_hosts: Vec<HostIp>,
    #[prost(string, tag = "7")]
    pub hostname: String,
    #[prost(message, repeated, tag = "9")]
    pub ulimit: Vec<Ulimit>,
    #[prost(string, tag = "10")]
    pub cgroup_parent: String,
    #[prost(bool, tag = "11")]
    pub remove_mount_stubs_recursive: bool,
    #[prost(int32, repeated, tag = "12")]
    pub valid_exit_codes: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct HostIp {
    #[prost(string, tag = "1")]
    pub host: String,
    #[prost(string, tag = "2")]
    pub ip: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Ulimit {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int64, tag = "2")]
    pub soft: i64,
    #[prost(int64, tag = "3")]
    pub hard: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum NetMode {
    Unset = 0,
    Host = 1,
    None = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum SecurityMode {
    Sandbox = 0,
    Insecure = 1,
}

#[derive(Clone, PartialEq, Message)]
pub struct SecretEnv {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(bool, tag = "3")]
    pub optional: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct CdiDevice {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bool, tag = "2")]
    pub optional: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// Index of the input; -1 for none.
    #[prost(int64, tag = "1")]
    pub input: i64,
    #[prost(string, tag = "2")]
    pub selector: String,
    #[prost(string, tag = "3")]
    pub dest: String,
    /// Index of the output; -1 for none.
    #[prost(int64, tag = "4")]
    pub output: i64,
    #[prost(bool, tag = "5")]
    pub readonly: bool,
    #[prost(enumeration = "MountType", tag = "6")]
    pub mount_type: i32,
    #[prost(message, optional, tag = "19")]
    pub tmpfs_opt: Option<TmpfsOpt>,
    #[prost(message, optional, tag = "20")]
    pub cache_opt: Option<CacheOpt>,
    #[prost(message, optional, tag = "21")]
    pub secret_opt: Option<SecretOpt>,
    #[prost(message, optional, tag = "22")]
    pub ssh_opt: Option<SecretOpt>,
    #[prost(string, tag = "23")]
    pub result_id: String,
    #[prost(enumeration = "MountContentCache", tag = "24")]
    pub content_cache: i32,
}

/// Whether a result is found by the content that a mount shows, and not only by how that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum MountContentCache {
    /// Where nothing else of the input has an effect.
    Default = 0,
    On = 1,
    Off = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum MountType {
    Bind = 0,
    Secret = 1,
    Ssh = 2,
    Cache = 3,
    Tmpfs = 4,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct TmpfsOpt {
    #[prost(int64, tag = "1")]
    pub size: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct CacheOpt {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(enumeration = "CacheSharing", tag = "2")]
    pub sharing: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum CacheSharing {
    Shared = 0,
    Private = 1,
    Locked = 2,
}

/// `SecretOpt` and `SSHOpt`, which have the same fields.
#[derive(Clone, PartialEq, Message)]
pub struct SecretOpt {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(uint32, tag = "2")]
    pub uid: u32,
    #[prost(uint32, tag = "3")]
    pub gid: u32,
    #[prost(uint32, tag = "4")]
    pub mode: u32,
    #[prost(bool, tag = "5")]
    pub optional: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct ProxyEnv {
    #[prost(string, tag = "1")]
    pub http_proxy: String,
    #[prost(string, tag = "2")]
    pub https_proxy: String,
    #[prost(string, tag = "3")]
    pub ftp_proxy: String,
    #[prost(string, tag = "4")]
    pub no_proxy: String,
    #[prost(string, tag = "5")]
    pub all_proxy: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct SourceOp {
    /// `docker-image://…`, `local://…`, `git://…`, `https://…`, `oci-layout://…`.
    #[prost(string, tag = "1")]
    pub identifier: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub attrs: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct BuildOp {
    #[prost(int64, tag = "1")]
    pub builder: i64,
    #[prost(btree_map = "string, message", tag = "2")]
    pub inputs: BTreeMap<String, BuildInput>,
    #[prost(message, optional, tag = "3")]
    pub def: Option<Definition>,
    #[prost(btree_map = "string, string", tag = "4")]
    pub attrs: BTreeMap<String, String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct BuildInput {
    #[prost(int64, tag = "1")]
    pub input: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct OpMetadata {
    #[prost(bool, tag = "1")]
    pub ignore_cache: bool,
    #[prost(btree_map = "string, string", tag = "2")]
    pub description: BTreeMap<String, String>,
    #[prost(message, optional, tag = "4")]
    pub export_cache: Option<ExportCache>,
    #[prost(btree_map = "string, bool", tag = "5")]
    pub caps: BTreeMap<String, bool>,
    #[prost(message, optional, tag = "6")]
    pub progress_group: Option<ProgressGroup>,
    #[prost(message, optional, tag = "7")]
    pub linux_resources: Option<LinuxResources>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ExportCache {
    #[prost(bool, tag = "1")]
    pub value: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct ProgressGroup {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(bool, tag = "3")]
    pub weak: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxResources {
    #[prost(int64, tag = "1")]
    pub memory: i64,
    #[prost(int64, tag = "2")]
    pub memory_swap: i64,
    #[prost(uint64, tag = "3")]
    pub cpu_shares: u64,
    #[prost(uint64, tag = "4")]
    pub cpu_period: u64,
    #[prost(int64, tag = "5")]
    pub cpu_quota: i64,
    #[prost(string, tag = "6")]
    pub cpuset_cpus: String,
    #[prost(string, tag = "7")]
    pub cpuset_mems: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Source {
    #[prost(btree_map = "string, message", tag = "1")]
    pub locations: BTreeMap<String, Locations>,
    #[prost(message, repeated, tag = "2")]
    pub infos: Vec<SourceInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Locations {
    #[prost(message, repeated, tag = "1")]
    pub locations: Vec<Location>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SourceInfo {
    #[prost(string, tag = "1")]
    pub filename: String,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    pub definition: Option<Definition>,
    #[prost(string, tag = "4")]
    pub language: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Location {
    #[prost(int32, tag = "1")]
    pub source_index: i32,
    #[prost(message, repeated, tag = "2")]
    pub ranges: Vec<Range>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Range {
    #[prost(message, optional, tag = "1")]
    pub start: Option<Position>,
    #[prost(message, optional, tag = "2")]
    pub end: Option<Position>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Position {
    #[prost(int32, tag = "1")]
    pub line: i32,
    #[prost(int32, tag = "2")]
    pub character: i32,
}

/// Operations in an order in which inputs come first, with what is said about them.
#[derive(Clone, PartialEq, Message)]
pub struct Definition {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub def: Vec<Vec<u8>>,
    /// By digest.
    #[prost(btree_map = "string, message", tag = "2")]
    pub metadata: BTreeMap<String, OpMetadata>,
    #[prost(message, optional, tag = "3")]
    pub source: Option<Source>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FileOp {
    #[prost(message, repeated, tag = "2")]
    pub actions: Vec<FileAction>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FileAction {
    /// Index of an input, or of an action plus the number of inputs; -1 for an empty one.
    #[prost(int64, tag = "1")]
    pub input: i64,
    /// Of a copy, what is copied.
    #[prost(int64, tag = "2")]
    pub secondary_input: i64,
    #[prost(int64, tag = "3")]
    pub output: i64,
    #[prost(oneof = "file_action::Action", tags = "4, 5, 6, 7, 8")]
    pub action: Option<file_action::Action>,
}

pub mod file_action {
    use super::{
        FileActionCopy, FileActionMkDir, FileActionMkFile, FileActionRm, FileActionSymlink, Oneof,
    };

    #[derive(Clone, PartialEq, Oneof)]
    pub enum Action {
        #[prost(message, tag = "4")]
        Copy(FileActionCopy),
        #[prost(message, tag = "5")]
        Mkfile(FileActionMkFile),
        #[prost(message, tag = "6")]
        Mkdir(FileActionMkDir),
        #[prost(message, tag = "7")]
        Rm(FileActionRm),
        #[prost(message, tag = "8")]
        Symlink(FileActionSymlink),
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct FileActionCopy {
    #[prost(string, tag = "1")]
    pub src: String,
    #[prost(string, tag = "2")]
    pub dest: String,
    #[prost(message, optional, tag = "3")]
    pub owner: Option<ChownOpt>,
    /// -1 keeps the mode.
    #[prost(int32, tag = "4")]
    pub mode: i32,
    #[prost(bool, tag = "5")]
    pub follow_symlink: bool,
    #[prost(bool, tag = "6")]
    pub dir_copy_contents: bool,
    #[prost(bool, tag = "7")]
    pub attempt_unpack_docker_compatibility: bool,
    #[prost(bool, tag = "8")]
    pub create_dest_path: bool,
    #[prost(bool, tag = "9")]
    pub allow_wildcard: bool,
    #[prost(bool, tag = "10")]
    pub allow_empty_wildcard: bool,
    /// In nanoseconds; -1 keeps the time.
    #[prost(int64, tag = "11")]
    pub timestamp: i64,
    #[prost(string, repeated, tag = "12")]
    pub include_patterns: Vec<String>,
    #[prost(string, repeated, tag = "13")]
    pub exclude_patterns: Vec<String>,
    #[prost(bool, tag = "14")]
    pub always_replace_existing_dest_paths: bool,
    #[prost(string, tag = "15")]
    pub mode_str: String,
    #[prost(string, repeated, tag = "16")]
    pub required_paths: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FileActionMkFile {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(int32, tag = "2")]
    pub mode: i32,
    #[prost(bytes = "vec", tag = "3")]
    pub data: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    pub owner: Option<ChownOpt>,
    #[prost(int64, tag = "5")]
    pub timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct FileActionSymlink {
    #[prost(string, tag = "1")]
    pub oldpath: String,
    #[prost(string, tag = "2")]
    pub newpath: String,
    #[prost(message, optional, tag = "3")]
    pub owner: Option<ChownOpt>,
    #[prost(int64, tag = "4")]
    pub timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct FileActionMkDir {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(int32, tag = "2")]
    pub mode: i32,
    #[prost(bool, tag = "3")]
    pub make_parents: bool,
    #[prost(message, optional, tag = "4")]
    pub owner: Option<ChownOpt>,
    #[prost(int64, tag = "5")]
    pub timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct FileActionRm {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(bool, tag = "2")]
    pub allow_not_found: bool,
    #[prost(bool, tag = "3")]
    pub allow_wildcard: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct ChownOpt {
    #[prost(message, optional, tag = "1")]
    pub user: Option<UserOpt>,
    #[prost(message, optional, tag = "2")]
    pub group: Option<UserOpt>,
}

#[derive(Clone, PartialEq, Message)]
pub struct UserOpt {
    #[prost(oneof = "user_opt::User", tags = "1, 2")]
    pub user: Option<user_opt::User>,
}

pub mod user_opt {
    use super::{NamedUserOpt, Oneof};

    #[derive(Clone, PartialEq, Oneof)]
    pub enum User {
        #[prost(message, tag = "1")]
        ByName(NamedUserOpt),
        #[prost(uint32, tag = "2")]
        ById(u32),
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct NamedUserOpt {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Index of the input whose `/etc/passwd` and `/etc/group` have the name.
    #[prost(int64, tag = "2")]
    pub input: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct InputIndex {
    #[prost(int64, tag = "1")]
    pub input: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct MergeOp {
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<InputIndex>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DiffOp {
    #[prost(message, optional, tag = "1")]
    pub lower: Option<InputIndex>,
    #[prost(message, optional, tag = "2")]
    pub upper: Option<InputIndex>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PassthroughOp {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(int64, repeated, tag = "2")]
    pub outputs: Vec<i64>,
}
