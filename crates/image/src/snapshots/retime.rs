//! Makes a layer with the same files and earlier times (`rewrite-timestamp` of builds).

use std::io::{self, Write};
use std::sync::mpsc::sync_channel;
use std::thread::scope;

use tar::{EntryType, Header};

use super::commit::{Pieces, WAITING, joined};
use super::pax::{self, BLOCK};
use super::{Layer, Snapshots, unchanged};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::leases::Lease;

/// Maximum size of a pax header in bytes; extended attributes are in it.
const MAX_RECORDS: u64 = 64 << 20;

/// Size of the pieces that are passed on, in bytes.
const PIECE: usize = 256 << 10;

impl Snapshots {
    /// Stores a layer with the files of another one, of which none is newer than `epoch`, in seconds since 1970. `lease`
    /// holds it.
    ///
    /// # Errors
    /// Returns an error if the layer was changed on disk, or if the new one cannot be stored.
    pub fn retime(&self, lease: &Lease, diff_id: &Digest, epoch: i64) -> Result<Layer> {
        let write = |sender: std::sync::mpsc::SyncSender<Vec<u8>>| {
            let send = |piece: Vec<u8>| {
                let gone = |_| io::ErrorKind::BrokenPipe.into();
                sender.send(piece).map_err(gone)
            };
            let mut hashing = Hashing::new(Retimed::new(epoch, send));
            self.replay(diff_id, &mut hashing)?;
            let (digest, _, retimed) = hashing.finish();
            unchanged(diff_id, &digest)?;
            retimed.finish()
        };
        scope(|threads| {
            let (sender, receiver) = sync_channel(WAITING);
            let writing = threads.spawn(move || write(sender));
            // It cannot be read a second time, as one with too many files for an image must be.
            let applied = self.apply_to_directory(lease, Pieces::of(receiver), None);
            joined(writing).flatten()?;
            applied
        })
    }
}

/// Passes an archive on, with the times of its entries limited.
struct Retimed<F> {
    epoch: i64,
    send: F,
    output: Vec<u8>,
    /// An incomplete block.
    block: Vec<u8>,
    /// Number of bytes of content that are passed on, with their padding.
    left: u64,
    /// The content of a pax header with its padding, and the header.
    records: Option<(Header, Vec<u8>, u64)>,
    /// The size of the next entry, if its header cannot have it.
    size: Option<u64>,
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Retimed<F> {
    fn new(epoch: i64, send: F) -> Self {
        Self {
            epoch,
            send,
            output: Vec::with_capacity(PIECE),
            block: Vec::with_capacity(BLOCK),
            left: 0,
            records: None,
            size: None,
        }
    }

    fn finish(mut self) -> Result<()> {
        if self.left > 0 || !self.block.is_empty() || self.records.is_some() {
            return Err(Error::invalid("a layer's archive ends in an entry"));
        }
        let rest = std::mem::take(&mut self.output);
        (self.send)(rest).map_err(crate::error::io("rewrite the times of a layer"))
    }

    fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.extend_from_slice(bytes);
        if self.output.len() >= PIECE {
            let piece = std::mem::replace(&mut self.output, Vec::with_capacity(PIECE));
            (self.send)(piece)?;
        }
        Ok(())
    }

    /// Takes a block that is a header, or part of the end of the archive.
    fn header(&mut self) -> io::Result<()> {
        let block = std::mem::take(&mut self.block);
        if block.iter().all(|byte| *byte == 0) {
            return self.pass(&block);
        }
        let mut header = Header::from_byte_slice(&block).clone();
        let kind = header.entry_type();
        let size = match self.size.take() {
            Some(size) => size,
            None => header.entry_size()?,
        };
        if kind == EntryType::XHeader {
            if size > MAX_RECORDS {
                return Err(malformed("a pax header is too large"));
            }
            self.records = Some((header, Vec::new(), padded(size)));
            return self.pax_complete();
        }
        let epoch = u64::try_from(self.epoch).unwrap_or(0);
        if header.mtime()? > epoch {
            header.set_mtime(epoch);
            header.set_cksum();
        }
        // Of links, devices and directories the size says nothing.
        self.left = match kind {
            EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo => 0,
            _ => padded(size),
        };
        let block = *header.as_bytes();
        self.pass(&block)
    }

    /// Passes a pax header on, when it is complete.
    fn pax_complete(&mut self) -> io::Result<()> {
        let Some((header, content, size)) = self.records.take() else {
            return Ok(());
        };
        if (content.len() as u64) < size {
            self.records = Some((header, content, size));
            return Ok(());
        }
        let blocks = [header.as_bytes().as_slice(), &content].concat();
        let records = pax::records(&blocks).map_err(|error| malformed(&error.to_string()))?;
        let size = records.iter().find(|(key, _)| key == "size");
        let size = size.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok());
        self.size = size;
        let is_kept = |(key, value): &(String, Vec<u8>)| match key.as_str() {
            "atime" | "ctime" => false,
            "mtime" => {
                let time = std::str::from_utf8(value).ok().and_then(pax::parse_time);
                time.is_some_and(|time| (time.tv_sec, time.tv_nsec) <= (self.epoch, 0))
            }
            _ => true,
        };
        let kept: Vec<_> = records.into_iter().filter(is_kept).collect();
        if kept.is_empty() {
            return Ok(());
        }
        let mut content = pax::encode(&kept);
        let mut header = header;
        header.set_size(content.len() as u64);
        header.set_cksum();
        content.resize(content.len().next_multiple_of(BLOCK), 0);
        let block = *header.as_bytes();
        self.pass(&block)?;
        self.pass(&content)
    }
}

fn padded(size: u64) -> u64 {
    size.saturating_add(BLOCK as u64 - 1) / BLOCK as u64 * BLOCK as u64
}

fn malformed(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Write for Retimed<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        if self.left > 0 {
            let count = most(self.left);
            self.pass(&bytes[..count])?;
            self.left -= count as u64;
            return Ok(count);
        }
        if let Some((_, content, size)) = &mut self.records {
            let count = most(*size - content.len() as u64);
            content.extend_from_slice(&bytes[..count]);
            self.pax_complete()?;
            return Ok(count);
        }
        let count = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..count]);
        if self.block.len() == BLOCK {
            self.header()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn entry(archive: &mut Vec<u8>, kind: EntryType, name: &str, mtime: u64, content: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path(name).unwrap();
        header.set_mtime(mtime);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }

    #[test]
    fn times_are_limited_and_nothing_else_is_changed() {
        let records = |list: &[(&str, &str)]| {
            let list = list.iter();
            let list = list.map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
            pax::encode(&list.collect::<Vec<_>>())
        };
        let mut archive = Vec::new();
        entry(&mut archive, EntryType::Directory, "d/", 50, b"");
        let late = records(&[
            ("mtime", "200.5"),
            ("atime", "3"),
            ("SCHILY.xattr.user.a", "x"),
        ]);
        entry(&mut archive, EntryType::XHeader, "pax", 0, &late);
        entry(&mut archive, EntryType::Regular, "d/late", 200, &[7; 1000]);
        let only = records(&[("mtime", "300.5")]);
        entry(&mut archive, EntryType::XHeader, "pax", 0, &only);
        entry(&mut archive, EntryType::Regular, "d/later", 300, b"later");
        let early = records(&[("mtime", "9.25")]);
        entry(&mut archive, EntryType::XHeader, "pax", 0, &early);
        entry(&mut archive, EntryType::Regular, "early", 9, b"");
        archive.resize(archive.len() + 2 * BLOCK, 0);
        // In pieces of any size.
        for size in [1, 7, 512, 100_000] {
            let mut output = Vec::new();
            let mut retimed = Retimed::new(100, |piece| {
                output.extend(piece);
                Ok(())
            });
            for piece in archive.chunks(size) {
                retimed.write_all(piece).unwrap();
            }
            retimed.finish().unwrap();
            let mut found = Vec::new();
            for entry in tar::Archive::new(&output[..]).entries().unwrap() {
                let mut entry = entry.unwrap();
                let extensions = entry.pax_extensions().unwrap();
                let keys: Vec<String> = extensions
                    .into_iter()
                    .flatten()
                    .map(|one| one.unwrap().key().unwrap().to_owned())
                    .collect();
                let name = entry.path().unwrap().display().to_string();
                let mtime = entry.header().mtime().unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                found.push((name, mtime, keys.join(" "), content.len()));
            }
            let expected = [
                ("d/", 50, "", 0),
                ("d/late", 100, "SCHILY.xattr.user.a", 1000),
                ("d/later", 100, "", 5),
                ("early", 9, "mtime", 0),
            ];
            let expected = expected
                .map(|(name, mtime, keys, size)| (name.to_owned(), mtime, keys.to_owned(), size));
            assert_eq!(found, expected, "{size}");
            assert!(output.len().is_multiple_of(BLOCK));
        }
        let mut cut = Retimed::new(100, |_| Ok(()));
        cut.write_all(&archive[..BLOCK + 3]).unwrap();
        assert!(cut.finish().is_err());
    }
}
