//! Removing trees that somebody else has made: as deep as they like, and with links and mounts
//! where they like.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, ResolveFlags, openat, openat2, renameat_with,
    unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

/// How many levels are descended at once. What lies deeper is first moved up, so that neither the
/// stack nor the number of open files depends on the tree.
const DEPTH: u32 = 32;

/// Removes a file, or a directory with everything below. What is missing is fine. Neither links nor
/// mounts are entered.
///
/// # Errors
/// The first one; what comes behind it is removed all the same.
pub fn tree(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    match path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        None => entry(CWD, name),
        Some(parent) => match openat(
            CWD,
            parent,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Err(Errno::NOENT) => Ok(()),
            parent => entry(parent?, name),
        },
    }
}

/// The same for an entry of an open directory.
pub fn entry(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    let name = name.into_c_str()?;
    match unlinkat(&parent, &*name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    let root = match open(parent.as_fd(), &name) {
        // Somebody else was faster.
        Err(Errno::NOENT) => return Ok(()),
        root => root?,
    };
    let mut removal = Removal {
        root: root.as_fd(),
        lifted: 0,
        number: 0,
        error: None,
    };
    let mut before = None;
    while before != Some(removal.lifted) {
        before = Some(removal.lifted);
        removal.empty(root.as_fd(), DEPTH);
    }
    let removed = gone(unlinkat(&parent, &*name, AtFlags::REMOVEDIR));
    removal.error.map_or(removed, Err).map_err(Into::into)
}

/// What somebody else has removed meanwhile is removed.
fn gone(removed: rustix::io::Result<()>) -> rustix::io::Result<()> {
    if removed == Err(Errno::NOENT) {
        Ok(())
    } else {
        removed
    }
}

fn open(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(
        parent,
        name,
        flags,
        Mode::empty(),
        ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS,
    )
}

struct Removal<'a> {
    /// Where deep directories are moved to.
    root: BorrowedFd<'a>,
    /// How many have been.
    lifted: u64,
    /// The last name that was tried for one.
    number: u64,
    error: Option<Errno>,
}

impl Removal<'_> {
    fn empty(&mut self, directory: BorrowedFd<'_>, depth: u32) {
        let entries = match Dir::read_from(directory) {
            Ok(entries) => entries,
            Err(error) => return self.failed(error),
        };
        for entry in entries {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) => {
                    if let Err(error) = self.remove(directory, entry.file_name(), depth) {
                        self.failed(error);
                    }
                }
                Err(error) => return self.failed(error),
            }
        }
    }

    fn remove(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        depth: u32,
    ) -> rustix::io::Result<()> {
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error),
        }
        match unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            result => return gone(result),
        }
        if depth == 0 {
            return self.lift(directory, name);
        }
        match open(directory, name) {
            Err(Errno::NOENT) => return Ok(()),
            child => self.empty(child?.as_fd(), depth - 1),
        }
        match unlinkat(directory, name, AtFlags::REMOVEDIR) {
            // The reason is known already.
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.error.is_some() => Ok(()),
            result => gone(result),
        }
    }

    fn lift(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        loop {
            self.number += 1;
            match renameat_with(
                directory,
                name,
                self.root,
                format!(".deep-{}", self.number),
                RenameFlags::NOREPLACE,
            ) {
                Err(Errno::EXIST) => {}
                result => return result.map(|()| self.lifted += 1),
            }
        }
    }

    fn failed(&mut self, error: Errno) {
        self.error.get_or_insert(error);
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "what is removed here was made by hand"
)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("whelk-remove-{name}-{}", std::process::id()));
        let _ = std::fs::create_dir(&path);
        path
    }

    #[test]
    fn depth_does_not_matter() {
        const LEVELS: usize = 10_000;
        let base = scratch("deep");
        let mut at =
            rustix::fs::open(&base, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for _ in 0..LEVELS {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            drop(openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap());
            at = openat(&at, "d", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        }
        // A small stack, as a worker's.
        std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || tree(&base).map(|()| base.exists()))
            .unwrap()
            .join()
            .unwrap()
            .map(|there| assert!(!there))
            .unwrap();
    }

    #[test]
    fn what_links_lead_to_stays() {
        let (base, outside) = (scratch("links"), scratch("outside"));
        std::fs::write(outside.join("kept"), "").unwrap();
        symlink(&outside, base.join("link")).unwrap();
        std::fs::create_dir_all(base.join("a/b/c")).unwrap();
        symlink(outside.join("kept"), base.join("a/b/file")).unwrap();
        tree(&base).unwrap();
        assert!(!base.exists() && outside.join("kept").exists());
        // A link itself, a file, and nothing.
        symlink(&outside, &base).unwrap();
        tree(&base).unwrap();
        tree(&base).unwrap();
        assert!(outside.join("kept").exists());
        tree(&outside.join("kept")).unwrap();
        tree(&outside).unwrap();
        assert!(!outside.exists());
    }

    #[test]
    fn names_used_for_moving_may_be_there() {
        let base = scratch("names");
        let deep: std::path::PathBuf = std::iter::repeat_n("d", 40).collect();
        for name in [".deep-1", ".deep-2"] {
            std::fs::create_dir_all(base.join(name).join(&deep)).unwrap();
        }
        tree(&base).unwrap();
        assert!(!base.exists());
    }
}
