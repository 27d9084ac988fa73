//! The mounts of the `local` driver: any file system that the kernel supports, or a directory of
//! the host.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::ToSocketAddrs;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount as mount_file_system, mount_bind,
    mount_bind_recursive, mount_remount,
};
use whelk_sys::{errno_text, fs};

use super::VolumeRecord;
use crate::error::{Error, Result};

/// Validates a volume's options.
///
/// # Errors
/// Returns an error if an option is unknown, invalid, or requires another that is missing.
pub(super) fn check(options: &BTreeMap<String, String>) -> Result<()> {
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

/// The option that limits the size of a volume in bytes.
pub(super) const SIZE: &str = "size";

/// Parses a size such as `10m` and returns bytes; 0 is an error.
pub(super) fn parse_size(text: &str) -> Result<u64> {
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
pub(super) fn mount(record: &VolumeRecord, path: &Path) -> Result<()> {
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

pub(super) fn unmount(path: &Path) -> Result<()> {
    // Again, because the engine may have ended between mounting and making it private.
    make_private(path)?;
    rustix::mount::unmount(path, UnmountFlags::DETACH)
        .map_err(fs::at("unmount", path))
        .map_err(Into::into)
}

/// Returns whether `path` is a mount point. Also returns `true` if that cannot be determined, as
/// with a server that does not answer.
pub(super) fn is_mount_point(path: &Path) -> bool {
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
    fn options_go_together() {
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
