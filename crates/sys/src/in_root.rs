//! Paths inside a container's root, resolved so that they cannot leave it.
//!
//! `openat2(2)` with `RESOLVE_IN_ROOT` treats the descriptor as `/`: absolute links and `..` stay
//! inside, also while something in the container swaps directories for links. What is opened once
//! is used by descriptor from then on.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// `openat2` answers `EAGAIN` when a rename elsewhere on the system raced with a `..` in the path.
const RETRIES: usize = 128;

/// Opens `path` below `root`. Links are followed, but only inside `root`; magic links never.
pub fn open(
    root: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    resolve(
        root,
        path.as_ref(),
        flags,
        mode,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Opens `path` below `root`, refusing any link on the way.
pub fn open_no_links(
    root: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
) -> io::Result<OwnedFd> {
    resolve(
        root,
        path.as_ref(),
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
    )
}

/// Opens `path` on the very file system of `root`, without links or mounts on the way: for `/proc`
/// files whose content decides about safety (CVE-2025-52881).
pub fn open_same_mount(
    root: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
) -> io::Result<OwnedFd> {
    resolve(
        root,
        path.as_ref(),
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )
}

fn resolve(
    root: impl AsFd,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    how: ResolveFlags,
) -> io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() {
        Path::new(".")
    } else {
        relative
    };
    for _ in 0..RETRIES {
        match rustix::fs::openat2(root.as_fd(), relative, flags | OFlags::CLOEXEC, mode, how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result.map_err(Into::into),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Opens the directory `path` below `root`, creating what is missing with `mode`.
///
/// Each step is taken from the descriptor of the one before, so a component that becomes a link in
/// between is resolved inside `root` or refused, never followed outside (CVE-2024-45310).
pub fn create_dir_all(root: impl AsFd, path: impl AsRef<Path>, mode: Mode) -> io::Result<OwnedFd> {
    let path = path.as_ref();
    match open(
        root.as_fd(),
        path,
        OFlags::PATH | OFlags::DIRECTORY,
        Mode::empty(),
    ) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let Some((parent, name)) = split(path) else {
        return Err(io::Error::from(Errno::NOENT));
    };
    let parent = create_dir_all(root.as_fd(), parent, mode)?;
    match rustix::fs::mkdirat(&parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    // Not through a link: one that is here now was put here by somebody else.
    rustix::fs::openat(
        &parent,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Into::into)
}

/// Opens the file `path` below `root`, creating an empty one (and its parents) where there is none.
pub fn create_file(root: impl AsFd, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let path = path.as_ref();
    match open(root.as_fd(), path, OFlags::PATH, Mode::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let Some((parent, name)) = split(path) else {
        return Err(io::Error::from(Errno::ISDIR));
    };
    let parent = create_dir_all(root.as_fd(), parent, Mode::from_raw_mode(0o755))?;
    rustix::fs::openat(
        &parent,
        name,
        OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o644),
    )?;
    rustix::fs::openat(
        &parent,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Into::into)
}

/// The parent of a path and its last name, or `None` for the root itself. A trailing `..` counts as
/// the root's parent would: it cannot be created.
fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    let Some(Component::Normal(name)) = path.components().next_back() else {
        return None;
    };
    Some((path.parent().unwrap_or(Path::new("")), name))
}

/// Reads at most `most` bytes of a regular file below `root`. Never blocks on a FIFO or a device.
///
/// # Errors
/// `InvalidData` for anything that is not a regular file or is larger.
pub fn read_regular(root: impl AsFd, path: impl AsRef<Path>, most: usize) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let fd = open(
        root,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
    )?;
    let stat = rustix::fs::fstat(&fd)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a regular file",
        ));
    }
    let mut content = Vec::new();
    std::fs::File::from(fd)
        .take(most as u64 + 1)
        .read_to_end(&mut content)?;
    if content.len() > most {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("larger than {most} bytes"),
        ));
    }
    Ok(content)
}

/// Whether a name can be one directory entry: not empty, not `.` or `..`, no slash, no NUL.
pub fn is_entry_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes != b"."
        && bytes != b".."
        && !bytes.contains(&b'/')
        && !bytes.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch(name: &str) -> (std::path::PathBuf, OwnedFd) {
        let dir = std::env::temp_dir().join(format!("whelk-in-root-{name}-{}", std::process::id()));
        crate::fs::remove_tree(&dir).expect("clean");
        crate::fs::create_dir_all(dir.join("root"), 0o755).expect("scratch");
        let root = rustix::fs::open(
            dir.join("root"),
            OFlags::PATH | OFlags::DIRECTORY,
            Mode::empty(),
        )
        .expect("open");
        (dir, root)
    }

    #[test]
    fn links_stay_inside() {
        let (dir, root) = scratch("links");
        symlink("/../../outside", dir.join("root/out")).expect("link");
        symlink("/", dir.join("root/top")).expect("link");
        create_dir_all(&root, "/top/../../a/b", Mode::from_raw_mode(0o755))
            .expect("resolved inside");
        assert!(dir.join("root/a/b").is_dir());
        assert!(
            create_dir_all(&root, "/out/x", Mode::from_raw_mode(0o755)).is_err(),
            "a dangling link is not followed"
        );
        assert!(!dir.join("outside").exists());
        crate::fs::remove_tree(&dir).expect("clean");
    }

    #[test]
    fn a_fifo_is_no_file() {
        let (dir, root) = scratch("fifo");
        rustix::fs::mkfifoat(&root, "f", Mode::from_raw_mode(0o644)).expect("fifo");
        let error = read_regular(&root, "/f", 10).expect_err("refused");
        assert_eq!(error.to_string(), "not a regular file");
        crate::fs::remove_tree(&dir).expect("clean");
    }
}
