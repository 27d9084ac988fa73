//! The option words of a mount: which are attributes of the mount, which are data for the file
//! system.

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

/// A change of attributes: bits to set and bits to clear.
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

/// A mount's options, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub bind: Bind,
    pub here: Attributes,
    /// Attributes for the mount and all below it (`rro` and its like).
    pub recursive: Attributes,
    pub propagation: Vec<Propagation>,
    pub id_map: IdMap,
    /// What to mount of a bind mount's source or of merged layers, below it (mount(8)'s
    /// `X-mount.subdir`).
    pub subdirectory: Option<String>,
    /// Copy what the mount hides into it.
    pub copy_up: bool,
    /// The rest, for the file system: a flag, or a key with a value.
    pub data: Vec<(String, Option<String>)>,
}

impl Options {
    /// # Errors
    /// An option that a bind mount cannot have. Unknown words of other mounts are the file system's
    /// to judge.
    pub(crate) fn parse(words: &[String], is_bind: bool) -> Result<Self> {
        let mut options = Self::default();
        for word in words {
            options.take(word);
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

    fn take(&mut self, word: &str) {
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

/// The attribute bits that a word sets and clears.
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
        // The access-time modes are one field: setting one replaces the others, and clearing means
        // the default.
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
    fn words_are_sorted() {
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
    fn the_last_word_wins_and_recursion_is_apart() {
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
    fn binds_take_no_data() {
        assert_eq!(
            parse("bind,size=5", true).unwrap_err().to_string(),
            "unknown mount option \"size\" for a bind mount"
        );
    }
}
