//! What copies and read-only mounts select of a result: paths, patterns, and the digest of the content.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use whelk_llb::Digest;
use whelk_llb::key::Selector;
use whelk_sys::{fs, in_root};
use whelk_text::glob;

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
        true => Error::invalid(format!(
            "file not found in build context or excluded by .dockerignore: stat {}: file does not exist",
            path.trim_start_matches('/')
        )),
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
/// times. Blocking.
///
/// # Errors
/// As [`find`]; also if something cannot be read.
pub(crate) fn digest(root: &OwnedFd, selectors: &[Selector]) -> Result<Digest> {
    let mut hash = Sha256::new();
    for selector in selectors {
        let filter = Filter::new(&selector.include, &selector.exclude)?;
        let found = find(root, selector)?;
        hash.update((found.len() as u64).to_le_bytes());
        for selected in found {
            let mut walk = Walk {
                hash: &mut hash,
                filter: &filter,
            };
            text(walk.hash, selected.name.as_bytes());
            let failed = |error: Errno| Error::os(format!("read {}", selected.path), error);
            walk.entry(&selected.handle, &selected.stat)
                .map_err(failed)?;
            if tree::is_directory(&selected.stat) {
                let directory =
                    tree::open_below(&selected.handle, OsStr::new(".")).map_err(failed)?;
                walk.directory(&directory, "", &Verdict::default(), 0)
                    .map_err(failed)?;
            }
        }
    }
    let digits: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Digest::parse(&format!("sha256:{digits}"))
        .ok_or_else(|| Error::internal("a digest that cannot be read"))
}

fn text(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

struct Walk<'a> {
    hash: &'a mut Sha256,
    filter: &'a Filter,
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
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let handle = openat(directory, &name, flags, Mode::empty())?;
            let stat = fstat(&handle)?;
            let is_directory = tree::is_directory(&stat);
            if !(is_taken || is_directory && may_have) {
                continue;
            }
            text(self.hash, name.as_bytes());
            self.hash.update([u8::from(is_taken)]);
            self.entry(&handle, &stat)?;
            if is_directory {
                let opened = tree::open_below(directory, &name)?;
                self.directory(&opened, &below, &inner, depth + 1)?;
            }
            // The end of what is in it.
            self.hash.update([0xff]);
        }
        Ok(())
    }

    fn entry(&mut self, handle: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
        for number in [stat.st_mode, stat.st_uid, stat.st_gid] {
            self.hash.update(number.to_le_bytes());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = readlinkat(handle, "", Vec::new())?;
                text(self.hash, target.to_bytes());
            }
            FileType::RegularFile => {
                let file = fs::reopen(handle)?;
                self.attributes(&file)?;
                self.content(&file)?;
            }
            FileType::Directory => {
                let directory = tree::open_below(handle, OsStr::new("."))?;
                self.attributes(&directory)?;
            }
            _ => self.hash.update(stat.st_rdev.to_le_bytes()),
        }
        Ok(())
    }

    fn content(&mut self, file: &OwnedFd) -> rustix::io::Result<()> {
        let mut buffer = vec![0; 128 << 10];
        let mut at = 0;
        loop {
            match rustix::io::pread(file, &mut buffer, at) {
                Ok(0) => break,
                Ok(count) => {
                    self.hash.update(&buffer[..count]);
                    at += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        // Behind the bytes: the size may change while they are read.
        self.hash.update(at.to_le_bytes());
        Ok(())
    }

    fn attributes(&mut self, file: impl AsFd) -> rustix::io::Result<()> {
        const MAX_SIZE: usize = 64 << 10;
        let mut list = vec![0u8; MAX_SIZE];
        let length = match rustix::fs::flistxattr(&file, &mut list[..]) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(error),
        };
        let mut names: Vec<&[u8]> = list[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.overlay."))
            .filter(|name| *name != b"security.selinux")
            .collect();
        names.sort_unstable();
        self.hash.update((names.len() as u64).to_le_bytes());
        let mut value = vec![0u8; MAX_SIZE];
        for name in names {
            text(self.hash, name);
            match rustix::fs::fgetxattr(&file, OsStr::from_bytes(name), &mut value[..]) {
                Ok(length) => text(self.hash, &value[..length]),
                Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
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
    use whelk_sys::Scratch;

    use super::*;

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
        let of = |selector: &Selector| digest(&root, std::slice::from_ref(selector)).unwrap();
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
}
