//! Device nodes and symbolic links in the container's `/dev`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mknodat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use whelk_sys::in_root;

use crate::error::{Error, Result, os, os_at};
use crate::launch::NodeOfUser;
use crate::mounts::attach_at;
use crate::spec::{Device, DeviceKind};
use crate::user::Identity;

/// Default devices of the OCI specification: name, major, minor.
const DEFAULT: &[(&str, i64, i64)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Creates the default and the configured devices and the symbolic links in `/dev`. With `bind` (in
/// a user namespace, where mknod is not permitted) the host's nodes are bind-mounted instead.
pub(crate) fn create(root: &OwnedFd, devices: &[Device], bind: bool) -> Result<()> {
    let dev = in_root::create_dir_all(root, "/dev", Mode::from_raw_mode(0o755))
        .map_err(os_at("open", "/dev"))?;
    for &(name, major, minor) in DEFAULT {
        let path = format!("/dev/{name}");
        if devices.iter().all(|device| device.path != path) {
            let device = Device {
                path,
                kind: DeviceKind::Char,
                major,
                minor,
                file_mode: Some(0o666),
                uid: 0,
                gid: 0,
            };
            create_one(&dev, name, &device, bind)?;
        }
    }
    for device in devices {
        let path = Path::new(&device.path);
        let (Some(parent), Some(name)) = (
            path.parent(),
            path.file_name().and_then(|name| name.to_str()),
        ) else {
            return Err(Error::invalid(format!(
                "invalid device path {:?}",
                device.path
            )));
        };
        let directory = in_root::create_dir_all(root, parent, Mode::from_raw_mode(0o755))
            .map_err(os_at("open", parent))?;
        create_one(&directory, name, device, bind)?;
    }
    for (name, target) in LINKS {
        link(&dev, name, target)?;
    }
    if Path::new("/proc/kcore").exists() {
        link(&dev, "core", "/proc/kcore")?;
    }
    // Replaces what the image has, so that `/dev/ptmx` belongs to the container's own devpts.
    match unlinkat(&dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => link(&dev, "ptmx", "pts/ptmx"),
        Err(error) => Err(os_at("replace", "/dev/ptmx")(error)),
    }
}

fn link(dev: &OwnedFd, name: &str, target: &str) -> Result<()> {
    match symlinkat(target, dev, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(os_at("link", format!("/dev/{name}"))(error)),
    }
}

fn create_one(directory: &OwnedFd, name: &str, device: &Device, bind: bool) -> Result<()> {
    let step = |error: Errno| os_at("create device", &device.path)(error);
    if bind {
        let source = open_tree(
            CWD,
            device.path.as_str(),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .map_err(step)?;
        let target =
            in_root::create_file(directory, name).map_err(os_at("create device", &device.path))?;
        return attach_at(&source, &target).map_err(step);
    }
    let kind = match device.kind {
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
        DeviceKind::Char | DeviceKind::All => FileType::CharacterDevice,
    };
    // Set by mknod itself (the umask is 0): a later chmod by name could follow a link that another
    // container has put there, where the directory is shared.
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    let number = |n: i64| {
        u32::try_from(n)
            .map_err(|_| Error::invalid(format!("invalid device number {n} for {}", device.path)))
    };
    match mknodat(
        directory,
        name,
        kind,
        mode,
        makedev(number(device.major)?, number(device.minor)?),
    ) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            unlinkat(directory, name, AtFlags::empty()).map_err(step)?;
            mknodat(
                directory,
                name,
                kind,
                mode,
                makedev(number(device.major)?, number(device.minor)?),
            )
            .map_err(step)?;
        }
        Err(error) => return Err(step(error)),
    }
    if device.uid != 0 || device.gid != 0 {
        chownat(
            directory,
            name,
            Some(Uid::from_raw(device.uid)),
            Some(Gid::from_raw(device.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(step)?;
    }
    Ok(())
}

/// Makes device nodes belong to the user of the container's program. Other files that are in their
/// place, such as mounts, keep their owners.
pub(crate) fn give(root: &OwnedFd, nodes: &[NodeOfUser], identity: &Identity) -> Result<()> {
    for node in nodes {
        let user = (node.user && identity.uid != 0).then_some(Uid::from_raw(identity.uid));
        let group = (node.group && identity.gid != 0).then_some(Gid::from_raw(identity.gid));
        if user.is_none() && group.is_none() {
            continue;
        }
        let path = Path::new(&node.path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            continue;
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let directory = in_root::open(root, parent, flags | OFlags::DIRECTORY, Mode::empty());
        let file =
            directory.and_then(|it| in_root::open_same_mount(it, name, flags | OFlags::NOFOLLOW));
        let Ok(file) = file else {
            continue;
        };
        let step = os_at("change the owner of", &node.path);
        let kind = rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device() || kind.is_fifo())
        {
            chownat(&file, "", user, group, AtFlags::EMPTY_PATH).map_err(step)?;
        }
    }
    Ok(())
}

/// Opens the host's `/dev/null`, with which files are masked, and checks that it is the null
/// device. The container's own could have been replaced by a symbolic link (CVE-2025-31133).
pub(crate) fn host_null() -> Result<OwnedFd> {
    let null = rustix::fs::open(
        "/dev/null",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(os("open /dev/null"))?;
    let stat = rustix::fs::fstat(null.as_fd()).map_err(os("stat /dev/null"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
        || stat.st_rdev != makedev(1, 3)
    {
        return Err(Error::invalid(
            "the host's /dev/null is not the null device",
        ));
    }
    Ok(null)
}
