//! Unpacking a layer's archive into a directory, whoever wrote the archive.
//!
//! Every name is split into a parent, found inside the layer's root by [`Tree`], and a last
//! component, on which one `*at` call acts. So no entry can reach outside.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, XattrFlags, linkat, makedev, mkdirat, mknodat, openat,
    renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};
use whelk_sys::{fs, in_root};

use super::metadata::{Metadata, describe, describe_by_name};
use super::pax::{self, BLOCK};
use super::sparse::{self, Sparse};
use super::split::Recorder;
use super::tap::{Sink, Tap, Tapped};
use super::tree::{Tree, relative};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result, io};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other bookkeeping of AUFS, where the whiteout convention comes from.
const AUFS: &[u8] = b".wh..wh.";

/// What an archive turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub diff_id: Digest,
    /// Bytes of file content.
    pub size: u64,
}

/// Unpacks the uncompressed archive `input` into `directory` (as `fs` and `split.zst`, see the
/// module's top).
///
/// # Errors
/// [`Error::Invalid`] for an archive that is malformed or tries to reach outside. What was unpacked
/// by then is for the caller to remove.
pub fn apply(input: impl Read, directory: &Path) -> Result<Applied> {
    let root_path = directory.join("fs");
    fs::create_dir(&root_path, 0o755)?;
    let tap = Tap::new(Some(Recorder::create(&directory.join("split.zst"))?));
    let mut layer = Layer::at(&root_path, Purpose::Layer)?;
    let input = layer
        .add_all(Hashing::new(input), &tap)
        .map_err(|error| error.during("layer"))?;
    let (diff_id, _, _) = input.finish();
    tap.finish()?;
    Ok(Applied {
        diff_id,
        size: layer.size,
    })
}

/// Unpacks the archive `input`, plain or compressed, into the directory `root`, beside what is
/// there. What the archive has takes the place of what has its name. Nobody may be changing that
/// directory.
///
/// # Errors
/// As for a layer. What was unpacked by then stays.
pub fn unpack(input: impl Read + Send, root: &Path) -> Result<()> {
    let mut layer = Layer::at(root, Purpose::Files)?;
    layer
        .add_all(crate::compression::decompress(input)?, &Tap::new(None))
        .map(drop)
}

/// What an archive's files are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A layer above others, in which some names hide what the others have.
    Layer,
    /// Just files.
    Files,
}

struct Layer {
    tree: Tree,
    purpose: Purpose,
    size: u64,
    /// What the sizes of files with holes add up to.
    sparse: u64,
}

/// An entry that is being unpacked, and where to.
struct Target<'a> {
    parent: &'a OwnedFd,
    name: &'a OsStr,
    /// Below the root, without links.
    path: &'a Path,
    metadata: &'a Metadata,
}

impl Layer {
    fn at(root: &Path, purpose: Purpose) -> Result<Self> {
        Ok(Self {
            tree: Tree::at(root)?,
            purpose,
            size: 0,
            sparse: 0,
        })
    }

    /// Unpacks all entries, and returns the input, read to its end.
    fn add_all<R: Read>(&mut self, input: R, tap: &Tap) -> Result<R> {
        let mut archive = Archive::new(Tapped {
            inner: input,
            tap: tap.clone(),
        });
        for entry in archive.entries().map_err(io("read archive"))? {
            let mut entry = entry.map_err(io("read archive"))?;
            // Names may be as long as headers; nobody wants to read that.
            const SHOWN: usize = 256;
            let name = entry.path_bytes();
            let shown = OsStr::from_bytes(&name[..name.len().min(SHOWN)]).to_owned();
            drop(name);
            let during = |error: Error| error.during(&format!("entry {shown:?}"));
            let extensions = pax::records(&tap.entry_begins()).map_err(during)?;
            self.add(&mut entry, tap, &extensions).map_err(during)?;
        }
        // The padding behind the end mark is part of the archive's digest.
        let mut rest = archive.into_inner();
        // A layer's digest says that it is whole. Of other archives all that is known is how they
        // end: with a block of zeros.
        if tap.entry_begins().len() < BLOCK && self.purpose == Purpose::Files {
            return Err(Error::invalid(
                "the archive is cut short: it has no end mark",
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
        // How archives older than entry types mark directories.
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
        let path = match holes.as_ref().and_then(|holes| holes.name.as_deref()) {
            Some(name) => relative(OsStr::from_bytes(name))?,
            None => relative(OsStr::from_bytes(&entry.path_bytes()))?,
        };
        let metadata = Metadata::of(entry, extensions, self.purpose)?;
        let Some(name) = path.file_name() else {
            if !kind.is_dir() {
                return Err(Error::invalid("the root must be a directory"));
            }
            // The root itself: only its metadata. It may be the directory that was entered last.
            self.tree.leave()?;
            return self.describe_directory(&super::tree::duplicate(&self.tree.root)?, &metadata);
        };
        let (parent, parent_path) = self.tree.enter(path.parent().unwrap_or(Path::new("")))?;
        if self.purpose == Purpose::Layer && name.as_bytes().starts_with(WHITEOUT) {
            // A mark on the root would hide the layers below, whole. Overlay does not look at it,
            // nor does Docker.
            return if name == OsStr::from_bytes(OPAQUE) && parent_path.as_os_str().is_empty() {
                Ok(())
            } else {
                whiteout(&parent, name)
            };
        }
        let target = Target {
            parent: &parent,
            name,
            path: &parent_path.join(name),
            metadata: &metadata,
        };
        if matches!(
            kind,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse
        ) {
            return if self.purpose == Purpose::Files {
                self.swap_in(entry, tap, &target, holes)
            } else {
                make_room(&parent, name, kind, tap)?;
                self.regular(entry, tap, &target, holes)
            };
        }
        let hides_lower = make_room(&parent, name, kind, tap)?;
        match kind {
            EntryType::Directory => return self.directory(&target, hides_lower),
            EntryType::Link => return self.hard_link(entry, &parent, name),
            EntryType::Symlink => {
                // Where it points to is for whoever follows it: inside a container every path ends
                // inside.
                let pointed = entry
                    .link_name_bytes()
                    .filter(|pointed| !pointed.is_empty());
                let pointed =
                    pointed.ok_or_else(|| Error::invalid("symbolic link without a target"))?;
                symlinkat(&*pointed, &parent, name).map_err(|error| io("symlink")(error.into()))?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                self.make_node(entry, kind, &parent, name, metadata.mode)?
            }
            other => {
                return Err(Error::invalid(format!(
                    "unknown entry type {:?}",
                    other.as_byte() as char
                )));
            }
        }
        describe_by_name(&parent, name, kind, &metadata)
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
        self.describe_directory(&directory, target.metadata)
    }

    fn describe_directory(&mut self, directory: &OwnedFd, metadata: &Metadata) -> Result<()> {
        describe(directory.as_fd(), metadata)?;
        self.tree.described(directory)
    }

    fn regular(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        tap: &Tap,
        target: &Target<'_>,
        holes: Option<Sparse>,
    ) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(
            target.parent,
            target.name,
            flags,
            Mode::from_raw_mode(0o600),
        )
        .map_err(|error| io("create")(error.into()))?;
        let mut file = std::fs::File::from(file);
        let size = holes.as_ref().map_or(entry.size(), |holes| holes.size);
        let is_sparse = holes.is_some() || entry.header().entry_type() == EntryType::GNUSparse;
        if is_sparse {
            self.sparse = self.sparse.saturating_add(size);
            if self.sparse > sparse::MOST {
                return Err(Error::invalid(format!(
                    "files with holes of more than {} bytes in all",
                    sparse::MOST
                )));
            }
        }
        // The bytes of a file with holes are not its content in the archive, so they stay verbatim
        // in the index.
        let each = || drop(tap.entry_begins());
        let copied = match holes {
            Some(holes) => {
                let stored = entry.size();
                sparse::copy(holes.expand(&mut *entry, stored)?, &mut file, each)?
            }
            None if is_sparse => sparse::copy(&mut *entry, &mut file, each)?,
            None => {
                let inode = rustix::fs::fstat(&file)
                    .map_err(|error| io("stat")(error.into()))?
                    .st_ino;
                tap.content(target.path, inode, size, || {
                    io::copy(entry, &mut file).map_err(io("write"))
                })?
            }
        };
        if copied != size {
            return Err(Error::invalid(format!(
                "{copied} of {size} bytes: the archive is cut short"
            )));
        }
        self.size += size;
        describe(file.as_fd(), target.metadata)
    }

    /// Puts a file in the place of what has its name, whole or not at all.
    fn swap_in(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        tap: &Tap,
        target: &Target<'_>,
        holes: Option<Sparse>,
    ) -> Result<()> {
        let staged = OsString::from(format!(".import-{}", crate::store::random_name()));
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
                    make_room(target.parent, target.name, EntryType::Regular, tap)?;
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
        let target = relative(OsStr::from_bytes(&target))
            .map_err(|error| error.during("hard link target"))?;
        let refuse = |error: io::Error| match Errno::from_io_error(&error) {
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
        // Pipes have no numbers, and some archivers leave the fields blank.
        let (major, minor) = if kind == EntryType::Fifo {
            (0, 0)
        } else {
            (
                number(entry.header().device_major())?,
                number(entry.header().device_minor())?,
            )
        };
        // What the kernel would cut off could turn one device into another.
        const LARGEST_MAJOR: u32 = 0xfff;
        const LARGEST_MINOR: u32 = 0xf_ffff;
        if major > LARGEST_MAJOR || minor > LARGEST_MINOR {
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
                "character device 0:0: whiteouts have names of their own",
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

/// Removes what an earlier entry left under this name, except a directory that is just described
/// again. Says whether a directory made now must hide the one of the layers below: whatever stood
/// here hid that already.
fn make_room(parent: &OwnedFd, name: &OsStr, kind: EntryType, tap: &Tap) -> Result<bool> {
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(false),
        result => result.map_err(|error| io("stat")(error.into()))?,
    };
    let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
    if is_directory && kind.is_dir() {
        return Ok(false);
    }
    tap.set_aside(parent, name)?;
    if is_directory {
        whelk_sys::remove::entry(parent, name).map_err(io("replace directory"))?;
    } else if statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        unlinkat(parent, name, AtFlags::empty()).map_err(|error| io("replace")(error.into()))?;
    }
    Ok(!is_directory)
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
        // This layer puts something in the place of what it hides: a directory must not show the
        // old one's content.
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
