//! A container's log: written by the shim, read by the engine, possibly at the same time.
//!
//! ```text
//! <path>          the current file
//! <path>.1[.zst]  the one before it (.gz for json-file), <path>.2 … the older ones
//! <path>.zst.new  one that is being compressed (.gz.new for json-file), locked by whoever does that
//! <path>.lock     the number of rotations so far; locked exclusively while files are renamed
//! ```
//! A reader takes the lock (shared) only to find out which file follows the one it has read to its
//! end. It holds descriptors, so what is renamed, compressed or removed under it is still read once
//! and completely.

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

pub use compression::compress_rotated;
pub use reader::{Reader, Selection};
pub use writer::Writer;

/// Longer lines are stored in pieces of this size, in bytes, as Docker does.
const PIECE: usize = 16 << 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// Compact binary records, rotated and compressed: no disk fills by itself.
    #[default]
    Local,
    /// Docker's JSON lines, for people and collectors that read the file.
    JsonFile,
    /// Nothing is kept.
    None,
}

/// Where and how a log is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    pub driver: Driver,
    pub path: PathBuf,
    /// Rotate at this many bytes; 0 means never.
    pub max_size: u64,
    /// How many files there are at most, the current one included.
    pub max_files: u32,
    /// Compress files when they are rotated.
    pub compress: bool,
    /// What `logs --details` shows with each line.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// One line, or a piece of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Nanoseconds since the epoch.
    pub time: i64,
    pub stream: Stream,
    /// With its newline, unless the line goes on in the next record of this stream.
    pub data: Vec<u8>,
    pub attributes: BTreeMap<String, String>,
}

/// Nanoseconds since the epoch, now.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
