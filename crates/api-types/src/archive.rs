//! Files of containers.

use serde::{Deserialize, Serialize};

/// Name, size, mode and link target of a file in a container: the JSON in the header
/// `X-Docker-Container-Path-Stat`, which is encoded in Base64.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPathStat {
    pub name: String,
    pub size: i64,
    /// Go's `os.FileMode`.
    pub mode: u32,
    pub mtime: String,
    pub link_target: String,
}

impl ContainerPathStat {
    pub const DIRECTORY: u32 = 1 << 31;
    pub const SYMLINK: u32 = 1 << 27;
    pub const DEVICE: u32 = 1 << 26;
    pub const FIFO: u32 = 1 << 25;
    pub const SOCKET: u32 = 1 << 24;
    pub const SET_UID: u32 = 1 << 23;
    pub const SET_GID: u32 = 1 << 22;
    pub const CHARACTER_DEVICE: u32 = 1 << 21;
    pub const STICKY: u32 = 1 << 20;
}

/// A path that a container has changed in its image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FilesystemChange {
    pub path: String,
    /// 0 for modified, 1 for added, 2 for deleted.
    pub kind: u8,
}
