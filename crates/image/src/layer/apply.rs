//! Unpacking a layer's archive into a directory, whoever wrote the archive.
//!
//! Every name is split into a parent, opened below the layer's root without following any link, and a last component,
//! on which one `*at` call acts. So no entry can reach outside, or act through a link that an earlier entry made.

use std::cell::{Cell, RefCell};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, linkat, makedev, mkdirat, mknodat, openat, renameat,
    statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};
use whelk_sys::{fs, in_root};

use super::split::Recorder;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result, io};

/// Headers of one entry (long names, extended attributes) may take this many bytes; memory must not be the sender's
/// to fill.
const LARGEST_HEADERS: u64 = 1 << 20;

/// A file with holes may claim any size; this is the largest that is believed, in bytes.
const LARGEST_SPARSE: u64 = 64 << 30;

/// What archives consist of, in bytes.
const BLOCK: usize = 512;

/// Deeper trees serve only to exhaust whoever walks them.
const DEEPEST: usize = 512;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other bookkeeping of AUFS, where the whiteout convention comes from.
const AUFS: &[u8] = b".wh..wh.";
const XATTR: &str = "SCHILY.xattr.";

/// What an archive turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub diff_id: Digest,
    /// Bytes of file content.
    pub size: u64,
}

/// Unpacks the uncompressed archive `input` into `directory` (as `fs` and `split.zst`, see the module's top).
///
/// # Errors
/// [`Error::Invalid`] for an archive that is malformed or tries to reach outside. What was unpacked by then is for the
/// caller to remove.
pub fn apply(input: impl Read, directory: &Path) -> Result<Applied> {
    let root_path = directory.join("fs");
    fs::create_dir(&root_path, 0o755)?;
    let tap = Tap::new(Some(Recorder::create(&directory.join("split.zst"))?));
    let mut layer = Layer::at(&root_path, Purpose::Layer)?;
    let input = layer.add_all(Hashing::new(input), &tap).map_err(|error| error.during("layer"))?;
    let (diff_id, _, _) = input.finish();
    tap.finish()?;
    Ok(Applied { diff_id, size: layer.size })
}

/// Unpacks the archive `input`, plain or compressed, into the directory `root`, beside what is there. What the archive has
/// takes the place of what has its name. Nobody may be changing that directory.
///
/// # Errors
/// As for a layer. What was unpacked by then stays.
pub fn unpack(input: impl Read + Send, root: &Path) -> Result<()> {
    let mut layer = Layer::at(root, Purpose::Files)?;
    layer.add_all(crate::compression::decompress(input)?, &Tap::new(None)).map(drop)
}

/// Discards trailing bytes while keeping the header bound from tripping on long padding.
struct Sink<'a>(&'a Tap);

impl io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        drop(self.0.entry_begins());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Shared between the reader below the tar parser and the code above it: which bytes are headers, which are content.
#[derive(Clone)]
struct Tap(Rc<TapState>);

struct TapState {
    recorder: RefCell<Option<Recorder>>,
    in_content: Cell<bool>,
    /// The header blocks of the present entry, behind the padding of the one before.
    headers: RefCell<Vec<u8>>,
}

impl Tap {
    fn new(recorder: Option<Recorder>) -> Self {
        Self(Rc::new(TapState { recorder: RefCell::new(recorder), in_content: Cell::new(false), headers: RefCell::default() }))
    }

    /// Takes the header blocks of the entry that was just read.
    fn entry_begins(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.headers.borrow_mut())
    }

    fn pass(&self, bytes: &[u8]) -> io::Result<()> {
        if self.0.in_content.get() {
            return Ok(());
        }
        let mut headers = self.0.headers.borrow_mut();
        headers.extend_from_slice(bytes);
        if headers.len() as u64 > LARGEST_HEADERS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an entry's headers are larger than {LARGEST_HEADERS} bytes")));
        }
        self.0.recorder.borrow_mut().as_mut().map_or(Ok(()), |recorder| recorder.verbatim(bytes))
    }

    /// Runs `read` while what passes is the content of the file at `path`, of `size` bytes.
    fn content<T>(&self, path: &Path, size: u64, read: impl FnOnce() -> Result<T>) -> Result<T> {
        if let Some(recorder) = self.0.recorder.borrow_mut().as_mut() {
            recorder.content(path, size).map_err(io("write layer index"))?;
        }
        self.0.in_content.set(true);
        let result = read();
        self.0.in_content.set(false);
        result
    }

    /// Keeps the content of files at and below `path`, which are about to be replaced: the archive has it.
    fn set_aside(&self, root: &OwnedFd, path: &Path) -> Result<()> {
        self.0
            .recorder
            .borrow_mut()
            .as_mut()
            .map_or(Ok(()), |recorder| recorder.set_aside(root, path).map_err(io("set replaced content aside")))
    }

    fn finish(&self) -> Result<()> {
        self.0.recorder.borrow_mut().take().map_or(Ok(()), |recorder| recorder.finish().map_err(io("write layer index")))
    }
}

struct Tapped<R> {
    inner: R,
    tap: Tap,
}

impl<R: Read> Read for Tapped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.tap.pass(&buffer[..count])?;
        Ok(count)
    }
}

/// What an archive's files are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A layer above others, in which some names hide what the others have.
    Layer,
    /// Just files.
    Files,
}

struct Layer {
    root: OwnedFd,
    purpose: Purpose,
    /// The parent of the previous entry: archives list siblings together.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Directories whose times are set last, because making their children changes them.
    directories: Vec<(PathBuf, Timespec)>,
    size: u64,
}

/// The metadata of an entry, in the kernel's terms.
struct Metadata {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Layer {
    fn at(root: &Path, purpose: Purpose) -> Result<Self> {
        let root =
            rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(fs::at("open", root))?;
        Ok(Self { root, purpose, parent: None, directories: Vec::new(), size: 0 })
    }

    /// Unpacks all entries, and returns the input, read to its end.
    fn add_all<R: Read>(&mut self, input: R, tap: &Tap) -> Result<R> {
        let mut archive = Archive::new(Tapped { inner: input, tap: tap.clone() });
        for entry in archive.entries().map_err(io("read archive"))? {
            let mut entry = entry.map_err(io("read archive"))?;
            let name = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
            let during = |error: Error| error.during(&format!("entry {name:?}"));
            let extensions = pax_records(&tap.entry_begins()).map_err(during)?;
            self.add(&mut entry, tap, &extensions).map_err(during)?;
        }
        // The padding behind the end mark is part of the archive's digest.
        let mut rest = archive.into_inner();
        // A layer's digest says that it is whole. Of other archives all that is known is how they end: with a block of zeros.
        if tap.entry_begins().len() < BLOCK && self.purpose == Purpose::Files {
            return Err(Error::invalid("the archive is cut short: it has no end mark"));
        }
        io::copy(&mut rest, &mut Sink(tap)).map_err(io("read archive"))?;
        self.finish_directories()?;
        Ok(rest.inner)
    }

    fn add(&mut self, entry: &mut Entry<'_, impl Read>, tap: &Tap, extensions: &[(String, Vec<u8>)]) -> Result<()> {
        let mut kind = entry.header().entry_type();
        // How archives older than entry types mark directories.
        const KIND: usize = 156;
        if entry.header().as_bytes()[KIND] == 0 && entry.path_bytes().ends_with(b"/") {
            kind = EntryType::Directory;
        }
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = relative(OsStr::from_bytes(&entry.path_bytes()))?;
        let metadata = Metadata::of(entry, extensions, self.purpose)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root itself: only its metadata.
            let root = self.root.try_clone().map_err(io("duplicate descriptor"))?;
            return if kind.is_dir() {
                self.describe_directory(&root, Path::new("."), &metadata)
            } else {
                Err(Error::invalid("the root must be a directory"))
            };
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        self.enter(&parent_path)?;
        let Some((_, parent)) = &self.parent else { return Err(Error::invalid("no parent directory")) };
        let parent = parent.try_clone().map_err(io("duplicate descriptor"))?;
        if self.purpose == Purpose::Layer && name.as_bytes().starts_with(WHITEOUT) {
            return whiteout(&parent, &name);
        }
        if self.purpose == Purpose::Files && matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse) {
            return self.swap_in(entry, tap, &parent, &name, &path, &metadata);
        }
        let hides_lower = self.make_room(&parent, &name, &path, kind, tap)?;
        match kind {
            EntryType::Directory => {
                match mkdirat(&parent, &name, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(io("mkdir")(error.into())),
                }
                let directory =
                    openat(&parent, &name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                        .map_err(|error| io("open")(error.into()))?;
                if hides_lower && self.purpose == Purpose::Layer {
                    set_opaque(&directory)?;
                }
                return self.describe_directory(&directory, &path, &metadata);
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.regular(entry, tap, &parent, &name, &path, &metadata);
            }
            EntryType::Link => return self.hard_link(entry, &parent, &name),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| Error::invalid("symbolic link without a target"))?;
                if target.is_empty() {
                    return Err(Error::invalid("symbolic link without a target"));
                }
                if self.purpose == Purpose::Layer {
                    check_symlink(&parent_path, Path::new(OsStr::from_bytes(&target)))?;
                }
                symlinkat(&*target, &parent, &name).map_err(|error| io("symlink")(error.into()))?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => self.make_node(entry, kind, &parent, &name, metadata.mode)?,
            other => return Err(Error::invalid(format!("unknown entry type {:?}", other.as_byte() as char))),
        }
        describe_by_name(&parent, &name, kind, &metadata)
    }

    /// Opens the directory that the next entry goes into, making the ones that the archive does not list.
    fn enter(&mut self, path: &Path) -> Result<()> {
        if self.parent.as_ref().is_some_and(|(known, _)| known == path) {
            return Ok(());
        }
        let directory = match in_root::open_no_links(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.create_parents(path)?,
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::LOOP | Errno::NOTDIR)) => {
                return Err(Error::invalid(format!("{} is not a directory: the path goes through a link or a file", path.display())));
            }
            result => result.map_err(io(format!("open {}", path.display())))?,
        };
        self.parent = Some((path.to_owned(), directory));
        Ok(())
    }

    fn create_parents(&self, path: &Path) -> Result<OwnedFd> {
        let mut directory = self.root.try_clone().map_err(io("duplicate descriptor"))?;
        for part in path.components() {
            match mkdirat(&directory, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(io(format!("mkdir {}", path.display()))(error.into())),
            }
            directory = openat(
                &directory,
                part.as_os_str(),
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|_| Error::invalid(format!("{} is not a directory: the path goes through a link or a file", path.display())))?;
        }
        Ok(directory)
    }

    /// Removes what an earlier entry left under this name, except a directory that is just described again. Says
    /// whether a directory made now must hide the one of the layers below: whatever stood here hid that already.
    fn make_room(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, kind: EntryType, tap: &Tap) -> Result<bool> {
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            result => result.map_err(|error| io("stat")(error.into()))?,
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        if is_directory && kind.is_dir() {
            return Ok(false);
        }
        tap.set_aside(&self.root, path)?;
        if is_directory {
            // What is below goes with it, and so does any descriptor into it.
            self.parent = None;
            whelk_sys::remove::entry(parent, name).map_err(io("replace directory"))?;
        } else if statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            unlinkat(parent, name, AtFlags::empty()).map_err(|error| io("replace")(error.into()))?;
        }
        Ok(!is_directory)
    }

    fn regular(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        tap: &Tap,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(|error| io("create")(error.into()))?;
        let mut file = std::fs::File::from(file);
        let size = entry.size();
        let sparse = entry.header().entry_type() == EntryType::GNUSparse;
        if sparse && size > LARGEST_SPARSE {
            return Err(Error::invalid(format!("a sparse file of {size} bytes")));
        }
        let copied = if sparse {
            // Its bytes in the archive are not its content, so they stay verbatim in the index.
            copy_sparse(entry, &mut file, tap)?
        } else {
            tap.content(path, size, || io::copy(entry, &mut file).map_err(io("write")))?
        };
        if copied != size {
            return Err(Error::invalid(format!("{copied} of {size} bytes: the archive is cut short")));
        }
        self.size += size;
        describe(file.as_fd(), metadata)
    }

    /// Puts a file in the place of what has its name, whole or not at all.
    fn swap_in(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        tap: &Tap,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<()> {
        let staged = OsString::from(format!(".import-{}", crate::store::random_name()));
        let swap = || renameat(parent, &staged, parent, name);
        let done = self.regular(entry, tap, parent, &staged, path, metadata).and_then(|()| match swap() {
            Err(Errno::ISDIR) => {
                self.make_room(parent, name, path, EntryType::Regular, tap)?;
                swap().map_err(|error| io("replace")(error.into()))
            }
            result => result.map_err(|error| io("replace")(error.into())),
        });
        if done.is_err() {
            let _ = unlinkat(parent, &staged, AtFlags::empty());
        }
        done
    }

    fn hard_link(&self, entry: &Entry<'_, impl Read>, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        let target = entry.link_name_bytes().ok_or_else(|| Error::invalid("hard link without a target"))?;
        let target = relative(OsStr::from_bytes(&target)).map_err(|error| error.during("hard link target"))?;
        let refuse = |error: io::Error| match Errno::from_io_error(&error) {
            Some(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => {
                Error::invalid(format!("hard link to {}, which is not in this layer", target.display()))
            }
            _ => io(format!("link to {}", target.display()))(error),
        };
        let (Some(target_parent), Some(target_name)) = (target.parent(), target.file_name()) else {
            return Err(Error::invalid("hard link to the root"));
        };
        let directory = in_root::open_no_links(&self.root, target_parent, OFlags::PATH | OFlags::DIRECTORY).map_err(refuse)?;
        let stat = statat(&directory, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| refuse(error.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() || kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return Err(Error::invalid(format!("hard link to {}, which is a directory or a whiteout", target.display())));
        }
        linkat(&directory, target_name, parent, name, AtFlags::empty()).map_err(|error| refuse(error.into()))
    }

    fn make_node(&self, entry: &Entry<'_, impl Read>, kind: EntryType, parent: &OwnedFd, name: &OsStr, mode: u32) -> Result<()> {
        let number = |result: io::Result<Option<u32>>| result.map_err(io("device number")).map(Option::unwrap_or_default);
        // Pipes have no numbers, and some archivers leave the fields blank.
        let (major, minor) =
            if kind == EntryType::Fifo { (0, 0) } else { (number(entry.header().device_major())?, number(entry.header().device_minor())?) };
        // What the kernel would cut off could turn one device into another.
        const LARGEST_MAJOR: u32 = 0xfff;
        const LARGEST_MINOR: u32 = 0xf_ffff;
        if major > LARGEST_MAJOR || minor > LARGEST_MINOR {
            return Err(Error::invalid(format!("device number {major}:{minor} is out of range")));
        }
        let file_type = match kind {
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        if kind == EntryType::Char && (major, minor) == (0, 0) && self.purpose == Purpose::Layer {
            return Err(Error::invalid("character device 0:0: whiteouts have names of their own"));
        }
        mknodat(parent, name, file_type, Mode::from_raw_mode(mode & 0o7777), makedev(major, minor))
            .map_err(|error| io("mknod")(error.into()))
    }

    fn describe_directory(&mut self, directory: &OwnedFd, path: &Path, metadata: &Metadata) -> Result<()> {
        describe(directory.as_fd(), metadata)?;
        self.directories.push((path.to_owned(), metadata.mtime));
        Ok(())
    }

    fn finish_directories(&self) -> Result<()> {
        for (path, mtime) in &self.directories {
            // One that a later entry replaced is gone; that is fine.
            if let Ok(directory) = in_root::open_no_links(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
                rustix::fs::futimens(&directory, &times(*mtime)).map_err(|error| io("set times")(error.into()))?;
            }
        }
        Ok(())
    }
}

/// An entry's name as a path below the root.
///
/// # Errors
/// An absolute one, one with `..`, and one with an empty or overlong part.
fn relative(name: &OsStr) -> Result<PathBuf> {
    let mut path = PathBuf::new();
    if name.is_empty() {
        return Err(Error::invalid("empty name"));
    }
    // The root may be written as itself.
    if name == "/" {
        return Ok(path);
    }
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err(Error::invalid("absolute path")),
            Component::ParentDir => return Err(Error::invalid("path with \"..\"")),
        }
    }
    if path.components().count() > DEEPEST {
        return Err(Error::invalid(format!("more than {DEEPEST} directories deep")));
    }
    Ok(path)
}

/// A symbolic link may point anywhere in the container, but a relative one that climbs above the root was made to
/// catch an extractor.
fn check_symlink(parent: &Path, target: &Path) -> Result<()> {
    let mut depth = parent.components().count();
    if target.is_absolute() {
        return Ok(());
    }
    for component in target.components() {
        match component {
            Component::ParentDir if depth == 0 => {
                return Err(Error::invalid(format!("symbolic link to {} leads outside", target.display())));
            }
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            _ => {}
        }
    }
    Ok(())
}

/// Notes that a name of the layers below is gone, in overlay's form.
fn whiteout(parent: &OwnedFd, name: &OsStr) -> Result<()> {
    let bytes = name.as_bytes();
    if bytes == OPAQUE {
        return set_opaque(parent);
    }
    if bytes.starts_with(AUFS) {
        return Ok(());
    }
    let hidden = OsString::from(OsStr::from_bytes(&bytes[WHITEOUT.len()..]));
    if !in_root::is_entry_name(&hidden) {
        return Err(Error::invalid("whiteout without a name"));
    }
    match statat(parent, &hidden, AtFlags::SYMLINK_NOFOLLOW) {
        // This layer puts something in the place of what it hides: a directory must not show the old one's content.
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
            let directory = openat(parent, &hidden, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| io("open")(error.into()))?;
            set_opaque(&directory)
        }
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => mknodat(parent, &hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
            .map_err(|error| io("make whiteout")(error.into())),
        Err(error) => Err(io("stat")(error.into())),
    }
}

fn set_opaque(directory: &OwnedFd) -> Result<()> {
    rustix::fs::fsetxattr(directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(|error| io("mark directory opaque")(error.into()))
}

/// Copies a sparse file's content, leaving its holes.
fn copy_sparse(entry: &mut Entry<'_, impl Read>, file: &mut std::fs::File, tap: &Tap) -> Result<u64> {
    use std::io::{Seek, SeekFrom, Write};
    const BLOCK: usize = 4096;
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0u64;
    loop {
        let count = entry.read(&mut buffer).map_err(io("read sparse file"))?;
        drop(tap.entry_begins());
        if count == 0 {
            break;
        }
        for block in buffer[..count].chunks(BLOCK) {
            if block.iter().all(|&byte| byte == 0) {
                file.seek(SeekFrom::Current(block.len() as i64)).map_err(io("seek"))?;
            } else {
                file.write_all(block).map_err(io("write"))?;
            }
        }
        total += count as u64;
    }
    file.set_len(total).map_err(io("truncate"))?;
    Ok(total)
}

impl Metadata {
    fn of(entry: &Entry<'_, impl Read>, extensions: &[(String, Vec<u8>)], purpose: Purpose) -> Result<Self> {
        let header = entry.header();
        // The largest number stands for "leave as it is" in chown(2).
        let valid = |id: u64| {
            u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| Error::invalid(format!("owner {id} is out of range")))
        };
        let id = |result: io::Result<u64>| result.map_err(io("owner")).and_then(valid);
        let (mode, uid, gid) = (header.mode().map_err(io("mode"))?, id(header.uid())?, id(header.gid())?);
        let mut mtime = Timespec { tv_sec: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), tv_nsec: 0 };
        let mut xattrs = Vec::new();
        for (key, value) in extensions {
            if key.starts_with("GNU.sparse.") {
                return Err(Error::invalid("sparse files in extended headers are not supported"));
            }
            if let Some(name) = key.strip_prefix(XATTR) {
                // The overlay's own would let a layer redirect names into other layers.
                let is_mark = name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.");
                if is_mark && purpose == Purpose::Layer {
                    return Err(Error::invalid(format!("extended attribute {name} is not for archives")));
                }
                xattrs.push((name.to_owned(), value.clone()));
            } else if key == "mtime"
                && let Some(time) = std::str::from_utf8(value).ok().and_then(parse_time)
            {
                mtime = time;
            }
        }
        Ok(Self { mode, uid, gid, mtime, xattrs })
    }
}

/// The records of an entry's extended headers, from its header blocks. Values may hold any byte: a record's length
/// says where it ends, not a newline.
fn pax_records(headers: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut records = Vec::new();
    // What is no whole block in front is the padding of the entry before.
    let mut rest = &headers[headers.len() % BLOCK..];
    while rest.len() >= BLOCK {
        let (block, tail) = rest.split_at(BLOCK);
        let header = tar::Header::from_byte_slice(block);
        let kind = header.entry_type();
        if !kind.is_pax_local_extensions() && !kind.is_gnu_longname() && !kind.is_gnu_longlink() && !kind.is_pax_global_extensions() {
            break;
        }
        let size = header.entry_size().ok().and_then(|size| usize::try_from(size).ok()).unwrap_or(usize::MAX);
        let Some(content) = tail.get(..size) else { break };
        if kind.is_pax_local_extensions() {
            parse_records(content, &mut records)?;
        }
        rest = tail.get(size.div_ceil(BLOCK) * BLOCK..).unwrap_or_default();
    }
    Ok(records)
}

/// `LENGTH KEY=VALUE\n`, one after another.
fn parse_records(mut content: &[u8], records: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let malformed = || Error::invalid("malformed extended header");
    while !content.is_empty() {
        let space = content.iter().position(|&byte| byte == b' ').ok_or_else(malformed)?;
        let length: usize = std::str::from_utf8(&content[..space]).ok().and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
        let record = content.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(malformed)?;
        let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(malformed)?;
        let key = std::str::from_utf8(&record[..equals]).map_err(|_| malformed())?;
        records.push((key.to_owned(), record[equals + 1..].to_vec()));
        content = &content[length..];
    }
    Ok(())
}

/// Seconds since the epoch with a fraction: `1700000000.25`.
fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{:0<9.9}", fraction);
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: digits.parse().ok()? })
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

/// Owner, mode, attributes, times, in this order: changing the owner clears set-id bits and capabilities.
fn describe(fd: BorrowedFd<'_>, metadata: &Metadata) -> Result<()> {
    let fail = |what: &'static str| move |error: Errno| io(what)(error.into());
    rustix::fs::fchown(fd, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid))).map_err(fail("chown"))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(metadata.mode & 0o7777)).map_err(fail("chmod"))?;
    for (name, value) in &metadata.xattrs {
        match rustix::fs::fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
            // File systems differ in what they keep; an image must still load.
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(error) => return Err(fail("set extended attribute")(error)),
        }
    }
    rustix::fs::futimens(fd, &times(metadata.mtime)).map_err(fail("set times"))
}

/// The same for what cannot be opened: links, devices, pipes. They were made a moment ago in a directory of ours.
fn describe_by_name(parent: &OwnedFd, name: &OsStr, kind: EntryType, metadata: &Metadata) -> Result<()> {
    let fail = |what: &'static str| move |error: Errno| io(what)(error.into());
    rustix::fs::chownat(parent, name, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(fail("chown"))?;
    if kind != EntryType::Symlink {
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(metadata.mode & 0o7777), AtFlags::empty()).map_err(fail("chmod"))?;
    }
    utimensat(parent, name, &times(metadata.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(fail("set times"))
}
