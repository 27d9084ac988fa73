//! Extended attributes of a file.

use rustix::io::Errno;

use crate::error::{Error, Result, io};
use crate::snapshots::metadata::Metadata;

/// The attributes, sorted by name. Only those that the kernel can have.
#[derive(Debug, Default)]
pub(super) struct Xattrs(Vec<Xattr>);

/// Name and value.
type Xattr = (Box<[u8]>, Box<[u8]>);

/// The prefixes of names, which are stored as numbers. Names of ACLs are complete.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (ACCESS, 2),
    (DEFAULT, 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const CAPABILITY: &[u8] = b"security.capability";

/// The kinds of entries of an ACL.
const OWNER: u16 = 0x01;
const NAMED_USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const NAMED_GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Size of what precedes the attributes of an inode, in bytes.
const HEADER: usize = 12;

/// Size of what precedes an attribute's name, in bytes.
const ENTRY: usize = 4;

/// Maximum size of the attributes of a file in bytes. Other file systems have much less.
const MAX: usize = 64 << 10;

impl Xattrs {
    /// The memory that an attribute takes besides name and value, in bytes: a list has room for four at
    /// first.
    pub(super) const EACH: usize = 160;

    /// Returns the attributes of an entry for a regular file.
    pub(super) fn of_file(metadata: &Metadata) -> Result<Self> {
        let mut xattrs = Self::default();
        xattrs.add(metadata, false)?;
        Ok(xattrs)
    }

    /// Adds the attributes of an entry.
    ///
    /// # Errors
    /// Returns an error for attributes that setxattr(2) refuses.
    pub(super) fn add(&mut self, metadata: &Metadata, is_directory: bool) -> Result<()> {
        for (name, value) in &metadata.xattrs {
            let what = || format!("set extended attribute {}", name.escape_debug());
            match check(name.as_bytes(), value, is_directory) {
                Ok(()) => self.set(name.as_bytes(), value),
                // See [`super::super::metadata::apply_metadata`].
                Err(Errno::NOTSUP) => {}
                Err(error) => return Err(io(what())(error.into())),
            }
            if self.encoded_size() > MAX {
                return Err(Error::invalid(format!(
                    "{}: more than {MAX} bytes of extended attributes",
                    what()
                )));
            }
        }
        Ok(())
    }

    pub(super) fn has(&self, name: &[u8]) -> bool {
        let found = self.0.binary_search_by(|(there, _)| (**there).cmp(name));
        found.is_ok()
    }

    pub(super) fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.0.binary_search_by(|(there, _)| (**there).cmp(name)) {
            Ok(at) => self.0[at].1 = value.into(),
            Err(at) => self.0.insert(at, (name.into(), value.into())),
        }
    }

    /// Returns the memory that the attributes take, about.
    pub(super) fn memory(&self) -> usize {
        let each = |(name, value): &Xattr| name.len() + value.len() + Self::EACH;
        self.0.iter().map(each).sum()
    }

    /// Applies the ACL to the permission bits, as the kernel does: they are those of the owner, the
    /// mask and others. An ACL that has nothing else is not kept.
    pub(super) fn apply_acl(&mut self, mode: u32) -> u32 {
        let Some(at) = self.0.iter().position(|(name, _)| **name == *ACCESS) else {
            return mode;
        };
        let (mut mode, mut is_minimal) = (mode, true);
        for entry in self.0[at].1[4..].chunks_exact(8) {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            let bits = u32::from(entry[2] & 7);
            let shift = match tag {
                OWNER => 6,
                GROUP | MASK => 3,
                OTHER => 0,
                _ => {
                    is_minimal = false;
                    continue;
                }
            };
            is_minimal &= tag != MASK;
            mode = mode & !(7 << shift) | bits << shift;
        }
        if is_minimal {
            self.0.remove(at);
        }
        mode
    }

    /// Returns the size of the encoded attributes in bytes.
    pub(super) fn encoded_size(&self) -> usize {
        if self.0.is_empty() {
            return 0;
        }
        let each = |(name, value): &Xattr| {
            let suffix = split(name).map_or(0, |(_, suffix)| suffix.len());
            (ENTRY + suffix + value.len()).next_multiple_of(4)
        };
        HEADER + self.0.iter().map(each).sum::<usize>()
    }

    /// Returns the encoded attributes' size as the inode has it: in units of four bytes, in which the
    /// header counts one.
    pub(super) fn encoded_count(&self) -> u16 {
        match self.encoded_size() {
            0 => 0,
            size => u16::try_from((size - HEADER) / 4 + 1).unwrap_or(0),
        }
    }

    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        if self.0.is_empty() {
            return;
        }
        bytes.extend_from_slice(&[0; HEADER]);
        for (name, value) in &self.0 {
            let (index, suffix) = split(name).unwrap_or_default();
            bytes.push(u8::try_from(suffix.len()).unwrap_or(0));
            bytes.push(index);
            bytes.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
            bytes.extend_from_slice(suffix);
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
}

/// Returns the number of a name's prefix and the rest of the name.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES
        .iter()
        .find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?)))
}

/// Checks an attribute, as setxattr(2) does.
fn check(name: &[u8], value: &[u8], is_directory: bool) -> std::result::Result<(), Errno> {
    const MAX_NAME: usize = 255;
    const MAX_VALUE: usize = u16::MAX as usize;
    if name.contains(&0) {
        return Err(Errno::INVAL);
    }
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(Errno::RANGE);
    }
    if value.len() > MAX_VALUE {
        return Err(Errno::TOOBIG);
    }
    let (_, suffix) = split(name).ok_or(Errno::NOTSUP)?;
    if name == ACCESS || name == DEFAULT {
        let version = value.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        return match version {
            None => Err(Errno::INVAL),
            Some(2) if value.len() % 8 != 4 => Err(Errno::INVAL),
            Some(2) if name == DEFAULT && !is_directory => Err(Errno::ACCESS),
            Some(2) if !is_valid_acl(&value[4..]) => Err(Errno::INVAL),
            Some(2) => Ok(()),
            Some(_) => Err(Errno::NOTSUP),
        };
    }
    // Names that only begin like one of an ACL.
    if name.starts_with(b"system.") {
        return Err(Errno::NOTSUP);
    }
    if suffix.is_empty() {
        return Err(Errno::INVAL);
    }
    if name == CAPABILITY {
        // `struct vfs_cap_data`: a flag, and version 2 or 3.
        return match (value.len(), value.first_chunk()) {
            (20, Some([0 | 1, 0, 0, 2])) | (24, Some([0 | 1, 0, 0, 3])) => Ok(()),
            _ => Err(Errno::INVAL),
        };
    }
    Ok(())
}

/// Returns whether an ACL has all that it must have, in order, as the kernel's posix_acl_valid() checks it.
fn is_valid_acl(entries: &[u8]) -> bool {
    let (mut previous, mut needs_mask, mut found) = (0, false, 0);
    for entry in entries.chunks_exact(8) {
        let number = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        let (tag, permissions) = (number(0), number(2));
        let is_named = matches!(tag, NAMED_USER | NAMED_GROUP);
        let is_known = is_named || matches!(tag, OWNER | GROUP | MASK | OTHER);
        let is_in_order = tag > previous || is_named && tag == previous;
        if !is_known || !is_in_order || permissions > 7 {
            return false;
        }
        if is_named && entry[4..] == [0xff; 4] {
            return false;
        }
        needs_mask |= is_named;
        found |= tag;
        previous = tag;
    }
    let required = OWNER | GROUP | OTHER | if needs_mask { MASK } else { 0 };
    entries.is_empty() || found & required == required
}
