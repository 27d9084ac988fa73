//! Parsing of mount options into mount attributes, propagation and data for the file system.

use rustix::mount::MountPropagationFlags as Propagation;

use crate::error::{Error, Result};

// MOUNT_ATTR_* of mount_setattr(2).
pub(crate) const RDONLY: u64 = 0x1;
pub(crate) const NOSUID: u64 = 0x2;
pub(crate) const NODEV: u64 = 0x4;
pub(crate) const NOEXEC: u64 = 0x8;
const ATIME_MASK: u64 = 0x70;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// Mount attribute bits to set and to clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub set: u64,
    pub clear: u64,
}

impl Attributes {
    fn add(&mut self, set: u64, clear: u64) {
        self.set = self.set & !clear | set;
        self.clear = self.clear & !set | clear;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Bind {
    #[default]
    No,
    One,
    Recursive,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum IdMap {
    #[default]
    No,
    One,
    Recursive,
}

/// A mount's options by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub bind: Bind,
    /// Attributes of the mount itself.
    pub here: Attributes,
    /// Attributes of the mount and all mounts below it (`rro` and similar).
    pub recursive: Attributes,
    pub propagation: Vec<Propagation>,
    pub id_map: IdMap,
    /// Path below a bind mount's source or below merged layers to mount instead of the whole
    /// (`X-mount.subdir` of mount(8)).
    pub subdirectory: Option<String>,
    /// Whether to copy the files that the mount covers into it (`tmpcopyup`).
    pub copy_up: bool,
    /// Other options, for the file system: a flag, or a key with a value.
    pub data: Vec<(String, Option<String>)>,
}

impl Options {
    /// Parses the options of a mount.
    ///
    /// # Errors
    /// Returns an error if a bind mount has an option for the file system. For other mounts,
    /// unknown options are left to the file system.
    pub(crate) fn parse(words: &[String], is_bind: bool) -> Result<Self> {
        let mut options = Self::default();
        for word in words {
            options.add(word);
        }
        if is_bind && options.bind == Bind::No {
            options.bind = Bind::One;
        }
        if options.bind != Bind::No
            && let Some((key, _)) = options.data.first()
        {
            return Err(Error::invalid(format!(
                "unknown mount option {key:?} for a bind mount"
            )));
        }
        Ok(options)
    }

    fn add(&mut self, word: &str) {
        if let Some((set, clear)) = attribute(word) {
            return self.here.add(set, clear);
        }
        if let Some((set, clear)) = word
            .strip_prefix('r')
            .and_then(attribute)
            .filter(|_| word != "ro" && word != "rw")
        {
            return self.recursive.add(set, clear);
        }
        match word {
            "" | "defaults" | "remount" | "_netdev" | "async" | "auto" | "noauto" | "user"
            | "nouser" | "users" => {}
            "bind" => self.bind = Bind::One,
            "rbind" => self.bind = Bind::Recursive,
            "private" => self.propagation.push(Propagation::PRIVATE),
            "rprivate" => self
                .propagation
                .push(Propagation::PRIVATE | Propagation::REC),
            "shared" => self.propagation.push(Propagation::SHARED),
            "rshared" => self
                .propagation
                .push(Propagation::SHARED | Propagation::REC),
            "slave" => self.propagation.push(Propagation::DOWNSTREAM),
            "rslave" => self
                .propagation
                .push(Propagation::DOWNSTREAM | Propagation::REC),
            "unbindable" => self.propagation.push(Propagation::UNBINDABLE),
            "runbindable" => self
                .propagation
                .push(Propagation::UNBINDABLE | Propagation::REC),
            "idmap" => self.id_map = IdMap::One,
            "ridmap" => self.id_map = IdMap::Recursive,
            "tmpcopyup" => self.copy_up = true,
            _ => match word.split_once('=') {
                Some(("X-mount.subdir", path)) => self.subdirectory = Some(path.to_owned()),
                Some((key, value)) => self.data.push((key.to_owned(), Some(value.to_owned()))),
                None => self.data.push((word.to_owned(), None)),
            },
        }
    }
}

/// Returns the attribute bits that an option sets and clears.
fn attribute(word: &str) -> Option<(u64, u64)> {
    Some(match word {
        "ro" => (RDONLY, 0),
        "rw" => (0, RDONLY),
        "nosuid" => (NOSUID, 0),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, 0),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, 0),
        "exec" => (0, NOEXEC),
        "nodiratime" => (NODIRATIME, 0),
        "diratime" => (0, NODIRATIME),
        // The access-time modes share one field (MOUNT_ATTR__ATIME): setting one replaces the
        // others, and clearing selects the default, relatime.
        "noatime" => (NOATIME, ATIME_MASK),
        "strictatime" => (STRICTATIME, ATIME_MASK),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, ATIME_MASK),
        "nosymfollow" => (NOSYMFOLLOW, 0),
        "symfollow" => (0, NOSYMFOLLOW),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str, is_bind: bool) -> Result<Options> {
        Options::parse(
            &words.split(',').map(str::to_owned).collect::<Vec<_>>(),
            is_bind,
        )
    }

    #[test]
    fn options_are_split_into_attributes_propagation_and_data() {
        let options = parse("nosuid,noexec,rw,mode=755,size=64k,rprivate", false).unwrap();
        assert_eq!(
            options.here,
            Attributes {
                set: NOSUID | NOEXEC,
                clear: RDONLY
            }
        );
        assert_eq!(
            options.data,
            [
                ("mode".into(), Some("755".into())),
                ("size".into(), Some("64k".into()))
            ]
        );
        assert_eq!(
            options.propagation,
            [Propagation::PRIVATE | Propagation::REC]
        );
    }

    #[test]
    fn the_last_option_wins_and_recursive_attributes_are_separate() {
        let options = parse("rbind,ro,rw,rro,rnosuid", true).unwrap();
        assert_eq!(
            (options.here, options.bind),
            (
                Attributes {
                    set: 0,
                    clear: RDONLY
                },
                Bind::Recursive
            )
        );
        assert_eq!(
            options.recursive,
            Attributes {
                set: RDONLY | NOSUID,
                clear: 0
            }
        );
    }

    #[test]
    fn bind_mounts_reject_file_system_options() {
        assert_eq!(
            parse("bind,size=5", true).unwrap_err().to_string(),
            "unknown mount option \"size\" for a bind mount"
        );
    }
}
