//! A layer as one file: an EROFS image that is written while the archive is read.
//!
//! ```text
//! superblock, root inode │ content and inodes, as entries come in │ other inodes, small directories │ large directories
//! ```
//! The content of a file begins at a block of its own. A small file's is behind its inode instead,
//! and several of them share a block. Content that a later entry has replaced stays in the image:
//! the original archive has it too ([`super::tar_split`]).
//!
//! The image is a function of the archive: times that the archive does not have are zero. Directories
//! and inodes are in memory until the end of the archive. All images that are being written have one
//! budget for it ([`memory`]); a layer that exceeds it is kept as a directory.
//!
//! The format: the kernel's Documentation/filesystems/erofs.rst. Nothing is compressed, and only
//! features are used that all kernels have which mount images from files.

mod finish;
mod format;
mod memory;
mod output;
mod tree;
mod xattrs;

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::Timespec;
use rustix::io::Errno;
use tar::{Entry, EntryType};

use self::format::{BLOCK, Content, INODE, Inode};
use self::output::{Output, Small};
use self::tree::{Body, Node, ROOT, Tree};
use self::xattrs::Xattrs;
use super::apply::{
    Contents, Destination, Head, Hidden, Purpose, device_number, hard_link_target, is_regular,
    plain_target, symlink_target, unknown,
};
use super::metadata::Metadata;
use super::sparse::Sparse;
use super::tap::{Place, Tap};
use crate::error::{Result, io};

pub(super) use self::memory::Budget;

/// Maximum size in bytes of a file behind its inode, together with the inode. Two share a block.
const MAX_SMALL: usize = BLOCK / 2;

/// An image that is being written.
pub(super) struct Image {
    tree: Tree,
    output: Output,
    small: Small,
    pub(super) contents: Contents,
}

impl Image {
    pub(super) fn create(path: &Path, budget: &Budget) -> Result<Self> {
        Ok(Self {
            tree: Tree::new(budget)?,
            output: Output::create(path)?,
            small: Small::default(),
            contents: Contents::new(),
        })
    }

    fn regular<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        tap: &Tap,
        node: Node,
        holes: Option<Sparse>,
    ) -> Result<Node> {
        let (size, is_sparse) = self.contents.measure(entry, holes.as_ref())?;
        let head = INODE + node.xattrs.encoded_size();
        let whole = usize::try_from(size)
            .unwrap_or(usize::MAX)
            .saturating_add(head);
        if !is_sparse && whole <= MAX_SMALL {
            return self.small(entry, tap, node, (size, whole));
        }
        self.output.align().map_err(io("write"))?;
        let start = self.output.position();
        let place = Place::Image { offset: start };
        self.contents
            .copy(entry, tap, holes, &mut self.output, place)?;
        Ok(Node {
            body: Body::Blocks { start, size },
            ..node
        })
    }

    /// Writes a file together with its inode. The number of its links is written later.
    fn small<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        tap: &Tap,
        node: Node,
        (size, whole): (u64, usize),
    ) -> Result<Node> {
        let position = self
            .small
            .reserve(&mut self.output, whole)
            .map_err(io("write"))?;
        let head = whole as u64 - size;
        let place = Place::Image {
            offset: position + head,
        };
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        self.contents.copy(entry, tap, None, &mut content, place)?;
        let inode = Inode {
            mode: node.mode | format::REGULAR,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            links: 1,
            number: self.tree.next_number(),
            size,
            content: if size > 0 {
                Content::Behind
            } else {
                Content::Blocks(0)
            },
        };
        let mut bytes = inode.encode(&node.xattrs);
        bytes.extend_from_slice(&content);
        self.small.write(position, &bytes);
        Ok(Node {
            position,
            body: Body::Small,
            ..node
        })
    }
}

impl Destination for Image {
    fn purpose(&self) -> Purpose {
        Purpose::Layer
    }

    fn describe_root(&mut self, metadata: &Metadata) -> Result<()> {
        self.tree.describe(ROOT, metadata)
    }

    fn hide(&mut self, parent: &Path, hidden: Hidden) -> Result<()> {
        let parent = self.tree.enter(parent)?;
        match hidden {
            Hidden::Nothing => Ok(()),
            // See [`super::directory`].
            Hidden::All if parent == ROOT => Ok(()),
            Hidden::All => self.tree.set_opaque(parent),
            Hidden::Name(name) => match self.tree.child(parent, &name)? {
                Some(there) if self.tree.is_directory(there) => self.tree.set_opaque(there),
                Some(_) => Ok(()),
                None => self.tree.add_whiteout(parent, &name),
            },
        }
    }

    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>, tap: &Tap, head: Head) -> Result<()> {
        let parent = self.tree.enter(&head.parent)?;
        let (kind, name, metadata) = (head.kind, head.name.as_os_str(), &head.metadata);
        // Also checks the name, before anything is written.
        let hides_lower = self.tree.remove(parent, name, kind.is_dir())?;
        let node = match kind {
            kind if is_regular(kind) => {
                let node = Node::described(metadata, Xattrs::of_file(metadata)?);
                self.regular(entry, tap, node, head.holes)?
            }
            EntryType::Directory => {
                let directory = match self.tree.child(parent, name)? {
                    Some(there) => there,
                    None => self.tree.add(parent, name, Node::directory())?,
                };
                if hides_lower {
                    self.tree.set_opaque(directory)?;
                }
                return self.tree.describe(directory, metadata);
            }
            EntryType::Link => {
                let target = hard_link_target(entry, plain_target)?;
                return self.tree.link(parent, name, &target);
            }
            EntryType::Symlink => {
                let target = symlink_target(entry)?;
                check_target(&target).map_err(|error| io("symlink")(error.into()))?;
                Node {
                    mode: 0o777,
                    body: Body::Link(target.into()),
                    ..Node::described(metadata, Xattrs::default())
                }
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let (major, minor) = device_number(entry, kind, Purpose::Layer)?;
                let kind = match kind {
                    EntryType::Char => format::CHARACTER_DEVICE,
                    EntryType::Block => format::BLOCK_DEVICE,
                    _ => format::FIFO,
                };
                Node {
                    body: Body::Device { kind, major, minor },
                    ..Node::described(metadata, Xattrs::default())
                }
            }
            other => return Err(unknown(other, Purpose::Layer)),
        };
        self.tree.add(parent, name, node).map(drop)
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Checks the target of a symbolic link, as symlink(2) does.
fn check_target(target: &[u8]) -> std::result::Result<(), Errno> {
    if target.contains(&0) {
        return Err(Errno::INVAL);
    }
    if target.len() >= BLOCK {
        return Err(Errno::NAMETOOLONG);
    }
    Ok(())
}

/// Checks a name, as the kernel does.
fn check_name(name: &OsStr) -> std::result::Result<(), Errno> {
    const MAX: usize = 255;
    if name.as_bytes().contains(&0) {
        return Err(Errno::INVAL);
    }
    if name.len() > MAX {
        return Err(Errno::NAMETOOLONG);
    }
    Ok(())
}

/// The time of what the archive has no entry for.
const NO_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
