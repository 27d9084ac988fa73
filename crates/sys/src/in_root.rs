//! Resolution of paths inside a container's root, which cannot leave that root.
//!
//! `openat2(2)` with `RESOLVE_IN_ROOT` treats the descriptor as `/`: absolute symbolic links and
//! `..` stay inside, even while a process in the container replaces directories by links. Files are
//! used by descriptor once they are opened.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Attempts per call: openat2(2) fails with `EAGAIN` when a rename or mount anywhere races with a
/// `..` in the path.
const RETRIES: usize = 128;

/// Maximum number of links whose targets are created for a path, as the kernel follows.
const MAX_LINKS: usize = 40;

/// Opens `path` below `root`. Symbolic links are followed, but only inside `root`; magic links
/// never.
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

/// Opens `path` below `root`. Symbolic links are followed; those that lead out of `root`, which all
/// absolute ones do, give `EXDEV`.
pub fn open_beneath(root: impl AsFd, path: impl AsRef<Path>, flags: OFlags) -> io::Result<OwnedFd> {
    resolve(
        root,
        path.as_ref(),
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Opens `path` below `root` and fails if it contains a symbolic link.
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

/// Opens `path` below `root` without following symbolic links or crossing mounts: for
/// security-relevant `/proc` files (CVE-2025-52881).
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

/// Opens the directory `path` below `root`, creating missing components with `mode`.
///
/// Each component is opened relative to the descriptor of the previous one, so a component that is
/// replaced by a symbolic link meanwhile is resolved inside `root` or refused, never followed
/// outside (CVE-2024-45310).
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
    // O_NOFOLLOW: a symbolic link that is here now was created concurrently.
    rustix::fs::openat(
        &parent,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Into::into)
}

/// Opens the file `path` below `root`, creating an empty one (and its parents) if it does not
/// exist.
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

/// Like [`create_dir_all`]. What symbolic links in the path lead to is created too, inside `root`.
///
/// # Errors
/// Returns `ELOOP` for too many links.
pub fn create_dir_all_behind_links(
    root: impl AsFd,
    path: impl AsRef<Path>,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let mut path = path.as_ref().to_owned();
    for _ in 0..MAX_LINKS {
        let error = match create_dir_all(root.as_fd(), &path, mode) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => error,
            result => return result,
        };
        path = behind_link(root.as_fd(), &path).ok_or(error)?;
    }
    Err(Errno::LOOP.into())
}

/// Replaces the first link in a path that leads to nothing by its target.
fn behind_link(root: impl AsFd, path: &Path) -> Option<PathBuf> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut parent = PathBuf::new();
    let mut components = path.components();
    while let Some(component) = components.next() {
        let at = parent.join(component);
        if open(root.as_fd(), &at, flags, Mode::empty()).is_ok() {
            parent = at;
            continue;
        }
        let directory = open(root.as_fd(), &parent, flags, Mode::empty()).ok()?;
        let target = rustix::fs::readlinkat(&directory, component.as_os_str(), Vec::new()).ok()?;
        let target = Path::new(OsStr::from_bytes(target.to_bytes()));
        return Some(parent.join(target).join(components.as_path()));
    }
    None
}

/// Splits a path into its parent and its last name. Returns `None` for the root and for a path that
/// ends in `..`, which cannot be created.
fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    let Some(Component::Normal(name)) = path.components().next_back() else {
        return None;
    };
    Some((path.parent().unwrap_or(Path::new("")), name))
}

/// Opens a regular file below `root` for reading. Never blocks on a FIFO or a device.
///
/// # Errors
/// Returns `InvalidData` if it is not a regular file.
pub fn open_regular(root: impl AsFd, path: impl AsRef<Path>) -> io::Result<std::fs::File> {
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
    Ok(fd.into())
}

/// Reads a regular file of at most `most` bytes below `root`. Never blocks on a FIFO or a device.
///
/// # Errors
/// Returns `InvalidData` if it is not a regular file or is larger.
pub fn read_regular(root: impl AsFd, path: impl AsRef<Path>, most: usize) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    open_regular(root, path)?
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

/// Whether a name is valid for a single directory entry: not empty, not `.` or `..`, no slash, no
/// NUL.
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
    use crate::Scratch;
    use std::os::unix::fs::symlink;

    fn scratch(name: &str) -> (Scratch, OwnedFd) {
        let scratch = Scratch::temporary(&format!("in-root-{name}")).expect("a directory");
        let root = scratch.path().join("root");
        crate::fs::create_dir(&root, 0o755).expect("a directory");
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = rustix::fs::open(root, flags, Mode::empty()).expect("open");
        (scratch, root)
    }

    #[test]
    fn symbolic_links_are_resolved_inside_the_root() {
        let (scratch, root) = scratch("links");
        let dir = scratch.path();
        symlink("/../../outside", dir.join("root/out")).expect("link");
        symlink("/", dir.join("root/top")).expect("link");
        create_dir_all(&root, "/top/../../a/b", Mode::from_raw_mode(0o755))
            .expect("resolved inside");
        assert!(dir.join("root/a/b").is_dir());
        // A dangling link is not followed.
        let error = create_dir_all(&root, "/out/x", Mode::from_raw_mode(0o755)).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::NOTDIR), "{error}");
        assert!(!dir.join("outside").exists());
    }

    #[test]
    fn targets_of_links_are_created_inside() {
        let (scratch, root) = scratch("links");
        let link = |target: &str, name: &str| {
            rustix::fs::symlinkat(target, &root, name).expect("a link");
        };
        link("/made/by/link", "absolute");
        link("../../../made/relative", "above");
        link("absolute", "chain");
        link("loop", "loop");
        for (path, expected) in [
            ("/absolute/a", "made/by/link/a"),
            ("above/b/c", "made/relative/b/c"),
            ("chain/d", "made/by/link/d"),
            ("/plain/../plain/e", "plain/e"),
        ] {
            let _ = create_dir_all(&root, "plain", Mode::from_raw_mode(0o755));
            create_dir_all_behind_links(&root, path, Mode::from_raw_mode(0o755)).expect(path);
            let place = scratch.path().join("root").join(expected);
            assert!(crate::fs::exists(place), "{path}");
        }
        let looped = create_dir_all_behind_links(&root, "loop/x", Mode::from_raw_mode(0o755));
        let looped = looped.expect_err("a loop");
        assert_eq!(looped.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    }

    #[test]
    fn read_regular_rejects_a_fifo() {
        let (_scratch, root) = scratch("fifo");
        rustix::fs::mkfifoat(&root, "f", Mode::from_raw_mode(0o644)).expect("fifo");
        let error = read_regular(&root, "/f", 10).expect_err("refused");
        assert_eq!(error.to_string(), "not a regular file");
    }
}
