//! Writes what is known only at the end of the archive: directories, inodes, the superblock.

use std::io::{self, Write as _};

use super::Image;
use super::format::{self, BLOCK, Content, DirectoryEntry, INODE, Inode, ROOT_INODE, SUPERBLOCK};
use super::output::{Output, Positions};
use super::tree::{Body, Node, Number, ROOT, Tree, inode_number};
use crate::digest::Digest;
use crate::error::{Error, Result, io as during};

/// An inode that is yet to be written.
struct Pending {
    number: Number,
    /// The position of the content of a large directory, or of a long link.
    blocks: Option<u64>,
}

impl Image {
    /// Completes the image of the layer with this diff ID.
    ///
    /// # Errors
    /// Returns an error if writing fails.
    pub(in crate::snapshots) fn finish(self, diff_id: &Digest) -> Result<()> {
        let size = self.tree.node(ROOT).xattrs.encoded_size();
        if ROOT_INODE + INODE + size > BLOCK {
            return Err(Error::invalid(format!(
                "{size} bytes of extended attributes of the root directory"
            )));
        }
        self.write(diff_id).map_err(during("write"))
    }

    fn write(mut self, diff_id: &Digest) -> io::Result<()> {
        self.small.flush(&mut self.output)?;
        self.output.align()?;
        self.tree.node_mut(ROOT).position = ROOT_INODE as u64;
        let mut positions = Positions::from(self.output.position());
        let mut pending = assign(&mut self.tree, &mut positions);
        // Large directories follow.
        let mut next = positions.next().next_multiple_of(BLOCK as u64);
        for blocks in pending.iter_mut().filter_map(|one| one.blocks.as_mut()) {
            let size = *blocks;
            *blocks = next;
            next += size.next_multiple_of(BLOCK as u64);
        }
        for one in &pending[1..] {
            self.output.pad_to(self.tree.node(one.number).position)?;
            self.output.write_all(&encode(&self.tree, one))?;
        }
        for one in &pending {
            if let Some(start) = one.blocks {
                self.output.pad_to(start)?;
                self.output.write_all(&content(&self.tree, one.number))?;
            }
        }
        self.output.align()?;
        let size = self.output.end()?;
        correct_links(&self.tree, &mut self.output)?;
        let superblock = format::superblock(size, self.tree.all().count() as u64, uuid(diff_id));
        let mut first = vec![0; BLOCK];
        first[SUPERBLOCK..ROOT_INODE].copy_from_slice(&superblock);
        let root = encode(&self.tree, &pending[0]);
        first[ROOT_INODE..ROOT_INODE + root.len()].copy_from_slice(&root);
        self.output.write_at(0, &first)
    }
}

/// The lower layers of an overlay must not have the same UUID.
fn uuid(diff_id: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (byte, digits) in uuid.iter_mut().zip(diff_id.hex().as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or(0);
    }
    uuid
}

/// Assigns positions to all inodes that have none, those of a directory one after the other, and
/// returns them in this order, the root first. Instead of a position, `blocks` is a size.
fn assign(tree: &mut Tree, positions: &mut Positions) -> Vec<Pending> {
    let (root, room) = (tree.node(ROOT), BLOCK - ROOT_INODE);
    let mut pending = vec![Pending {
        number: ROOT,
        blocks: split(root, room, format::directory_size(&lengths(root))).1,
    }];
    let mut directories = vec![ROOT];
    while let Some(directory) = directories.pop() {
        let children = tree.node(directory).children();
        let children: Vec<Number> = children.into_iter().flatten().map(|(_, to)| *to).collect();
        let first_directory = directories.len();
        for child in children {
            let node = tree.node_mut(child);
            if node.position != 0 {
                continue;
            }
            let (behind, blocks) = match &node.body {
                Body::Directory { .. } => {
                    directories.push(child);
                    split(node, BLOCK, format::directory_size(&lengths(node)))
                }
                Body::Link(target) => split(node, BLOCK, target.len()),
                _ => (0, None),
            };
            let length = INODE + node.xattrs.encoded_size() + behind;
            node.position = positions.assign(length);
            pending.push(Pending {
                number: child,
                blocks,
            });
        }
        directories[first_directory..].reverse();
    }
    pending
}

/// Returns the size of what is behind an inode, and of what is in blocks of its own, given the size of
/// the content: that is in blocks unless the inode with it fits into `room`.
fn split(node: &Node, room: usize, size: usize) -> (usize, Option<u64>) {
    if INODE + node.xattrs.encoded_size() + size <= room {
        (size, None)
    } else {
        (0, Some(size as u64))
    }
}

/// Returns the lengths of a directory's names in order, with `.` and `..`.
fn lengths(node: &Node) -> Vec<u8> {
    let children = node.children().into_iter().flatten();
    let mut lengths: Vec<u8> = Vec::new();
    let mut dots: &[(&[u8], u8)] = &DOTS;
    for (name, _) in children {
        while let [(dot, length), rest @ ..] = dots
            && **dot < **name
        {
            lengths.push(*length);
            dots = rest;
        }
        lengths.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    }
    lengths.extend(dots.iter().map(|(_, length)| *length));
    lengths
}

const DOTS: [(&[u8], u8); 2] = [(b".", 1), (b"..", 2)];

/// Returns the content of a directory or a link.
fn content(tree: &Tree, number: Number) -> Vec<u8> {
    let (parent, children) = match &tree.node(number).body {
        Body::Directory { parent, children } => (parent, children),
        Body::Link(target) => return target.to_vec(),
        _ => return Vec::new(),
    };
    let entry = |name, number| DirectoryEntry {
        name,
        inode: tree.node(number).position,
        kind: tree.node(number).kind(),
    };
    let mut entries: Vec<DirectoryEntry<'_>> = children
        .iter()
        .map(|(name, number)| entry(name, *number))
        .collect();
    for (name, number) in [(DOTS[0].0, number), (DOTS[1].0, *parent)] {
        let at = entries.partition_point(|entry| entry.name < name);
        entries.insert(at, entry(name, number));
    }
    format::directory(&entries)
}

/// Returns an inode with what is behind it.
fn encode(tree: &Tree, one: &Pending) -> Vec<u8> {
    let node = tree.node(one.number);
    let mut behind = Vec::new();
    let (size, place) = match &node.body {
        Body::Blocks { start, size } => (*size, Content::Blocks(*start)),
        Body::Device { major, minor, .. } => (0, Content::Device(*major, *minor)),
        // Has been written.
        Body::Small => return behind,
        Body::Directory { .. } | Body::Link(_) => {
            let content = content(tree, one.number);
            let size = content.len() as u64;
            match one.blocks {
                Some(start) => (size, Content::Blocks(start)),
                None => {
                    behind = content;
                    (size, Content::Behind)
                }
            }
        }
    };
    let inode = Inode {
        mode: node.mode | node.kind(),
        uid: node.uid,
        gid: node.gid,
        mtime: node.mtime,
        links: node.links,
        number: inode_number(one.number),
        size,
        content: place,
    };
    let mut bytes = inode.encode(&node.xattrs);
    bytes.extend_from_slice(&behind);
    bytes
}

/// Writes the numbers of links of small files that have several.
fn correct_links(tree: &Tree, output: &mut Output) -> io::Result<()> {
    for node in tree.all() {
        if matches!(node.body, Body::Small) && node.links > 1 {
            output.write_at(node.position + format::LINKS, &node.links.to_le_bytes())?;
        }
    }
    Ok(())
}
