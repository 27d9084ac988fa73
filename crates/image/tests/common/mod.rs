//! Shared test support: a store with surroundings that must not change, archives built from
//! entries, and listings of directories.
#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

pub(crate) mod image_form;
pub(crate) mod images;

use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tar::{EntryType, GnuExtSparseHeader, Header};
use whelk_image::archive::{self, Import, Loaded};
use whelk_image::snapshots::Layer;
use whelk_image::{Digest, Platform, Progress, Result, Store};
use whelk_sys::fs;

/// The mtime of entries that set no other.
pub(crate) const MTIME: u64 = 1_000_000_000;

/// Leads from the root of a layer being unpacked to the directory that must not change.
pub(crate) const CLIMB: &str = "../../../../outside";

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A store in a temporary directory, beside a directory that must not change:
///
/// ```text
/// <base>/store/…     so that from a layer's root ../../../../outside is
/// <base>/outside/…   here
/// ```
pub(crate) struct Bench {
    pub(crate) base: PathBuf,
    pub(crate) store: Store,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base =
            std::env::temp_dir().join(format!("whelk-image-{}-{number}", std::process::id()));
        fs::remove_tree(&base).unwrap();
        fs::create_dir_all(base.join("outside/directory"), 0o755).unwrap();
        fs::write(base.join("outside/file"), "untouched").unwrap();
        fs::write(base.join("outside/directory/file"), "untouched").unwrap();
        let store = Store::open(&base.join("store")).unwrap();
        Self { base, store }
    }

    pub(crate) fn outside(&self) -> PathBuf {
        self.base.join("outside")
    }

    /// Returns the state of `outside`, to be compared later.
    pub(crate) fn guard(&self) -> Vec<String> {
        let mut lines = Vec::new();
        snapshot(&self.outside(), &mut lines);
        lines
    }

    /// Unpacks an archive and returns the directory of its files.
    #[track_caller]
    pub(crate) fn unpack_only(&self, archive: &[u8]) -> PathBuf {
        let layer = apply(&self.store, archive, Some(&Digest::of(archive))).unwrap();
        self.check_temporary("unpacking");
        let files = self.store.snapshots.files(&layer.diff_id);
        image_form::check(archive, Ok(&files));
        files
    }

    /// Unpacks an archive and checks that the store reproduces it bit for bit.
    #[track_caller]
    pub(crate) fn unpack(&self, archive: &[u8]) -> PathBuf {
        let files = self.unpack_only(archive);
        assert!(
            self.written(&Digest::of(archive)) == archive,
            "the reproduced archive differs"
        );
        files
    }

    /// Returns the archive of a layer, as the store writes it.
    #[track_caller]
    pub(crate) fn written(&self, diff_id: &Digest) -> Vec<u8> {
        let mut archive = Vec::new();
        self.store.snapshots.replay(diff_id, &mut archive).unwrap();
        archive
    }

    pub(crate) fn names(&self, directory: &str) -> Vec<String> {
        names(&self.base.join("store").join(directory))
    }

    /// Checks that no incomplete object remains.
    #[track_caller]
    pub(crate) fn check_temporary(&self, what: &str) {
        self.store.staging.wait_for_disposal();
        for directory in ["tmp", "trash"] {
            assert!(
                self.names(directory).is_empty(),
                "{what}: {directory} has {:?}",
                self.names(directory)
            );
        }
    }

    /// Checks that the store is empty.
    #[track_caller]
    pub(crate) fn check_empty(&self, what: &str) {
        self.check_temporary(what);
        for directory in ["layers", "blobs/sha256"] {
            assert!(
                self.names(directory).is_empty(),
                "{what}: {directory} has {:?}",
                self.names(directory)
            );
        }
    }
}

/// Loads an archive as nobody does who records its images: the lease ends with the load.
pub(crate) fn load(
    store: &Store,
    input: impl Read + Send,
    platform: Option<&Platform>,
) -> Result<Vec<Loaded>> {
    let lease = store.leases.take();
    let platforms = platform.map_or(&[][..], std::slice::from_ref);
    archive::load(store, &lease, input, platforms, &Progress::none())
}

/// Imports an archive, like [`load`].
pub(crate) fn import(store: &Store, input: impl Read + Send, import: Import) -> Result<Loaded> {
    archive::import(store, &store.leases.take(), input, import)
}

/// Unpacks a layer, like [`load`].
pub(crate) fn apply(
    store: &Store,
    archive: impl Read + Send,
    expected: Option<&Digest>,
) -> Result<Layer> {
    store
        .snapshots
        .apply(&store.leases.take(), archive, expected)
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_tree(&self.base);
    }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    fs::list(directory)
        .unwrap()
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Lists everything observable about a directory, except access times.
fn snapshot(path: &Path, lines: &mut Vec<String>) {
    let data = fs::metadata(path).unwrap();
    let times = format!(
        "{}.{} {}.{}",
        data.mtime(),
        data.mtime_nsec(),
        data.ctime(),
        data.ctime_nsec()
    );
    lines.push(format!(
        "{} {} {:o} {}:{} {} {} {times}",
        path.display(),
        data.ino(),
        data.mode(),
        data.uid(),
        data.gid(),
        data.nlink(),
        data.len()
    ));
    if data.is_dir() {
        for entry in fs::list(path).unwrap() {
            snapshot(&entry.path(), lines);
        }
    } else if data.is_file() {
        lines.push(String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
    }
}

/// Formats a directory as lines: `path kind mode owner:group` and details of the kind.
pub(crate) fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    list_into(root, root, &mut lines);
    lines
}

fn list_into(root: &Path, directory: &Path, lines: &mut Vec<String>) {
    for entry in fs::list(directory).unwrap() {
        let path = entry.path();
        lines.push(line(&path, path.strip_prefix(root).unwrap()));
        if fs::metadata(&path).unwrap().is_dir() {
            list_into(root, &path, lines);
        }
    }
}

pub(crate) fn line(path: &Path, name: &Path) -> String {
    let data = fs::metadata(path).unwrap();
    let kind = data.file_type();
    let name = name.display();
    let owned = format!("{:04o} {}:{}", data.mode() & 0o7777, data.uid(), data.gid());
    if kind.is_dir() {
        let opaque = if xattr(path, "trusted.overlay.opaque").is_some() {
            " opaque"
        } else {
            ""
        };
        return format!("{name} dir {owned}{opaque}");
    }
    if kind.is_file() {
        let content = fs::read(path).unwrap();
        return format!("{name} file {owned} {}", String::from_utf8_lossy(&content))
            .trim_end()
            .to_owned();
    }
    if kind.is_symlink() {
        return format!(
            "{name} link {}:{} {}",
            data.uid(),
            data.gid(),
            fs::read_link(path).unwrap().display()
        );
    }
    if kind.is_fifo() {
        return format!("{name} fifo {owned}");
    }
    if kind.is_char_device() && data.rdev() == 0 {
        return format!("{name} whiteout");
    }
    let kind = if kind.is_char_device() {
        "char"
    } else {
        "block"
    };
    format!(
        "{name} {kind} {owned} {}:{}",
        rustix::fs::major(data.rdev()),
        rustix::fs::minor(data.rdev())
    )
}

pub(crate) fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0u8; 64 << 10];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

/// An archive entry, which may be invalid.
#[derive(Clone)]
pub(crate) struct Entry {
    name: Vec<u8>,
    kind: EntryType,
    content: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
    size: Option<u64>,
    device: Option<(u32, u32)>,
    pax: Vec<(String, Vec<u8>)>,
    change: Option<fn(&mut Header)>,
}

pub(crate) fn entry(kind: EntryType, name: impl AsRef<[u8]>) -> Entry {
    Entry {
        name: name.as_ref().to_vec(),
        kind,
        content: Vec::new(),
        link: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: MTIME,
        size: None,
        device: None,
        pax: Vec::new(),
        change: None,
    }
}

pub(crate) fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Entry {
    let mut entry = entry(EntryType::Regular, name);
    entry.content = content.as_ref().to_vec();
    entry
}

pub(crate) fn dir(name: impl AsRef<[u8]>) -> Entry {
    entry(EntryType::Directory, name).mode(0o755)
}

pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    let mut entry = entry(EntryType::Symlink, name).mode(0o777);
    entry.link = target.as_ref().to_vec();
    entry
}

pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    let mut entry = entry(EntryType::Link, name);
    entry.link = target.as_ref().to_vec();
    entry
}

pub(crate) fn device(kind: EntryType, name: &str, major: u32, minor: u32) -> Entry {
    let mut entry = entry(kind, name);
    entry.device = Some((major, minor));
    entry
}

/// As Docker writes them, with device number fields filled in.
pub(crate) fn fifo(name: &str) -> Entry {
    device(EntryType::Fifo, name, 0, 0)
}

/// Returns the whiteout that hides the path `name` in lower layers.
pub(crate) fn whiteout(name: &str) -> Entry {
    match name.rsplit_once('/') {
        Some((parent, name)) => file(format!("{parent}/.wh.{name}"), ""),
        None => file(format!(".wh.{name}"), ""),
    }
}

impl Entry {
    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.uid = uid;
        self.gid = gid;
        self
    }

    pub(crate) fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    /// Sets the size field of the header.
    pub(crate) fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    /// Adds a record to the entry's pax header.
    pub(crate) fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// Modifies the header before its checksum is computed.
    pub(crate) fn change(mut self, change: fn(&mut Header)) -> Self {
        self.change = Some(change);
        self
    }

    fn write(&self, archive: &mut Vec<u8>) {
        if !self.pax.is_empty() {
            write_special(EntryType::XHeader, &pax_records(&self.pax), archive);
        }
        for (kind, name) in [
            (EntryType::GNULongName, &self.name),
            (EntryType::GNULongLink, &self.link),
        ] {
            if name.len() > 100 {
                let mut content = name.clone();
                content.push(0);
                write_special(kind, &content, archive);
            }
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(self.kind);
        fill(&mut header.as_old_mut().name, &self.name);
        fill(&mut header.as_old_mut().linkname, &self.link);
        header.set_mode(self.mode);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header.set_mtime(self.mtime);
        header.set_size(self.size.unwrap_or(self.content.len() as u64));
        if let Some((major, minor)) = self.device {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        }
        if let Some(change) = self.change {
            change(&mut header);
        }
        write_block(header, &self.content, archive);
    }
}

/// Copies without validation.
fn fill(field: &mut [u8; 100], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

fn write_special(kind: EntryType, content: &[u8], archive: &mut Vec<u8>) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    fill(&mut header.as_old_mut().name, b"././@special");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    write_block(header, content, archive);
}

fn write_block(mut header: Header, content: &[u8], archive: &mut Vec<u8>) {
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

/// Encodes pax records: `length key=value`, where the length includes its own digits.
pub(crate) fn pax_records(records: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
    }
    bytes
}

/// Encodes entries without the end-of-archive marker.
pub(crate) fn pack_open(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Vec::new();
    for entry in entries {
        entry.write(&mut archive);
    }
    archive
}

pub(crate) fn pack(entries: &[Entry]) -> Vec<u8> {
    ended(pack_open(entries))
}

pub(crate) fn ended(mut archive: Vec<u8>) -> Vec<u8> {
    archive.extend_from_slice(&[0; 1024]);
    archive
}

/// Encodes a sparse file in the old GNU format with pieces (offset, length), without the
/// end-of-archive marker.
pub(crate) fn sparse(name: &str, parts: &[(u64, u64)], content: &[u8], real_size: u64) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    fill(&mut header.as_old_mut().name, name.as_bytes());
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME);
    header.set_size(content.len() as u64);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(real_size);
    gnu.set_is_extended(parts.len() > 4);
    for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(parts) {
        slot.set_offset(*offset);
        slot.set_length(*length);
    }
    header.set_cksum();
    let mut archive = header.as_bytes().to_vec();
    let rest = parts.get(4..).unwrap_or_default();
    for (number, group) in rest.chunks(21).enumerate() {
        let mut extension = GnuExtSparseHeader::new();
        for (slot, (offset, length)) in extension.sparse_mut().iter_mut().zip(group) {
            slot.set_offset(*offset);
            slot.set_length(*length);
        }
        extension.set_is_extended((number + 1) * 21 < rest.len());
        archive.extend_from_slice(extension.as_bytes());
    }
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive
}

pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstandard(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

/// Compresses with a program.
#[track_caller]
pub(crate) fn compressed_by(program: &str, arguments: &[&str], content: &[u8]) -> Vec<u8> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(content).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program}");
    output.stdout
}

pub(crate) fn bzip2(content: &[u8]) -> Vec<u8> {
    compressed_by("bzip2", &["-c"], content)
}

pub(crate) fn xz(content: &[u8]) -> Vec<u8> {
    compressed_by("xz", &["-c"], content)
}

/// Returns `beginning` followed by zeros.
pub(crate) fn endless(beginning: Vec<u8>, length: u64) -> impl Read + Send {
    io::Cursor::new(beginning).chain(io::repeat(0).take(length))
}

/// Returns deterministic bytes that compress badly.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Runs `work` on a thread and fails if it takes too long.
#[track_caller]
pub(crate) fn within<T: Send + 'static>(
    seconds: u64,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(work());
    });
    match receiver.recv_timeout(Duration::from_secs(seconds)) {
        Ok(result) => result,
        Err(error) => panic!("not done after {seconds} s: {error}"),
    }
}

/// Creates nested directories with a file in each, and returns the outermost.
pub(crate) fn nested(name: &str, levels: usize) -> PathBuf {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let base = std::env::temp_dir().join(format!("whelk-{name}-{}", std::process::id()));
    mkdirat(CWD, &base, Mode::RWXU).unwrap();
    let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = openat(CWD, &base, open, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        drop(
            openat(
                &at,
                "f",
                OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::RUSR,
            )
            .unwrap(),
        );
        at = openat(&at, "d", open, Mode::empty()).unwrap();
    }
    base
}
