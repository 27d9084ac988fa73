//! Transfers of a list of all files, and of the content of a few.
//!
//! ```text
//! LIST   for each file that the sender has, in order: length of the message (4 bytes, little-endian), `Stat`
//! ```

use std::fmt;

use prost::Message as _;

use crate::files::{Entry, Kind};
use crate::pb::files::{Packet, PacketType};

/// The name of the list in the directory that is received. One that the sender has is not taken.
pub(super) const LIST: &str = ".fsutil-metadata";

/// Chooses files by their paths.
pub struct Chosen(Box<dyn Fn(&str) -> bool + Send + Sync>);

impl Chosen {
    pub fn new(chooses: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Box::new(chooses))
    }
}

impl fmt::Debug for Chosen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Chosen(…)")
    }
}

/// What has come of the list, and of the directories that something chosen may be in.
#[derive(Debug)]
pub(super) struct Selection {
    chosen: Chosen,
    pub list: Vec<u8>,
    /// The time of the newest file.
    pub newest: i64,
    /// The directories that the last file is in, with their positions, as far as they were not taken.
    above: Vec<(u32, Entry)>,
}

impl Selection {
    pub fn new(chosen: Chosen) -> Self {
        Self {
            chosen,
            list: Vec::new(),
            newest: 0,
            above: Vec::new(),
        }
    }

    /// Adds a file to the list, as the sender has told of it. How many there may be, [`super::Incoming`] limits.
    pub fn note(&mut self, packet: &Packet) {
        let is_stat = PacketType::try_from(packet.kind) == Ok(PacketType::Stat);
        let stat = packet.stat.as_ref().filter(|_| is_stat);
        let Some(stat) = stat.filter(|stat| stat.path != LIST) else {
            return;
        };
        // Messages are limited to less.
        let length = u32::try_from(stat.encoded_len()).unwrap_or(u32::MAX);
        self.list.extend_from_slice(&length.to_le_bytes());
        self.list.extend_from_slice(&stat.encode_to_vec());
        self.newest = self.newest.max(stat.mod_time);
    }

    /// Returns what is taken: a file that is chosen, behind the directories that it is in; none for another one. `has` says which
    /// files were taken before.
    pub fn take(&mut self, id: u32, entry: Entry, has: impl Fn(&str) -> bool) -> Vec<(u32, Entry)> {
        self.above.retain(|(_, above)| {
            let rest = entry.path.strip_prefix(&above.path);
            rest.is_some_and(|rest| rest.starts_with('/'))
        });
        let is_chosen = entry.path != LIST && (self.chosen.0)(&entry.path);
        let is_there = match &entry.kind {
            Kind::HardLink(target) => has(target),
            _ => true,
        };
        if is_chosen && is_there {
            let mut taken = std::mem::take(&mut self.above);
            taken.push((id, entry));
            return taken;
        }
        if entry.is_directory() && entry.path != LIST {
            self.above.push((id, entry));
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn directories_are_taken_with_what_is_chosen_in_them() {
        let chosen = Chosen::new(|path| path.ends_with('1'));
        let mut selection = Selection::new(chosen);
        let mut taken: Vec<String> = Vec::new();
        for (id, path) in (0..).zip([
            LIST, "a", "b/", "b/c/", "b/c/x", "b/c/x1", "b/d/", "b/d/x", "b/e1/", "bc/", "f1",
        ]) {
            let entry = Entry {
                path: path.trim_end_matches('/').to_owned(),
                kind: match path.ends_with('/') {
                    true => Kind::Directory,
                    false => Kind::File,
                },
                mode: 0o755,
                size: 0,
                mtime: 0,
                xattrs: BTreeMap::new(),
            };
            let some = selection.take(id, entry, |_| true);
            taken.extend(some.into_iter().map(|(_, entry)| entry.path));
        }
        assert_eq!(taken, ["b", "b/c", "b/c/x1", "b/e1", "f1"]);
    }
}
