//! Structures of the EROFS format, version 1, with extended inodes.

use rustix::fs::Timespec;

use super::xattrs::Xattrs;

/// Size of a block in bytes.
pub(super) const BLOCK: usize = 4096;

/// Size of an inode in bytes.
pub(super) const INODE: usize = 64;

/// Positions of inodes are multiples of this; their number is the position divided by it.
pub(super) const SLOT: usize = 32;

/// Offset of an inode's number of links in it.
pub(super) const LINKS: u64 = 44;

/// Offset of the superblock.
pub(super) const SUPERBLOCK: usize = 1024;

/// Position of the root's inode, behind the superblock of 128 bytes. Its number has 16 bits only.
pub(super) const ROOT_INODE: usize = SUPERBLOCK + 128;

/// Types of files in an inode's mode.
pub(super) const FIFO: u32 = 0o010_000;
pub(super) const CHARACTER_DEVICE: u32 = 0o020_000;
pub(super) const DIRECTORY: u32 = 0o040_000;
pub(super) const BLOCK_DEVICE: u32 = 0o060_000;
pub(super) const REGULAR: u32 = 0o100_000;
pub(super) const SYMLINK: u32 = 0o120_000;

pub(super) struct Inode {
    /// With the file's type.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
    pub(super) links: u32,
    pub(super) number: u32,
    pub(super) size: u64,
    pub(super) content: Content,
}

/// Where an inode's content is.
pub(super) enum Content {
    /// Behind the inode and its extended attributes, in the same block.
    Behind,
    /// In blocks that begin at this position.
    Blocks(u64),
    /// A device's major and minor number instead of content.
    Device(u32, u32),
}

impl Inode {
    /// Returns the inode with its extended attributes.
    pub(super) fn encode(&self, xattrs: &Xattrs) -> Vec<u8> {
        const EXTENDED: u16 = 1;
        const FLAT_INLINE: u16 = 2 << 1;
        /// Instead of a block, where there is none.
        const NONE: u32 = u32::MAX;
        let (layout, union) = match self.content {
            Content::Behind => (FLAT_INLINE, NONE),
            Content::Blocks(_) if self.size == 0 => (0, NONE),
            Content::Blocks(start) => (0, block(start)),
            // As the kernel's new_encode_dev.
            Content::Device(major, minor) => {
                (0, (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
            }
        };
        let mut bytes = Vec::with_capacity(INODE + xattrs.encoded_size());
        bytes.extend_from_slice(&(EXTENDED | layout).to_le_bytes());
        bytes.extend_from_slice(&xattrs.encoded_count().to_le_bytes());
        bytes.extend_from_slice(&u16::try_from(self.mode).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&union.to_le_bytes());
        for number in [self.number, self.uid, self.gid] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.mtime.tv_sec.to_le_bytes());
        let nanoseconds = u32::try_from(self.mtime.tv_nsec).unwrap_or(0);
        bytes.extend_from_slice(&nanoseconds.to_le_bytes());
        bytes.extend_from_slice(&self.links.to_le_bytes());
        bytes.resize(INODE, 0);
        xattrs.encode(&mut bytes);
        bytes
    }
}

/// Returns the number of the block at a position. The size of images is limited by that of layers.
fn block(position: u64) -> u32 {
    u32::try_from(position / BLOCK as u64).unwrap_or(u32::MAX)
}

/// Returns the superblock of an image of this size with so many inodes.
pub(super) fn superblock(size: u64, inodes: u64, uuid: [u8; 16]) -> [u8; 128] {
    const MAGIC: u32 = 0xe0f5_e1e2;
    /// Inodes have their own times.
    const MTIME: u32 = 2;
    const BLOCK_BITS: u8 = 12;
    let mut bytes = [0; 128];
    let mut put = |offset: usize, value: &[u8]| {
        bytes[offset..offset + value.len()].copy_from_slice(value);
    };
    put(0, &MAGIC.to_le_bytes());
    put(8, &MTIME.to_le_bytes());
    put(12, &[BLOCK_BITS]);
    let root = u16::try_from(ROOT_INODE / SLOT).unwrap_or(0);
    put(14, &root.to_le_bytes());
    put(16, &inodes.to_le_bytes());
    put(36, &block(size).to_le_bytes());
    put(48, &uuid);
    bytes
}

/// An entry of a directory.
pub(super) struct DirectoryEntry<'a> {
    pub(super) name: &'a [u8],
    /// Position of the inode.
    pub(super) inode: u64,
    /// The file's type in the inode's mode.
    pub(super) kind: u32,
}

/// Size of a directory's entry without its name, in bytes.
const DIRENT: usize = 12;

/// Returns how many of the entries with names of these lengths fit into a block, and their size.
fn fitting(lengths: impl Iterator<Item = usize>) -> (usize, usize) {
    let (mut count, mut size) = (0, 0);
    for length in lengths {
        if size + DIRENT + length > BLOCK {
            break;
        }
        count += 1;
        size += DIRENT + length;
    }
    (count, size)
}

/// Returns the size of a directory with names of these lengths, in order.
pub(super) fn directory_size(mut lengths: &[u8]) -> usize {
    let mut blocks = 0;
    loop {
        let (count, size) = fitting(lengths.iter().map(|length| usize::from(*length)));
        if count == lengths.len() {
            return blocks * BLOCK + size;
        }
        blocks += 1;
        lengths = &lengths[count..];
    }
}

/// Returns a directory's content. The entries are sorted by name, and contain `.` and `..`.
pub(super) fn directory(mut entries: &[DirectoryEntry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let (count, _) = fitting(entries.iter().map(|entry| entry.name.len()));
        let (here, rest) = entries.split_at(count);
        let mut name = here.len() * DIRENT;
        for entry in here {
            bytes.extend_from_slice(&(entry.inode / SLOT as u64).to_le_bytes());
            bytes.extend_from_slice(&u16::try_from(name).unwrap_or(0).to_le_bytes());
            bytes.extend_from_slice(&[entry_type(entry.kind), 0]);
            name += entry.name.len();
        }
        for entry in here {
            bytes.extend_from_slice(entry.name);
        }
        entries = rest;
        if entries.is_empty() {
            return bytes;
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
}

/// Returns the number of a file's type in directories.
fn entry_type(kind: u32) -> u8 {
    match kind {
        REGULAR => 1,
        DIRECTORY => 2,
        CHARACTER_DEVICE => 3,
        BLOCK_DEVICE => 4,
        FIFO => 5,
        SYMLINK => 7,
        _ => 0,
    }
}
