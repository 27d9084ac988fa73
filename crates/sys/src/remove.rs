//! Removal of untrusted trees, which may be arbitrarily deep and contain symbolic links and mounts.

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

/// Number of levels to descend. Deeper directories are first moved up, so that neither the stack
/// nor the number of open files depends on the tree.
const DEPTH: u32 = 32;

/// Removes a file, or a directory with everything below it. A missing one is not an error. Symbolic
/// links are not followed and mounts are not entered.
///
/// # Errors
/// Returns the first error; everything else is removed nevertheless.
pub fn tree(path: &Path) -> io::Result<()> {
    tree_in_steps(path, &mut || {})
}

/// Like [`tree`], and calls `after_step` after each file or directory that was removed.
///
/// # Errors
/// As [`tree`].
pub fn tree_in_steps(path: &Path, after_step: &mut dyn FnMut()) -> io::Result<()> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    match path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        None => entry_in_steps(CWD, name, after_step),
        Some(parent) => match openat(
            CWD,
            parent,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Err(Errno::NOENT) => Ok(()),
            parent => entry_in_steps(parent?, name, after_step),
        },
    }
}

/// Like [`tree`], for an entry of an open directory.
pub fn entry(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    entry_in_steps(parent, name, &mut || {})
}

fn entry_in_steps(parent: impl AsFd, name: &OsStr, after_step: &mut dyn FnMut()) -> io::Result<()> {
    let name = name.into_c_str()?;
    match unlinkat(&parent, &*name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    let root = match open(parent.as_fd(), &name) {
        // Removed concurrently.
        Err(Errno::NOENT) => return Ok(()),
        root => root?,
    };
    let mut removal = Removal {
        root: root.as_fd(),
        moved: 0,
        number: 0,
        error: None,
        after_step,
    };
    let mut before = None;
    while before != Some(removal.moved) {
        before = Some(removal.moved);
        removal.empty(root.as_fd(), DEPTH);
    }
    let removed = ignore_not_found(unlinkat(&parent, &*name, AtFlags::REMOVEDIR));
    removal.error.map_or(removed, Err).map_err(Into::into)
}

/// Treats a file that was removed concurrently as removed.
fn ignore_not_found(removed: rustix::io::Result<()>) -> rustix::io::Result<()> {
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
    /// Directory that deep directories are moved to.
    root: BorrowedFd<'a>,
    /// Number of directories that were moved.
    moved: u64,
    /// Number in the last name that was tried for a moved directory.
    number: u64,
    error: Option<Errno>,
    /// Called after each removal.
    after_step: &'a mut dyn FnMut(),
}

impl Removal<'_> {
    fn empty(&mut self, directory: BorrowedFd<'_>, depth: u32) {
        let entries = match Dir::read_from(directory) {
            Ok(entries) => entries,
            Err(error) => return self.keep_first(error),
        };
        for entry in entries {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) => {
                    if let Err(error) = self.remove(directory, entry.file_name(), depth) {
                        self.keep_first(error);
                    }
                    (self.after_step)();
                }
                Err(error) => return self.keep_first(error),
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
            result => return ignore_not_found(result),
        }
        if depth == 0 {
            return self.move_up(directory, name);
        }
        match open(directory, name) {
            Err(Errno::NOENT) => return Ok(()),
            child => self.empty(child?.as_fd(), depth - 1),
        }
        match unlinkat(directory, name, AtFlags::REMOVEDIR) {
            // The error that kept an entry there has been recorded.
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.error.is_some() => Ok(()),
            result => ignore_not_found(result),
        }
    }

    fn move_up(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
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
                result => return result.map(|()| self.moved += 1),
            }
        }
    }

    fn keep_first(&mut self, error: Errno) {
        self.error.get_or_insert(error);
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "the files to remove are created with std::fs"
)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::Scratch;

    fn scratch(name: &str) -> Scratch {
        Scratch::temporary(&format!("remove-{name}")).unwrap()
    }

    #[test]
    fn removes_very_deep_trees() {
        const LEVELS: usize = 10_000;
        let base = scratch("deep");
        let mut at =
            rustix::fs::open(base.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for _ in 0..LEVELS {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            drop(openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap());
            at = openat(&at, "d", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        }
        // A small stack, like that of a worker thread.
        std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || tree(base.path()).map(|()| base.path().exists()))
            .unwrap()
            .join()
            .unwrap()
            .map(|there| assert!(!there))
            .unwrap();
    }

    #[test]
    fn does_not_follow_symbolic_links() {
        let (first, second) = (scratch("links"), scratch("outside"));
        let (base, outside) = (first.path(), second.path());
        std::fs::write(outside.join("kept"), "").unwrap();
        symlink(outside, base.join("link")).unwrap();
        std::fs::create_dir_all(base.join("a/b/c")).unwrap();
        symlink(outside.join("kept"), base.join("a/b/file")).unwrap();
        tree(base).unwrap();
        assert!(!base.exists() && outside.join("kept").exists());
        // A symbolic link, a file, and a missing path.
        symlink(outside, base).unwrap();
        tree(base).unwrap();
        tree(base).unwrap();
        assert!(outside.join("kept").exists());
        tree(&outside.join("kept")).unwrap();
        tree(outside).unwrap();
        assert!(!outside.exists());
    }

    #[test]
    fn existing_names_do_not_conflict_with_moved_directories() {
        let scratch = scratch("names");
        let base = scratch.path();
        let deep: std::path::PathBuf = std::iter::repeat_n("d", 40).collect();
        for name in [".deep-1", ".deep-2"] {
            std::fs::create_dir_all(base.join(name).join(&deep)).unwrap();
        }
        tree(base).unwrap();
        assert!(!base.exists());
    }
}
