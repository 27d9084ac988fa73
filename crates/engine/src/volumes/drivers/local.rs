//! The `local` driver: a directory per volume, `volumes/NAME/_data`.
//!
//! While the volume is used, a file system of any kind or a directory of the host can be mounted on
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount as mount_file_system, mount_bind,
    mount_bind_recursive, mount_remount,
};
use whelk_sys::sync::IgnorePoison as _;
use whelk_sys::{errno_text, fs};

use super::{Created, VolumeDriver, VolumeRecord, creating};
use crate::error::{Error, Result};
use crate::model::volume::SIZE;
use crate::quota::{self, Refusal};
use crate::records::DESCRIPTION;
use crate::volumes::{DATA, STAGING_PREFIX};
use crate::{random_names, records};

/// The built-in driver.
#[derive(Debug)]
pub(in crate::volumes) struct Local {
    /// The directory of all volumes, which may be on a file system of its own.
    volumes: PathBuf,
}

/// A new volume's directory before it has its final name. Deleted when dropped before that.
#[derive(Debug)]
pub(in crate::volumes) struct Staged {
    path: PathBuf,
    target: PathBuf,
}

impl Local {
    pub(super) fn new(volumes: PathBuf) -> Self {
        Self { volumes }
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.volumes.join(name)
    }

    fn content(&self, name: &str) -> PathBuf {
        self.directory(name).join(DATA)
    }

    /// Returns a new path beside the volumes.
    fn temporary(&self) -> PathBuf {
        let name = format!("{STAGING_PREFIX}{}", random_names::random_id());
        let path = self.volumes.join(name);
        temporaries().insert(path.clone());
        path
    }

    /// Creates a volume's directory under a temporary name.
    pub(in crate::volumes) fn stage(&self, record: &VolumeRecord) -> Result<Staged> {
        let staged = Staged {
            path: self.temporary(),
            target: self.directory(&record.name),
        };
        let description = records::describe_volume(record)?;
        // 0701: other users must not list or change what is mounted below; access to the data
        // depends on the mode of the data directory.
        fs::create_dir(&staged.path, 0o701)?;
        fs::create_dir(staged.content(), 0o755)?;
        fs::write(staged.path.join(DESCRIPTION), description)?;
        let size = record.size();
        if !size.is_empty() {
            parse_size(size)
                .and_then(|size| limit(&staged.content(), size))
                .map_err(creating(&record.name))?;
        }
        Ok(staged)
    }
}

impl Staged {
    /// Returns the path of the content.
    pub(in crate::volumes) fn content(&self) -> PathBuf {
        self.path.join(DATA)
    }

    /// Syncs the file system that contains it.
    pub(in crate::volumes) fn sync(&self) -> Result<()> {
        let directory = fs::open(&self.path)?;
        Ok(rustix::fs::openat(
            &directory,
            ".",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .and_then(rustix::fs::syncfs)
        .map_err(fs::at("sync", &self.path))?)
    }

    /// Renames it to its final name.
    pub(super) fn publish(&self) -> Result<()> {
        if fs::exists(&self.target) {
            return Err(Error::internal(format!(
                "{} exists but does not belong to a volume",
                self.target.display()
            )));
        }
        Ok(fs::rename(&self.path, &self.target)?)
    }

    /// Reverses [`Staged::publish`].
    pub(super) fn withdraw(&self) -> Result<()> {
        Ok(fs::rename(&self.target, &self.path)?)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if fs::exists(&self.path) {
            delete_directory(&self.path);
        }
        temporaries().remove(&self.path);
    }
}

/// The temporary directories of this process that are in use.
fn temporaries() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static TEMPORARIES: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    TEMPORARIES.lock().ignore_poison()
}

/// Returns whether a temporary directory is being filled or deleted.
pub(in crate::volumes) fn is_temporary(path: &Path) -> bool {
    temporaries().contains(path)
}

/// Deletes the directory of a removed or incomplete volume. An error is logged.
pub(in crate::volumes) fn delete_directory(path: &Path) {
    temporaries().insert(path.to_owned());
    if let Err(error) = delete(path) {
        tracing::warn!("delete a volume's directory: {error}");
    }
    temporaries().remove(path);
}

/// Deletes such a directory that an earlier process has left.
///
/// # Errors
/// Returns an error if it cannot be deleted, or is a temporary one that is in use.
pub(in crate::volumes) fn delete_stray(path: &Path) -> Result<()> {
    if !temporaries().insert(path.to_owned()) {
        return Err(Error::conflict(
            "the creation or removal of a volume uses it now",
        ));
    }
    let deleted = delete(path);
    temporaries().remove(path);
    deleted
}

fn delete(path: &Path) -> Result<()> {
    quota::remove_limit(&path.join(DATA));
    Ok(fs::remove_tree(path)?)
}

impl VolumeDriver for Local {
    fn check(&self, options: &BTreeMap<String, String>) -> Result<()> {
        check(options)
    }

    fn create(&self, record: &VolumeRecord) -> Result<Created> {
        self.stage(record).map(Created::Staged)
    }

    fn mount(&self, record: &VolumeRecord, _user: &str) -> Result<PathBuf> {
        let path = self.content(&record.name);
        if record.is_mounted() && !is_mount_point(&path) {
            mount(record, &path)?;
        }
        Ok(path)
    }

    fn unmount(&self, record: &VolumeRecord, _user: &str, is_last: bool) -> Result<()> {
        let path = self.content(&record.name);
        if record.is_mounted() && is_last && is_mount_point(&path) {
            unmount(&path)?;
        }
        Ok(())
    }

    fn release(&self, record: &VolumeRecord) -> Result<()> {
        // The mounted file system's content is not deleted.
        self.unmount(record, "", true)
    }

    fn delete(&self, record: &VolumeRecord) -> Result<()> {
        let trashed = self.temporary();
        match fs::rename(self.directory(&record.name), &trashed) {
            Err(error) => {
                temporaries().remove(&trashed);
                match error.is_not_found() {
                    true => Ok(()),
                    false => Err(error.into()),
                }
            }
            Ok(()) => {
                // Deleting a large tree takes long; nobody has to wait for it.
                std::thread::spawn(move || delete_directory(&trashed));
                Ok(())
            }
        }
    }
}

/// Validates a volume's options.
///
/// # Errors
/// Returns an error if an option is unknown, invalid, or requires another that is missing.
fn check(options: &BTreeMap<String, String>) -> Result<()> {
    for (key, needed) in [
        ("device", "type"),
        ("o", "device"),
        ("o", "type"),
        ("type", "device"),
    ] {
        if options.contains_key(key) && !options.contains_key(needed) {
            return Err(Error::invalid(format!(
                "missing required option: {needed:?}"
            )));
        }
    }
    if let Some(size) = options.get(SIZE) {
        if options.contains_key("device") {
            return Err(Error::invalid(
                "option size is for volumes without a device; a tmpfs takes it in its mount options: o=size=…",
            ));
        }
        parse_size(size)?;
    }
    match options
        .keys()
        .find(|key| !matches!(key.as_str(), "type" | "device" | "o" | SIZE))
        .map(String::as_str)
    {
        None => Ok(()),
        Some(key) => Err(Error::invalid(format!("invalid option: {key:?}"))),
    }
}

/// Limits the size of a volume's content.
fn limit(content: &Path, size: u64) -> Result<()> {
    quota::limit(&[content], size).map_err(|refusal| match refusal {
        Refusal::Unsupported => Error::invalid("quota size requested but no quota support"),
        Refusal::Other(error) => error,
    })
}

/// Parses a size such as `10m` and returns bytes; 0 is an error.
fn parse_size(text: &str) -> Result<u64> {
    whelk_text::size::parse_binary(text)
        .ok()
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| Error::invalid(format!("invalid size: '{text}'")))
}

/// Returns the mount(2) flags of an option word, or `None` for an option of the file system.
fn flag(word: &str) -> Option<MountFlags> {
    Some(match word {
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "sync" => MountFlags::SYNCHRONOUS,
        "dirsync" => MountFlags::DIRSYNC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        "strictatime" => MountFlags::STRICTATIME,
        "rw" | "suid" | "dev" | "exec" | "async" | "defaults" | "atime" | "diratime" => {
            MountFlags::empty()
        }
        _ => return None,
    })
}

/// Mounts a volume's file system on `path`.
fn mount(record: &VolumeRecord, path: &Path) -> Result<()> {
    let (kind, device) = (record.option("type"), record.option("device"));
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    let mut bind = None;
    for word in record
        .option("o")
        .split(',')
        .filter(|word| !word.is_empty())
    {
        match (word, flag(word), word.strip_prefix("addr=")) {
            ("bind" | "rbind", ..) => bind = Some(word == "rbind"),
            (_, Some(known), _) => flags |= known,
            // The kernel does not resolve host names.
            (_, _, Some(host)) if kind.starts_with("nfs") => {
                data.push(format!("addr={}", resolve(host)?))
            }
            _ => data.push(word.to_owned()),
        }
    }
    let failed = |error: rustix::io::Errno| {
        let text = errno_text(&error.into());
        // Passwords must not appear in errors.
        let data: Vec<&str> = data
            .iter()
            .map(|word| {
                if word.starts_with("pass") {
                    "password=********"
                } else {
                    word
                }
            })
            .collect();
        Error::internal(format!(
            "failed to mount local volume: mount {device}:{}, flags: {:#x}, data: {}: {text}",
            path.display(),
            flags.bits(),
            data.join(",")
        ))
    };
    let mounted = if let Some(recursive) = bind {
        if recursive {
            mount_bind_recursive(device, path)
        } else {
            mount_bind(device, path)
        }
        .map_err(failed)?;
        if flags.is_empty() {
            Ok(())
        } else {
            mount_remount(path, flags | MountFlags::BIND, c"").map_err(failed)
        }
    } else {
        let text = CString::new(data.join(","))
            .map_err(|_| Error::invalid("mount options contain a NUL byte"))?;
        mount_file_system(device, path, kind, flags, text.as_c_str()).map_err(failed)
    };
    mounted
        .and_then(|()| make_private(path))
        .inspect_err(|_| drop(unmount(path)))
}

/// Makes a mount private. Otherwise unmounting below a bind mount would propagate to its source.
fn make_private(path: &Path) -> Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(path, flags)
        .map_err(fs::at("make private", path))
        .map_err(Into::into)
}

fn resolve(host: &str) -> Result<String> {
    let unknown = |reason: String| {
        Error::invalid(format!(
            "error resolving passed in network volume address {host}: {reason}"
        ))
    };
    if host.parse::<std::net::IpAddr>().is_ok() {
        return Ok(host.to_owned());
    }
    let mut addresses = (host, 0)
        .to_socket_addrs()
        .map_err(|error| unknown(error.to_string()))?;
    addresses
        .next()
        .map(|address| address.ip().to_string())
        .ok_or_else(|| unknown("no address".into()))
}

fn unmount(path: &Path) -> Result<()> {
    // Again, because the engine may have ended between mounting and making it private.
    make_private(path)?;
    rustix::mount::unmount(path, UnmountFlags::DETACH)
        .map_err(fs::at("unmount", path))
        .map_err(Into::into)
}

/// Returns whether `path` is a mount point. Also returns `true` if that cannot be determined, as
/// with a server that does not answer.
pub(in crate::volumes) fn is_mount_point(path: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    match statx(
        CWD,
        path,
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC,
        StatxFlags::BASIC_STATS,
    ) {
        Ok(found) => found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        Err(error) => error != Errno::NOENT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_inconsistent_options() {
        let checked = |options: &[(&str, &str)]| {
            let options = options
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            check(&options).map_or_else(|error| error.to_string(), |()| "fine".into())
        };
        assert_eq!(checked(&[]), "fine");
        assert_eq!(
            checked(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")]),
            "fine"
        );
        assert_eq!(
            checked(&[("type", "tmpfs")]),
            "missing required option: \"device\""
        );
        assert_eq!(
            checked(&[("o", "size=1m")]),
            "missing required option: \"device\""
        );
        assert_eq!(checked(&[("foo", "bar")]), "invalid option: \"foo\"");
        assert_eq!(checked(&[("size", "1m")]), "fine");
        for size in ["0", "-1", "abc", "", "1x"] {
            assert_eq!(
                checked(&[("size", size)]),
                format!("invalid size: '{size}'")
            );
        }
        assert!(
            checked(&[("size", "1m"), ("type", "tmpfs"), ("device", "tmpfs")])
                .starts_with("option size is for volumes without a device")
        );
    }
}
