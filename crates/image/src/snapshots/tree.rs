//! The directory that an archive is unpacked into: resolves and creates parent directories, and
//! preserves directories' times.
//!
//! Names are resolved inside the root, including symbolic links, as for a process that has it as
//! its root directory. First the links of a path are resolved, each step being one `*at` call on a
//! single name; then the result is opened without following links. So neither an entry nor a
//! concurrent modification of the tree can lead outside.

use std::cell::{Cell, OnceCell};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, fstat, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;
use whelk_sys::{fs, in_root};

use super::metadata::times;
use crate::error::{Error, Result, io};

/// Maximum depth of directories. Deeper trees serve only to exhaust programs that walk them.
const MAX_DEPTH: usize = 512;
/// Maximum length of a path in bytes: `PATH_MAX` of the kernel without the NUL.
const MAX_PATH_LEN: usize = 4095;
/// Maximum number of symbolic links in a path, as in the kernel.
pub(super) const MAX_LINKS: usize = 40;

pub(super) struct Tree {
    pub(super) root: OwnedFd,
    /// What links are resolved in, and the path of the root in it; `None` if that is the root itself.
    base: Option<(OwnedFd, PathBuf)>,
    /// The symbolic links that entries have created, by device and inode, if there is a base: only those that
    /// were there before lead out of the root.
    links: HashSet<(u64, u64)>,
    /// The directory of the previous entry, kept open because archives list siblings together.
    parent: Option<Rc<Parent>>,
    /// Inode numbers of the directories whose times were set by an entry.
    described: HashSet<u64>,
    implied: Implied,
}

/// Counts the directories that are created for names of other entries. An entry with a long name can imply
/// hundreds of them, so that a small archive would fill the disk.
#[derive(Debug, Default)]
pub(super) struct Implied {
    entries: Cell<u64>,
    directories: Cell<u64>,
}

impl Implied {
    /// Maximum number of directories, and how many more for each entry so far.
    const MAX: u64 = 4000;
    const MAX_EACH: u64 = 32;

    /// Counts an entry.
    pub(super) fn entry(&self) {
        self.entries.set(self.entries.get() + 1);
    }

    /// Counts a directory.
    ///
    /// # Errors
    /// Returns an error if there are too many.
    pub(super) fn directory(&self) -> Result<()> {
        self.directories.set(self.directories.get() + 1);
        if self.directories.get() > Self::MAX + Self::MAX_EACH * self.entries.get() {
            return Err(Error::invalid(format!(
                "too many directories without an entry of their own: more than {}, and {} for each entry before",
                Self::MAX,
                Self::MAX_EACH
            )));
        }
        Ok(())
    }
}

/// A directory that entries go into.
pub(super) struct Parent {
    /// The path as entries name it.
    named: PathBuf,
    /// The path with links resolved.
    pub(super) path: PathBuf,
    pub(super) directory: OwnedFd,
    times: DirectoryTimes,
    pub(super) upper: OnceCell<Upper>,
}

/// What of a directory is in the upper layer of an overlay.
pub(super) enum Upper {
    /// It is in no overlay.
    IsAll,
    /// What has a name in this directory, too.
    Directory(OwnedFd),
    Unknown,
}

/// A directory's times before its content was changed.
struct DirectoryTimes {
    inode: u64,
    modified: Timespec,
}

impl Tree {
    pub(super) fn at(root: &Path) -> Result<Self> {
        let root = rustix::fs::open(
            root,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(fs::at("open", root))?;
        Ok(Self::of(root))
    }

    pub(super) fn of(root: OwnedFd) -> Self {
        Self {
            root,
            base: None,
            links: HashSet::new(),
            parent: None,
            described: HashSet::new(),
            implied: Implied::default(),
        }
    }

    /// Like [`Tree::of`], for the directory at `path` of the root directory `base`, in which links are
    /// resolved.
    pub(super) fn below(root: OwnedFd, base: &OwnedFd, path: &Path) -> Result<Self> {
        let path: PathBuf = names(path).iter().rev().collect();
        Ok(Self {
            base: Some((duplicate(base)?, path)),
            ..Self::of(root)
        })
    }

    /// Opens the directory that an entry goes into, creating missing directories.
    ///
    /// # Errors
    /// Returns an error if a component is neither a directory nor a link to one, or if there are
    /// too many links.
    pub(super) fn enter(&mut self, named: &Path) -> Result<Rc<Parent>> {
        self.implied.entry();
        if let Some(parent) = &self.parent
            && parent.named.as_os_str() == named.as_os_str()
        {
            return Ok(parent.clone());
        }
        self.leave()?;
        let (directory, path) = match self.open(named) {
            Ok(directory) => (directory, named.to_owned()),
            Err(error) if needs_walk(&error) => self.walk(named, true)?,
            Err(error) => return Err(io(format!("open {}", named.display()))(error)),
        };
        let parent = Rc::new(Parent {
            named: named.to_owned(),
            path,
            times: DirectoryTimes::of(&directory)?,
            directory,
            upper: OnceCell::new(),
        });
        self.parent = Some(parent.clone());
        Ok(parent)
    }

    /// Restores the times of the directory that was entered last, which changed when its entries
    /// were created.
    pub(super) fn leave(&mut self) -> Result<()> {
        self.parent.take().map_or(Ok(()), |parent| {
            parent.times.restore(&parent.directory, &self.described)
        })
    }

    /// Records that a directory's times were set by an entry.
    pub(super) fn mark_described(&mut self, directory: &OwnedFd) -> Result<()> {
        self.described.insert(DirectoryTimes::of(directory)?.inode);
        Ok(())
    }

    /// Opens an existing directory by an entry's name.
    pub(super) fn existing(&self, named: &Path) -> io::Result<OwnedFd> {
        match self.open(named) {
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::LOOP | Errno::NOTDIR)
                ) =>
            {
                self.walk(named, false)
                    .map(|(directory, _)| directory)
                    .map_err(|_| Errno::NOENT.into())
            }
            result => result,
        }
    }

    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        in_root::open_no_links(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Resolves a path component by component, following links inside the root. With `make`,
    /// creates missing directories.
    fn walk(&self, named: &Path, make: bool) -> Result<(OwnedFd, PathBuf)> {
        let refused = |what: &str| Error::invalid(format!("{} {what}", named.display()));
        // Paths of links are below the base.
        let (base, below) = match &self.base {
            Some((base, path)) => (base, path.as_path()),
            None => (&self.root, Path::new("")),
        };
        let mut at = below.to_owned();
        let mut directory = duplicate(&self.root)?;
        let mut links = 0;
        let mut pending = names(named);
        while let Some(name) = pending.pop() {
            if name == ".." {
                at.pop();
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                directory = in_root::open_no_links(base, &at, flags)
                    .map_err(io(format!("open {}", at.display())))?;
                continue;
            }
            if make {
                let is_new = self
                    .make(&directory, &name)
                    .map_err(|error| error.during(&format!("mkdir {}", named.display())))?;
                if is_new {
                    self.implied.directory()?;
                }
            }
            match openat(
                &directory,
                &name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                Ok(next) => {
                    at.push(&name);
                    check_length(&at)?;
                    directory = next;
                }
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    let target = readlinkat(&directory, &name, Vec::new())
                        .map_err(|_| refused("is not a directory: the path goes through a file"))?;
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(refused("goes through too many links"));
                    }
                    let target = Path::new(OsStr::from_bytes(target.to_bytes()));
                    if self.is_own(&directory, &name) {
                        let inside = at.strip_prefix(below).unwrap_or(Path::new(""));
                        let inside = clamped(inside, target).ok_or_else(|| {
                            refused("goes through a link with \"..\" behind a name")
                        })?;
                        at = below.to_owned();
                        directory = duplicate(&self.root)?;
                        pending.extend(names(&inside));
                        continue;
                    }
                    if target.is_absolute() {
                        at = PathBuf::new();
                        directory = duplicate(base)?;
                    }
                    pending.extend(names(target));
                }
                Err(error) => return Err(io(format!("open {}", named.display()))(error.into())),
            }
        }
        let path = at.strip_prefix(below).map(Path::to_owned);
        Ok((directory, path.unwrap_or(at)))
    }

    /// Notes a symbolic link that an entry has created.
    pub(super) fn note_link(&mut self, parent: &OwnedFd, name: &OsStr) {
        if self.base.is_some()
            && let Ok(link) = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        {
            self.links.insert((link.st_dev, link.st_ino));
        }
    }

    fn is_own(&self, parent: &OwnedFd, name: &OsStr) -> bool {
        let link = || statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
        !self.links.is_empty()
            && link().is_ok_and(|link| self.links.contains(&(link.st_dev, link.st_ino)))
    }

    /// Creates a directory. Returns whether it did not exist.
    fn make(&self, parent: &OwnedFd, name: &OsStr) -> Result<bool> {
        let times = DirectoryTimes::of(parent)?;
        match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => times.restore(parent, &self.described).map(|()| true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(io("create")(error.into())),
        }
    }
}

impl DirectoryTimes {
    fn of(directory: &OwnedFd) -> Result<Self> {
        let stat = fstat(directory).map_err(|error| io("stat")(error.into()))?;
        Ok(Self {
            inode: stat.st_ino,
            modified: Timespec {
                tv_sec: stat.st_mtime,
                tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or(0),
            },
        })
    }

    /// Restores the times if an entry has set them. A directory without an entry keeps the time of
    /// its last change.
    fn restore(&self, directory: &OwnedFd, described: &HashSet<u64>) -> Result<()> {
        if described.contains(&self.inode) {
            rustix::fs::futimens(directory, &times(self.modified))
                .map_err(|error| io("set times")(error.into()))?;
        }
        Ok(())
    }
}

/// Returns the path that a link in the directory `at` leads to inside the root, above which nothing is.
/// Returns `None` if a `..` is behind a name, which may be that of another link.
fn clamped(at: &Path, target: &Path) -> Option<PathBuf> {
    let mut path = match target.is_absolute() {
        true => PathBuf::new(),
        false => at.to_owned(),
    };
    let mut has_name = false;
    for component in target.components() {
        match component {
            Component::ParentDir if has_name => return None,
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => {
                has_name = true;
                path.push(name);
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(path)
}

fn needs_walk(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::LOOP | Errno::NOTDIR)
    )
}

pub(super) fn duplicate(fd: impl AsFd) -> Result<OwnedFd> {
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(io("duplicate descriptor"))
}

/// Returns the components of a path, last one first.
pub(super) fn names(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

pub(super) fn check_length(path: &Path) -> Result<()> {
    if path.components().count() > MAX_DEPTH {
        return Err(Error::invalid(format!(
            "more than {MAX_DEPTH} directories deep"
        )));
    }
    if path.as_os_str().len() > MAX_PATH_LEN {
        return Err(Error::invalid(format!(
            "a path longer than {MAX_PATH_LEN} bytes"
        )));
    }
    Ok(())
}

/// Converts an entry's name to a path below the root: a leading `/` is ignored, `..` removes a
/// component.
///
/// # Errors
/// Returns an error if the name leads outside of the root, is empty, or is too long.
pub(super) fn relative(name: &OsStr) -> Result<PathBuf> {
    if name.is_empty() {
        return Err(Error::invalid("empty name"));
    }
    let mut path = PathBuf::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::ParentDir if path.pop() => {}
            Component::ParentDir => {
                return Err(Error::invalid(
                    "path with \"..\" that leads outside of the root",
                ));
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    check_length(&path)?;
    Ok(path)
}
