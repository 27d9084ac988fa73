//! Reads a layer archive and adds its entries to a [`Destination`]: a directory or an image. The
//! archive is untrusted.
//!
//! Every name is split into a parent directory, which the destination resolves inside the layer's
//! root, and a last component.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::{Archive, Entry, EntryType};
use whelk_sys::in_root;

use super::directory::Directory;
use super::erofs::{Budget, Image};
use super::metadata::{Metadata, or_zero};
use super::pax::{self, BLOCK};
use super::sparse::{self, Holes, Sparse};
use super::tap::{Place, Sink, Tap, Tapped};
use super::tar_split::{self, Recorder};
use super::tree::relative;
use super::{Form, IMAGE};
use crate::copy::{self, copy};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result, io};

pub(super) const WHITEOUT: &[u8] = b".wh.";
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other metadata of AUFS, where the whiteout convention comes from.
const AUFS: &[u8] = b".wh..wh.";

/// Unpacks the uncompressed archive `input` into `directory`: as `fs` or `fs.erofs`, and `split.zst`
/// (see [`super`]).
///
/// # Errors
/// Returns [`Error::Invalid`] if the archive is malformed or tries to reach outside of the root, and
/// [`Error::TooLarge`] if an image would take more memory than `budget` has. The caller removes what was unpacked until then.
pub(super) fn apply(
    input: impl Read,
    directory: &Path,
    form: Form,
    budget: &Budget,
) -> Result<super::Layer> {
    let digest = |input: Hashing<_>| Ok(input.finish().0);
    apply_digested(Hashing::new(input), directory, form, budget, digest)
}

/// Like [`apply`]. `digest` returns the digest of the archive, which has been read to its end then.
pub(super) fn apply_digested<R: Read>(
    input: R,
    directory: &Path,
    form: Form,
    budget: &Budget,
    digest: impl FnOnce(R) -> Result<Digest>,
) -> Result<super::Layer> {
    let tap = Tap::new(Some(Recorder::create(&tar_split::path(directory))?));
    let during = |error: Error| error.during("layer");
    let (diff_id, size) = match form {
        Form::Directories => {
            let root = directory.join("fs");
            whelk_sys::fs::create_dir(&root, 0o755)?;
            let mut files = Directory::at(&root, Purpose::Layer)?;
            let input = add_all(&mut files, input, &tap).map_err(during)?;
            (digest(input)?, files.contents.size)
        }
        Form::Images => {
            let mut image = Image::create(&directory.join(IMAGE), budget)?;
            let input = add_all(&mut image, input, &tap).map_err(during)?;
            let (diff_id, size) = (digest(input)?, image.contents.size);
            image.finish(&diff_id).map_err(during)?;
            (diff_id, size)
        }
    };
    tap.finish()?;
    Ok(super::Layer { diff_id, size })
}

/// Unpacks the plain or compressed archive `input` into the existing directory `root`. Entries
/// replace existing files of the same name. Nobody else may modify the directory meanwhile.
///
/// # Errors
/// Returns the same errors as [`apply`]. What was unpacked until then remains.
pub fn unpack(input: impl Read + Send, root: &Path) -> Result<()> {
    let mut files = Directory::at(root, Purpose::Files)?;
    let input = crate::compression::decompress(input)?;
    add_all(&mut files, input, &Tap::new(None)).map(drop)
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

/// What entries are added to.
pub(super) trait Destination {
    fn purpose(&self) -> Purpose;

    /// Returns the path below the root that an entry's name stands for.
    ///
    /// # Errors
    /// Returns an error if it leads outside of the root.
    fn path(&self, name: &[u8]) -> Result<PathBuf> {
        relative(OsStr::from_bytes(name))
    }

    /// Applies metadata to the root directory.
    fn describe_root(&mut self, metadata: &Metadata) -> Result<()>;

    /// Hides what lower layers have at this path below the root, or in this directory.
    fn hide(&mut self, parent: &Path, hidden: Hidden) -> Result<()>;

    /// Adds an entry.
    ///
    /// # Errors
    /// Returns an error if the entry cannot be added inside the root.
    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>, tap: &Tap, header: Head) -> Result<()>;

    /// Called after the last entry.
    fn end(&mut self) -> Result<()>;
}

/// What an entry's headers say.
pub(super) struct Head {
    pub(super) kind: EntryType,
    /// The directory that the entry goes into, below the root, as the archive names it.
    pub(super) parent: PathBuf,
    pub(super) name: OsString,
    pub(super) metadata: Metadata,
    pub(super) holes: Option<Sparse>,
}

/// What a whiteout entry hides.
pub(super) enum Hidden {
    /// All that the lower layers have in the directory.
    All,
    /// A name in the directory.
    Name(OsString),
    Nothing,
}

/// Adds all entries and returns the input, read to its end.
pub(super) fn add_all<R: Read>(
    destination: &mut impl Destination,
    input: R,
    tap: &Tap,
) -> Result<R> {
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
        let purpose = destination.purpose();
        let during = |error: Error| match error {
            // It has Docker's words.
            Error::Invalid(_) if purpose == Purpose::Copy => error,
            error => error.during(&format!("entry {shown:?}")),
        };
        let extensions = pax::records(&tap.take_headers()).map_err(during)?;
        add(destination, &mut entry, tap, &extensions).map_err(during)?;
    }
    let mut rest = archive.into_inner();
    // A layer is verified by its digest. For plain archives the only sign of truncation is a
    // missing end-of-archive marker (blocks of zeros).
    let has_marker = tap.take_headers().len() >= BLOCK;
    if !has_marker && destination.purpose() == Purpose::Files {
        return Err(Error::invalid(
            "the archive is truncated: it has no end-of-archive marker",
        ));
    }
    if has_marker {
        check_marker(&mut rest)?;
    }
    // Padding behind the end-of-archive marker is part of the diff ID.
    io::copy(&mut rest, &mut Sink(tap)).map_err(io("read archive"))?;
    destination.end()?;
    Ok(rest.inner)
}

/// Reads the second block of the end-of-archive marker. As in Go's tar package, it may be missing, but must be whole, and
/// no entries may follow a single block of zeros: they would be lost without a word.
fn check_marker(rest: &mut impl Read) -> Result<()> {
    let mut block = Vec::with_capacity(BLOCK);
    let second = rest.by_ref().take(BLOCK as u64).read_to_end(&mut block);
    second.map_err(io("read archive"))?;
    if block.iter().any(|byte| *byte != 0) {
        let text = "data behind a single block of zeros";
        return Err(io("read archive")(io::Error::new(
            io::ErrorKind::InvalidData,
            text,
        )));
    }
    match block.len() {
        0 | BLOCK => Ok(()),
        count => Err(Error::invalid(format!(
            "{count} of {BLOCK} bytes of the end-of-archive marker: the archive is truncated"
        ))),
    }
}

fn add(
    destination: &mut impl Destination,
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
    let path = match holes.as_ref().and_then(|holes| holes.name.as_deref()) {
        Some(name) => destination.path(name)?,
        None => destination.path(&entry.path_bytes())?,
    };
    let purpose = destination.purpose();
    let metadata = Metadata::of(entry, extensions, purpose)?;
    let Some(name) = path.file_name() else {
        if purpose == Purpose::Copy {
            return Ok(());
        }
        if !kind.is_dir() {
            return Err(Error::invalid("the root must be a directory"));
        }
        return destination.describe_root(&metadata);
    };
    let parent = path.parent().unwrap_or(Path::new(""));
    if purpose == Purpose::Layer && name.as_bytes().starts_with(WHITEOUT) {
        return destination.hide(parent, hidden(name)?);
    }
    let head = Head {
        kind,
        parent: parent.to_owned(),
        name: name.to_owned(),
        metadata,
        holes,
    };
    destination.add(entry, tap, head)
}

/// Returns what a whiteout's name says to hide.
fn hidden(name: &OsStr) -> Result<Hidden> {
    let bytes = name.as_bytes();
    if bytes == OPAQUE {
        return Ok(Hidden::All);
    }
    if bytes.starts_with(AUFS) {
        return Ok(Hidden::Nothing);
    }
    let hidden = OsString::from(OsStr::from_bytes(&bytes[WHITEOUT.len()..]));
    if in_root::is_entry_name(&hidden) {
        Ok(Hidden::Name(hidden))
    } else {
        Err(Error::invalid("whiteout without a name"))
    }
}

/// Returns whether an entry is a regular file.
pub(super) fn is_regular(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse
    )
}

/// Returns where a symbolic link points to. That is not checked: whoever follows the link in a
/// container stays inside the container's root.
pub(super) fn symlink_target(entry: &Entry<'_, impl Read>) -> Result<Vec<u8>> {
    let pointed = entry
        .link_name_bytes()
        .filter(|pointed| !pointed.is_empty());
    let pointed = pointed.ok_or_else(|| Error::invalid("symbolic link without a target"))?;
    Ok(pointed.into_owned())
}

/// Returns the path below the root that a hard link refers to, which `resolve` derives from the name
/// in the archive.
pub(super) fn hard_link_target(
    entry: &Entry<'_, impl Read>,
    resolve: impl FnOnce(&[u8]) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let target = entry
        .link_name_bytes()
        .ok_or_else(|| Error::invalid("hard link without a target"))?;
    let target = resolve(&target)?;
    if target.file_name().is_none() {
        return Err(Error::invalid("hard link to the root"));
    }
    Ok(target)
}

/// Returns the path below the root that a name of a hard link's target stands for.
pub(super) fn plain_target(name: &[u8]) -> Result<PathBuf> {
    relative(OsStr::from_bytes(name)).map_err(|error| error.during("hard link target"))
}

/// Returns the major and minor number of a device, and zeros for a FIFO.
pub(super) fn device_number(
    entry: &Entry<'_, impl Read>,
    kind: EntryType,
    purpose: Purpose,
) -> Result<(u32, u32)> {
    // Where both POSIX ustar's and GNU's headers have them.
    const MAJOR: Range<usize> = 329..337;
    const MINOR: Range<usize> = 337..345;
    let header = entry.header();
    let bytes = header.as_bytes();
    let number = |field: &[u8], read: io::Result<Option<u32>>| {
        or_zero(field, read)
            .map_err(io("device number"))
            .map(Option::unwrap_or_default)
    };
    // FIFOs have no device number.
    let (major, minor) = if kind == EntryType::Fifo {
        (0, 0)
    } else {
        (
            number(&bytes[MAJOR], header.device_major())?,
            number(&bytes[MINOR], header.device_minor())?,
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
    if kind == EntryType::Char && (major, minor) == (0, 0) && purpose == Purpose::Layer {
        return Err(Error::invalid(
            "character device 0:0 is reserved for whiteouts",
        ));
    }
    Ok((major, minor))
}

pub(super) fn unknown(kind: EntryType, purpose: Purpose) -> Error {
    Error::invalid(if purpose == Purpose::Copy {
        format!("unhandled tar header type {}", kind.as_byte())
    } else {
        format!("unknown entry type {:?}", kind.as_byte() as char)
    })
}

/// Copies the content of regular files, and counts it.
pub(super) struct Contents {
    buffer: Vec<u8>,
    /// Total size of files in bytes.
    pub(super) size: u64,
    /// Total size of sparse files in bytes.
    sparse: u64,
}

impl Contents {
    pub(super) fn new() -> Self {
        Self {
            buffer: copy::buffer(),
            size: 0,
            sparse: 0,
        }
    }

    /// Returns the size of a file with its holes, and whether it is sparse. Counts sparse files.
    pub(super) fn measure(
        &mut self,
        entry: &Entry<'_, impl Read>,
        holes: Option<&Sparse>,
    ) -> Result<(u64, bool)> {
        let size = holes.map_or(entry.size(), |holes| holes.size);
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
        Ok((size, is_sparse))
    }

    /// Copies a file's content to `output`. `place` is where it can be found later.
    ///
    /// # Errors
    /// Returns an error if the archive has less than the file's size.
    pub(super) fn copy<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        tap: &Tap,
        holes: Option<Sparse>,
        output: &mut (impl Write + Holes),
        place: Place<'_>,
    ) -> Result<()> {
        let size = holes.as_ref().map_or(entry.size(), |holes| holes.size);
        // The content of a sparse file differs from its bytes in the archive, so the archive's
        // bytes are recorded verbatim.
        let each = || drop(tap.take_headers());
        let copied = match holes {
            Some(holes) => {
                let stored = entry.size();
                sparse::copy(holes.expand(&mut *entry, stored)?, output, each)?
            }
            None if entry.header().entry_type() == EntryType::GNUSparse => {
                sparse::copy(&mut *entry, output, each)?
            }
            None => {
                let buffer = &mut self.buffer;
                tap.content(place, size, || {
                    copy(entry, output, buffer).map_err(io("write"))
                })?
            }
        };
        if copied != size {
            return Err(Error::invalid(format!(
                "{copied} of {size} bytes: the archive is truncated"
            )));
        }
        self.size += size;
        Ok(())
    }
}
