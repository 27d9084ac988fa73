//! What copies and read-only mounts select of a result: paths, patterns, and the digest of the content.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use whelk_llb::Digest;
use whelk_llb::key::Selector;
use whelk_sys::{fs, in_root, xattr};
use whelk_text::glob;

use crate::directory::Index;
use crate::error::{Error, Result, os};
use crate::tree::{self, Filter, MAX_DEPTH, Verdict};

/// A file or directory that is selected.
#[derive(Debug)]
pub(crate) struct Selected {
    /// Opened with `O_PATH`.
    pub handle: OwnedFd,
    pub stat: Stat,
    /// The last component of its path.
    pub name: OsString,
    /// For texts of errors.
    pub path: String,
}

/// Returns a path in normal form, which begins with a slash.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Returns the last component of a path in normal form; `/` of the root.
pub(crate) fn base(path: &str) -> &str {
    match path.rsplit('/').next() {
        None | Some("") => "/",
        Some(name) => name,
    }
}

fn has_wildcards(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
}

/// Finds what a path, or a pattern, means below a root. A pattern may find nothing; a path may not.
///
/// # Errors
/// Returns an error if there is no such path, or for a malformed pattern.
pub(crate) fn find(root: &OwnedFd, selector: &Selector) -> Result<Vec<Selected>> {
    let path = clean(&selector.path);
    if !selector.wildcard || !has_wildcards(&path) {
        return Ok(vec![open(root, &path, selector.follow)?]);
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let plain = parts.iter().take_while(|part| !has_wildcards(part)).count();
    if parts.len() - plain > MAX_DEPTH {
        let text =
            format!("a pattern with more than {MAX_DEPTH} components after its first wildcard");
        return Err(Error::invalid(text));
    }
    let start = format!("/{}", parts[..plain].join("/"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let directory = match in_root::open(root, Path::new(&start), flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(Error::os(format!("open {start}"), error)),
    };
    let mut found = Vec::new();
    expand(&directory, &start, &parts[plain..], &mut found)?;
    found
        .iter()
        .map(|path| open(root, path, selector.follow))
        .collect()
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}

/// Adds the paths that the components of a pattern match in a directory.
fn expand(directory: &OwnedFd, at: &str, parts: &[&str], found: &mut Vec<String>) -> Result<()> {
    let Some((first, rest)) = parts.split_first() else {
        return Ok(());
    };
    let names = tree::names(directory).map_err(os(format!("read {at}")))?;
    for name in names {
        // A name that is not UTF-8 is matched by no pattern.
        let Some(text) = name.to_str() else { continue };
        let matches = glob::matches(first, text);
        if !matches.map_err(|error| Error::invalid(error.to_string()))? {
            continue;
        }
        let path = format!("{}/{text}", at.trim_end_matches('/'));
        if rest.is_empty() {
            found.push(path);
            continue;
        }
        match tree::open_below(directory, &name) {
            Ok(inner) => expand(&inner, &path, rest, found)?,
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(Error::os(format!("open {path}"), error)),
        }
    }
    Ok(())
}

fn open(root: &OwnedFd, path: &str, follow: bool) -> Result<Selected> {
    let flags = if follow {
        OFlags::PATH
    } else {
        OFlags::PATH | OFlags::NOFOLLOW
    };
    let opened = in_root::open(root, Path::new(path), flags, Mode::empty());
    let handle = opened.map_err(|error| match is_missing(&error) {
        true => Error::Missing {
            instruction: None,
            path: path.trim_start_matches('/').to_owned(),
        },
        false => Error::os(format!("open {path}"), error),
    })?;
    let stat = fstat(&handle).map_err(os(format!("stat {path}")))?;
    Ok(Selected {
        handle,
        stat,
        name: base(path).into(),
        path: path.to_owned(),
    })
}

/// Returns the digest of what selectors select: names, modes, owners, links, extended attributes and bytes, without
/// times. What `index` knows is not read. Blocking.
///
/// # Errors
/// As [`find`]; also if something cannot be read.
pub(crate) fn digest(
    root: &OwnedFd,
    selectors: &[Selector],
    index: Option<&dyn Index>,
) -> Result<Digest> {
    if let Some(known) = index.and_then(|index| index.selected(selectors)) {
        return Ok(known);
    }
    let mut hash = Sha256::new();
    let mut buffers = Buffers::default();
    for selector in selectors {
        let filter = Filter::new(&selector.include, &selector.exclude)?;
        let found = find(root, selector)?;
        hash.update((found.len() as u64).to_le_bytes());
        for selected in found {
            // The index knows files by their paths without links.
            let is_plain = || in_root::open_no_links(root, &selected.path, OFlags::PATH).is_ok();
            let mut walk = Walk {
                hash: &mut hash,
                filter: &filter,
                index: index.filter(|_| is_plain()),
                top: selected.path.trim_start_matches('/'),
                buffers: &mut buffers,
                waiting: Vec::new(),
            };
            text(walk.hash, selected.name.as_bytes());
            let failed = |error: Errno| Error::os(format!("read {}", selected.path), error);
            if !walk.known("", &selected.stat) {
                walk.entry(&selected.handle, &selected.stat)
                    .map_err(failed)?;
            }
            if tree::is_directory(&selected.stat) {
                let directory =
                    tree::open_below(&selected.handle, OsStr::new(".")).map_err(failed)?;
                walk.directory(&directory, "", &Verdict::default(), 0)
                    .map_err(failed)?;
            }
        }
    }
    let digest = Digest::from_bytes(hash.finalize().into());
    if let Some(index) = index {
        index.keep_selected(selectors, digest);
    }
    Ok(digest)
}

fn text(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// Buffers that are used for one file after the other.
#[derive(Default)]
struct Buffers {
    content: Vec<u8>,
    names: Vec<u8>,
    value: Vec<u8>,
}

struct Walk<'a> {
    hash: &'a mut Sha256,
    filter: &'a Filter,
    index: Option<&'a dyn Index>,
    /// Where the walk begins.
    top: &'a str,
    buffers: &'a mut Buffers,
    /// Directories above the current place that are not selected themselves. They are hashed when something below them is.
    waiting: Vec<Waiting>,
}

struct Waiting {
    name: OsString,
    handle: OwnedFd,
    stat: Stat,
}

impl Walk<'_> {
    fn directory(
        &mut self,
        directory: &OwnedFd,
        path: &str,
        verdict: &Verdict,
        depth: usize,
    ) -> rustix::io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(Errno::LOOP);
        }
        for name in tree::names(directory)? {
            let below = tree::join(path, &name);
            let (is_taken, may_have, inner) = self.filter.takes(&below, verdict);
            let stat = statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_directory = tree::is_directory(&stat);
            if !(is_taken || is_directory && may_have) {
                continue;
            }
            let open = || {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(directory, &name, flags, Mode::empty())
            };
            let opened = match is_directory {
                true => Some(tree::open_below(directory, &name)?),
                false => None,
            };
            if is_taken {
                self.hash_waiting()?;
                text(self.hash, name.as_bytes());
                self.hash.update([1]);
                if !self.known(&below, &stat) {
                    match FileType::from_raw_mode(stat.st_mode) {
                        FileType::RegularFile => {
                            let flags = OFlags::RDONLY
                                | OFlags::NOFOLLOW
                                | OFlags::NONBLOCK
                                | OFlags::CLOEXEC;
                            self.file(&openat(directory, &name, flags, Mode::empty())?, &stat)?;
                        }
                        _ => self.entry(&open()?, &stat)?,
                    }
                }
            } else {
                let handle = open()?;
                self.waiting.push(Waiting { name, handle, stat });
            }
            if let Some(opened) = opened {
                self.directory(&opened, &below, &inner, depth + 1)?;
            }
            // The mark of a directory's end. One of which nothing was selected is still in the list, and leaves no mark.
            if is_taken || self.waiting.pop().is_none() {
                self.hash.update([0xff]);
            }
        }
        Ok(())
    }

    /// Adds the directories above something that is selected.
    fn hash_waiting(&mut self) -> rustix::io::Result<()> {
        for Waiting { name, handle, stat } in std::mem::take(&mut self.waiting) {
            text(self.hash, name.as_bytes());
            self.hash.update([0]);
            self.entry(&handle, &stat)?;
        }
        Ok(())
    }

    /// Adds a regular file that the index knows. Returns whether it does.
    fn known(&mut self, below: &str, stat: &Stat) -> bool {
        let Some(index) = self.index else {
            return false;
        };
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return false;
        }
        let path = match (self.top, below) {
            ("", below) => below.to_owned(),
            (top, "") => top.to_owned(),
            (top, below) => format!("{top}/{below}"),
        };
        let Some(content) = index.content(&path, stat) else {
            return false;
        };
        self.stat(stat);
        self.hash
            .update((content.xattrs.len() as u64).to_le_bytes());
        for (name, value) in content.xattrs {
            text(self.hash, name.as_bytes());
            text(self.hash, value);
        }
        self.hash.update(content.digest);
        true
    }

    fn stat(&mut self, stat: &Stat) {
        for number in [stat.st_mode, stat.st_uid, stat.st_gid] {
            self.hash.update(number.to_le_bytes());
        }
    }

    /// Adds a regular file that was opened for reading.
    fn file(&mut self, file: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
        self.stat(stat);
        self.attributes(file)?;
        self.content(file, u64::try_from(stat.st_size).unwrap_or_default())
    }

    fn entry(&mut self, handle: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
        if FileType::from_raw_mode(stat.st_mode).is_file() {
            return self.file(&fs::reopen(handle)?, stat);
        }
        self.stat(stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = readlinkat(handle, "", Vec::new())?;
                text(self.hash, target.to_bytes());
            }
            FileType::Directory => {
                let directory = tree::open_below(handle, OsStr::new("."))?;
                self.attributes(&directory)?;
            }
            _ => self.hash.update(stat.st_rdev.to_le_bytes()),
        }
        Ok(())
    }

    /// Adds the digest of a file: its bytes alone could look like those of the next file's attributes.
    fn content(&mut self, file: &OwnedFd, size: u64) -> rustix::io::Result<()> {
        const SIZE: usize = 128 << 10;
        let buffer = &mut self.buffers.content;
        buffer.resize(SIZE, 0);
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < size {
            match rustix::io::pread(file, &mut buffer[..], at) {
                Ok(0) => break,
                Ok(count) => {
                    hash.update(&buffer[..count]);
                    at += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        self.hash.update(hash.finalize());
        Ok(())
    }

    fn attributes(&mut self, file: impl AsFd) -> rustix::io::Result<()> {
        let Buffers { names, value, .. } = &mut *self.buffers;
        let mut found: Vec<&[u8]> = xattr::names(&file, names)?
            .filter(|name| !name.starts_with(xattr::OVERLAY) && *name != b"security.selinux")
            .collect();
        found.sort_unstable();
        self.hash.update((found.len() as u64).to_le_bytes());
        for name in found {
            text(self.hash, name);
            if let Some(value) = xattr::value(&file, name, value)? {
                text(self.hash, value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use whelk_sys::Scratch;

    use super::*;
    use crate::directory::Content;

    fn root(files: &[&str]) -> (Scratch, OwnedFd) {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let scratch = Scratch::temporary(&format!("select-{number}")).unwrap();
        for file in files {
            let path = scratch.path().join(file);
            fs::create_dir_all(path.parent().unwrap(), 0o755).unwrap();
            fs::write(path, *file).unwrap();
        }
        let root = fs::open(scratch.path()).unwrap().into();
        (scratch, root)
    }

    fn selector(path: &str) -> Selector {
        Selector {
            path: path.into(),
            wildcard: true,
            follow: true,
            ..Selector::default()
        }
    }

    #[test]
    fn patterns_match_components() {
        let (scratch, root) = root(&["a/b1/c", "a/b2/c", "a/x/c", "top"]);
        rustix::fs::symlink("/etc", scratch.path().join("a/link")).unwrap();
        let check = |pattern: &str, expected: &[&str]| {
            let found = find(&root, &selector(pattern)).unwrap();
            let found: Vec<String> = found.into_iter().map(|one| one.path).collect();
            assert_eq!(found, expected, "{pattern}");
        };
        check("a/b*/c", &["/a/b1/c", "/a/b2/c"]);
        check("/*", &["/a", "/top"]);
        check("a/../top", &["/top"]);
        check("../../top", &["/top"]);
        check("none*/c", &[]);
        check("none/*", &[]);
        check("a/lin*/host*", &[]);
        assert!(find(&root, &selector("a/[")).is_err());
        let error = find(&root, &selector("none")).unwrap_err().to_string();
        assert!(error.ends_with("stat none: file does not exist"), "{error}");
    }

    #[test]
    fn links_stay_inside() {
        let (scratch, root) = root(&["etc/own"]);
        rustix::fs::symlink("/etc", scratch.path().join("absolute")).unwrap();
        rustix::fs::symlink("../../../etc/own", scratch.path().join("up")).unwrap();
        for path in ["absolute/own", "up"] {
            let found = find(&root, &selector(path)).unwrap();
            assert_eq!(found[0].stat.st_size, 7, "{path}");
        }
        let found = find(
            &root,
            &Selector {
                follow: false,
                ..selector("up")
            },
        );
        let kind = FileType::from_raw_mode(found.unwrap()[0].stat.st_mode);
        assert!(kind.is_symlink());
    }

    #[test]
    fn digests_depend_on_content_only() {
        let (scratch, root) = root(&["d/one", "d/two", "d/x.log"]);
        let of = |selector: &Selector| digest(&root, std::slice::from_ref(selector), None).unwrap();
        let all = of(&selector("d"));
        let without = Selector {
            exclude: vec!["*.log".into()],
            ..selector("d")
        };
        let part = of(&without);
        assert_ne!(all, part);
        let path = scratch.path().join("d/x.log");
        fs::write(&path, "changed").unwrap();
        assert_ne!(of(&selector("d")), all);
        assert_eq!(of(&without), part);
        fs::write(&path, "d/x.log").unwrap();
        assert_eq!(of(&selector("d")), all, "times do not count");
        fs::set_mode(&path, 0o600).unwrap();
        assert_ne!(of(&selector("d")), all);
        // A file does not move between directories unnoticed.
        fs::set_mode(&path, 0o644).unwrap();
        fs::create_dir(scratch.path().join("d/z"), 0o755).unwrap();
        let before = of(&selector("d"));
        fs::rename(
            scratch.path().join("d/x.log"),
            scratch.path().join("d/z/x.log"),
        )
        .unwrap();
        assert_ne!(of(&selector("d")), before);
    }

    #[test]
    fn directories_of_which_nothing_is_selected_do_not_count() {
        let (scratch, root) = root(&["d/a/one.c", "d/b/two.h"]);
        let selector = Selector {
            include: vec!["*/*.c".into()],
            ..selector("d")
        };
        let of = || digest(&root, std::slice::from_ref(&selector), None).unwrap();
        let before = of();
        fs::create_dir_all(scratch.path().join("d/0/deep"), 0o755).unwrap();
        fs::set_mode(scratch.path().join("d/b"), 0o700).unwrap();
        assert_eq!(of(), before);
        // The directory of what is selected does.
        fs::set_mode(scratch.path().join("d/a"), 0o700).unwrap();
        let other = of();
        assert_ne!(other, before);
        fs::write(scratch.path().join("d/0/three.c"), "").unwrap();
        assert_ne!(of(), other);
    }

    /// Says what is in files without looking at them.
    #[derive(Debug, Default)]
    struct Said {
        files: HashMap<&'static str, &'static str>,
        xattrs: BTreeMap<String, Vec<u8>>,
    }

    impl Index for Said {
        fn content(&self, path: &str, _: &Stat) -> Option<Content<'_>> {
            Some(Content {
                digest: Sha256::digest(self.files.get(path)?).into(),
                xattrs: &self.xattrs,
            })
        }
    }

    #[test]
    fn what_the_index_knows_is_not_read() {
        let (scratch, root) = root(&["d/e/one", "d/two"]);
        rustix::fs::symlink("d", scratch.path().join("link")).unwrap();
        let of = |path: &str, said: &Said| {
            let selector = selector(path);
            digest(&root, std::slice::from_ref(&selector), Some(said)).unwrap()
        };
        let nothing = Said::default();
        let mut said = Said::default();
        said.files.insert("d/e/one", "d/e/one");
        said.files.insert("d/two", "d/two");
        let mut other = Said::default();
        other.files.insert("d/two", "other");
        for path in ["d", "/", "d/two", "d/*"] {
            assert_eq!(of(path, &said), of(path, &nothing), "{path}");
            assert_ne!(of(path, &said), of(path, &other), "{path}");
        }
        // Behind a link the paths are others.
        assert_eq!(of("link/two", &other), of("link/two", &nothing));
    }

    /// Keeps the digests of selections, and knows no files.
    #[derive(Debug, Default)]
    struct Kept(std::sync::Mutex<Vec<(Vec<Selector>, Digest)>>);

    impl Index for Kept {
        fn content(&self, _: &str, _: &Stat) -> Option<Content<'_>> {
            None
        }

        fn selected(&self, selectors: &[Selector]) -> Option<Digest> {
            let all = self.0.lock().unwrap();
            let found = all.iter().find(|(known, _)| known == selectors);
            found.map(|(_, digest)| *digest)
        }

        fn keep_selected(&self, selectors: &[Selector], digest: Digest) {
            self.0.lock().unwrap().push((selectors.to_vec(), digest));
        }
    }

    #[test]
    fn selections_are_read_once() {
        let (scratch, root) = root(&["d/one", "e/two"]);
        let kept = Kept::default();
        let of = |path: &str| digest(&root, &[selector(path)], Some(&kept)).unwrap();
        let (first, other) = (of("d"), of("e"));
        assert_ne!(first, other);
        assert_eq!(first, digest(&root, &[selector("d")], None).unwrap());
        fs::remove_file(scratch.path().join("d/one")).unwrap();
        assert_eq!((of("d"), of("e")), (first, other));
        assert_eq!(kept.0.lock().unwrap().len(), 2);
    }

    #[test]
    fn content_cannot_look_like_the_next_file() {
        let digest_of = |first: &[u8], second: Option<&[u8]>| {
            let (scratch, root) = root(&["d/a"]);
            fs::write(scratch.path().join("d/a"), first).unwrap();
            if let Some(second) = second {
                fs::write(scratch.path().join("d/b"), second).unwrap();
            }
            digest(&root, &[selector("d")], None).unwrap()
        };
        // The framing of a further file, as part of the first one's content.
        let mut hash = vec![0xff];
        hash.extend(1u64.to_le_bytes());
        hash.extend(b"b\x01");
        for number in [0o100_644_u32, 0, 0] {
            hash.extend(number.to_le_bytes());
        }
        hash.extend(0u64.to_le_bytes());
        let joined = [b"x".as_slice(), &hash, b"y"].concat();
        assert_ne!(digest_of(&joined, None), digest_of(b"x", Some(b"y")));
    }
}
