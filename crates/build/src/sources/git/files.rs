//! Repositories on servers of plain files: the "dumb" protocol of gitprotocol-http.
//!
//! ```text
//! info/refs, HEAD ─► commit ─► trees ─► blobs
//!                      └─ each: objects/XX/…, or in one of objects/pack/*.pack, which objects/info/packs lists
//! ```
//! The objects of a commit are collected, verified by their ids, into one pack like that of a server that speaks git's protocol.
//! Packs of the server can only be fetched whole; they are when an object is nowhere else.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{ZlibDecoder, ZlibEncoder};
use gix_hash::{Kind as Hash, ObjectId};
use gix_object::Kind;
use tokio::sync::mpsc;
use whelk_registry::{Client as Web, Pace, WebResponse};
use whelk_sys::fs;

use super::checkout;
use super::objects::{self, MAX_OBJECT, Objects};
use super::packets::WINDOW;
use super::remote::Remote;
use super::server::{Listed, MAX_LIST, MAX_PACK, STEP, check, failed, request, wrong};
use crate::blocking;
use crate::error::{Error, Result, os};

/// Maximum number of a commit's objects, and of a server's packs.
const MAX_OBJECTS: usize = 2_000_000;
const MAX_PACKS: usize = 1000;

/// Maximum size of the file `HEAD` in bytes.
const MAX_HEAD: u64 = 4096;

/// Number of compressed bytes that are decompressed together. They become 16 MiB at most.
const TOGETHER: usize = 16 << 10;

/// The files of a repository.
pub(super) struct Files {
    pub web: Arc<Web>,
    pub remote: Remote,
    pub base: String,
    /// The header `Authorization`; empty for none.
    pub authorization: String,
}

/// A file that comes from the server.
struct Download<'a> {
    files: &'a Files,
    response: WebResponse,
    pace: Pace,
    /// The number of bytes that may still come.
    left: u64,
}

impl Download<'_> {
    async fn piece(&mut self) -> Result<Option<Bytes>> {
        let size = |piece: &whelk_registry::Result<Option<Bytes>>| {
            Some(piece.as_ref().ok()?.as_ref()?.len())
        };
        let piece = self.pace.wait(self.response.piece(), size).await;
        let piece = piece.map_err(|slow| self.files.wrong(&slow.to_string()))?;
        let piece = piece.map_err(|error| failed(&self.files.remote, &error))?;
        let size = piece.as_ref().map_or(0, Bytes::len) as u64;
        let left = self.left.checked_sub(size);
        self.left = left.ok_or_else(|| self.files.wrong("a file is too large"))?;
        Ok(piece)
    }

    async fn text(mut self) -> Result<String> {
        let mut text = Vec::new();
        while let Some(piece) = self.piece().await? {
            text.extend_from_slice(&piece);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Files {
    fn wrong(&self, problem: &str) -> Error {
        wrong(&self.remote, problem)
    }

    fn download(&self, response: WebResponse, left: u64) -> Download<'_> {
        Download {
            files: self,
            response,
            pace: Pace::new(WINDOW),
            left,
        }
    }

    /// Asks for a file with at most so many bytes; `None` if there is none.
    async fn open(&self, path: &str, most: u64) -> Result<Option<Download<'_>>> {
        let request = request(&self.remote, &self.base, &self.authorization, path)?;
        let response = self.web.web(&request).await;
        let response = response.map_err(|error| failed(&self.remote, &error))?;
        if matches!(response.status(), 404 | 410) {
            return Ok(None);
        }
        check(&self.remote, &self.authorization, &response)?;
        Ok(Some(self.download(response, most)))
    }

    /// Returns what `info/refs`, which `response` is, and `HEAD` tell.
    ///
    /// # Errors
    /// Returns an error if the server has no repository there.
    pub async fn list(&self, response: WebResponse) -> Result<(Listed, Hash)> {
        let text = self.download(response, MAX_LIST).text().await?;
        let listed = parse_references(&text);
        let (mut listed, hash) = listed.ok_or_else(|| {
            let problem = "it neither speaks git's smart protocol nor has a list of its references \
                (git update-server-info)";
            self.wrong(problem)
        })?;
        if let Some(head) = self.open("/HEAD", MAX_HEAD).await? {
            listed.set_head(head.text().await?.trim());
        }
        Ok((listed, hash))
    }

    /// Fetches the objects of a commit or an annotated tag as a pack, whose last piece is `None`. `place` is where nothing is yet.
    pub async fn fetch(
        &self,
        wanted: &str,
        place: &Path,
        pieces: mpsc::Sender<Option<Bytes>>,
        report: impl Fn(u64, bool),
    ) -> Result<()> {
        let top = objects::id(wanted)?;
        let hash = top.kind();
        let at = place.to_owned();
        let collected = blocking(move || {
            fs::create_dir(&at, 0o700)?;
            Collected::new(&at)
        });
        let collected = collected.await?;
        let mut walk = Walk {
            files: self,
            hash,
            place: place.to_owned(),
            objects: None,
            packs: None,
            fetched_packs: 0,
            received: 0,
            reported: 0,
            report,
        };
        let collected = walk.collect(top, collected).await?;
        (walk.report)(walk.received, true);
        drop(walk);
        let at = place.to_owned();
        blocking(move || {
            collected.send(hash, &pieces)?;
            Ok(fs::remove_tree(&at)?)
        })
        .await
    }
}

/// The way through the objects of a commit.
struct Walk<'a, R> {
    files: &'a Files,
    hash: Hash,
    place: PathBuf,
    /// Those of the packs that were fetched; `None` before the first one, and while they are read.
    objects: Option<Objects>,
    /// The names of the packs that were not fetched, the last one first; `None` before they are known.
    packs: Option<Vec<String>>,
    fetched_packs: usize,
    received: u64,
    reported: u64,
    report: R,
}

impl<R: Fn(u64, bool)> Walk<'_, R> {
    async fn collect(&mut self, top: ObjectId, into: Collected) -> Result<Collected> {
        let mut collected = into;
        let mut known = HashSet::from([top]);
        let mut waiting = vec![(top, Kind::Commit)];
        while let Some((id, wanted)) = waiting.pop() {
            let (kind, content) = self.object(id).await?;
            let is_tag = id == top && kind == Kind::Tag;
            if kind != wanted && !is_tag {
                let text = format!("the git object {id} is a {kind}, not a {wanted}");
                return Err(Error::invalid(text));
            }
            let below = checkout::below(kind, &content, self.hash)?;
            waiting.extend(below.into_iter().filter(|(id, _)| known.insert(*id)));
            if known.len() > MAX_OBJECTS {
                return Err(Error::invalid(format!(
                    "a git repository with more than {MAX_OBJECTS} objects"
                )));
            }
            let adding = blocking(move || {
                collected.add(kind, &content)?;
                Ok(collected)
            });
            collected = adding.await?;
        }
        Ok(collected)
    }

    /// Returns the kind and the content of an object.
    async fn object(&mut self, id: ObjectId) -> Result<(Kind, Vec<u8>)> {
        if let Some(found) = self.packed(id).await? {
            return Ok(found);
        }
        if let Some(found) = self.loose(id).await? {
            return Ok(found);
        }
        while self.next_pack().await? {
            if let Some(found) = self.packed(id).await? {
                return Ok(found);
            }
        }
        Err(self.files.wrong(&format!("it has no object {id}")))
    }

    /// Finds an object in the packs that are here.
    async fn packed(&mut self, id: ObjectId) -> Result<Option<(Kind, Vec<u8>)>> {
        let Some(mut objects) = self.objects.take() else {
            return Ok(None);
        };
        let finding = blocking(move || {
            let found = objects.find(&id)?;
            Ok((objects, found))
        });
        let (objects, found) = finding.await?;
        self.objects = Some(objects);
        Ok(found)
    }

    /// Fetches an object that has a file of its own.
    async fn loose(&mut self, id: ObjectId) -> Result<Option<(Kind, Vec<u8>)>> {
        // What an object begins with before its content.
        const MAX_START: usize = 64;
        let digits = id.to_string();
        let (directory, name) = digits.split_at(2);
        let path = format!("/objects/{directory}/{name}");
        let Some(mut download) = self.files.open(&path, MAX_PACK).await? else {
            return Ok(None);
        };
        let mut decoder = ZlibDecoder::new(Vec::new());
        while let Some(piece) = download.piece().await? {
            self.count(piece.len())?;
            for part in piece.chunks(TOGETHER) {
                let written = decoder.write_all(part);
                written.map_err(|error| self.broken(&id, &error.to_string()))?;
                if decoder.get_ref().len() > MAX_OBJECT + MAX_START {
                    return Err(self.broken(&id, "it is too large"));
                }
            }
        }
        let content = decoder.finish();
        let content = content.map_err(|error| self.broken(&id, &error.to_string()))?;
        let parsed = blocking(move || Ok(parse_loose(content, &id))).await?;
        let parsed = parsed.map_err(|problem| self.broken(&id, &problem))?;
        Ok(Some(parsed))
    }

    fn broken(&self, id: &ObjectId, problem: &str) -> Error {
        let text = format!("read the git object {id}: {problem}");
        self.files.wrong(&text)
    }

    /// Fetches a pack more. Returns whether there was one.
    async fn next_pack(&mut self) -> Result<bool> {
        if self.packs.is_none() {
            let list = self.files.open("/objects/info/packs", MAX_LIST).await?;
            let list = match list {
                Some(list) => list.text().await?,
                None => String::new(),
            };
            self.packs = Some(parse_packs(&list));
        }
        let Some(name) = self.packs.as_mut().and_then(Vec::pop) else {
            return Ok(false);
        };
        let path = format!("/objects/pack/{name}");
        let Some(mut download) = self.files.open(&path, MAX_PACK).await? else {
            return Ok(true);
        };
        self.fetched_packs += 1;
        if self.fetched_packs > MAX_PACKS {
            let text = format!("a git repository with more than {MAX_PACKS} packs");
            return Err(Error::invalid(text));
        }
        let (place, hash) = (self.place.join(self.fetched_packs.to_string()), self.hash);
        let (pieces, receiver) = mpsc::channel(16);
        let receiving = tokio::spawn(blocking(move || {
            fs::create_dir(&place, 0o700)?;
            Objects::receive(&place, receiver, hash)
        }));
        while let Some(piece) = download.piece().await? {
            self.count(piece.len())?;
            // The receiver has failed, and its error is the result.
            if pieces.send(Some(piece)).await.is_err() {
                break;
            }
        }
        let _ = pieces.send(None).await;
        let received = receiving.await;
        let received = received.map_err(|error| Error::internal(error.to_string()))??;
        match &mut self.objects {
            Some(objects) => objects.join(received),
            None => self.objects = Some(received),
        }
        Ok(true)
    }

    fn count(&mut self, bytes: usize) -> Result<()> {
        self.received += bytes as u64;
        if self.received > MAX_PACK {
            let text = format!("its files have more than {MAX_PACK} bytes");
            return Err(self.files.wrong(&text));
        }
        if self.received - self.reported >= STEP {
            self.reported = self.received;
            (self.report)(self.received, false);
        }
        Ok(())
    }
}

/// Parses an object that was loose: `KIND SIZE`, NUL, and the content. An error is what is wrong with it.
fn parse_loose(mut object: Vec<u8>, id: &ObjectId) -> std::result::Result<(Kind, Vec<u8>), String> {
    if object.is_empty() {
        return Err("its file is empty".into());
    }
    let mut hasher = gix_hash::hasher(id.kind());
    hasher.update(&object);
    let found = hasher.try_finalize();
    let found = found.map_err(|error| error.to_string())?;
    if found != *id {
        return Err(format!("its content has another id, {found}"));
    }
    let malformed = || "it is malformed".to_owned();
    let end = object.iter().position(|byte| *byte == 0);
    let end = end.ok_or_else(malformed)?;
    let start = std::str::from_utf8(&object[..end]).ok();
    let (kind, size) = start
        .and_then(|start| start.split_once(' '))
        .ok_or_else(malformed)?;
    let kind = Kind::from_bytes(kind.as_bytes()).map_err(|_| malformed())?;
    if size.parse() != Ok(object.len() - end - 1) {
        return Err(malformed());
    }
    object.drain(..=end);
    Ok((kind, object))
}

/// Parses the file `info/refs`, lines of an id, a tab and a name; `None` if it is no such file.
fn parse_references(text: &str) -> Option<(Listed, Hash)> {
    let mut listed = Listed::default();
    for line in text.lines() {
        let (id, name) = line.split_once('\t')?;
        if !super::is_commit(id) {
            return None;
        }
        listed.references.push((name.to_owned(), id.to_owned()));
    }
    let first = listed.references.first();
    let hash = first.and_then(|(_, id)| Hash::from_hex_len(id.len()));
    Some((listed, hash.unwrap_or(Hash::Sha1)))
}

/// Parses the file `objects/info/packs`, and returns the names, the last one first.
fn parse_packs(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("P "));
    let is_pack = |name: &&str| {
        let digits = name.strip_prefix("pack-");
        let digits = digits.and_then(|rest| rest.strip_suffix(".pack"));
        digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let mut names: Vec<String> = names.filter(is_pack).map(str::to_owned).collect();
    names.reverse();
    names
}

/// Reads bytes as each of the files.
pub(super) fn decode(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = (parse_references(&text), parse_packs(&text));
    for hash in Hash::all() {
        let mut hasher = gix_hash::hasher(*hash);
        hasher.update(bytes);
        if let Ok(id) = hasher.try_finalize() {
            let _ = parse_loose(bytes.to_vec(), &id);
        }
    }
}

/// The entries of a pack, in a file.
struct Collected {
    path: PathBuf,
    file: BufWriter<File>,
    count: u32,
}

impl Collected {
    fn new(place: &Path) -> Result<Self> {
        let path = place.join("collected");
        Ok(Self {
            file: BufWriter::new(fs::create(&path, 0o600)?),
            path,
            count: 0,
        })
    }

    /// Adds an object (gitformat-pack).
    fn add(&mut self, kind: Kind, content: &[u8]) -> Result<()> {
        let failed = || os::<std::io::Error>(format!("write {}", self.path.display()));
        let number = match kind {
            Kind::Commit => 1,
            Kind::Tree => 2,
            Kind::Blob => 3,
            Kind::Tag => 4,
        };
        let start = entry_start(number, content.len());
        self.file.write_all(&start).map_err(failed())?;
        let mut encoder = ZlibEncoder::new(&mut self.file, Compression::fast());
        encoder.write_all(content).map_err(failed())?;
        encoder.finish().map_err(failed())?;
        self.count += 1;
        Ok(())
    }

    /// Sends the pack. Blocking.
    fn send(self, hash: Hash, pieces: &mpsc::Sender<Option<Bytes>>) -> Result<()> {
        const PIECE: u64 = 1 << 20;
        let failed = |what: &str| os::<std::io::Error>(format!("{what} {}", self.path.display()));
        let flushed = self.file.into_inner();
        drop(flushed.map_err(|error| failed("write")(error.into_error()))?);
        let mut file = fs::open(&self.path)?;
        let mut hasher = gix_hash::hasher(hash);
        let mut piece = [
            &b"PACK"[..],
            &2_u32.to_be_bytes(),
            &self.count.to_be_bytes(),
        ]
        .concat();
        while !piece.is_empty() {
            hasher.update(&piece);
            // The receiver has failed, and its error is the result.
            if pieces.blocking_send(Some(piece.into())).is_err() {
                return Ok(());
            }
            piece = Vec::new();
            let read = (&mut file).take(PIECE).read_to_end(&mut piece);
            read.map_err(failed("read"))?;
        }
        let sum = hasher.try_finalize();
        let sum = sum.map_err(|error| Error::internal(error.to_string()))?;
        let sum = Bytes::copy_from_slice(sum.as_bytes());
        for piece in [Some(sum), None] {
            let _ = pieces.blocking_send(piece);
        }
        Ok(())
    }
}

/// Returns what an entry of a pack begins with: its kind, and its size in groups of bits, the lowest first.
fn entry_start(kind: u8, size: usize) -> Vec<u8> {
    let low = |size: usize, bits: u32| u8::try_from(size & ((1 << bits) - 1)).unwrap_or_default();
    let mut bytes = vec![(kind << 4) | low(size, 4)];
    let mut rest = size >> 4;
    while rest > 0 {
        if let Some(last) = bytes.last_mut() {
            *last |= 0x80;
        }
        bytes.push(low(rest, 7));
        rest >>= 7;
    }
    bytes
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_files_are_parsed() {
        let (one, two) = ("1".repeat(40), "2".repeat(64));
        let text = format!("{one}\trefs/heads/main\n{one}\trefs/tags/v1^{{}}\n");
        let (mut listed, hash) = parse_references(&text).unwrap();
        assert_eq!((listed.references.len(), hash), (2, Hash::Sha1));
        listed.set_head("ref: refs/heads/none");
        assert_eq!((listed.references.len(), &listed.head), (2, &None));
        listed.set_head("ref: refs/heads/main");
        let head = ("HEAD".to_owned(), one);
        assert_eq!(listed.references[2], head);
        assert_eq!(listed.head.as_deref(), Some("refs/heads/main"));
        let (mut listed, hash) = parse_references(&format!("{two}\trefs/heads/a\n")).unwrap();
        assert_eq!(hash, Hash::Sha256);
        listed.set_head(&two);
        assert_eq!(
            (&*listed.references[1].0, listed.head.as_deref()),
            ("HEAD", None)
        );
        assert!(parse_references("").unwrap().0.references.is_empty());
        for text in ["<html>", "001e# service=git-upload-pack\n0000", "1\tname"] {
            assert!(parse_references(text).is_none(), "{text}");
        }
        let list = "P pack-1f.pack\nP pack-2.pack\nP ../x.pack\nP pack-/../3.pack\nx\n\n";
        assert_eq!(parse_packs(list), ["pack-2.pack", "pack-1f.pack"]);
    }

    #[test]
    fn loose_objects_have_their_ids() {
        let id = objects::id("257cc5642cb1a054f08cc83f2d943e56fd3ebe99").unwrap();
        let found = parse_loose(b"blob 4\0foo\n".to_vec(), &id).unwrap();
        assert_eq!(found, (Kind::Blob, b"foo\n".to_vec()));
        for object in ["blob 4\0bar\n", "blob 4"] {
            let error = parse_loose(object.into(), &id).unwrap_err();
            assert!(error.starts_with("its content has another id, "), "{error}");
        }
        let error = parse_loose(Vec::new(), &id).unwrap_err();
        assert_eq!(error, "its file is empty");
        // With the right id, but not of git's form.
        for object in ["blob 5\0foo\n", "blob\0", "other 0\0", "blob 4"] {
            let mut hasher = gix_hash::hasher(Hash::Sha256);
            hasher.update(object.as_bytes());
            let id = hasher.try_finalize().unwrap();
            let error = parse_loose(object.into(), &id).unwrap_err();
            assert_eq!(error, "it is malformed");
        }
    }

    #[test]
    fn sizes_of_entries_are_groups_of_bits() {
        for (size, expected) in [
            (0, &[0x30][..]),
            (15, &[0x3f]),
            (16, &[0xb0, 1]),
            (0x7ff, &[0xbf, 0x7f]),
            (0x800, &[0xb0, 0x80, 1]),
        ] {
            assert_eq!(entry_start(3, size), expected, "{size}");
        }
    }
}
