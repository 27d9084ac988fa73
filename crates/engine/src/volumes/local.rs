//! What the `local` driver mounts: any file system that the kernel can, or a directory of the host.

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

/// # Errors
/// An option that is not known, or one without those that it needs.
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
                "size is for volumes without a device; a tmpfs takes it among its options: o=size=…",
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

/// The option that says how many bytes a volume's files may take.
pub(super) const SIZE: &str = "size";

/// Bytes, as [`crate::logging::size`] reads them, and some at least.
pub(super) fn parse_size(text: &str) -> Result<u64> {
    match crate::logging::size(text) {
        Ok(0) => Err(Error::invalid(format!("invalid size: '{text}'"))),
        size => size,
    }
}

/// Option words that are flags of mount(2); the rest is for the file system.
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
            // The kernel knows no names.
            (_, _, Some(host)) if kind.starts_with("nfs") => {
                data.push(format!("addr={}", resolve(host)?))
            }
            _ => data.push(word.to_owned()),
        }
    }
    let failed = |error: rustix::io::Errno| {
        let text = errno_text(&error.into());
        // Passwords are for the kernel only.
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
        let text =
            CString::new(data.join(",")).map_err(|_| Error::invalid("NUL in a mount option"))?;
        mount_file_system(device, path, kind, flags, text.as_c_str()).map_err(failed)
    };
    mounted
        .and_then(|()| keep_apart(path))
        .inspect_err(|_| drop(unmount(path)))
}

/// Cuts a mount off from those that it was cloned from: what is unmounted below one would be
/// unmounted below the other.
fn keep_apart(path: &Path) -> Result<()> {
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
    // Once more: the engine may have ended between mounting it and this.
    keep_apart(path)?;
    rustix::mount::unmount(path, UnmountFlags::DETACH)
        .map_err(fs::at("unmount", path))
        .map_err(Into::into)
}

/// Whether something is mounted exactly here. Where that cannot be told, as with a server that does
/// not answer, it is.
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
                .starts_with("size is for volumes without a device")
        );
    }
}
