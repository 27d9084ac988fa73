//! One transfer: the old files that are kept, those that are asked for, and those that go.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use whelk_sys::in_root;

use super::Received;
use super::metadata::{LIST, Selection};
use crate::files::attributes::{open_directory, set_attributes, times};
use crate::files::{Directory, Entry, Error, Event, Incoming, Kind, Result};
use crate::pb::files::{Packet, PacketType};

/// Number of files that are received at the same time. Each has a descriptor.
const MAX_OPEN: usize = 64;

/// A file that is being received.
struct Writing {
    file: File,
    entry: Entry,
    hash: Sha256,
    /// Number of bytes so far.
    size: u64,
}

/// How far a transfer has come.
#[derive(Default)]
pub(super) struct Transfer {
    incoming: Incoming,
    /// What was there and was not mentioned yet.
    old: BTreeMap<String, Entry>,
    new: BTreeMap<String, Entry>,
    /// Files to ask for.
    waiting: VecDeque<(u32, Entry)>,
    open: HashMap<u32, Writing>,
    /// Files that are not the old ones any more.
    replaced: HashSet<String>,
    /// Hard links to make when their targets are complete.
    links: Vec<(String, String)>,
    /// Directories in which something was changed.
    touched: BTreeSet<String>,
    /// The directory that was used last.
    parent: Option<(String, OwnedFd)>,
    is_listed: bool,
    /// Whether the sender was told that nothing more is wanted.
    is_told: bool,
    received: Received,
    /// Packets for the sender.
    asked: Vec<Packet>,
    /// What the last packet has brought, if that was not taken yet.
    pending: Option<Event>,
    /// What is taken, if not all.
    selection: Option<Selection>,
}

impl Transfer {
    pub fn new(directory: &mut Directory) -> Self {
        Self {
            old: std::mem::take(&mut directory.entries),
            selection: directory.chosen.take().map(Selection::new),
            ..Self::default()
        }
    }

    /// Takes a packet. Returns what has been received if it was the last one. Blocking.
    pub fn take(&mut self, directory: &mut Directory, packet: Packet) -> Result<Option<Received>> {
        let event = self.next(packet)?;
        self.apply(directory, event)
    }

    fn next(&mut self, packet: Packet) -> Result<Event> {
        if let Some(selection) = &mut self.selection {
            selection.note(&packet);
        }
        self.incoming.take(packet)
    }

    /// Returns what of a file and the directories that it is in is taken, if not all is.
    fn choose(&mut self, id: u32, entry: Entry) -> Vec<(u32, Entry)> {
        match &mut self.selection {
            Some(selection) => selection.take(id, entry, |path| self.new.contains_key(path)),
            None => vec![(id, entry)],
        }
    }

    /// Takes a packet without a look at the disk if it tells of a file that is there as it is. Others are pending then.
    pub fn take_known(&mut self, packet: Packet) -> Result<()> {
        match self.next(packet)? {
            Event::Entry(_, entry) if self.selection.is_none() && self.is_same(&entry) => {
                self.old.remove(&entry.path);
                self.new.insert(entry.path.clone(), entry);
            }
            event => self.pending = Some(event),
        }
        Ok(())
    }

    /// Whether a packet is pending.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Takes the pending packet. Returns what [`Transfer::take`] returns. Blocking.
    pub fn take_pending(&mut self, directory: &mut Directory) -> Result<Option<Received>> {
        match self.pending.take() {
            Some(event) => self.apply(directory, event),
            None => Ok(None),
        }
    }

    fn apply(&mut self, directory: &mut Directory, event: Event) -> Result<Option<Received>> {
        let mut update = Update {
            directory,
            at: self,
        };
        match update.take_chosen(event)? {
            true => Ok(Some(self.received)),
            false => Ok(None),
        }
    }

    /// Whether the directory has a file as the sender has it.
    fn is_same(&self, entry: &Entry) -> bool {
        self.old.get(&entry.path) == Some(entry)
            && !matches!(&entry.kind, Kind::HardLink(target) if self.replaced.contains(target))
    }

    /// Returns the packets that are to be sent.
    pub fn answers(&mut self) -> Vec<Packet> {
        std::mem::take(&mut self.asked)
    }
}

struct Update<'a> {
    directory: &'a mut Directory,
    at: &'a mut Transfer,
}

impl Update<'_> {
    /// Takes what a packet has brought, if it is wanted. Returns whether it is the last one.
    fn take_chosen(&mut self, event: Event) -> Result<bool> {
        match event {
            Event::Entry(id, entry) if self.at.selection.is_some() => {
                for (id, entry) in self.at.choose(id, entry) {
                    self.take(Event::Entry(id, entry))?;
                }
                Ok(false)
            }
            Event::Listed => {
                self.place_list()?;
                self.take(Event::Listed)
            }
            event => self.take(event),
        }
    }

    /// Writes the list of all files, unless it is the same as before.
    fn place_list(&mut self) -> Result<()> {
        let Some(selection) = self.at.selection.take() else {
            return Ok(());
        };
        let old = self.at.old.remove(LIST);
        let hash = Sha256::new().chain_update(&selection.list);
        let entry = Entry {
            path: LIST.to_owned(),
            kind: Kind::File,
            mode: 0o644,
            size: selection.list.len() as u64,
            mtime: selection.newest,
            xattrs: BTreeMap::new(),
        };
        let known = self.directory.digests.get(LIST);
        let digest: [u8; 32] = hash.clone().finalize().into();
        if old.as_ref() != Some(&entry) || known != Some(&digest) {
            self.change()?;
            if old.is_some_and(|old| old.is_directory()) {
                self.remove_below(LIST)?;
                self.unlink(LIST, AtFlags::REMOVEDIR)?;
            }
            // Behind those of all files that there may be.
            let id = u32::MAX;
            let mut file = self.create(id, &entry)?;
            let written = file.write_all(&selection.list);
            written.map_err(Error::io("write", LIST))?;
            self.place(id, &file, &entry)?;
            self.note(&entry, hash);
        }
        self.at.new.insert(LIST.to_owned(), entry);
        Ok(())
    }

    /// Takes what a packet has brought. Returns whether it is the last one.
    fn take(&mut self, event: Event) -> Result<bool> {
        match event {
            Event::Entry(id, entry) => self.entry(id, entry)?,
            Event::Listed => {
                self.at.is_listed = true;
                self.remove_rest()?;
            }
            Event::Data(id, data) => self.data(id, &data)?,
            Event::End(id) => self.end(id)?,
            Event::Finished if self.at.is_told => return Ok(true),
            Event::Finished => return Err(Error::Ended),
        }
        self.ask()?;
        let at = &self.at;
        let is_complete = at.is_listed && at.open.is_empty() && at.waiting.is_empty();
        if is_complete && !at.is_told {
            self.finish()?;
            self.at.is_told = true;
            self.at.asked.push(Packet {
                kind: PacketType::Fin.into(),
                ..Packet::default()
            });
        }
        Ok(false)
    }

    fn entry(&mut self, id: u32, entry: Entry) -> Result<()> {
        let is_same = self.at.is_same(&entry);
        let old = self.at.old.remove(&entry.path);
        if entry.kind != Kind::File {
            self.directory.digests.remove(&entry.path);
        }
        if !is_same {
            self.change()?;
            let was_directory = old.as_ref().is_some_and(Entry::is_directory);
            match &old {
                Some(_) if was_directory && !entry.is_directory() => {
                    self.remove_below(&entry.path)?;
                    self.unlink(&entry.path, AtFlags::REMOVEDIR)?;
                }
                Some(_) if !was_directory && entry.is_directory() => {
                    self.unlink(&entry.path, AtFlags::empty())?;
                }
                _ => {}
            }
            self.make(id, &entry, was_directory)?;
        }
        self.at.new.insert(entry.path.clone(), entry);
        Ok(())
    }

    /// Makes what is different now.
    fn make(&mut self, id: u32, entry: &Entry, was_directory: bool) -> Result<()> {
        let path = &entry.path;
        match &entry.kind {
            Kind::Directory => {
                if !was_directory {
                    let (parent, name) = self.parent(path)?;
                    let made = rustix::fs::mkdirat(parent, name, Mode::RWXU);
                    made.map_err(Error::io("create", path))?;
                    self.touch(path);
                }
                self.at.touched.insert(path.clone());
                return Ok(());
            }
            Kind::File if entry.size > 0 => {
                self.at.replaced.insert(path.clone());
                self.at.waiting.push_back((id, entry.clone()));
            }
            // A file that is not empty any more comes with the next transfer.
            Kind::File => {
                self.at.replaced.insert(path.clone());
                let file = self.create(id, entry)?;
                self.place(id, &file, entry)?;
                self.note(entry, Sha256::new());
            }
            Kind::HardLink(target) => self.at.links.push((path.clone(), target.clone())),
            Kind::Symlink(target) => {
                let name = id.to_string();
                rustix::fs::symlinkat(target.as_str(), &self.directory.incoming, &name)
                    .map_err(Error::io("create", path))?;
                self.set_time(&name, entry)?;
                self.rename(&name, path)?;
            }
            Kind::Fifo => {
                let name = id.to_string();
                let mode = Mode::from_raw_mode(entry.mode);
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(&self.directory.incoming, &name, kind, mode, 0)
                    .map_err(Error::io("create", path))?;
                rustix::fs::chmodat(&self.directory.incoming, &name, mode, AtFlags::empty())
                    .map_err(Error::io("set the mode of", path))?;
                self.set_time(&name, entry)?;
                self.rename(&name, path)?;
            }
        }
        Ok(())
    }

    /// Asks for files as long as not too many are open.
    fn ask(&mut self) -> Result<()> {
        while self.at.open.len() < MAX_OPEN
            && let Some((id, entry)) = self.at.waiting.pop_front()
        {
            let file = self.create(id, &entry)?;
            let packet = self.at.incoming.request(id, &entry);
            let writing = Writing {
                file,
                entry,
                hash: Sha256::new(),
                size: 0,
            };
            self.at.open.insert(id, writing);
            self.at.asked.push(packet);
        }
        Ok(())
    }

    fn data(&mut self, id: u32, data: &[u8]) -> Result<()> {
        self.at.received.bytes += data.len() as u64;
        // What was not asked for was refused before.
        let Some(writing) = self.at.open.get_mut(&id) else {
            return Ok(());
        };
        writing.hash.update(data);
        writing.size += data.len() as u64;
        let written = writing.file.write_all(data);
        written.map_err(Error::io("write", &writing.entry.path))
    }

    fn end(&mut self, id: u32) -> Result<()> {
        self.at.received.files += 1;
        match self.at.open.remove(&id) {
            Some(Writing {
                file,
                entry,
                hash,
                size,
            }) => {
                // It was changed while it was sent: the next transfer asks for it again.
                if let Some(noted) = self.at.new.get_mut(&entry.path) {
                    noted.size = size;
                }
                self.place(id, &file, &entry)?;
                self.note(&entry, hash);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Creates the file that gets the content of a file.
    fn create(&self, id: u32, entry: &Entry) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::openat(&self.directory.incoming, id.to_string(), flags, mode)
            .map(File::from)
            .map_err(Error::io("create", &entry.path))
    }

    /// Gives a complete file its attributes, and moves it to its place.
    fn place(&mut self, id: u32, file: &File, entry: &Entry) -> Result<()> {
        set_attributes(file, entry)?;
        self.rename(&id.to_string(), &entry.path)
    }

    /// Notes what a file contains.
    fn note(&mut self, entry: &Entry, hash: Sha256) {
        let digest = hash.finalize().into();
        self.directory.digests.insert(entry.path.clone(), digest);
    }

    fn set_time(&self, name: &str, entry: &Entry) -> Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(&self.directory.incoming, name, &times(entry), flags)
            .map_err(Error::io("set the time of", &entry.path))
    }

    fn rename(&mut self, name: &str, path: &str) -> Result<()> {
        let incoming = self.directory.incoming.try_clone();
        let incoming = incoming.map_err(Error::io("move", path))?;
        let (parent, target) = self.parent(path)?;
        rustix::fs::renameat(incoming, name, parent, target).map_err(Error::io("move", path))?;
        self.touch(path);
        Ok(())
    }

    /// Removes what was not mentioned.
    fn remove_rest(&mut self) -> Result<()> {
        let rest = std::mem::take(&mut self.at.old);
        if !rest.is_empty() {
            self.change()?;
        }
        // What is in a directory comes behind it.
        for (path, entry) in rest.iter().rev() {
            self.remove(path, entry)?;
        }
        Ok(())
    }

    /// Removes the old files below a directory.
    fn remove_below(&mut self, path: &str) -> Result<()> {
        // `0` follows `/`.
        let mut below = self.at.old.split_off(&format!("{path}/"));
        let behind = below.split_off(&format!("{path}0"));
        self.at.old.extend(behind);
        for (path, entry) in below.iter().rev() {
            self.remove(path, entry)?;
        }
        self.at.parent = None;
        Ok(())
    }

    fn remove(&mut self, path: &str, entry: &Entry) -> Result<()> {
        let flags = match entry.kind {
            Kind::Directory => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        self.unlink(path, flags)
    }

    fn unlink(&mut self, path: &str, flags: AtFlags) -> Result<()> {
        self.directory.digests.remove(path);
        let (parent, name) = self.parent(path)?;
        match rustix::fs::unlinkat(parent, name, flags) {
            Ok(()) => {}
            // A link to a file that was replaced.
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(Error::io("remove", path)(error)),
        }
        self.touch(path);
        Ok(())
    }

    /// Makes the links, and gives directories their attributes.
    fn finish(&mut self) -> Result<()> {
        for (path, target) in std::mem::take(&mut self.at.links) {
            self.unlink(&path, AtFlags::empty())?;
            let (parent, name) = self.parent(&target)?;
            let parent = parent.try_clone().map_err(Error::io("open", &target))?;
            let name = name.to_owned();
            let (directory, link) = self.parent(&path)?;
            rustix::fs::linkat(parent, name, directory, link, AtFlags::empty())
                .map_err(Error::io("create", &path))?;
            self.touch(&path);
        }
        // Those below others first: they change no times.
        for path in std::mem::take(&mut self.at.touched).iter().rev() {
            let entry = self.at.new.get(path);
            // What was a directory may be something else now.
            if let Some(entry) = entry.filter(|entry| entry.is_directory()) {
                let opened = open_directory(&self.directory.root, path)?;
                set_attributes(&opened, entry)?;
            }
        }
        self.directory.entries = std::mem::take(&mut self.at.new);
        Ok(())
    }

    /// Notes that what is on disk is not what it was.
    fn change(&mut self) -> Result<()> {
        if !self.at.received.is_changed {
            self.directory.forget()?;
            self.at.received.is_changed = true;
        }
        Ok(())
    }

    /// Notes that a name in a directory was changed.
    fn touch(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.at.touched.insert(parent.to_owned());
        }
    }

    /// Returns the directory that a path is in, and the name in it.
    fn parent<'p>(&mut self, path: &'p str) -> Result<(&OwnedFd, &'p str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if self
            .at
            .parent
            .as_ref()
            .is_none_or(|(known, _)| known != parent)
        {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = in_root::open_no_links(&self.directory.root, parent, flags);
            let opened = opened.map_err(Error::io("open", parent))?;
            self.at.parent = Some((parent.to_owned(), opened));
        }
        match &self.at.parent {
            Some((_, opened)) => Ok((opened, name)),
            None => Err(Error::Ended),
        }
    }
}
