//! Mounts of EROFS images that are plain files, without a loop device: detached, so that they are
//! gone with the last descriptor and what uses it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

/// Mounts an image without attaching the mount.
///
/// # Errors
/// Returns `EUCLEAN` if the file is damaged (see [`check`]), `ENODEV` on kernels without EROFS, and
/// `ENOTBLK` on those that mount only block devices (before 6.12).
pub fn mount(image: &Path) -> Result<OwnedFd, Errno> {
    check(image)?;
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", image)?;
    fsconfig_create(context.as_fd())?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
}

/// Checks that an image of blocks of 4096 bytes has a superblock, and as many bytes as that says: the
/// kernel mounts a file that was cut off, too.
///
/// # Errors
/// Returns `EUCLEAN` if not.
pub fn check(image: &Path) -> Result<(), Errno> {
    const SUPERBLOCK: u64 = 1024;
    const MAGIC: u32 = 0xe0f5_e1e2;
    const BLOCK: u64 = 4096;
    let file = open(image, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut superblock = [0; 40];
    let read = rustix::io::pread(&file, &mut superblock, SUPERBLOCK)?;
    let [magic, .., blocks] = superblock.as_chunks().0 else {
        return Err(Errno::UCLEAN);
    };
    let size = u64::from(u32::from_le_bytes(*blocks)) * BLOCK;
    let has_all = u64::try_from(rustix::fs::fstat(&file)?.st_size).is_ok_and(|has| has >= size);
    if read == superblock.len() && u32::from_le_bytes(*magic) == MAGIC && has_all {
        Ok(())
    } else {
        Err(Errno::UCLEAN)
    }
}
