//! Records the parts of a layer archive that are not file content: headers, padding, order of
//! entries. (The idea and the name are those of the Go library `tar-split`, which Docker uses; the
//! format is whelk's own.)
//!
//! ```text
//! stream of segments, zstd-compressed:
//!   0x00 | length (u32 LE) | bytes                        verbatim
//!   0x01 | size (u64 LE) | path length (u16 LE) | path    the content of this file of the layer
//!   0x02 | size (u64 LE) | offset (u64 LE)                so many bytes of the layer's EROFS image
//! ```
//! Content that a later entry of the same archive replaced is kept: in `replaced/<index of the
//! content segment>`, or where it is in the image.
//!
//! Replaying the segments gives the uncompressed archive, whose digest is the layer's diff ID.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use whelk_sys::{fs, in_root};

use crate::copy::{self, copy};
use crate::error::{Error, Result, io};

const VERBATIM: u8 = 0;
const CONTENT: u8 = 1;
const IN_IMAGE: u8 = 2;
const LEVEL: i32 = 3;
const REPLACED: &str = "replaced";

/// Returns the path of the segments of the layer in `directory`.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("split.zst")
}

/// Writes the segments while an archive is read.
pub(super) struct Recorder {
    output: zstd::stream::write::Encoder<'static, BufWriter<File>>,
    verbatim: Vec<u8>,
    /// The content segment of each file, by inode number. Keyed by inode because names would take
    /// as much memory as the sender likes.
    contents: HashMap<u64, u64>,
    segments: u64,
    replaced: PathBuf,
}

impl Recorder {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = BufWriter::new(fs::create(path, 0o600)?);
        let output =
            zstd::stream::write::Encoder::new(file, LEVEL).map_err(io("write layer index"))?;
        Ok(Self {
            output,
            verbatim: Vec::with_capacity(64 << 10),
            contents: HashMap::new(),
            segments: 0,
            replaced: path.with_file_name(REPLACED),
        })
    }

    pub(super) fn verbatim(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.verbatim.extend_from_slice(bytes);
        if self.verbatim.len() >= 64 << 10 {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        for part in self.verbatim.chunks(1 << 30) {
            self.output.write_all(&[VERBATIM])?;
            self.output
                .write_all(&u32::try_from(part.len()).unwrap_or_default().to_le_bytes())?;
            self.output.write_all(part)?;
        }
        self.verbatim.clear();
        Ok(())
    }

    /// Records that the next `size` bytes of the archive are the content of the file `inode` at
    /// `path`.
    pub(super) fn content(&mut self, path: &Path, inode: u64, size: u64) -> io::Result<()> {
        self.flush()?;
        self.contents.insert(inode, self.segments);
        self.segments += 1;
        let path = path.as_os_str().as_bytes();
        let length =
            u16::try_from(path.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        self.output.write_all(&[CONTENT])?;
        self.output.write_all(&size.to_le_bytes())?;
        self.output.write_all(&length.to_le_bytes())?;
        self.output.write_all(path)
    }

    /// Records that the next `size` bytes of the archive are those at `offset` of the layer's image.
    pub(super) fn in_image(&mut self, offset: u64, size: u64) -> io::Result<()> {
        self.flush()?;
        self.output.write_all(&[IN_IMAGE])?;
        self.output.write_all(&size.to_le_bytes())?;
        self.output.write_all(&offset.to_le_bytes())
    }

    /// Moves the content of `name` in `parent` (a file, or all files of a directory) to
    /// `replaced/`, where [`replay`] finds it after the original was removed.
    pub(super) fn preserve(&mut self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = openat(parent, name, flags, Mode::empty())?;
            let mut names: Vec<OsString> = Vec::new();
            for entry in Dir::read_from(&directory)? {
                let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
                if in_root::is_entry_name(&name) {
                    names.push(name);
                }
            }
            return names
                .iter()
                .try_for_each(|name| self.preserve(&directory, name));
        }
        let Some(segment) = self.contents.remove(&stat.st_ino) else {
            return Ok(());
        };
        if !fs::exists(&self.replaced) {
            fs::create_dir(&self.replaced, 0o700).map_err(|error| error.source)?;
        }
        Ok(rustix::fs::renameat(
            parent,
            name,
            rustix::fs::CWD,
            self.replaced.join(segment.to_string()),
        )?)
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.output
            .finish()?
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .map(drop)
    }
}

/// Writes the original archive of the layer in `directory` to `output`.
///
/// # Errors
/// Returns an error if a file of the layer is missing or has another size: the store was modified
/// from outside.
pub fn replay(directory: &Path, output: &mut impl Write) -> Result<()> {
    let mut segments = Segments::open(directory)?;
    let step = || io(format!("read layer {}", directory.display()));
    let mut buffer = copy::buffer();
    let mut files = None;
    let mut image = None;
    while let Some(segment) = segments.next().map_err(step())? {
        match segment {
            Segment::Verbatim(length) => {
                copy_exactly(&mut segments.index, output, length, &mut buffer).map_err(step())?;
            }
            Segment::Content { size, path } => {
                let files = match &mut files {
                    Some(files) => files,
                    files => files.insert(Files::open(directory)?),
                };
                let mut file = files.next(&path)?;
                let found = file.metadata().map_err(step())?.len();
                if found > size {
                    return Err(Error::invalid(format!(
                        "{} of layer {} has {found} bytes instead of {size}",
                        path.display(),
                        directory.display()
                    )));
                }
                copy_exactly(&mut file, output, size, &mut buffer).map_err(|error| Error::Io {
                    operation: format!("read {} of layer {}", path.display(), directory.display()),
                    source: error,
                })?;
            }
            Segment::InImage { size, offset } => {
                let image = match &mut image {
                    Some(image) => image,
                    image => image.insert(fs::open(directory.join(super::IMAGE))?),
                };
                image.seek(SeekFrom::Start(offset)).map_err(step())?;
                copy_exactly(image, output, size, &mut buffer).map_err(step())?;
            }
        }
    }
    Ok(())
}

/// The files of a layer that is kept as a directory, in the order of the content segments.
struct Files {
    directory: PathBuf,
    root: OwnedFd,
    replaced: Option<PathBuf>,
    number: u64,
}

impl Files {
    fn open(directory: &Path) -> Result<Self> {
        let root = directory.join("fs");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let replaced = directory.join(REPLACED);
        Ok(Self {
            root: rustix::fs::open(&root, flags, Mode::empty()).map_err(fs::at("open", &root))?,
            directory: root,
            replaced: fs::exists(&replaced).then_some(replaced),
            number: 0,
        })
    }

    /// Opens the file of the next content segment.
    fn next(&mut self, path: &Path) -> Result<File> {
        let number = self.number.to_string();
        self.number += 1;
        let kept = self.replaced.as_ref().map(|replaced| replaced.join(number));
        if let Some(kept) = kept.filter(|kept| fs::exists(kept)) {
            return Ok(fs::open(kept)?);
        }
        let opened = in_root::open_no_links(&self.root, path, OFlags::RDONLY | OFlags::NONBLOCK);
        Ok(opened
            .map(File::from)
            .map_err(fs::at("open", self.directory.join(path)))?)
    }
}

/// Returns the size of the original archive of the layer in `directory`, without reading its files.
///
/// # Errors
/// Returns an error if the index cannot be read.
pub fn archive_size(directory: &Path) -> Result<u64> {
    let mut segments = Segments::open(directory)?;
    let step = || io(format!("read layer {}", directory.display()));
    let mut buffer = copy::buffer();
    let mut total = 0u64;
    while let Some(segment) = segments.next().map_err(step())? {
        let size = match segment {
            Segment::Verbatim(length) => {
                let sink = &mut io::sink();
                copy_exactly(&mut segments.index, sink, length, &mut buffer).map_err(step())?;
                length
            }
            Segment::Content { size, .. } | Segment::InImage { size, .. } => size,
        };
        total = total.saturating_add(size);
    }
    Ok(total)
}

enum Segment {
    /// So many bytes, which follow in the index and are to be read before the next segment.
    Verbatim(u64),
    Content {
        size: u64,
        path: PathBuf,
    },
    InImage {
        size: u64,
        offset: u64,
    },
}

/// Reads the segments of a layer.
struct Segments {
    index: BufReader<zstd::stream::read::Decoder<'static, BufReader<File>>>,
}

impl Segments {
    fn open(directory: &Path) -> Result<Self> {
        let path = path(directory);
        let decoder = zstd::stream::read::Decoder::new(fs::open(&path)?);
        Ok(Self {
            index: BufReader::with_capacity(64 << 10, decoder.map_err(fs::at("read", path))?),
        })
    }

    fn next(&mut self) -> io::Result<Option<Segment>> {
        let mut kind = [0; 1];
        if self.index.read(&mut kind)? == 0 {
            return Ok(None);
        }
        if kind[0] == VERBATIM {
            let mut length = [0; 4];
            self.index.read_exact(&mut length)?;
            return Ok(Some(Segment::Verbatim(u32::from_le_bytes(length).into())));
        }
        let (mut size, mut offset, mut length) = ([0; 8], [0; 8], [0; 2]);
        self.index.read_exact(&mut size)?;
        if kind[0] == IN_IMAGE {
            self.index.read_exact(&mut offset)?;
            return Ok(Some(Segment::InImage {
                size: u64::from_le_bytes(size),
                offset: u64::from_le_bytes(offset),
            }));
        }
        self.index.read_exact(&mut length)?;
        let mut path = vec![0; usize::from(u16::from_le_bytes(length))];
        self.index.read_exact(&mut path)?;
        Ok(Some(Segment::Content {
            size: u64::from_le_bytes(size),
            path: OsString::from_vec(path).into(),
        }))
    }
}

fn copy_exactly(
    input: &mut impl Read,
    output: &mut impl Write,
    length: u64,
    buffer: &mut [u8],
) -> io::Result<()> {
    let copied = copy(&mut input.take(length), output, buffer)?;
    if copied == length {
        Ok(())
    } else {
        Err(io::Error::other(format!("{copied} of {length} bytes")))
    }
}
