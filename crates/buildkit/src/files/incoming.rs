//! The receiving side of the protocol: what may come next, and what it means.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::order::Order;
use super::{Entry, Error, Kind, Result};
use crate::pb::files::{Packet, PacketType};

/// Limits of what is kept in memory: the number of files, and the bytes of their paths and attributes.
const MAX_FILES: u32 = 8_000_000;
const MAX_BYTES: usize = 256 << 20;

/// How much longer than it was a file may become while it is sent.
const MAX_GROWTH: u64 = 64 << 20;

/// What a packet has brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The sender has a file; its position.
    Entry(u32, Entry),
    /// The sender has told of all files.
    Listed,
    /// A piece of a file that was asked for.
    Data(u32, Bytes),
    /// A file that was asked for is complete.
    End(u32),
    /// The sender has nothing more to say.
    Finished,
}

/// A transfer as far as it has come.
#[derive(Debug, Default)]
pub struct Incoming {
    order: Order,
    /// Regular files, which hard links may refer to.
    files: HashSet<String>,
    /// The position of the next file.
    next: u32,
    /// Bytes in memory.
    bytes: usize,
    is_listed: bool,
    is_finished: bool,
    /// The files that are being received.
    open: HashMap<u32, Open>,
}

#[derive(Debug)]
struct Open {
    path: String,
    /// The number of bytes that may still come.
    left: u64,
}

impl Incoming {
    /// Takes a packet of the sender.
    ///
    /// # Errors
    /// Returns an error that names the file if the packet is not allowed here, and the sender's own error.
    pub fn take(&mut self, packet: Packet) -> Result<Event> {
        let refused = |text: &str| Err(Error::refused("", text));
        if self.is_finished {
            return refused("a packet after the end of the transfer");
        }
        match PacketType::try_from(packet.kind) {
            Ok(PacketType::Err) => {
                let text = String::from_utf8_lossy(&packet.data).into_owned();
                Err(Error::Sender(text))
            }
            Ok(PacketType::Stat) if self.is_listed => refused("a file behind the last one"),
            Ok(PacketType::Stat) => match packet.stat {
                None => {
                    self.is_listed = true;
                    self.files = HashSet::new();
                    Ok(Event::Listed)
                }
                Some(stat) => {
                    let entry = self.entry(Entry::from_stat(stat)?)?;
                    let id = self.next;
                    self.next += 1;
                    Ok(Event::Entry(id, entry))
                }
            },
            Ok(PacketType::Data) => self.data(packet.id, packet.data),
            Ok(PacketType::Fin) => {
                self.is_finished = true;
                Ok(Event::Finished)
            }
            Ok(PacketType::Req) => refused("a request from a sender"),
            Err(_) => refused("a packet of an unknown type"),
        }
    }

    /// Notes that a file's content is asked for, and returns the packet that does.
    pub fn request(&mut self, id: u32, entry: &Entry) -> Packet {
        let open = Open {
            path: entry.path.clone(),
            left: entry.size.saturating_add(MAX_GROWTH),
        };
        self.open.insert(id, open);
        Packet {
            kind: PacketType::Req.into(),
            id,
            ..Packet::default()
        }
    }

    fn entry(&mut self, entry: Entry) -> Result<Entry> {
        let path = &entry.path;
        self.order.next(path, entry.is_directory())?;
        match &entry.kind {
            Kind::HardLink(target) if !self.files.contains(target) => {
                let reason = format!("a hard link to {target:?}, which did not come before");
                return Err(Error::refused(path, reason));
            }
            Kind::File => drop(self.files.insert(path.clone())),
            _ => {}
        }
        let xattrs = entry.xattrs.iter();
        let xattrs: usize = xattrs.map(|(name, value)| name.len() + value.len()).sum();
        let target = match &entry.kind {
            Kind::Symlink(target) | Kind::HardLink(target) => target.len(),
            Kind::Directory | Kind::File | Kind::Fifo => 0,
        };
        self.bytes += size_of::<Entry>() + 2 * path.len() + target + xattrs;
        if self.next >= MAX_FILES || self.bytes > MAX_BYTES {
            return Err(Error::refused(path, "too many files"));
        }
        Ok(entry)
    }

    fn data(&mut self, id: u32, data: Bytes) -> Result<Event> {
        let Some(open) = self.open.get_mut(&id) else {
            let text = format!("content of file {id}, which was not asked for");
            return Err(Error::refused("", text));
        };
        if data.is_empty() {
            self.open.remove(&id);
            return Ok(Event::End(id));
        }
        match open.left.checked_sub(data.len() as u64) {
            Some(left) => open.left = left,
            None => {
                return Err(Error::refused(
                    &open.path,
                    "more content than it had when the transfer began",
                ));
            }
        }
        Ok(Event::Data(id, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::files::Stat;

    fn stat(path: &str, mode: u32, linkname: &str) -> Packet {
        Packet {
            stat: Some(Stat {
                path: path.into(),
                mode,
                linkname: linkname.into(),
                size: 3,
                ..Stat::default()
            }),
            ..Packet::default()
        }
    }

    fn packet(kind: PacketType, id: u32, data: &'static [u8]) -> Packet {
        Packet {
            kind: kind.into(),
            id,
            data: Bytes::from_static(data),
            ..Packet::default()
        }
    }

    /// Takes packets, and asks for each file. Returns the error.
    fn failing(packets: Vec<Packet>) -> String {
        let mut incoming = Incoming::default();
        for packet in packets {
            match incoming.take(packet) {
                Ok(Event::Entry(id, entry)) if entry.kind == Kind::File => {
                    assert_eq!(incoming.request(id, &entry).id, id);
                }
                Ok(_) => {}
                Err(error) => return error.to_string(),
            }
        }
        panic!("no error")
    }

    #[test]
    fn hostile_packets_are_refused_with_the_path() {
        use PacketType::{Data, Err as Failed, Fin, Req, Stat as Stats};
        let end = || packet(Stats, 0, b"");
        for (packets, expected) in [
            (vec![stat("../x", 0, "")], "\"../x\""),
            (vec![stat("/x", 0, "")], "\"/x\""),
            (vec![stat("b", 0, ""), stat("a", 0, "")], "\"a\""),
            (vec![stat("a", 0, "b")], "hard link to \"b\""),
            (
                vec![stat("a", 1 << 27, "/etc/passwd"), stat("b", 0, "a")],
                "hard link to \"a\"",
            ),
            (
                vec![stat("a", 1 << 27, "/etc"), stat("a/b", 0, "")],
                "\"a/b\"",
            ),
            (vec![stat("a", 1 << 26, "")], "devices"),
            (vec![packet(Data, 0, b"x")], "file 0"),
            (
                vec![stat("d", 1 << 31, ""), packet(Data, 0, b"x")],
                "file 0",
            ),
            (
                vec![
                    stat("a", 0, ""),
                    packet(Data, 0, b""),
                    packet(Data, 0, b"x"),
                ],
                "file 0",
            ),
            (vec![end(), stat("a", 0, "")], "behind the last"),
            (vec![packet(Fin, 0, b""), end()], "after the end"),
            (vec![packet(Req, 0, b"")], "a request"),
            (vec![packet(Failed, 0, b"no")], "error from sender: no"),
        ] {
            let found = failing(packets.clone());
            assert!(found.contains(expected), "{packets:?}: {found}");
        }
        let mut unknown = end();
        unknown.kind = 9;
        assert!(failing(vec![unknown]).contains("unknown type"));
    }

    #[test]
    fn targets_of_links_count() {
        let target = "x".repeat(1 << 20);
        let mut packets = Vec::new();
        for number in 0..256 {
            packets.push(stat(&format!("{number:04}"), 1 << 27, &target));
        }
        assert!(failing(packets).contains("too many files"));
    }

    #[test]
    fn a_file_does_not_grow_without_end() {
        static PIECE: [u8; 1 << 20] = [0; 1 << 20];
        let mut packets = vec![stat("log", 0, "")];
        packets.extend((0..=64).map(|_| packet(PacketType::Data, 0, &PIECE)));
        assert!(failing(packets).contains("\"log\""));
    }
}
