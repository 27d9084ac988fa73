//! `fsutil.types`: transfers of files.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Enumeration, Message};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum PacketType {
    /// A file that the sender has; without one: that was all.
    Stat = 0,
    /// The receiver asks for a file's content.
    Req = 1,
    /// A piece of a file's content; an empty one ends it.
    Data = 2,
    Fin = 3,
    /// The transfer has failed; `data` is the text.
    Err = 4,
}

#[derive(Clone, PartialEq, Message)]
pub struct Packet {
    #[prost(enumeration = "PacketType", tag = "1")]
    pub kind: i32,
    #[prost(message, optional, tag = "2")]
    pub stat: Option<Stat>,
    /// The position of the file among all that the sender has told of.
    #[prost(uint32, tag = "3")]
    pub id: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
}

/// A file, as Go's `os.FileInfo` has it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Stat {
    #[prost(string, tag = "1")]
    pub path: String,
    /// Go's `FileMode`.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    #[prost(uint32, tag = "4")]
    pub gid: u32,
    #[prost(int64, tag = "5")]
    pub size: i64,
    /// In nanoseconds since 1970.
    #[prost(int64, tag = "6")]
    pub mod_time: i64,
    /// Of a symbolic link, what it contains; of a regular file, the path of the one that it is a hard link to.
    #[prost(string, tag = "7")]
    pub linkname: String,
    #[prost(int64, tag = "8")]
    pub devmajor: i64,
    #[prost(int64, tag = "9")]
    pub devminor: i64,
    #[prost(btree_map = "string, bytes", tag = "10")]
    pub xattrs: BTreeMap<String, Vec<u8>>,
}
