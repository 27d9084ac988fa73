//! Exports a container's file system, or a part of it, as a tar archive.
//!
//! The layers and the container's writable layer are mounted as a detached overlay, which is walked
//! by file descriptor and disappears when the descriptor is closed. Symbolic links are never
//! followed, so processes that run in the container cannot lead the walk outside.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use rustix::io::Errno;
use tar::{EntryType, Header};
use whelk_sys::{fs, in_root, xattr};

use super::apply::{OPAQUE, WHITEOUT};
use super::mounts::failed;
use super::pax;
use super::pieces::Pieces;
use crate::error::{Error, Result, io};

/// Writes all files of the layers `lower` (topmost first) to `output`.
pub fn export(lower: &[PathBuf], output: impl Write) -> Result<()> {
    let lower = super::distinct(lower.iter().cloned());
    let root = whelk_sys::overlay::read_only(&lower).map_err(failed(&lower))?;
    export_root(&root, output)
}

/// Writes all files of a container's mounted root to `output`.
pub fn export_root(root: &OwnedFd, output: impl Write) -> Result<()> {
    let mut export = Export::new(Part::Root, writer(output));
    export.tree(open_directory(root)?, Path::new(""))?;
    export.finish()
}

/// Like [`export_root`], of several roots, each below a directory with its name, unless that is empty. All files have this
/// time, in seconds since 1970, if there is one.
pub fn export_roots_at(
    roots: &[(String, OwnedFd)],
    time: Option<i64>,
    output: impl Write,
) -> Result<()> {
    let mut export = Export::new(Part::Root, writer(output));
    export.time = time;
    for (name, root) in roots {
        export.links.clear();
        let root = open_directory(root)?;
        match name.as_str() {
            "" => export.tree(root, Path::new(""))?,
            name => export.top(root, Path::new(name))?,
        }
    }
    export.finish()
}

/// Writes all files in `directory` to `output`, preceded by an entry `./` with the owner, mode,
/// times and extended attributes of `directory` itself.
pub fn export_directory(directory: &Path, output: impl Write) -> Result<()> {
    let root = open_directory(fs::open(directory)?)?;
    let mut export = Export::new(Part::Volume, writer(output));
    export.top(root, Path::new("."))?;
    export.finish()
}

/// Writes the changes in `upper`, an overlay's upper directory, as a layer. `send` gets the archive in
/// pieces, of at most `room` bytes of content: files with holes can be larger than any disk.
pub(super) fn export_layer(
    upper: &Path,
    room: u64,
    send: impl FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<()> {
    let mut export = Export::new(Part::Layer, send);
    export.room = room;
    export.tree(open_directory(fs::open(upper)?)?, Path::new(""))?;
    export.finish()
}

/// What [`export_copy`] writes.
#[derive(Debug)]
pub enum Copied {
    /// A directory with everything below it.
    Directory(OwnedFd),
    /// An entry of a directory, which may be of any kind.
    Entry { parent: OwnedFd, name: OsString },
}

/// Writes a directory or another file under the name `top`, as `docker cp` copies it: of the extended
/// attributes only capabilities, and times in seconds. `send` gets the archive in pieces.
pub fn export_copy(
    copied: Copied,
    top: &Path,
    send: impl FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<()> {
    let mut export = Export::new(Part::Copy, send);
    match copied {
        Copied::Directory(directory) => export.top(open_directory(directory)?, top)?,
        Copied::Entry { parent, name } => {
            if let Some(directory) = export.entry(&parent, &name, top)? {
                export.tree(directory, top)?;
            }
        }
    }
    export.finish()
}

/// Returns a function that writes pieces to `output`.
fn writer(mut output: impl Write) -> impl FnMut(Vec<u8>) -> io::Result<()> {
    move |piece| output.write_all(&piece).and_then(|()| output.flush())
}

fn open_directory(directory: impl AsFd) -> Result<OwnedFd> {
    openat(
        directory,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| io("open the root of what is exported")(error.into()))
}

/// Maximum number of directories kept open during the walk. Those further up are closed and
/// reopened on the way back, so that depth costs neither descriptors nor stack.
const OPEN: usize = 64;

/// A directory that is being exported.
struct Level {
    /// `None` while it is closed to save descriptors.
    directory: Option<OwnedFd>,
    /// Device and inode.
    identity: (u64, u64),
    /// Entries still to export, sorted.
    names: std::vec::IntoIter<OsString>,
}

impl Level {
    fn open(directory: OwnedFd, path: &Path) -> Result<Self> {
        let step = |error: Errno| io(format!("read {}", path.display()))(error.into());
        let mut names: Vec<OsString> = Vec::new();
        for entry in Dir::read_from(&directory).map_err(step)? {
            let name = entry.map_err(step)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort();
        let identity = identity(&directory).map_err(step)?;
        Ok(Self {
            directory: Some(directory),
            identity,
            names: names.into_iter(),
        })
    }

    /// Reopens the directory: through `..` of one of its children, or, if that was moved meanwhile, by its
    /// path below `top`. If it is not there any more, the rest of it is left out, like all that is removed
    /// during an export.
    fn reopen(&mut self, child: Option<&OwnedFd>, top: &OwnedFd, below: &Path) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let is_it = |directory: &OwnedFd| identity(directory) == Ok(self.identity);
        let parent = child.and_then(|child| openat(child, "..", flags, Mode::empty()).ok());
        let found = parent.filter(is_it).or_else(|| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let found = in_root::open_no_links(top, below, flags);
            found.ok().filter(is_it)
        });
        if found.is_none() {
            self.names = Vec::new().into_iter();
        }
        self.directory = found;
    }
}

fn identity(directory: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    rustix::fs::fstat(directory).map(|stat| (stat.st_dev, stat.st_ino))
}

/// What is exported, which determines the extended attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A container's root: without `trusted.overlay.*` attributes and whiteouts.
    Root,
    /// A volume: everything.
    Volume,
    /// What `docker cp` copies.
    Copy,
    /// A writable layer: whiteouts and opaque directories in the form of archives.
    Layer,
}

struct Export<F: FnMut(Vec<u8>) -> io::Result<()>> {
    archive: Pieces<F>,
    part: Part,
    /// The first name of each file with several hard links, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    /// Number of bytes of content that may follow.
    room: u64,
    /// The time of all files, in seconds since 1970, instead of their own.
    time: Option<i64>,
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Export<F> {
    fn new(part: Part, send: F) -> Self {
        Self {
            archive: Pieces::new(send),
            part,
            links: HashMap::new(),
            room: u64::MAX,
            time: None,
        }
    }

    fn finish(self) -> Result<()> {
        self.archive.finish().map_err(io("write archive"))
    }

    /// Exports a directory itself, under the name `top`, and its content.
    fn top(&mut self, directory: OwnedFd, top: &Path) -> Result<()> {
        let stat = fstat(&directory).map_err(|error| io("stat the directory")(error.into()))?;
        self.extensions(&stat, &directory)?;
        self.archive
            .header(&mut header(&stat), &directory_name(top), b"")
            .map_err(io("write archive"))?;
        self.tree(directory, top)
    }

    /// Exports the content of a directory recursively, under names that begin with `top`.
    fn tree(&mut self, directory: OwnedFd, top: &Path) -> Result<()> {
        let mut path = top.to_owned();
        let first = super::tree::duplicate(&directory)?;
        let mut levels = vec![Level::open(directory, &path)?];
        while let Some(level) = levels.last_mut() {
            let (Some(name), Some(directory)) = (level.names.next(), &level.directory) else {
                let left = levels.pop().and_then(|level| level.directory);
                path.pop();
                if let Some(level) = levels.last_mut()
                    && level.directory.is_none()
                {
                    let below = path.strip_prefix(top).unwrap_or(&path);
                    level.reopen(left.as_ref(), &first, below);
                }
                continue;
            };
            path.push(&name);
            match self.entry(directory, &name, &path)? {
                Some(directory) => {
                    if let Some(far) = levels.len().checked_sub(OPEN) {
                        levels[far].directory = None;
                    }
                    levels.push(Level::open(directory, &path)?);
                }
                None => drop(path.pop()),
            }
        }
        Ok(())
    }

    /// Exports one entry. If it is a directory, returns its descriptor; the caller exports its
    /// content.
    fn entry(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<Option<OwnedFd>> {
        let step = |error: Errno| io(format!("export {}", path.display()))(error.into());
        // Opened only when its kind is known: opening a device of the host, which a container can create
        // but not open, has effects, and would make its content part of the archive.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match openat(parent, name, flags, Mode::empty()) {
            // Removed since the directory was read: a running container's files change.
            Err(Errno::NOENT) => return Ok(None),
            result => result.map_err(step)?,
        };
        let mut stat = fstat(&handle).map_err(step)?;
        if let Some(time) = self.time {
            stat.st_mtime = time;
            stat.st_mtime_nsec = 0;
        }
        let mut header = header(&stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        // Sockets are useless without their listener. A whiteout is visible only if no lower layer
        // has the name.
        let is_whiteout = kind == FileType::CharacterDevice && stat.st_rdev == 0;
        if is_whiteout && self.part == Part::Layer {
            self.mark(
                path.parent().unwrap_or(Path::new("")),
                [WHITEOUT, name.as_bytes()].concat(),
            )?;
            return Ok(None);
        }
        if kind == FileType::Socket || self.part != Part::Volume && is_whiteout {
            return Ok(None);
        }
        if self.part == Part::Layer && name.as_bytes().starts_with(WHITEOUT) {
            // In a layer it would mean that another file was removed.
            tracing::warn!("{} is left out: its name marks removals", path.display());
            return Ok(None);
        }
        if !kind.is_dir()
            && stat.st_nlink > 1
            && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino))
        {
            header.set_entry_type(EntryType::Link);
            self.archive
                .header(
                    &mut header,
                    path.as_os_str().as_bytes(),
                    first.as_os_str().as_bytes(),
                )
                .map_err(io(format!("export {}", path.display())))?;
            return Ok(None);
        }
        let failed = io(format!("export {}", path.display()));
        let name_bytes = path.as_os_str().as_bytes();
        match kind {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let directory = match openat(&handle, ".", flags, Mode::empty()) {
                    // Removed since.
                    Err(Errno::NOENT) => return Ok(None),
                    result => result.map_err(step)?,
                };
                self.extensions(&stat, &directory)?;
                self.archive
                    .header(&mut header, &directory_name(path), b"")
                    .map_err(failed)?;
                if self.part == Part::Layer && has_attribute(&directory, "trusted.overlay.opaque") {
                    self.mark(path, OPAQUE.to_vec())?;
                }
                return Ok(Some(directory));
            }
            FileType::RegularFile => {
                let file = fs::reopen(&handle).map_err(step)?;
                self.extensions(&stat, &file)?;
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                let room = self.room.checked_sub(size);
                self.room = room.ok_or_else(|| step(Errno::NOSPC))?;
                header.set_size(size);
                self.archive
                    .header(&mut header, name_bytes, b"")
                    .and_then(|()| self.archive.content(file, size))
                    .map_err(failed)?;
            }
            FileType::Symlink => {
                let target = readlinkat(&handle, "", Vec::new()).map_err(step)?;
                self.pax(early_time(&stat).as_slice())?;
                // Written verbatim: the target is text, not a path of the archive.
                self.archive
                    .header(&mut header, name_bytes, target.to_bytes())
                    .map_err(failed)?;
            }
            _ => {
                self.pax(early_time(&stat).as_slice())?;
                self.archive
                    .header(&mut header, name_bytes, b"")
                    .map_err(failed)?;
            }
        }
        if stat.st_nlink > 1 {
            self.links
                .insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        Ok(None)
    }

    /// Writes an empty file that marks something in a directory of a layer.
    fn mark(&mut self, directory: &Path, name: Vec<u8>) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        let path = directory.join(OsString::from_vec(name));
        self.archive
            .header(&mut header, path.as_os_str().as_bytes(), b"")
            .map_err(io(format!("export {}", path.display())))
    }

    /// Writes a pax header with the extended attributes and the mtime with nanoseconds, if there
    /// are any.
    fn extensions(&mut self, stat: &Stat, fd: impl AsFd) -> Result<()> {
        let mut extensions: Vec<(String, Vec<u8>)> = Vec::new();
        if self.part == Part::Copy {
            /// Larger than the kernel's `struct vfs_ns_cap_data`.
            const MAX_SIZE: usize = 64;
            let mut value = [0; MAX_SIZE];
            extensions.extend(early_time(stat));
            // Most file systems keep it in the inode, so that this takes less than a list of all names.
            if let Ok(length) =
                rustix::fs::fgetxattr(fd.as_fd(), "security.capability", &mut value[..])
            {
                let key = "SCHILY.xattr.security.capability".to_owned();
                extensions.push((key, value[..length].to_vec()));
            }
            return self.pax(&extensions);
        }
        if stat.st_mtime_nsec != 0 {
            let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
            let time = pax::format_time(stat.st_mtime, nanoseconds);
            extensions.push(("mtime".into(), time.into_bytes()));
        } else {
            extensions.extend(early_time(stat));
        }
        let (mut list, mut buffer) = (Vec::new(), Vec::new());
        let names = xattr::names(fd.as_fd(), &mut list);
        for name in names.into_iter().flatten() {
            let is_mark = name.starts_with(xattr::OVERLAY);
            if self.part == Part::Root && is_mark {
                continue;
            }
            if self.part == Part::Layer {
                // The content is in another layer, which the archive cannot refer to.
                if matches!(
                    name,
                    b"trusted.overlay.redirect" | b"trusted.overlay.metacopy"
                ) {
                    return Err(Error::invalid(
                        "the layer depends on overlayfs' redirect_dir or metacopy, which is not supported: switch it off in /sys/module/overlay/parameters",
                    ));
                }
                if is_mark || name.starts_with(b"user.overlay.") {
                    continue;
                }
            }
            if name.contains(&b'=') {
                // It separates name and value.
                tracing::warn!("an extended attribute with '=' in its name is left out");
                continue;
            }
            if let (Ok(text), Ok(Some(value))) = (
                std::str::from_utf8(name),
                xattr::value(fd.as_fd(), name, &mut buffer),
            ) {
                extensions.push((format!("SCHILY.xattr.{text}"), value.to_vec()));
            }
        }
        self.pax(&extensions)
    }

    /// Writes a pax header, unless there are no records.
    fn pax(&mut self, extensions: &[(String, Vec<u8>)]) -> Result<()> {
        if extensions.is_empty() {
            return Ok(());
        }
        let content = pax::encode(extensions);
        let mut header = Header::new_ustar();
        // Readers treat an entry without a name as the end of the archive (busybox: as an error).
        let name = b"PaxHeaders.0/extensions";
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        self.archive
            .header(&mut header, name, b"")
            .and_then(|()| self.archive.write_all(&content))
            .and_then(|()| self.archive.pad(content.len() as u64))
            .map_err(io("write archive"))
    }
}

fn has_attribute(directory: &OwnedFd, name: &str) -> bool {
    rustix::fs::fgetxattr(directory, name, &mut [0u8; 8][..]).is_ok_and(|length| length > 0)
}

/// Returns a directory's name in an archive, which ends with a slash.
fn directory_name(path: &Path) -> Vec<u8> {
    let mut name = path.as_os_str().as_bytes().to_vec();
    if name.last() != Some(&b'/') {
        name.push(b'/');
    }
    name
}

/// Returns the pax record of a time before 1970, which headers cannot have, in whole seconds.
fn early_time(stat: &Stat) -> Option<(String, Vec<u8>)> {
    let time = stat.st_mtime.to_string().into_bytes();
    (stat.st_mtime < 0).then(|| ("mtime".into(), time))
}

fn header(stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => EntryType::Directory,
        FileType::Symlink => EntryType::Symlink,
        FileType::CharacterDevice => EntryType::Char,
        FileType::BlockDevice => EntryType::Block,
        FileType::Fifo => EntryType::Fifo,
        _ => EntryType::Regular,
    });
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
    header.set_size(0);
    let _ = header.set_device_major(rustix::fs::major(stat.st_rdev));
    let _ = header.set_device_minor(rustix::fs::minor(stat.st_rdev));
    header
}
