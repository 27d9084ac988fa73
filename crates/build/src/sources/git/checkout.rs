//! Writes the files of a commit.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use gix_hash::{Kind as Hash, ObjectId};
use gix_object::Kind;
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};

use super::modules::{self, Submodule};
use super::objects::{self, Objects};
use crate::error::{Error, Result, os};
use crate::tree::{MAX_DEPTH, join, open_below};

/// Maximum number of files and directories of a commit, and of their bytes: a few objects may stand for endlessly many.
const MAX_ENTRIES: usize = 2_000_000;
const MAX_BYTES: u64 = 64 << 30;

/// What is to be written of a commit.
#[derive(Debug)]
pub(super) struct Checkout {
    pub commit: String,
    /// The directory whose files are written; empty for all.
    pub directory: String,
    /// Whether files have the time of the commit.
    pub commit_time: bool,
}

/// A file in the order of git's index.
#[derive(Debug)]
pub(super) struct Entry {
    pub path: Vec<u8>,
    pub mode: u32,
    pub id: ObjectId,
}

/// What was written.
#[derive(Debug)]
pub(super) struct Checked {
    pub commit: String,
    /// The commit's time in seconds since 1970.
    pub time: i64,
    /// In bytes.
    pub size: u64,
    pub entries: Vec<Entry>,
    /// The text of `.gitmodules`; empty without one.
    modules: String,
}

/// The type in the mode of an entry of a tree.
const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const COMMIT: u32 = 0o160_000;

/// Maximum size of `.gitmodules` in bytes.
const MAX_MODULES: usize = 1 << 20;

impl Checkout {
    /// Writes the files into a directory that is empty. Blocking.
    pub fn run(&self, objects: &mut Objects, into: &OwnedFd) -> Result<Checked> {
        let commit = objects.get(&objects::id(&self.commit)?, Kind::Commit)?;
        let (tree, time) = parse_commit(&commit)?;
        let modules = match entry_of(objects, &tree, b".gitmodules")? {
            Some((mode, id)) if mode & TYPE == FILE => {
                let text = objects.get(&id, Kind::Blob)?;
                if text.len() > MAX_MODULES {
                    return Err(Error::invalid("the file .gitmodules is too large"));
                }
                String::from_utf8_lossy(&text).into_owned()
            }
            // As in git, a link is not followed.
            _ => String::new(),
        };
        let mut top = tree;
        for part in self.directory.split('/').filter(|part| !part.is_empty()) {
            let wrong = |what: &str| {
                Err(Error::invalid(format!(
                    "failed to open subdir {}: {what}",
                    self.directory
                )))
            };
            top = match entry_of(objects, &top, part.as_bytes())? {
                Some((mode, id)) if mode & TYPE == DIRECTORY => id,
                Some((mode, _)) if mode & TYPE == LINK => {
                    return wrong("a symbolic link, which is not followed");
                }
                Some((mode, _)) if mode & TYPE == COMMIT => return wrong("a submodule"),
                Some(_) => return wrong("not a directory"),
                None => return wrong("no such file or directory"),
            };
        }
        let mut writing = Writing {
            objects,
            time: self.commit_time.then_some(time),
            entries: Vec::new(),
            count: 0,
            size: 0,
        };
        writing.tree(&top, into, "", 0)?;
        Ok(Checked {
            commit: self.commit.clone(),
            time,
            size: writing.size,
            entries: writing.entries,
            modules,
        })
    }
}

impl Checked {
    /// Returns the submodules. `prefix` is the directory that was checked out.
    ///
    /// # Errors
    /// Returns an error if one is not described.
    pub fn submodules(&self, prefix: &str) -> Result<Vec<Submodule>> {
        let commits = self.entries.iter();
        let commits: Vec<&Entry> = commits
            .filter(|entry| entry.mode & TYPE == COMMIT)
            .collect();
        if commits.is_empty() {
            return Ok(Vec::new());
        }
        let known = modules::parse(&self.modules);
        let found = commits.into_iter().map(|entry| {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            let whole = match prefix {
                "" => path.clone(),
                prefix => format!("{prefix}/{path}"),
            };
            let url = known.get(&whole).ok_or_else(|| {
                Error::invalid(format!(
                    "no url found for submodule path {whole:?} in .gitmodules"
                ))
            })?;
            Ok(Submodule {
                path,
                url: url.clone(),
                commit: entry.id.to_string(),
            })
        });
        found.collect()
    }
}

/// Returns the tree and the time of a commit.
fn parse_commit(commit: &[u8]) -> Result<(ObjectId, i64)> {
    let head = commit.split(|byte| *byte == b'\n');
    let head = head.take_while(|line| !line.is_empty());
    let (mut tree, mut time) = (None, 0);
    for line in head {
        let line = String::from_utf8_lossy(line);
        if let Some(text) = line.strip_prefix("tree ") {
            tree = Some(objects::id(text)?);
        } else if line.starts_with("committer ") {
            // NAME <MAIL> SECONDS ZONE
            let seconds = line.rsplit(' ').nth(1).and_then(|text| text.parse().ok());
            time = seconds.unwrap_or(0);
        }
    }
    let tree = tree.ok_or_else(|| Error::invalid("a git commit without a tree"))?;
    Ok((tree, time))
}

/// Returns the objects that the content of a tag, a commit or a tree refers to, with their kinds: neither earlier commits nor
/// submodules.
pub(super) fn below(kind: Kind, content: &[u8], hash: Hash) -> Result<Vec<(ObjectId, Kind)>> {
    let mut found = Vec::new();
    match kind {
        Kind::Commit => found.push((parse_commit(content)?.0, Kind::Tree)),
        Kind::Tree => each(content, hash, |mode, _, id| {
            match mode & TYPE {
                DIRECTORY => found.push((id, Kind::Tree)),
                COMMIT => {}
                _ => found.push((id, Kind::Blob)),
            }
            // A tree of the maximum size has many times as many, and is small when it is compressed.
            match found.len() > MAX_ENTRIES {
                true => Err(Error::invalid(format!(
                    "a git tree with more than {MAX_ENTRIES} entries"
                ))),
                false => Ok(()),
            }
        })?,
        Kind::Tag => {
            // object ID, and in the next line type KIND
            let text = String::from_utf8_lossy(content);
            let mut lines = text.lines();
            let id = lines.next().and_then(|line| line.strip_prefix("object "));
            let kind = lines.next().and_then(|line| line.strip_prefix("type "));
            let kind = kind.and_then(|kind| Kind::from_bytes(kind.as_bytes()).ok());
            let (Some(id), Some(kind)) = (id, kind) else {
                return Err(Error::invalid("a git tag that is malformed"));
            };
            found.push((objects::id(id)?, kind));
        }
        Kind::Blob => {}
    }
    Ok(found)
}

/// Calls a function with mode, name and id of each entry of a tree.
fn each(
    tree: &[u8],
    hash: Hash,
    mut entry: impl FnMut(u32, &[u8], ObjectId) -> Result<()>,
) -> Result<()> {
    let length = hash.len_in_bytes();
    let broken = || Error::invalid("a git tree that is malformed");
    let mut rest = tree;
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ');
        let (mode, after) = rest.split_at(space.ok_or_else(broken)?);
        let mode = std::str::from_utf8(mode).ok();
        let mode = mode.and_then(|mode| u32::from_str_radix(mode, 8).ok());
        let end = after.iter().position(|byte| *byte == 0);
        let (name, after) = after.split_at(end.ok_or_else(broken)?);
        let id = after.get(1..=length).ok_or_else(broken)?;
        let id = ObjectId::try_from(id).map_err(|_| broken())?;
        entry(mode.ok_or_else(broken)?, &name[1..], id)?;
        rest = &after[1 + length..];
    }
    Ok(())
}

/// Returns mode and id of an entry of a tree.
fn entry_of(
    objects: &mut Objects,
    tree: &ObjectId,
    wanted: &[u8],
) -> Result<Option<(u32, ObjectId)>> {
    let mut found = None;
    let bytes = objects.get(tree, Kind::Tree)?;
    each(&bytes, tree.kind(), |mode, name, id| {
        if name == wanted {
            found = Some((mode, id));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Refuses names that git refuses, too: those that lead elsewhere, or into its own directory.
fn check_name(name: &[u8]) -> Result<()> {
    let is_bad = name.is_empty()
        || name == b"."
        || name == b".."
        || name.contains(&b'/')
        || name.eq_ignore_ascii_case(b".git");
    match is_bad {
        true => Err(Error::invalid(format!(
            "a git tree with the name {:?}",
            String::from_utf8_lossy(name)
        ))),
        false => Ok(()),
    }
}

/// Reads bytes as a commit and as a tree.
pub(super) fn decode(bytes: &[u8]) {
    let _ = parse_commit(bytes);
    for hash in Hash::all() {
        let _ = each(bytes, *hash, |_, name, _| check_name(name));
        let _ = below(Kind::Tree, bytes, *hash);
    }
}

struct Writing<'a> {
    objects: &'a mut Objects,
    time: Option<i64>,
    entries: Vec<Entry>,
    count: usize,
    size: u64,
}

impl Writing<'_> {
    fn tree(&mut self, id: &ObjectId, into: &OwnedFd, path: &str, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid(format!(
                "a git repository with directories deeper than {MAX_DEPTH}"
            )));
        }
        let tree = self.objects.get(id, Kind::Tree)?;
        each(&tree, id.kind(), |mode, name, id| {
            check_name(name)?;
            let at = join(path, OsStr::from_bytes(name));
            self.count += 1;
            if self.count > MAX_ENTRIES {
                return Err(Error::invalid(format!(
                    "a git repository with more than {MAX_ENTRIES} files"
                )));
            }
            self.entry(mode, OsStr::from_bytes(name), &id, into, &at, depth)
        })?;
        self.set_time(into, path)
    }

    fn entry(
        &mut self,
        mode: u32,
        name: &OsStr,
        id: &ObjectId,
        into: &OwnedFd,
        path: &str,
        depth: usize,
    ) -> Result<()> {
        let failed = || format!("write {path}");
        let kept = match mode & TYPE {
            DIRECTORY => {
                self.directory(name, into, path)?;
                let below = open_below(into, name).map_err(os(failed()))?;
                return self.tree(id, &below, path, depth + 1);
            }
            FILE => {
                let mode = if mode & 0o100 == 0 { 0o644 } else { 0o755 };
                self.file(name, id, mode, into, path)?;
                FILE | mode
            }
            LINK => {
                let target = self.objects.get(id, Kind::Blob)?;
                self.count_bytes(target.len())?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), into, name)
                    .map_err(os(failed()))?;
                if let Some(times) = self.times() {
                    rustix::fs::utimensat(into, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(os(failed()))?;
                }
                LINK
            }
            COMMIT => {
                self.directory(name, into, path)?;
                COMMIT
            }
            _ => {
                let text = format!("{path}: a git tree with the mode {mode:o}");
                return Err(Error::invalid(text));
            }
        };
        self.entries.push(Entry {
            path: path_bytes(path, name),
            mode: kept,
            id: *id,
        });
        Ok(())
    }

    fn directory(&self, name: &OsStr, into: &OwnedFd, path: &str) -> Result<()> {
        let failed = || format!("create {path}");
        rustix::fs::mkdirat(into, name, Mode::from_raw_mode(0o755)).map_err(os(failed()))?;
        let directory = open_below(into, name).map_err(os(failed()))?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o755)).map_err(os(failed()))
    }

    fn file(
        &mut self,
        name: &OsStr,
        id: &ObjectId,
        mode: u32,
        into: &OwnedFd,
        path: &str,
    ) -> Result<()> {
        use std::io::Write as _;
        let content = self.objects.get(id, Kind::Blob)?;
        self.count_bytes(content.len())?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let file = rustix::fs::openat(into, name, flags, mode);
        let mut file = std::fs::File::from(file.map_err(os(format!("create {path}")))?);
        file.write_all(&content)
            .map_err(os(format!("write {path}")))?;
        rustix::fs::fchmod(&file, mode).map_err(os(format!("set the mode of {path}")))?;
        self.set_time(&file, path)
    }

    fn times(&self) -> Option<Timestamps> {
        let time = Timespec {
            tv_sec: self.time?,
            tv_nsec: 0,
        };
        Some(Timestamps {
            last_access: time,
            last_modification: time,
        })
    }

    fn set_time(&self, file: impl AsFd, path: &str) -> Result<()> {
        match self.times() {
            None => Ok(()),
            Some(times) => {
                rustix::fs::futimens(file, &times).map_err(os(format!("set the time of {path}")))
            }
        }
    }

    fn count_bytes(&mut self, bytes: usize) -> Result<()> {
        self.size += bytes as u64;
        match self.size > MAX_BYTES {
            true => Err(Error::invalid(format!(
                "a git repository with more than {MAX_BYTES} bytes"
            ))),
            false => Ok(()),
        }
    }
}

/// Returns a path as bytes; the text may have lost some of the name.
fn path_bytes(path: &str, name: &OsStr) -> Vec<u8> {
    match path.rsplit_once('/') {
        Some((above, _)) => [above.as_bytes(), b"/", name.as_bytes()].concat(),
        None => name.as_bytes().to_vec(),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn commits_and_trees_are_parsed() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        let text = format!(
            "tree {id}\nauthor A <a> 1 +0000\ncommitter C D <c> 1700000000 +0100\n\ntree x\n"
        );
        let (tree, time) = parse_commit(text.as_bytes()).unwrap();
        assert_eq!((tree.to_string().as_str(), time), (id, 1_700_000_000));
        assert!(parse_commit(b"author x\n").is_err());
        for hash in [Hash::Sha1, Hash::Sha256] {
            let length = hash.len_in_bytes();
            let (one, two) = (vec![7; length], vec![8; length]);
            let raw = [&b"100644 a b\0"[..], &one, b"40000 d\0", &two].concat();
            let mut found = Vec::new();
            each(&raw, hash, |mode, name, id| {
                found.push((mode, name.to_vec(), id.as_bytes().to_vec()));
                Ok(())
            })
            .unwrap();
            let expected = [
                (0o100_644, b"a b".to_vec(), one),
                (0o040_000, b"d".to_vec(), two),
            ];
            assert_eq!(found, expected);
            for length in [1, 5, 10, 20, 35, raw.len() - 1] {
                let cut = each(&raw[..length], hash, |_, _, _| Ok(()));
                assert!(cut.is_err(), "{hash} {length}");
            }
        }
    }

    #[test]
    fn trees_have_a_limit_of_entries() {
        let entry = [&b"100644 a\0"[..], &[7; 20]].concat();
        let tree = entry.repeat(MAX_ENTRIES);
        assert_eq!(
            below(Kind::Tree, &tree, Hash::Sha1).unwrap().len(),
            MAX_ENTRIES
        );
        let error = below(Kind::Tree, &[tree, entry].concat(), Hash::Sha1).unwrap_err();
        assert!(error.to_string().ends_with("entries"), "{error}");
    }

    #[test]
    fn names_stay_in_their_directory() {
        for name in [&b""[..], b".", b"..", b"a/b", b".git", b".GIT"] {
            check_name(name).unwrap_err();
        }
        for name in [&b"a"[..], b"...", b".gitignore", b"\xff"] {
            check_name(name).unwrap();
        }
    }
}
