//! Protection of this program's executable from containers.
//!
//! A process in a container can get hold of the program that entered the container
//! (`/proc/PID/exe`, or an interpreter line `#!/proc/self/exe`) and write to it once it no longer
//! runs (CVE-2019-5736). A read-only bind mount alone does not prevent that: a detached mount can
//! be made writable with `mount_setattr(2)` by anyone who has a descriptor in it and is privileged
//! in a user namespace of their own. An overlay without a writable layer is always read-only. It
//! costs no memory: the page cache is that of the file itself.

use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fcntl_get_seals,
    memfd_create, openat,
};
use rustix::io::Errno;

use crate::{fs, overlay};

/// Returns the layers of an overlay that shows the files of `directory`. An overlay needs at least
/// two layers; the second has no regular files.
pub fn layers(directory: &Path) -> [PathBuf; 2] {
    [directory.to_owned(), PathBuf::from("/sys/fs")]
}

/// Opens `program`, an absolute path, for execution, such that the file cannot be written to
/// through its processes: in a read-only overlay, or as a sealed copy in memory if its file system
/// cannot be an overlay layer.
pub fn sealed(program: &Path) -> io::Result<OwnedFd> {
    in_overlay(program).or_else(|_| copy(program))
}

fn in_overlay(program: &Path) -> Result<OwnedFd, Errno> {
    let (Some(directory), Some(name)) = (program.parent(), program.file_name()) else {
        return Err(Errno::INVAL);
    };
    let root = overlay::read_only(&layers(directory))?;
    openat(
        &root,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn copy(program: &Path) -> io::Result<OwnedFd> {
    let mut source = fs::open(program).map_err(|error| error.source)?;
    let mut copy = std::fs::File::from(memfd_create(
        c"whelk",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?);
    io::copy(&mut source, &mut copy)?;
    copy.rewind()?;
    fcntl_add_seals(&copy, SEALS)?;
    Ok(copy.into())
}

const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK)
    .union(SealFlags::SEAL);

/// Whether this process was executed from a file that [`sealed`] has opened.
pub fn is_sealed() -> io::Result<bool> {
    let own = fs::open("/proc/self/exe").map_err(|error| error.source)?;
    const OVERLAYFS_SUPER_MAGIC: rustix::fs::FsWord = 0x794c_7630;
    let read_only_overlay = rustix::fs::fstatfs(own.as_fd())?.f_type == OVERLAYFS_SUPER_MAGIC
        && rustix::fs::fstatvfs(own.as_fd())?
            .f_flag
            .contains(StatVfsMountFlags::RDONLY);
    Ok(read_only_overlay || fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SEALS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    /// Whether the file of a descriptor can be opened for writing and written to.
    fn is_writable(program: &OwnedFd) -> bool {
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        let opened = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        opened.is_ok_and(|opened| std::fs::File::from(opened).write_all(b"x").is_ok())
    }

    #[test]
    fn sealed_programs_cannot_be_written_to() {
        let scratch = crate::Scratch::temporary("program").expect("a directory");
        let path = scratch.path().join("program");
        fs::write(&path, "#!/bin/sh\n").expect("write");
        for program in [
            copy(&path).expect("a copy"),
            in_overlay(&path).expect("an overlay"),
        ] {
            assert!(!is_writable(&program));
            // Anyone with a descriptor may try to make the mount writable.
            let attr = crate::mount::MountAttr {
                clear: 1,
                ..Default::default()
            };
            let _ = crate::mount::set_attr(program.as_fd(), attr, false);
            assert!(!is_writable(&program));
        }
        assert!(!is_sealed().expect("own program"));
    }
}
