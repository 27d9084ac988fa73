//! Device nodes and symbolic links in the container's `/dev`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, StatxFlags, Uid, chownat, makedev, mknodat, statx,
    symlinkat, unlinkat,
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
/// Returns the paths of devices for which there was already a file that had to be left.
pub(crate) fn create(root: &OwnedFd, devices: &[Device], bind: bool) -> Result<Vec<String>> {
    let dev = in_root::create_dir_all(root, "/dev", Mode::from_raw_mode(0o755))
        .map_err(os_at("open", "/dev"))?;
    let own = [mount_id(root)?, mount_id(&dev)?];
    let mut left = Vec::new();
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
            create_one(&dev, name, &device, bind, true)?;
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
        let is_own = own.contains(&mount_id(&directory)?);
        if create_one(&directory, name, device, bind, is_own)? == Outcome::Left {
            left.push(device.path.clone());
        }
    }
    for (name, target) in LINKS {
        link(&dev, name, target)?;
    }
    if Path::new("/proc/kcore").exists() {
        link(&dev, "core", "/proc/kcore")?;
    }
    // Replaces what the image has, so that `/dev/ptmx` belongs to the container's own devpts.
    match unlinkat(&dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => link(&dev, "ptmx", "pts/ptmx")?,
        Err(error) => return Err(os_at("replace", "/dev/ptmx")(error)),
    }
    Ok(left)
}

/// Returns the identity of the mount that a directory is on.
fn mount_id(directory: &OwnedFd) -> Result<u64> {
    let found = statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    Ok(found
        .map_err(os("stat the directory of a device"))?
        .stx_mnt_id)
}

fn link(dev: &OwnedFd, name: &str, target: &str) -> Result<()> {
    match symlinkat(target, dev, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(os_at("link", format!("/dev/{name}"))(error)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Made,
    /// There was a file that is not the container's.
    Left,
}

/// Creates a device in a directory. `is_own` says whether the files in it are the container's, so that
/// one that has the name may be replaced: in a mounted directory of the host it is the host's.
fn create_one(
    directory: &OwnedFd,
    name: &str,
    device: &Device,
    bind: bool,
    is_own: bool,
) -> Result<Outcome> {
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
        attach_at(&source, &target).map_err(step)?;
        return Ok(Outcome::Made);
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
    let number = makedev(number(device.major)?, number(device.minor)?);
    let make = || mknodat(directory, name, kind, mode, number);
    match make() {
        Ok(()) => {}
        Err(Errno::EXIST) if is_own => match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) => make().map_err(step)?,
            // Something is mounted there.
            Err(Errno::BUSY) => return Ok(Outcome::Left),
            Err(error) => return Err(step(error)),
        },
        Err(Errno::EXIST) => return Ok(Outcome::Left),
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
    Ok(Outcome::Made)
}

/// Makes device nodes belong to the user of the container's program. Other files that are in their
/// place, such as mounts and what [`create`] has `left`, keep their owners.
pub(crate) fn give(
    root: &OwnedFd,
    nodes: &[NodeOfUser],
    left: &[String],
    identity: &Identity,
) -> Result<()> {
    for node in nodes.iter().filter(|node| !left.contains(&node.path)) {
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
