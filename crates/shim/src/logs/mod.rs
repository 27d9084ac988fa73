//! Log files of a container: written by the shim, read by the engine, possibly at the same time.
//!
//! ```text
//! <path>          the current file
//! <path>.1[.zst]  the previous one (.gz for json-file); <path>.2 … are older
//! <path>.zst.new  compression in progress (.gz.new for json-file), locked by its process
//! <path>.lock     number of rotations so far; locked exclusively while files are renamed
//! ```
//! A reader takes the lock (shared) only to find the file that follows the one it has read to the
//! end. It keeps its files open, so files that are renamed, compressed or deleted meanwhile are
//! still read completely and once.

mod compression;
mod json_file;
mod local;
mod reader;
mod rotation;
mod tail;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use whelk_logsend::{Destination, Identity};

pub use compression::compress_rotated;
pub use reader::{Reader, Selection};
pub use writer::{Outgoing, Writer};

/// Maximum size of a record's data in bytes; longer lines are split into several records, as with
/// Docker.
pub(crate) const PIECE: usize = 16 << 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// Compact binary records, rotated and compressed by default, so that logs do not fill the
    /// disk.
    #[default]
    Local,
    /// Docker's JSON lines, for people and log collectors that read the file.
    JsonFile,
    /// No log is kept.
    None,
}

impl Driver {
    /// Returns Docker's name for the driver.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::JsonFile => "json-file",
            Self::None => "none",
        }
    }
}

/// Location and format of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    pub driver: Driver,
    pub path: PathBuf,
    /// Size in bytes at which a file is rotated; 0 means never.
    pub max_size: u64,
    /// Maximum number of files, including the current one.
    pub max_files: u32,
    /// Whether to compress rotated files.
    pub compress: bool,
    /// Attributes that `logs --details` shows for each line.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// The collector that the log is sent to, too.
    #[serde(default)]
    pub forwarding: Option<Forwarding>,
}

/// How a log is sent to a collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarding {
    pub destination: Destination,
    pub identity: Identity,
    /// How many bytes wait for the collector before further lines are lost; `None` if the container
    /// waits for it.
    pub buffer: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// A line of output, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Nanoseconds since the Unix epoch.
    pub time: i64,
    pub stream: Stream,
    /// Includes the newline, unless the line continues in the next record of this stream.
    pub data: Vec<u8>,
    pub attributes: BTreeMap<String, String>,
}

/// Returns the length of the record of the `local` format at the front of `bytes`, from its head.
pub(crate) fn record_length(bytes: &[u8]) -> Option<usize> {
    local::length(bytes)
}

/// Encodes a record in the `local` format.
#[cfg(test)]
pub(crate) fn encode_record(record: &LogRecord) -> Vec<u8> {
    let mut bytes = Vec::new();
    local::encode(record, &mut bytes);
    bytes
}

/// Decodes a record of the `local` format.
pub(crate) fn decode_record(bytes: &[u8]) -> Option<LogRecord> {
    local::decode(bytes, &BTreeMap::new())
}

/// Returns the current time in nanoseconds since the Unix epoch.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
