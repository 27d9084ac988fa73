//! Pseudo-terminals of a container, allocated from its own devpts.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::Winsize;
use whelk_sys::in_root;

use crate::error::{Error, Result, os, os_at};
use crate::mounts::{attach_at, clone_of};
use crate::spec::ConsoleSize;

/// Both ends of a pseudo-terminal.
pub(crate) struct Terminal {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// Opens a pseudo-terminal in the devpts instance whose root is `devpts`.
///
/// The slave is opened through the master (`TIOCGPTPEER`), not by path, so that the container
/// cannot substitute another file (CVE-2025-52565).
pub(crate) fn open(devpts: &OwnedFd, size: Option<&ConsoleSize>) -> Result<Terminal> {
    let master = in_root::open_same_mount(devpts, "ptmx", OFlags::RDWR | OFlags::NOCTTY)
        .map_err(os_at("open", "/dev/pts/ptmx"))?;
    let stat = rustix::fs::fstat(&master).map_err(os_at("stat", "/dev/pts/ptmx"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
        || stat.st_rdev != makedev(5, 2)
    {
        return Err(Error::invalid(
            "/dev/pts/ptmx in the container is not the pseudo-terminal multiplexer",
        ));
    }
    unlockpt(&master).map_err(os("unlock the terminal"))?;
    let slave = ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .map_err(os("open the terminal's slave end"))?;
    if let Some(size) = size {
        let window = Winsize {
            ws_row: size.height,
            ws_col: size.width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, window).map_err(os("set terminal size"))?;
    }
    Ok(Terminal { master, slave })
}

/// Bind-mounts the terminal at `/dev/console`.
pub(crate) fn mount_console(root: &OwnedFd, slave: &OwnedFd) -> Result<()> {
    let target =
        in_root::create_file(root, "/dev/console").map_err(os_at("create", "/dev/console"))?;
    let tree = clone_of(slave, false).map_err(os_at("mount", "/dev/console"))?;
    attach_at(&tree, &target).map_err(os_at("mount", "/dev/console"))
}

/// Makes `slave` the controlling terminal of the session and `uid` its owner.
pub(crate) fn control(slave: &OwnedFd, uid: u32) -> Result<()> {
    rustix::process::ioctl_tiocsctty(slave).map_err(os("set controlling terminal"))?;
    // The group remains the one of the devpts mount options (`gid=`).
    rustix::fs::fchown(slave, Some(Uid::from_raw(uid)), None::<Gid>).map_err(os("chown terminal"))
}

/// Opens the devpts of the container that the caller has entered.
pub(crate) fn entered_devpts() -> Result<OwnedFd> {
    const DEVPTS_SUPER_MAGIC: rustix::fs::FsWord = 0x1cd1;
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(os("open /"))?;
    let devpts = in_root::open(
        &root,
        "/dev/pts",
        OFlags::PATH | OFlags::DIRECTORY,
        Mode::empty(),
    )
    .map_err(os_at("open", "/dev/pts"))?;
    let magic = rustix::fs::fstatfs(devpts.as_fd())
        .map_err(os_at("statfs", "/dev/pts"))?
        .f_type;
    if magic == DEVPTS_SUPER_MAGIC {
        Ok(devpts)
    } else {
        Err(Error::invalid(
            "cannot allocate a terminal in the container: /dev/pts is not devpts",
        ))
    }
}
