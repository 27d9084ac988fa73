//! Project quotas, which limit the disk usage of the files below a directory. They exist if the
//! file system was created and mounted with them (ext4: `prjquota`, XFS: `pquota`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use linux_raw_sys::general as raw;

use crate::check;

const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
const PROJECTS: u32 = 2;
const GET_QUOTA: u32 = 0x80_0007;
const SET_QUOTA: u32 = 0x80_0008;

/// Unit of limits in bytes.
const BLOCK: u64 = 1024;

/// Limit and usage of a project, in bytes. A limit of 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    pub limit: u64,
    pub used: u64,
}

/// Returns the project id of a directory.
pub fn project_of(directory: impl AsFd) -> io::Result<u32> {
    Ok(attributes(directory.as_fd())?.fsx_projid)
}

/// Sets the project id of a directory, which files and directories created below it inherit.
pub fn set_project(directory: impl AsFd, project: u32) -> io::Result<()> {
    let mut attributes = attributes(directory.as_fd())?;
    attributes.fsx_projid = project;
    attributes.fsx_xflags |= raw::FS_XFLAG_PROJINHERIT;
    let directory = directory.as_fd().as_raw_fd();
    // SAFETY: the request takes a pointer to an fsxattr, which outlives the call.
    let result = unsafe { libc::ioctl(directory, FS_IOC_FSSETXATTR, &raw const attributes) };
    check(result.into()).map(drop)
}

fn attributes(directory: BorrowedFd<'_>) -> io::Result<raw::fsxattr> {
    // SAFETY: a plain struct of integers, for which all zeros are valid.
    let mut attributes: raw::fsxattr = unsafe { std::mem::zeroed() };
    let directory = directory.as_raw_fd();
    // SAFETY: the request fills an fsxattr, which outlives the call.
    let result = unsafe { libc::ioctl(directory, FS_IOC_FSGETXATTR, &raw mut attributes) };
    check(result.into())?;
    Ok(attributes)
}

/// Returns limit and usage of a project on the file system of `directory`.
///
/// # Errors
/// Returns `ENOSYS`, `ESRCH` and others if there are no project quotas.
pub fn get(directory: impl AsFd, project: u32) -> io::Result<Quota> {
    // SAFETY: a plain struct of integers, for which all zeros are valid.
    let mut found: libc::dqblk = unsafe { std::mem::zeroed() };
    match control(directory.as_fd(), GET_QUOTA, project, &mut found) {
        Ok(()) => Ok(Quota {
            limit: found.dqb_bhardlimit * BLOCK,
            used: found.dqb_curspace,
        }),
        // XFS has no record of the project yet.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Quota::default()),
        Err(error) => Err(error),
    }
}

/// Sets the limit of a project, in bytes; 0 removes it.
pub fn set_limit(directory: impl AsFd, project: u32, limit: u64) -> io::Result<()> {
    // SAFETY: a plain struct of integers, for which all zeros are valid.
    let mut wanted: libc::dqblk = unsafe { std::mem::zeroed() };
    wanted.dqb_bhardlimit = limit.div_ceil(BLOCK);
    wanted.dqb_valid = libc::QIF_BLIMITS;
    control(directory.as_fd(), SET_QUOTA, project, &mut wanted)
}

fn control(
    directory: BorrowedFd<'_>,
    command: u32,
    project: u32,
    quota: &mut libc::dqblk,
) -> io::Result<()> {
    let command = command << 8 | PROJECTS;
    // SAFETY: both commands take a pointer to a dqblk, which outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            directory.as_raw_fd(),
            command,
            project,
            std::ptr::from_mut(quota),
        )
    })
    .map(drop)
}
