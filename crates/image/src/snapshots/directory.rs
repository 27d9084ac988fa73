//! The directory that an archive is unpacked into.
//!
//! [`Tree`] resolves the parent directory of each entry inside the root, and a single `*at` call acts
//! on the last component. So no entry can reach outside of the root.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, StatxAttributes, StatxFlags, XattrFlags, linkat,
    makedev, mkdirat, mknodat, openat, renameat, renameat_with, statat, statx, symlinkat, unlinkat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tar::{Entry, EntryType};
use whelk_sys::{fs, in_root, overlay};

use super::apply::{
    Contents, Destination, Head, Hidden, Purpose, device_number, hard_link_target, is_regular,
    plain_target, symlink_target, unknown,
};
use super::extract::{Created, Extraction, Replaced};
use super::metadata::{Metadata, apply_metadata, apply_metadata_at};
use super::sparse::{Holes, Sparse};
use super::tap::{Place, Tap};
use super::tree::{self, Parent, Tree, Upper, relative};
use crate::error::{Error, Result, io};

/// Size in bytes from which a file is written to disk while the next ones are unpacked.
const LARGE: u64 = 4 << 20;

pub(super) struct Directory<'a> {
    tree: Tree,
    purpose: Purpose,
    /// The rules of [`Purpose::Copy`].
    rules: Extraction<'a>,
    /// An entry had extended attributes. Those of a directory may be inherited by files.
    has_attributes: bool,
    is_root_marked: bool,
    pub(super) contents: Contents,
}

/// An entry that is being unpacked, with its destination.
struct Target<'a> {
    entered: &'a Parent,
    /// The entered directory.
    parent: &'a OwnedFd,
    name: &'a OsStr,
    /// Path below the root, with links resolved.
    path: &'a Path,
    metadata: &'a Metadata,
}

impl Destination for Directory<'_> {
    fn purpose(&self) -> Purpose {
        self.purpose
    }

    fn path(&self, name: &[u8]) -> Result<PathBuf> {
        if self.purpose == Purpose::Copy {
            self.rules.path(name)
        } else {
            relative(OsStr::from_bytes(name))
        }
    }

    fn describe_root(&mut self, metadata: &Metadata) -> Result<()> {
        // The root may be the directory that was entered last.
        self.tree.leave()?;
        self.apply_directory_metadata(&tree::duplicate(&self.tree.root)?, metadata)
    }

    fn hide(&mut self, parent: &Path, hidden: Hidden) -> Result<()> {
        let entered = self.tree.enter(parent)?;
        match hidden {
            // An opaque mark on the root would hide all lower layers. Overlayfs ignores it there,
            // and so does Docker.
            Hidden::All if entered.path.as_os_str().is_empty() => Ok(()),
            Hidden::All => self.set_opaque(&entered.directory),
            Hidden::Name(name) => self.whiteout(&entered.directory, &name),
            Hidden::Nothing => Ok(()),
        }
    }

    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>, tap: &Tap, mut head: Head) -> Result<()> {
        if self.purpose == Purpose::Copy {
            self.rules.set_owner(&mut head.metadata);
        }
        self.has_attributes |= !head.metadata.xattrs.is_empty();
        let entered = self.tree.enter(&head.parent)?;
        let (parent, name, kind) = (&entered.directory, head.name.as_os_str(), head.kind);
        let target = Target {
            entered: &entered,
            parent,
            name,
            path: &entered.path.join(name),
            metadata: &head.metadata,
        };
        if is_regular(kind) {
            return self.regular(entry, tap, &target, head.holes);
        }
        self.check_replaced(&target, kind)?;
        let hides_lower = remove_existing(parent, name, kind, tap)?;
        match kind {
            EntryType::Directory => return self.directory(&target, hides_lower),
            EntryType::Link => {
                let linked = hard_link_target(entry, |name| match self.purpose {
                    Purpose::Copy => self.rules.link_target(name),
                    Purpose::Layer | Purpose::Files => plain_target(name),
                })?;
                return self.hard_link(&linked, parent, name);
            }
            EntryType::Symlink => {
                symlinkat(symlink_target(entry)?, parent, name)
                    .map_err(|error| io("symlink")(error.into()))?;
                self.tree.note_link(parent, name);
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let number = device_number(entry, kind, self.purpose)?;
                make_node(parent, name, kind, number, head.metadata.mode)?;
            }
            other => return Err(unknown(other, self.purpose)),
        }
        apply_metadata_at(parent, name, kind, &head.metadata)
    }

    fn end(&mut self) -> Result<()> {
        self.tree.leave()
    }
}

impl<'a> Directory<'a> {
    pub(super) fn at(root: &Path, purpose: Purpose) -> Result<Self> {
        Ok(Self::of(Tree::at(root)?, purpose, Extraction::default()))
    }

    pub(super) fn of(tree: Tree, purpose: Purpose, rules: Extraction<'a>) -> Self {
        Self {
            tree,
            purpose,
            rules,
            has_attributes: false,
            is_root_marked: false,
            contents: Contents::new(),
        }
    }

    /// Checks that an entry may replace what has its name.
    fn check_replaced(&self, target: &Target<'_>, kind: EntryType) -> Result<()> {
        if self.purpose != Purpose::Copy {
            return Ok(());
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let Ok(found) = statx(target.parent, target.name, flags, StatxFlags::TYPE) else {
            return Ok(());
        };
        let was_directory = FileType::from_raw_mode(found.stx_mode.into()).is_dir();
        self.rules
            .check_replaced(was_directory, kind.is_dir(), target.path)?;
        // The kernel refuses this only to processes that have the mount in their own mount namespace, and
        // unmounts it elsewhere.
        let is_mounted = || {
            found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
                || self.rules.unmounts(target.parent, target.name)
        };
        if !(was_directory && kind.is_dir()) && is_mounted() {
            return Err(io("replace")(Errno::BUSY.into()));
        }
        Ok(())
    }

    /// Returns the size of the regular file that a copied one replaces, which stays until the new one is complete.
    fn replaced_file(&self, target: &Target<'_>) -> Result<Option<u64>> {
        if self.purpose != Purpose::Copy {
            return Ok(None);
        }
        let found = statat(target.parent, target.name, AtFlags::SYMLINK_NOFOLLOW);
        let is_file = |mode| FileType::from_raw_mode(mode).is_file();
        let Some(found) = found.ok().filter(|found| is_file(found.st_mode)) else {
            return Ok(None);
        };
        self.check_replaced(target, EntryType::Regular)?;
        Ok(Some(u64::try_from(found.st_size).unwrap_or(0)))
    }

    fn directory(&mut self, target: &Target<'_>, hides_lower: bool) -> Result<()> {
        match mkdirat(target.parent, target.name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(io("mkdir")(error.into())),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(target.parent, target.name, flags, Mode::empty())
            .map_err(|error| io("open")(error.into()))?;
        if hides_lower && self.purpose == Purpose::Layer {
            self.set_opaque(&directory)?;
        }
        self.apply_directory_metadata(&directory, target.metadata)
    }

    fn apply_directory_metadata(&mut self, directory: &OwnedFd, metadata: &Metadata) -> Result<()> {
        apply_metadata(directory.as_fd(), None, metadata)?;
        self.tree.mark_described(directory)
    }

    /// Adds a regular file. A new one needs no look at what has its name.
    fn regular(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        tap: &Tap,
        target: &Target<'_>,
        holes: Option<Sparse>,
    ) -> Result<()> {
        let replaced = match self.purpose {
            Purpose::Files => Some(0),
            Purpose::Layer | Purpose::Copy => match self.create(target) {
                Err(Errno::EXIST) => self.replaced_file(target)?,
                created => return self.fill_new(created, entry, tap, target, holes),
            },
        };
        if let Some(size) = replaced {
            return self.replace_file(entry, tap, target, holes, size);
        }
        self.check_replaced(target, EntryType::Regular)?;
        remove_existing(target.parent, target.name, EntryType::Regular, tap)?;
        self.fill_new(self.create(target), entry, tap, target, holes)
    }

    /// Fills a file that was just created.
    fn fill_new(
        &mut self,
        created: rustix::io::Result<File>,
        entry: &mut Entry<'_, impl Read>,
        tap: &Tap,
        target: &Target<'_>,
        holes: Option<Sparse>,
    ) -> Result<()> {
        let file = created.map_err(|error| io("create")(error.into()))?;
        let filled = self.fill(file, entry, tap, target, holes);
        if filled.is_err() && self.purpose == Purpose::Copy {
            // As on a full disk: a file that is not complete is of no use.
            let _ = unlinkat(target.parent, target.name, AtFlags::empty());
        }
        filled
    }

    fn fill(
        &mut self,
        mut file: File,
        entry: &mut Entry<'_, impl Read>,
        tap: &Tap,
        target: &Target<'_>,
        holes: Option<Sparse>,
    ) -> Result<()> {
        let created = rustix::fs::fstat(&file).map_err(|error| io("stat")(error.into()))?;
        let (size, _) = self.contents.measure(entry, holes.as_ref())?;
        let place = Place::File {
            path: target.path,
            inode: created.st_ino,
        };
        let is_hashed = self.rules.created.is_some() && !self.has_attributes;
        let mut output = Hashed {
            file: &mut file,
            hash: is_hashed.then(Sha256::new),
        };
        self.contents.copy(entry, tap, holes, &mut output, place)?;
        if let Some(Created(tell)) = self.rules.created {
            let digest = output.hash.map(|hash| hash.finalize().into());
            tell(created.st_ino, digest);
        }
        // The store is synced before an image is recorded. For small files the disk gains nothing.
        if size >= LARGE && self.purpose == Purpose::Layer {
            fs::start_writeback(&file);
        }
        apply_metadata(file.as_fd(), Some(&created), target.metadata)
    }

    /// Creates an empty file.
    ///
    /// # Errors
    /// Returns `EEXIST` if something has its name.
    fn create(&self, target: &Target<'_>) -> rustix::io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody else sees a layer before it is complete, so its files can have their modes early.
        let mode = match self.purpose {
            // Docker's copies have them early too, except set-id bits.
            Purpose::Layer | Purpose::Copy => target.metadata.mode & 0o777,
            Purpose::Files => 0o600,
        };
        let mode = Mode::from_raw_mode(mode);
        openat(target.parent, target.name, flags, mode).map(File::from)
    }

    /// Replaces what has the target's name by a regular file, atomically unless it is a directory.
    fn replace_file(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        tap: &Tap,
        target: &Target<'_>,
        holes: Option<Sparse>,
        old_size: u64,
    ) -> Result<()> {
        let staged = OsString::from(format!(".import-{}", crate::staging::random_name()));
        let replace = |error: Errno| io("replace")(error.into());
        let new = Target {
            name: &staged,
            ..*target
        };
        let mut old = None;
        let done = self
            .fill_new(self.create(&new), entry, tap, &new, holes)
            .inspect(|()| old = self.hold_large(target, old_size))
            .and_then(|()| match self.swap(target, &staged) {
                Err(Errno::ISDIR) => {
                    remove_existing(target.parent, target.name, EntryType::Regular, tap)?;
                    self.swap(target, &staged).map_err(replace)
                }
                result => result.map_err(replace),
            });
        if done.is_err() {
            let _ = unlinkat(target.parent, &staged, AtFlags::empty());
        } else if let (Some(old), Some(Replaced(hand_over))) = (old, self.rules.replaced) {
            hand_over(old);
        }
        done
    }

    /// Gives a staged file the target's name, and removes the file that had it.
    ///
    /// # Errors
    /// Returns `EISDIR` if a directory has the name.
    fn swap(&self, target: &Target<'_>, staged: &OsStr) -> rustix::io::Result<()> {
        let parent = target.parent;
        if self.may_exchange(target) {
            let exchange =
                || renameat_with(parent, staged, parent, target.name, RenameFlags::EXCHANGE);
            if exchange().is_ok() {
                let removed = unlinkat(parent, staged, AtFlags::empty());
                if removed.is_err() {
                    exchange()?;
                }
                return removed;
            }
        }
        renameat(parent, staged, parent, target.name)
    }

    /// Returns whether a file is better exchanged with its successor than replaced by it.
    ///
    /// When a file is renamed over another one, ext4 first allocates all blocks that were not yet written of it and
    /// starts to write them: 50 ms for 200 MB. For an exchange, overlayfs however copies a lower layer's file to
    /// the upper layer.
    fn may_exchange(&self, target: &Target<'_>) -> bool {
        let find = || upper_of(target.parent, self.rules.upper);
        match target.entered.upper.get_or_init(find) {
            Upper::IsAll => true,
            Upper::Unknown => false,
            Upper::Directory(upper) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                statat(upper, target.name, flags)
                    .is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_file())
            }
        }
    }

    /// Returns a file of this size that is about to be replaced, if it is large and somebody is to get it.
    fn hold_large(&self, target: &Target<'_>, size: u64) -> Option<OwnedFd> {
        self.rules.replaced.filter(|_| size >= LARGE)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let held = openat(target.parent, target.name, flags, Mode::empty()).ok()?;
        let found = rustix::fs::fstat(&held).ok()?;
        let is_file = FileType::from_raw_mode(found.st_mode).is_file();
        (is_file && found.st_nlink == 1).then_some(held)
    }

    fn hard_link(&self, target: &Path, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        let refuse = |error: io::Error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT) if self.purpose == Purpose::Copy => {
                io(format!("link to {}", target.display()))(error)
            }
            Some(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => Error::invalid(format!(
                "hard link to {}, which is not in this layer",
                target.display()
            )),
            _ => io(format!("link to {}", target.display()))(error),
        };
        let (Some(target_parent), Some(target_name)) = (target.parent(), target.file_name()) else {
            return Err(Error::invalid("hard link to the root"));
        };
        let directory = self.tree.existing(target_parent).map_err(refuse)?;
        let stat = statat(&directory, target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| refuse(error.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() || kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return Err(Error::invalid(format!(
                "hard link to {}, which is a directory or a whiteout",
                target.display()
            )));
        }
        linkat(&directory, target_name, parent, name, AtFlags::empty())
            .map_err(|error| refuse(error.into()))
    }

    /// Hides a name of lower layers: creates an overlayfs whiteout, or marks a directory of that name
    /// opaque.
    fn whiteout(&mut self, parent: &OwnedFd, hidden: &OsStr) -> Result<()> {
        match statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            // This layer also has an entry with the hidden name. If it is a directory, the content of
            // the lower one must not show through.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                let directory = openat(
                    parent,
                    hidden,
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map_err(|error| io("open")(error.into()))?;
                self.set_opaque(&directory)
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                mknodat(
                    parent,
                    hidden,
                    FileType::CharacterDevice,
                    Mode::empty(),
                    makedev(0, 0),
                )
                .map_err(|error| io("make whiteout")(error.into()))?;
                // There need not be a lower layer that has the directory.
                mark_whiteouts(parent)?;
                self.mark_root()
            }
            Err(error) => Err(io("stat")(error.into())),
        }
    }

    fn set_opaque(&mut self, directory: &OwnedFd) -> Result<()> {
        rustix::fs::fsetxattr(
            directory,
            "trusted.overlay.opaque",
            b"y",
            XattrFlags::empty(),
        )
        .map_err(|error| io("mark directory opaque")(error.into()))?;
        self.mark_root()
    }

    /// Marks the root, so that whoever needs to know whether the layer hides anything does not have to read all of it.
    fn mark_root(&mut self) -> Result<()> {
        if !self.is_root_marked {
            mark_whiteouts(&self.tree.root)?;
            self.is_root_marked = true;
        }
        Ok(())
    }
}

/// A file whose bytes are hashed while they are written, if anybody asks for it.
struct Hashed<'a> {
    file: &'a mut File,
    hash: Option<Sha256>,
}

impl io::Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&bytes[..count]);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Holes for Hashed<'_> {
    fn skip(&mut self, length: u64) -> io::Result<()> {
        self.hash = None;
        self.file.skip(length)
    }

    fn end_at(&mut self, total: u64) -> io::Result<()> {
        self.file.end_at(total)
    }
}

/// Returns what of a directory is in the upper layer of an overlay, whose root is `upper`.
fn upper_of(directory: &OwnedFd, upper: Option<&OwnedFd>) -> Upper {
    /// `OVERLAYFS_SUPER_MAGIC` of the kernel.
    const OVERLAY: u64 = 0x794c_7630;
    match rustix::fs::fstatfs(directory) {
        Ok(found) if found.f_type.cast_unsigned() != OVERLAY => return Upper::IsAll,
        Ok(_) => {}
        Err(_) => return Upper::Unknown,
    }
    let opened = upper.zip(fs::path_of(directory)).and_then(|(root, path)| {
        let path = path.strip_prefix("/").ok()?;
        in_root::open_no_links(root, path, OFlags::PATH | OFlags::DIRECTORY).ok()
    });
    opened.map_or(Upper::Unknown, Upper::Directory)
}

fn make_node(
    parent: &OwnedFd,
    name: &OsStr,
    kind: EntryType,
    (major, minor): (u32, u32),
    mode: u32,
) -> Result<()> {
    let file_type = match kind {
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    mknodat(
        parent,
        name,
        file_type,
        Mode::from_raw_mode(mode & 0o7777),
        makedev(major, minor),
    )
    .map_err(|error| io("mknod")(error.into()))
}

/// Removes what an earlier entry created under this name, unless both are directories. Returns
/// whether a directory created here must be opaque: the removed non-directory already hid the
/// directory of the lower layers.
fn remove_existing(parent: &OwnedFd, name: &OsStr, kind: EntryType, tap: &Tap) -> Result<bool> {
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(false),
        result => result.map_err(|error| io("stat")(error.into()))?,
    };
    let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
    if is_directory && kind.is_dir() {
        return Ok(false);
    }
    tap.preserve(parent, name)?;
    if is_directory {
        whelk_sys::remove::entry(parent, name).map_err(io("replace directory"))?;
    } else if statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        unlinkat(parent, name, AtFlags::empty()).map_err(|error| io("replace")(error.into()))?;
    }
    Ok(!is_directory)
}

fn mark_whiteouts(directory: &OwnedFd) -> Result<()> {
    overlay::mark_whiteouts(directory).map_err(|error| io("mark directory")(error.into()))
}
