//! Files as a sender describes them.

use std::collections::BTreeMap;

use rustix::fs::FileType;

use super::{Error, Result};
use crate::pb::files::Stat;

/// Bits of Go's `FileMode`.
mod go {
    pub const DIRECTORY: u32 = 1 << 31;
    pub const SYMLINK: u32 = 1 << 27;
    pub const DEVICE: u32 = 1 << 26;
    pub const FIFO: u32 = 1 << 25;
    pub const CHARACTER_DEVICE: u32 = 1 << 21;
    pub const SETUID: u32 = 1 << 23;
    pub const SETGID: u32 = 1 << 22;
    pub const STICKY: u32 = 1 << 20;
    /// The other bits, with those of Unix.
    pub const BITS: [(u32, u32); 3] = [(SETUID, 0o4000), (SETGID, 0o2000), (STICKY, 0o1000)];
    pub const TYPES: u32 =
        DIRECTORY | SYMLINK | DEVICE | FIFO | 1 << 24 | CHARACTER_DEVICE | 1 << 19;
}

/// Returns the mode of a file as Go has it.
pub(super) fn go_mode(kind: FileType, mode: u32) -> u32 {
    let kind = match kind {
        FileType::Directory => go::DIRECTORY,
        FileType::Symlink => go::SYMLINK,
        FileType::BlockDevice => go::DEVICE,
        FileType::CharacterDevice => go::DEVICE | go::CHARACTER_DEVICE,
        FileType::Fifo => go::FIFO,
        _ => 0,
    };
    let mut found = kind | mode & 0o777;
    for (bit, unix) in go::BITS {
        if mode & unix != 0 {
            found |= bit;
        }
    }
    found
}

impl Stat {
    pub(super) fn directory(path: &str, mod_time: i64) -> Self {
        Self {
            path: path.to_owned(),
            mode: go::DIRECTORY | 0o755,
            mod_time,
            ..Self::default()
        }
    }

    /// Whether the content can be asked for: also that of a hard link.
    pub(super) fn is_file(&self) -> bool {
        self.mode & go::TYPES == 0
    }

    pub(super) fn is_hard_link(&self) -> bool {
        self.is_file() && !self.linkname.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    /// What the link contains.
    Symlink(String),
    /// The path of a file that came before.
    HardLink(String),
    Fifo,
}

/// A file that a sender has. Owners are not kept: everything belongs to root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: String,
    pub kind: Kind,
    /// Permissions, with set-id bits and the sticky one.
    pub mode: u32,
    /// 0 unless it is a file.
    pub size: u64,
    /// In nanoseconds since 1970.
    pub mtime: i64,
    /// The attributes that are kept: file capabilities and those of users.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Entry {
    /// Returns whether an attribute is one of those that are kept.
    pub(super) fn keeps(name: &str) -> bool {
        name == "security.capability" || name.starts_with("user.")
    }

    /// Reads what a sender has told.
    ///
    /// # Errors
    /// Returns an error for a device, a negative size, and an empty link.
    pub fn from_stat(stat: Stat) -> Result<Self> {
        let path = stat.path;
        let kind = match stat.mode & go::TYPES {
            0 if !stat.linkname.is_empty() => Kind::HardLink(stat.linkname),
            0 => Kind::File,
            go::DIRECTORY => Kind::Directory,
            go::SYMLINK if stat.linkname.is_empty() || stat.linkname.contains('\0') => {
                return Err(Error::refused(&path, "a symbolic link without a target"));
            }
            go::SYMLINK => Kind::Symlink(stat.linkname),
            go::FIFO => Kind::Fifo,
            kind if kind & go::DEVICE != 0 => {
                return Err(Error::refused(&path, "devices are not accepted"));
            }
            kind => {
                return Err(Error::refused(&path, format!("unknown type {kind:#x}")));
            }
        };
        let size = match kind {
            Kind::File => u64::try_from(stat.size)
                .map_err(|_| Error::refused(&path, format!("a size of {} bytes", stat.size)))?,
            _ => 0,
        };
        let mut mode = stat.mode & 0o777;
        for (bit, unix) in go::BITS {
            if stat.mode & bit != 0 {
                mode |= unix;
            }
        }
        if matches!(kind, Kind::Symlink(_)) {
            mode = 0o777;
        }
        let xattrs = stat.xattrs.into_iter();
        Ok(Self {
            path,
            mtime: stat.mod_time,
            xattrs: xattrs.filter(|(name, _)| Self::keeps(name)).collect(),
            kind,
            mode,
            size,
        })
    }

    /// The opposite of [`Entry::from_stat`].
    pub fn to_stat(&self) -> Stat {
        let (kind, linkname) = match &self.kind {
            Kind::Directory => (go::DIRECTORY, ""),
            Kind::File => (0, ""),
            Kind::Symlink(target) => (go::SYMLINK, target.as_str()),
            Kind::HardLink(target) => (0, target.as_str()),
            Kind::Fifo => (go::FIFO, ""),
        };
        let mut mode = kind | self.mode & 0o777;
        for (bit, unix) in go::BITS {
            if self.mode & unix != 0 {
                mode |= bit;
            }
        }
        Stat {
            path: self.path.clone(),
            mode,
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            mod_time: self.mtime,
            linkname: linkname.to_owned(),
            xattrs: self.xattrs.clone(),
            ..Stat::default()
        }
    }

    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mode: u32, linkname: &str) -> Result<Entry> {
        Entry::from_stat(Stat {
            path: "x".into(),
            mode,
            size: 5,
            mod_time: 7,
            linkname: linkname.into(),
            ..Stat::default()
        })
    }

    #[test]
    fn modes_are_those_of_go() {
        for (mode, link, kind, unix) in [
            (0o644, "", Kind::File, 0o644),
            (0o644, "y", Kind::HardLink("y".into()), 0o644),
            (1 << 31 | 1 << 20 | 0o777, "", Kind::Directory, 0o1777),
            (1 << 27 | 0o777, "/y", Kind::Symlink("/y".into()), 0o777),
            (1 << 25 | 0o600, "", Kind::Fifo, 0o600),
            (1 << 23 | 1 << 22 | 0o755, "", Kind::File, 0o6755),
        ] {
            let found = entry(mode, link).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((&found.kind, found.mode), (&kind, unix));
            let again = Entry::from_stat(found.to_stat());
            assert_eq!(again.ok().as_ref(), Some(&found));
        }
        for mode in [
            1 << 26,
            1 << 26 | 1 << 21,
            1 << 19,
            1 << 27,
            1 << 31 | 1 << 27,
        ] {
            assert!(entry(mode, "").is_err(), "{mode:#x}");
        }
    }
}
