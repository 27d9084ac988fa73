//! The files of an image that is being written, in memory.
//!
//! Names are resolved as in [`crate::snapshots::tree`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::Timespec;
use whelk_sys::overlay;

use super::memory::{Budget, Memory, too_large};
use super::xattrs::Xattrs;
use super::{NO_TIME, check_name, format};
use crate::error::{Error, Result, io};
use crate::snapshots::metadata::Metadata;
use crate::snapshots::tree::{Implied, MAX_LINKS, check_length, names};

/// The index of a node.
pub(super) type Number = u32;

pub(super) const ROOT: Number = 0;

/// The memory that a name takes besides its length, in bytes: its place in the map of its directory, which
/// is half full at worst, the allocation, and its entry while the directory is written.
const NAME: usize = 120;

/// The memory that a file takes besides names and attributes: twice, because a vector grows by as much, and
/// what [`super::finish`] has of it.
const NODE: usize = 2 * size_of::<Node>() + 40;

/// The memory that a directory takes besides: the first part of the map of its children.
const CHILDREN: usize = 280;

pub(super) struct Tree {
    nodes: Vec<Node>,
    /// The directory that was entered last, because archives list siblings together.
    entered: Option<(PathBuf, Number)>,
    implied: Implied,
    memory: Memory,
}

pub(super) struct Node {
    /// The permission bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
    /// Number of names; of a directory also those that its content has for it.
    pub(super) links: u32,
    pub(super) xattrs: Xattrs,
    pub(super) body: Body,
    /// The inode's position in the image, or 0 if it has none yet.
    pub(super) position: u64,
}

pub(super) enum Body {
    Directory {
        parent: Number,
        children: BTreeMap<Box<[u8]>, Number>,
    },
    /// A file with content of `size` bytes in blocks from the position `start` on.
    Blocks {
        start: u64,
        size: u64,
    },
    /// A file that is in the image together with its inode.
    Small,
    Link(Box<[u8]>),
    Device {
        kind: u32,
        major: u32,
        minor: u32,
    },
}

impl Node {
    /// Returns a file with an entry's metadata, without content.
    pub(super) fn described(metadata: &Metadata, mut xattrs: Xattrs) -> Self {
        let (uid, gid) = metadata.owner.unwrap_or_default();
        Self {
            mode: xattrs.apply_acl(metadata.mode & 0o7777),
            uid,
            gid,
            mtime: metadata.mtime,
            links: 1,
            xattrs,
            body: Body::Blocks { start: 0, size: 0 },
            position: 0,
        }
    }

    fn without_entry(mode: u32, body: Body) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            mtime: NO_TIME,
            links: 1,
            xattrs: Xattrs::default(),
            body,
            position: 0,
        }
    }

    /// Returns an empty directory that has no entry.
    pub(super) fn directory() -> Self {
        let body = Body::Directory {
            parent: ROOT,
            children: BTreeMap::new(),
        };
        Self {
            links: 2,
            ..Self::without_entry(0o755, body)
        }
    }

    fn whiteout() -> Self {
        let body = Body::Device {
            kind: format::CHARACTER_DEVICE,
            major: 0,
            minor: 0,
        };
        Self::without_entry(0, body)
    }

    /// Returns the file's type, as in an inode's mode.
    pub(super) fn kind(&self) -> u32 {
        match &self.body {
            Body::Directory { .. } => format::DIRECTORY,
            Body::Blocks { .. } | Body::Small => format::REGULAR,
            Body::Link(_) => format::SYMLINK,
            Body::Device { kind, .. } => *kind,
        }
    }

    pub(super) fn children(&self) -> Option<&BTreeMap<Box<[u8]>, Number>> {
        match &self.body {
            Body::Directory { children, .. } => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self) -> Option<&mut BTreeMap<Box<[u8]>, Number>> {
        match &mut self.body {
            Body::Directory { children, .. } => Some(children),
            _ => None,
        }
    }

    fn is_whiteout(&self) -> bool {
        matches!(
            self.body,
            Body::Device {
                kind: format::CHARACTER_DEVICE,
                major: 0,
                minor: 0
            }
        )
    }
}

impl Tree {
    pub(super) fn new(budget: &Budget) -> Result<Self> {
        let mut memory = Memory::of(budget);
        memory.take(NODE + CHILDREN)?;
        Ok(Self {
            nodes: vec![Node::directory()],
            entered: None,
            implied: Implied::default(),
            memory,
        })
    }

    pub(super) fn node(&self, number: Number) -> &Node {
        &self.nodes[number as usize]
    }

    pub(super) fn node_mut(&mut self, number: Number) -> &mut Node {
        &mut self.nodes[number as usize]
    }

    /// Returns all files, also those that were removed, with their indices.
    pub(super) fn all(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// Returns the inode number of the file that is added next.
    pub(super) fn next_number(&self) -> u32 {
        inode_number(Number::try_from(self.nodes.len()).unwrap_or(Number::MAX))
    }

    pub(super) fn is_directory(&self, number: Number) -> bool {
        self.node(number).children().is_some()
    }

    /// Returns the file with a name in a directory.
    pub(super) fn child(&self, directory: Number, name: &OsStr) -> Result<Option<Number>> {
        check_name(name).map_err(|error| io("create")(error.into()))?;
        let children = self.node(directory).children();
        Ok(children.and_then(|children| children.get(name.as_bytes()).copied()))
    }

    /// Adds a file to a directory that has none of this name.
    pub(super) fn add(
        &mut self,
        directory: Number,
        name: &OsStr,
        mut node: Node,
    ) -> Result<Number> {
        check_name(name).map_err(|error| io("create")(error.into()))?;
        let number = Number::try_from(self.nodes.len()).map_err(|_| too_large())?;
        let more = match &node.body {
            Body::Link(target) => target.len(),
            Body::Directory { .. } => CHILDREN,
            _ => 0,
        };
        self.memory
            .take(NODE + NAME + name.len() + more + node.xattrs.memory())?;
        if let Body::Directory { parent, .. } = &mut node.body {
            *parent = directory;
            self.node_mut(directory).links += 1;
        }
        self.nodes.push(node);
        if let Some(children) = self.node_mut(directory).children_mut() {
            children.insert(name.as_bytes().into(), number);
        }
        Ok(number)
    }

    /// Applies an entry's metadata to a directory.
    pub(super) fn describe(&mut self, directory: Number, metadata: &Metadata) -> Result<()> {
        let node = self.node_mut(directory);
        let before = node.xattrs.memory();
        node.xattrs.add(metadata, true)?;
        node.mode = node.xattrs.apply_acl(metadata.mode & 0o7777);
        (node.uid, node.gid) = metadata.owner.unwrap_or_default();
        node.mtime = metadata.mtime;
        let more = node.xattrs.memory().saturating_sub(before);
        self.memory.take(more)
    }

    /// Lets a directory hide that of lower layers.
    pub(super) fn set_opaque(&mut self, directory: Number) -> Result<()> {
        self.node_mut(directory)
            .xattrs
            .set(b"trusted.overlay.opaque", b"y");
        self.memory.take(Xattrs::EACH + super::INODE)?;
        self.mark_whiteouts(ROOT)
    }

    /// Adds a whiteout to a directory that has no file of this name.
    pub(super) fn add_whiteout(&mut self, directory: Number, name: &OsStr) -> Result<()> {
        self.add(directory, name, Node::whiteout())?;
        self.mark_whiteouts(directory)?;
        self.mark_whiteouts(ROOT)
    }

    /// See [`crate::snapshots::directory`].
    fn mark_whiteouts(&mut self, directory: Number) -> Result<()> {
        let xattrs = &mut self.node_mut(directory).xattrs;
        if xattrs.has(overlay::WHITEOUTS) {
            return Ok(());
        }
        xattrs.set(overlay::WHITEOUTS, b"");
        self.memory.take(Xattrs::EACH + super::INODE)
    }

    /// Removes what has a name in a directory, unless it and what replaces it are directories. Returns
    /// whether a directory in its place must be opaque (see [`crate::snapshots::directory`]).
    pub(super) fn remove(
        &mut self,
        directory: Number,
        name: &OsStr,
        is_directory: bool,
    ) -> Result<bool> {
        let Some(number) = self.child(directory, name)? else {
            return Ok(false);
        };
        let was_directory = self.is_directory(number);
        if was_directory && is_directory {
            return Ok(false);
        }
        if let Some(children) = self.node_mut(directory).children_mut() {
            children.remove(name.as_bytes());
        }
        if was_directory {
            self.node_mut(directory).links -= 1;
            self.entered = None;
        }
        let mut removed = vec![number];
        while let Some(number) = removed.pop() {
            let node = self.node_mut(number);
            node.links = node.links.saturating_sub(1);
            if let Some(children) = node.children_mut() {
                removed.extend(std::mem::take(children).into_values());
            }
        }
        Ok(!was_directory)
    }

    /// Adds a further name of the file at the path `target`.
    ///
    /// # Errors
    /// Returns an error if there is none, or if it is a directory or a whiteout.
    pub(super) fn link(&mut self, directory: Number, name: &OsStr, target: &Path) -> Result<()> {
        let missing = || {
            Error::invalid(format!(
                "hard link to {}, which is not in this layer",
                target.display()
            ))
        };
        let target_name = target.file_name().unwrap_or_default();
        let target_parent = target.parent().unwrap_or(Path::new(""));
        let there = self.walk(target_parent, false)?.ok_or_else(missing)?;
        let number = self.child(there, target_name)?.ok_or_else(missing)?;
        if self.is_directory(number) || self.node(number).is_whiteout() {
            return Err(Error::invalid(format!(
                "hard link to {}, which is a directory or a whiteout",
                target.display()
            )));
        }
        check_name(name).map_err(|error| io("link")(error.into()))?;
        self.memory.take(NAME + name.len())?;
        self.node_mut(number).links += 1;
        if let Some(children) = self.node_mut(directory).children_mut() {
            children.insert(name.as_bytes().into(), number);
        }
        Ok(())
    }

    /// Returns the directory that an entry goes into. Creates missing directories.
    ///
    /// # Errors
    /// Returns an error if a component is neither a directory nor a link to one, or if there are
    /// too many links.
    pub(super) fn enter(&mut self, named: &Path) -> Result<Number> {
        self.implied.entry();
        if let Some((last, number)) = &self.entered
            && last.as_os_str() == named.as_os_str()
        {
            return Ok(*number);
        }
        let number = self.walk(named, true)?.unwrap_or(ROOT);
        self.entered = Some((named.to_owned(), number));
        Ok(number)
    }

    /// Resolves a path component by component. With `make`, creates missing directories; otherwise
    /// returns `None` if it is no directory.
    fn walk(&mut self, named: &Path, make: bool) -> Result<Option<Number>> {
        let refused = |what: &str| Error::invalid(format!("{} {what}", named.display()));
        let mut at = PathBuf::new();
        let mut directory = ROOT;
        let mut links = 0;
        let mut pending: Vec<OsString> = names(named);
        while let Some(name) = pending.pop() {
            if name == ".." {
                at.pop();
                if let Body::Directory { parent, .. } = self.node(directory).body {
                    directory = parent;
                }
                continue;
            }
            check_name(&name)
                .map_err(|error| io(format!("open {}", named.display()))(error.into()))?;
            let there = self.child(directory, &name)?;
            let next = match there {
                Some(next) => next,
                None if make => {
                    self.implied.directory()?;
                    self.add(directory, &name, Node::directory())?
                }
                None => return Ok(None),
            };
            match &self.node(next).body {
                Body::Directory { .. } => {
                    at.push(&name);
                    check_length(&at)?;
                    directory = next;
                }
                Body::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        let many = refused("goes through too many links");
                        return if make { Err(many) } else { Ok(None) };
                    }
                    let target = Path::new(OsStr::from_bytes(target));
                    if target.is_absolute() {
                        at = PathBuf::new();
                        directory = ROOT;
                    }
                    pending.extend(names(target));
                }
                _ if make => {
                    return Err(refused("is not a directory: the path goes through a file"));
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(directory))
    }
}

/// Returns the inode number of a file, which is not zero.
pub(super) fn inode_number(number: Number) -> u32 {
    number.saturating_add(1)
}
