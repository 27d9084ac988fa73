//! Unpacks a layer archive into a directory. The archive is untrusted.
//!
//! Every name is split into a parent directory, which [`Tree`] resolves inside the layer's root,
//! and a last component, on which a single `*at` call acts. So no entry can reach outside of the
//! root.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags, XattrFlags, linkat, makedev,
    mkdirat, mknodat, openat, renameat, statat, statx, symlinkat, unlinkat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};
use whelk_sys::{fs, in_root};

use super::extract::Extraction;
use super::metadata::{Metadata, apply_metadata, apply_metadata_at};
use super::pax::{self, BLOCK};
use super::sparse::{self, Sparse};
use super::tap::{Sink, Tap, Tapped};
use super::tar_split::Recorder;
use super::tree::{Tree, relative};
use crate::copy::{self, copy};
use crate::digest::Hashing;
use crate::error::{Error, Result, io};

/// Size in bytes from which a file is written to disk while the next ones are unpacked.
const LARGE: u64 = 4 << 20;
pub(super) const WHITEOUT: &[u8] = b".wh.";
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other metadata of AUFS, where the whiteout convention comes from.
const AUFS: &[u8] = b".wh..wh.";

/// Unpacks the uncompressed archive `input` into `directory` as `fs` and `split.zst` (see
/// [`super`]).
///
/// # Errors
/// Returns [`Error::Invalid`] if the archive is malformed or tries to reach outside of the root.
/// The caller removes what was unpacked until then.
pub(super) fn apply(input: impl Read, directory: &Path) -> Result<super::Layer> {
    let root_path = directory.join("fs");
    fs::create_dir(&root_path, 0o755)?;
    let tap = Tap::new(Some(Recorder::create(&directory.join("split.zst"))?));
    let mut layer = Layer::at(&root_path, Purpose::Layer)?;
    let input = layer
        .add_all(Hashing::new(input), &tap)
        .map_err(|error| error.during("layer"))?;
    let (diff_id, _, _) = input.finish();
    tap.finish()?;
    Ok(super::Layer {
        diff_id,
        size: layer.size,
    })
}

/// Unpacks the plain or compressed archive `input` into the existing directory `root`. Entries
/// replace existing files of the same name. Nobody else may modify the directory meanwhile.
///
/// # Errors
/// Returns the same errors as [`apply`]. What was unpacked until then remains.
pub fn unpack(input: impl Read + Send, root: &Path) -> Result<()> {
    let mut layer = Layer::at(root, Purpose::Files)?;
    layer
        .add_all(crate::compression::decompress(input)?, &Tap::new(None))
        .map(drop)
}

/// What an archive is unpacked as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A layer: whiteout names hide entries of lower layers.
    Layer,
    /// Plain files: whiteout names have no meaning.
    Files,
    /// Files for a directory in use, by the rules of `docker cp` (see [`super::extract`]).
    Copy,
}

pub(super) struct Layer<'a> {
    tree: Tree,
    purpose: Purpose,
    /// The rules of [`Purpose::Copy`].
    rules: Extraction<'a>,
    /// For copying content.
    buffer: Vec<u8>,
    size: u64,
    /// Total size of sparse files in bytes.
    sparse: u64,
}

/// An entry that is being unpacked, with its destination.
struct Target<'a> {
    parent: &'a OwnedFd,
    name: &'a OsStr,
    /// Path below the root, with links resolved.
    path: &'a Path,
    metadata: &'a Metadata,
}

impl<'a> Layer<'a> {
    fn at(root: &Path, purpose: Purpose) -> Result<Self> {
        Ok(Self::of(Tree::at(root)?, purpose, Extraction::default()))
    }

    pub(super) fn of(tree: Tree, purpose: Purpose, rules: Extraction<'a>) -> Self {
        Self {
            tree,
            purpose,
            rules,
            buffer: copy::buffer(),
            size: 0,
            sparse: 0,
        }
    }

    /// Unpacks all entries and returns the input, read to its end.
    pub(super) fn add_all<R: Read>(&mut self, input: R, tap: &Tap) -> Result<R> {
        let mut archive = Archive::new(Tapped {
            inner: input,
            tap: tap.clone(),
        });
        for entry in archive.entries().map_err(io("read archive"))? {
            let mut entry = entry.map_err(io("read archive"))?;
            // A name can be as long as [`MAX_HEADERS_SIZE`]; error texts show its beginning only.
            const SHOWN: usize = 256;
            let name = entry.path_bytes();
            let shown = OsStr::from_bytes(&name[..name.len().min(SHOWN)]).to_owned();
            drop(name);
            let during = |purpose: Purpose, error: Error| match error {
                // It has Docker's words.
                Error::Invalid(_) if purpose == Purpose::Copy => error,
                error => error.during(&format!("entry {shown:?}")),
            };
            let extensions =
                pax::records(&tap.take_headers()).map_err(|error| during(self.purpose, error))?;
            let added = self.add(&mut entry, tap, &extensions);
            added.map_err(|error| during(self.purpose, error))?;
        }
        // Padding behind the end-of-archive marker is part of the diff ID.
        let mut rest = archive.into_inner();
        // A layer is verified by its digest. For plain archives the only sign of truncation is a
        // missing end-of-archive marker (a block of zeros).
        if tap.take_headers().len() < BLOCK && self.purpose == Purpose::Files {
            return Err(Error::invalid(
                "the archive is truncated: it has no end-of-archive marker",
            ));
        }
        io::copy(&mut rest, &mut Sink(tap)).map_err(io("read archive"))?;
        self.tree.leave()?;
        Ok(rest.inner)
    }

    fn add(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        tap: &Tap,
        extensions: &[(String, Vec<u8>)],
    ) -> Result<()> {
        let mut kind = entry.header().entry_type();
        // Pre-POSIX archives mark directories by a trailing slash; their type flag is NUL.
        const KIND: usize = 156;
        if entry.header().as_bytes()[KIND] == 0 && entry.path_bytes().ends_with(b"/") {
            kind = EntryType::Directory;
        }
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let holes = if kind.is_dir() {
            None
        } else {
            Sparse::of(extensions)?
        };
        let named = match holes.as_ref().and_then(|holes| holes.name.clone()) {
            Some(name) => name,
            None => entry.path_bytes().into_owned(),
        };
        let path = if self.purpose == Purpose::Copy {
            self.rules.path(&named)?
        } else {
            relative(OsStr::from_bytes(&named))?
        };
        let mut metadata = Metadata::of(entry, extensions, self.purpose)?;
        if self.purpose == Purpose::Copy {
            self.rules.set_owner(&mut metadata);
        }
        let Some(name) = path.file_name() else {
            if self.purpose == Purpose::Copy {
                return Ok(());
            }
            if !kind.is_dir() {
                return Err(Error::invalid("the root must be a directory"));
            }
            // The root itself: only its metadata is applied. It may be the directory that was
            // entered last.
            self.tree.leave()?;
            return self
                .apply_directory_metadata(&super::tree::duplicate(&self.tree.root)?, &metadata);
        };
        let entered = self.tree.enter(path.parent().unwrap_or(Path::new("")))?;
        let (parent, parent_path) = (&entered.directory, &entered.path);
        if self.purpose == Purpose::Layer && name.as_bytes().starts_with(WHITEOUT) {
            // An opaque mark on the root would hide all lower layers. Overlayfs ignores it there,
            // and so does Docker.
            return if name == OsStr::from_bytes(OPAQUE) && parent_path.as_os_str().is_empty() {
                Ok(())
            } else {
                whiteout(parent, name)
            };
        }
        let target = Target {
            parent,
            name,
            path: &parent_path.join(name),
            metadata: &metadata,
        };
        if matches!(
            kind,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse
        ) {
            return if self.purpose == Purpose::Files {
                self.replace_file(entry, tap, &target, holes)
            } else {
                self.regular(entry, tap, &target, holes)
            };
        }
        self.check_replaced(parent, name, kind, &path)?;
        let hides_lower = remove_existing(parent, name, kind, tap)?;
        match kind {
            EntryType::Directory => return self.directory(&target, hides_lower),
            EntryType::Link => return self.hard_link(entry, parent, name),
            EntryType::Symlink => {
                // The target is not checked: whoever follows the link in a container stays inside
                // the container's root.
                let pointed = entry
                    .link_name_bytes()
                    .filter(|pointed| !pointed.is_empty());
                let pointed =
                    pointed.ok_or_else(|| Error::invalid("symbolic link without a target"))?;
                symlinkat(&*pointed, parent, name).map_err(|error| io("symlink")(error.into()))?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                self.make_node(entry, kind, parent, name, metadata.mode)?
            }
            other => {
                return Err(Error::invalid(if self.purpose == Purpose::Copy {
                    format!("unhandled tar header type {}", other.as_byte())
                } else {
                    format!("unknown entry type {:?}", other.as_byte() as char)
                }));
            }
        }
        apply_metadata_at(parent, name, kind, &metadata)
    }

    /// Checks that an entry may replace what has its name.
    fn check_replaced(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        kind: EntryType,
        path: &Path,
    ) -> Result<()> {
        if self.purpose != Purpose::Copy {
            return Ok(());
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let Ok(found) = statx(parent, name, flags, StatxFlags::TYPE) else {
            return Ok(());
        };
        let was_directory = FileType::from_raw_mode(found.stx_mode.into()).is_dir();
        self.rules
            .check_replaced(was_directory, kind.is_dir(), path)?;
        // The kernel refuses this only to processes that have the mount in their own mount namespace, and
        // unmounts it elsewhere.
        let is_mounted = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        if is_mounted && !(was_directory && kind.is_dir()) {
            return Err(io("replace")(Errno::BUSY.into()));
        }
        Ok(())
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
            set_opaque(&directory)?;
        }
        self.apply_directory_metadata(&directory, target.metadata)
    }

    fn apply_directory_metadata(&mut self, directory: &OwnedFd, metadata: &Metadata) -> Result<()> {
        apply_metadata(directory.as_fd(), None, metadata)?;
        self.tree.mark_described(directory)
    }

    fn regular(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        tap: &Tap,
        target: &Target<'_>,
        holes: Option<Sparse>,
    ) -> Result<()> {
        let mut file = self.create(target, tap)?;
        let created = rustix::fs::fstat(&file).map_err(|error| io("stat")(error.into()))?;
        let size = holes.as_ref().map_or(entry.size(), |holes| holes.size);
        let is_sparse = holes.is_some() || entry.header().entry_type() == EntryType::GNUSparse;
        if is_sparse {
            self.sparse = self.sparse.saturating_add(size);
            if self.sparse > sparse::MAX_TOTAL_SIZE {
                return Err(Error::invalid(format!(
                    "files with holes of more than {} bytes in all",
                    sparse::MAX_TOTAL_SIZE
                )));
            }
        }
        // The content of a sparse file differs from its bytes in the archive, so the archive's
        // bytes are recorded verbatim.
        let each = || drop(tap.take_headers());
        let copied = match holes {
            Some(holes) => {
                let stored = entry.size();
                sparse::copy(holes.expand(&mut *entry, stored)?, &mut file, each)?
            }
            None if is_sparse => sparse::copy(&mut *entry, &mut file, each)?,
            None => {
                let buffer = &mut self.buffer;
                tap.content(target.path, created.st_ino, size, || {
                    copy(entry, &mut file, buffer).map_err(io("write"))
                })?
            }
        };
        if copied != size {
            return Err(Error::invalid(format!(
                "{copied} of {size} bytes: the archive is truncated"
            )));
        }
        self.size += size;
        // The store is synced before an image is recorded. For small files the disk gains nothing.
        if size >= LARGE {
            fs::start_writeback(&file);
        }
        apply_metadata(file.as_fd(), Some(&created), target.metadata)
    }

    /// Creates an empty file. In a layer, it replaces what an earlier entry has created.
    fn create(&self, target: &Target<'_>, tap: &Tap) -> Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody else sees a layer before it is complete, so its files can have their modes early.
        let mode = match self.purpose {
            // Docker's copies have them early too, except set-id bits.
            Purpose::Layer | Purpose::Copy => target.metadata.mode & 0o777,
            Purpose::Files => 0o600,
        };
        let open = || openat(target.parent, target.name, flags, Mode::from_raw_mode(mode));
        let file = match open() {
            Err(Errno::EXIST) if self.purpose != Purpose::Files => {
                let kind = EntryType::Regular;
                self.check_replaced(target.parent, target.name, kind, target.path)?;
                remove_existing(target.parent, target.name, kind, tap)?;
                open()
            }
            result => result,
        };
        file.map(File::from)
            .map_err(|error| io("create")(error.into()))
    }

    /// Replaces what has the target's name by a regular file, atomically unless it is a directory.
    fn replace_file(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        tap: &Tap,
        target: &Target<'_>,
        holes: Option<Sparse>,
    ) -> Result<()> {
        let staged = OsString::from(format!(".import-{}", crate::staging::random_name()));
        let swap = || renameat(target.parent, &staged, target.parent, target.name);
        let replace = |error: Errno| io("replace")(error.into());
        let done = self
            .regular(
                entry,
                tap,
                &Target {
                    name: &staged,
                    ..*target
                },
                holes,
            )
            .and_then(|()| match swap() {
                Err(Errno::ISDIR) => {
                    remove_existing(target.parent, target.name, EntryType::Regular, tap)?;
                    swap().map_err(replace)
                }
                result => result.map_err(replace),
            });
        if done.is_err() {
            let _ = unlinkat(target.parent, &staged, AtFlags::empty());
        }
        done
    }

    fn hard_link(
        &self,
        entry: &Entry<'_, impl Read>,
        parent: &OwnedFd,
        name: &OsStr,
    ) -> Result<()> {
        let target = entry
            .link_name_bytes()
            .ok_or_else(|| Error::invalid("hard link without a target"))?;
        let target = if self.purpose == Purpose::Copy {
            self.rules.link_target(&target)?
        } else {
            relative(OsStr::from_bytes(&target))
                .map_err(|error| error.during("hard link target"))?
        };
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

    fn make_node(
        &self,
        entry: &Entry<'_, impl Read>,
        kind: EntryType,
        parent: &OwnedFd,
        name: &OsStr,
        mode: u32,
    ) -> Result<()> {
        let number = |result: io::Result<Option<u32>>| {
            result
                .map_err(io("device number"))
                .map(Option::unwrap_or_default)
        };
        // FIFOs have no device number, and some archivers leave the fields blank.
        let (major, minor) = if kind == EntryType::Fifo {
            (0, 0)
        } else {
            (
                number(entry.header().device_major())?,
                number(entry.header().device_minor())?,
            )
        };
        // The kernel's `dev_t` has 12 bits of major and 20 bits of minor number. Truncated numbers
        // could refer to another device.
        const MAX_MAJOR: u32 = 0xfff;
        const MAX_MINOR: u32 = 0xf_ffff;
        if major > MAX_MAJOR || minor > MAX_MINOR {
            return Err(Error::invalid(format!(
                "device number {major}:{minor} is out of range"
            )));
        }
        let file_type = match kind {
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        if kind == EntryType::Char && (major, minor) == (0, 0) && self.purpose == Purpose::Layer {
            return Err(Error::invalid(
                "character device 0:0 is reserved for whiteouts",
            ));
        }
        mknodat(
            parent,
            name,
            file_type,
            Mode::from_raw_mode(mode & 0o7777),
            makedev(major, minor),
        )
        .map_err(|error| io("mknod")(error.into()))
    }
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

/// Applies a whiteout entry: creates an overlayfs whiteout or marks a directory opaque.
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
        // This layer also has an entry with the hidden name. If it is a directory, the content of
        // the lower one must not show through.
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
            let directory = openat(
                parent,
                &hidden,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|error| io("open")(error.into()))?;
            set_opaque(&directory)
        }
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => mknodat(
            parent,
            &hidden,
            FileType::CharacterDevice,
            Mode::empty(),
            makedev(0, 0),
        )
        .map_err(|error| io("make whiteout")(error.into())),
        Err(error) => Err(io("stat")(error.into())),
    }
}

fn set_opaque(directory: &OwnedFd) -> Result<()> {
    rustix::fs::fsetxattr(
        directory,
        "trusted.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )
    .map_err(|error| io("mark directory opaque")(error.into()))
}
