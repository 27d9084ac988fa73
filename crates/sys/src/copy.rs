//! Copies file trees with all metadata: owners, modes, times, extended attributes, holes, hard
//! links.
//!
//! Both trees are walked by descriptor and no symbolic link is followed, so that concurrent changes
//! cannot lead the copy outside.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, copy_file_range, fgetxattr, fsetxattr, fstat, ftruncate, linkat,
    mkdirat, mknodat, openat, readlinkat, seek, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::{fs, xattr};

/// Depth limit of a tree; every level costs stack and two descriptors.
const MAX_DEPTH: usize = 512;

/// The kind of files to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Files below an overlay that nobody changes. Their `trusted.overlay.` attributes are not
    /// copied: they belong to the overlay.
    Layers,
    /// Files that may be in use. All their attributes are copied, and files that disappear before
    /// they are reached are skipped.
    InUse,
}

/// Copies the content of the directory `from` into the directory `to`, sharing data (reflinks)
/// where the file system supports it.
pub fn tree(from: impl AsFd, to: impl AsFd, source: Source) -> Result<(), Errno> {
    let to = to.as_fd();
    Copy {
        source,
        links: HashMap::new(),
        top: openat(
            to,
            ".",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?,
    }
    .directory(&reopen(from)?, &reopen(to)?, &CString::default(), 0)
}

/// Copies owner, mode, extended attributes and times of the directory `from` to the directory `to`.
pub fn directory_attributes(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let (from, to) = (reopen(from)?, reopen(to)?);
    let stat = rustix::fs::fstat(&from)?;
    attributes(&from, &to, Source::Layers)?;
    rustix::fs::fchown(
        &to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    rustix::fs::fchmod(&to, mode_of(&stat))?;
    rustix::fs::futimens(&to, &times_of(&stat))
}

fn reopen(directory: impl AsFd) -> Result<OwnedFd, Errno> {
    openat(
        directory,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn mode_of(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

#[allow(
    clippy::cast_possible_wrap,
    clippy::useless_conversion,
    reason = "the field types differ between architectures"
)]
fn times_of(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: time(stat.st_atime.into(), stat.st_atime_nsec as i64),
        last_modification: time(stat.st_mtime.into(), stat.st_mtime_nsec as i64),
    }
}

struct Copy {
    source: Source,
    /// Path below `top` of the first copy of each file that has hard links, by device and inode.
    links: HashMap<(u64, u64), CString>,
    top: OwnedFd,
}

impl Copy {
    fn directory(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        path: &CStr,
        depth: usize,
    ) -> Result<(), Errno> {
        if depth > MAX_DEPTH {
            return Err(Errno::LOOP);
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                match self.entry(from, to, path, name, depth) {
                    // Removed or replaced since the directory was read.
                    Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR)
                        if self.source == Source::InUse => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        path: &CStr,
        name: &CStr,
        depth: usize,
    ) -> Result<(), Errno> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let own_path = join(path, name);
        if kind != FileType::Directory
            && stat.st_nlink > 1
            && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino))
        {
            return linkat(&self.top, first.as_c_str(), to, name, AtFlags::empty());
        }
        let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open_directory = |at: &OwnedFd| {
            openat(
                at,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY | nofollow,
                Mode::empty(),
            )
        };
        let mut file = None;
        match kind {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                let (from, to) = (open_directory(from)?, open_directory(to)?);
                attributes(&from, &to, self.source)?;
                self.directory(&from, &to, &own_path, depth + 1)?;
            }
            FileType::Symlink => {
                // EINVAL: it is not a symbolic link any more.
                let target = readlinkat(from, name, Vec::new()).map_err(|error| {
                    if error == Errno::INVAL {
                        Errno::NOENT
                    } else {
                        error
                    }
                })?;
                symlinkat(target.as_c_str(), to, name)?;
            }
            FileType::RegularFile => {
                // A container may put a device in its place, which it cannot open itself.
                let handle = openat(from, name, OFlags::PATH | nofollow, Mode::empty())?;
                if !FileType::from_raw_mode(fstat(&handle)?.st_mode).is_file() {
                    return Err(Errno::NOENT);
                }
                let input = fs::reopen(&handle)?;
                let output = openat(
                    to,
                    name,
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | nofollow,
                    Mode::RUSR | Mode::WUSR,
                )?;
                data(&input, &output, stat.st_size.try_into().unwrap_or(0))?;
                attributes(&input, &output, self.source)?;
                file = Some((input, output));
            }
            kind => match mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev) {
                // EPERM: devices cannot be created in a user namespace.
                Err(Errno::PERM) => return Ok(()),
                result => result?,
            },
        }
        // The owner is set before the mode, because changing it clears the set-id bits.
        chownat(
            to,
            name,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if kind != FileType::Symlink {
            chmodat(to, name, mode_of(&stat), AtFlags::empty())?;
        }
        if let Some((input, output)) = &file {
            capabilities(input, output)?;
        }
        utimensat(to, name, &times_of(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Directory && stat.st_nlink > 1 {
            self.links.insert((stat.st_dev, stat.st_ino), own_path);
        }
        Ok(())
    }
}

fn join(path: &CStr, name: &CStr) -> CString {
    let mut bytes = path.to_bytes().to_vec();
    if !bytes.is_empty() {
        bytes.push(b'/');
    }
    bytes.extend_from_slice(name.to_bytes());
    CString::new(bytes).unwrap_or_default()
}

/// Copies the parts of a file that hold data, so that holes stay holes.
pub fn data(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<(), Errno> {
    let mut offset = 0;
    while offset < size {
        let begin = match seek(from, SeekFrom::Data(offset)) {
            Ok(begin) => begin,
            // ENXIO: only a hole is left.
            Err(Errno::NXIO) => break,
            // The file system does not support SEEK_DATA.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => offset,
            Err(error) => return Err(error),
        };
        let end = seek(from, SeekFrom::Hole(begin))
            .unwrap_or(size)
            .max(begin + 1);
        copy_range(from, to, begin, end)?;
        offset = end;
    }
    ftruncate(to, size)
}

fn copy_range(from: &OwnedFd, to: &OwnedFd, mut at: u64, end: u64) -> Result<(), Errno> {
    /// Limit for one call of copy_file_range, in bytes.
    const MAX_LENGTH: usize = 1 << 30;
    while at < end {
        let length = usize::try_from(end - at)
            .unwrap_or(MAX_LENGTH)
            .min(MAX_LENGTH);
        let (mut input, mut output) = (at, at);
        match copy_file_range(from, Some(&mut input), to, Some(&mut output), length) {
            // The file was truncated meanwhile.
            Ok(0) => return Ok(()),
            Ok(copied) => at += copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return copy_through_buffer(from, to, at, end);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy_through_buffer(from: &OwnedFd, to: &OwnedFd, mut at: u64, end: u64) -> Result<(), Errno> {
    let mut buffer = vec![0; 256 << 10];
    while at < end {
        let most = usize::try_from(end - at)
            .unwrap_or(buffer.len())
            .min(buffer.len());
        let count = match rustix::io::pread(from, &mut buffer[..most], at) {
            Ok(0) => return Ok(()),
            Err(Errno::INTR) => continue,
            result => result?,
        };
        let mut written = 0;
        while written < count {
            written += rustix::io::pwrite(to, &buffer[written..count], at + written as u64)?;
        }
        at += count as u64;
    }
    Ok(())
}

/// Copies extended attributes, except those that the target's file system does not accept.
pub fn attributes(from: &OwnedFd, to: &OwnedFd, source: Source) -> Result<(), Errno> {
    let (mut list, mut buffer) = (Vec::new(), Vec::new());
    for name in xattr::names(from, &mut list)? {
        // Attributes of overlayfs and SELinux labels belong to the place where the file is.
        let is_overlay_mark = source == Source::Layers && name.starts_with(xattr::OVERLAY);
        if is_overlay_mark || name == b"security.selinux" {
            continue;
        }
        let Some(value) = xattr::value(from, name, &mut buffer)? else {
            continue;
        };
        match fsetxattr(to, name, value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Copies the capabilities of a file (capabilities(7)). The kernel removes them when the owner is set, so that they come after it.
pub fn capabilities(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    const NAME: &str = "security.capability";
    // The kernel's third version has 24 bytes.
    let mut buffer = [0_u8; 64];
    let length = match fgetxattr(from, NAME, &mut buffer[..]) {
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
        result => result?,
    };
    match fsetxattr(to, NAME, &buffer[..length], XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        result => result,
    }
}

/// Flushes the files and directories of a tree to disk. The writing of all files is started before
/// the first one is waited for.
///
/// Up to 64 of them are flushed one by one, so that nothing else of the file system is waited for.
/// More are flushed with the whole file system (syncfs(2)), because each fsync(2) is a write to the
/// file system's journal.
pub fn sync(directory: impl AsFd) -> Result<(), Errno> {
    const MOST_SINGLE: usize = 64;
    let directory = reopen(directory)?;
    let count = Cell::new(0);
    walk_files(
        &directory,
        &|file| {
            count.set(count.get() + 1);
            // SAFETY: sync_file_range(2) takes numbers. An error is reported by what follows.
            unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
            Ok(())
        },
        0,
    )?;
    if count.get() > MOST_SINGLE {
        return rustix::fs::syncfs(&directory);
    }
    walk_files(&directory, &|file| rustix::fs::fsync(file), 0)
}

/// Calls `visit` for all regular files and directories of a tree, for a directory after what is in
/// it.
fn walk_files(
    directory: &OwnedFd,
    visit: &impl Fn(&OwnedFd) -> Result<(), Errno>,
    depth: usize,
) -> Result<(), Errno> {
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let opened = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).and_then(|stat| {
            let kind = FileType::from_raw_mode(stat.st_mode);
            let more = match kind {
                FileType::Directory => OFlags::DIRECTORY,
                FileType::RegularFile => OFlags::NONBLOCK,
                // Part of the directory that they are in.
                _ => return Ok(None),
            };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(directory, name, flags | more, Mode::empty())?;
            Ok(Some((kind, file)))
        });
        match opened {
            Ok(Some((FileType::Directory, inner))) => walk_files(&inner, visit, depth + 1)?,
            Ok(Some((_, file))) => visit(&file)?,
            // Removed or replaced since the directory was read.
            Ok(None) | Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(error) => return Err(error),
        }
    }
    visit(directory)
}

/// Whether a directory is empty, apart from `lost+found`.
pub fn is_empty(directory: impl AsFd) -> Result<bool, Errno> {
    for entry in Dir::read_from(reopen(directory)?)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b".." | b"lost+found") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the total size of the files in a tree, in bytes; files with hard links count once.
pub fn disk_usage(directory: impl AsFd) -> Result<u64, Errno> {
    fn walk(
        directory: &OwnedFd,
        seen: &mut std::collections::HashSet<(u64, u64)>,
        depth: usize,
    ) -> Result<u64, Errno> {
        let mut total = 0;
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            // Skip files that have been removed meanwhile.
            let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                if depth < MAX_DEPTH
                    && let Ok(inner) = openat(directory, name, flags, Mode::empty())
                {
                    total += walk(&inner, seen, depth + 1)?;
                }
            } else if stat.st_nlink < 2 || seen.insert((stat.st_dev, stat.st_ino)) {
                total += u64::try_from(stat.st_size).unwrap_or(0);
            }
        }
        Ok(total)
    }
    walk(
        &reopen(directory)?,
        &mut std::collections::HashSet::new(),
        0,
    )
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::Scratch;

    #[test]
    fn syncs_trees_with_all_kinds_of_files() {
        let scratch = Scratch::temporary("sync").unwrap();
        let root = scratch.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "content").unwrap();
        symlink("nowhere", root.join("a/link")).unwrap();
        // Opening one would wait for a writer.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("a/fifo"),
            FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        let directory = fs::File::open(root).unwrap();
        sync(&directory).unwrap();
        let mut seen = Cell::new(0);
        let count = |_: &OwnedFd| {
            seen.set(seen.get() + 1);
            Ok(())
        };
        walk_files(&reopen(&directory).unwrap(), &count, 0).unwrap();
        assert_eq!(*seen.get_mut(), 4, "three directories and a file");
        for number in 0..100 {
            fs::write(root.join(format!("a/b/{number}")), "more").unwrap();
        }
        sync(&directory).unwrap();
        // A tree that is deeper than those that are copied is not taken for a synced one.
        let mut deep = reopen(&directory).unwrap();
        for _ in 0..=MAX_DEPTH {
            mkdirat(&deep, "d", Mode::RWXU).unwrap();
            deep = openat(&deep, "d", OFlags::RDONLY, Mode::empty()).unwrap();
        }
        assert_eq!(sync(&directory), Err(Errno::LOOP));
    }

    #[test]
    fn copies_content_and_all_metadata() {
        let scratch = Scratch::temporary("copy").unwrap();
        let base = scratch.path();
        let (from, to) = (base.join("from"), base.join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("sub/file"), "content").unwrap();
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::hard_link(from.join("sub/file"), from.join("twin")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        let name = "security.capability";
        let capability = [
            1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0_u8,
        ];
        let file = fs::File::open(from.join("twin")).unwrap();
        fsetxattr(&file, name, &capability, XattrFlags::empty()).unwrap();
        let sparse = fs::File::create(from.join("sparse")).unwrap();
        sparse.write_all_at(b"end", 10 << 20).unwrap();
        mknodat(
            fs::File::open(&from).unwrap(),
            c"pipe",
            FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        tree(
            fs::File::open(&from).unwrap(),
            fs::File::open(&to).unwrap(),
            Source::Layers,
        )
        .unwrap();
        let meta = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
        assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "content");
        assert_eq!(meta("sub/file").mode() & 0o7777, 0o640);
        let mut buffer = [0_u8; 64];
        let file = fs::File::open(to.join("sub/file")).unwrap();
        let length = fgetxattr(&file, name, &mut buffer[..]).unwrap();
        assert_eq!(buffer[..length], capability);
        assert_eq!(
            (meta("twin").ino(), meta("twin").nlink()),
            (meta("sub/file").ino(), 2)
        );
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            std::path::Path::new("/etc/passwd")
        );
        assert_eq!(meta("sparse").len(), (10 << 20) + 3);
        assert!(
            meta("sparse").blocks() * 512 < 1 << 20,
            "the hole was filled"
        );
        assert_eq!(
            meta("sub/file").mtime_nsec(),
            fs::metadata(from.join("sub/file")).unwrap().mtime_nsec()
        );
        assert_eq!(FileType::from_raw_mode(meta("pipe").mode()), FileType::Fifo);
        assert!(!is_empty(fs::File::open(&to).unwrap()).unwrap());
        // A symbolic link counts with its own length, hard links once.
        assert_eq!(
            disk_usage(fs::File::open(&to).unwrap()).unwrap(),
            7 + 11 + (10 << 20) + 3
        );
    }
}
