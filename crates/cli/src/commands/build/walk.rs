//! Tells of a directory's files, by the patterns that the engine asks with.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use whelk_buildkit::files::{Entry, Files, Kind};
use whelk_buildkit::session::FilesRequest;
use whelk_dockerfile::ignore::{Matched, Matcher};
use whelk_text::glob;

use crate::plain;

type Result<T> = std::result::Result<T, String>;

/// A directory and what is wanted of it.
pub(super) struct Directory {
    root: PathBuf,
    wanted: FilesRequest,
}

impl Directory {
    pub fn new(root: PathBuf, wanted: FilesRequest) -> Self {
        Self { root, wanted }
    }
}

impl Files for Directory {
    fn list(&self, tell: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let mut include = self.wanted.include.clone();
        if !self.wanted.follow.is_empty() {
            let followed = followed(&self.root, &self.wanted.follow)?;
            // The root itself is everything.
            match followed.iter().any(String::is_empty) {
                true => include.clear(),
                false => include.extend(followed),
            }
        }
        let matcher = |patterns: &[String]| {
            Matcher::new(patterns.iter().map(String::as_str)).map_err(|error| error.to_string())
        };
        let mut walk = Walk {
            root: &self.root,
            include: (!include.is_empty())
                .then(|| matcher(&include))
                .transpose()?,
            patterns: include
                .iter()
                .map(|pattern| pattern.split('/').collect())
                .collect(),
            exclude: matcher(&self.wanted.exclude)?,
            above: Vec::new(),
            links: HashMap::new(),
            tell,
        };
        walk.directory("", &Matched::default(), &Matched::default())
    }

    fn open(&self, path: &str) -> Result<Box<dyn Read>> {
        let nofollow = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = std::fs::File::options()
            .read(true)
            .custom_flags(i32::try_from(nofollow.bits()).unwrap_or(0))
            .open(self.root.join(path));
        let file = file.map_err(|error| format!("open {path}: {}", plain(&error)))?;
        Ok(Box::new(file))
    }
}

/// One file, in memory.
pub(super) struct Single {
    pub name: String,
    pub content: Vec<u8>,
}

impl Files for Single {
    fn list(&self, tell: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        tell(Entry {
            path: self.name.clone(),
            kind: Kind::File,
            mode: 0o644,
            size: self.content.len() as u64,
            mtime: 0,
            xattrs: BTreeMap::new(),
        })
    }

    fn open(&self, _path: &str) -> Result<Box<dyn Read>> {
        Ok(Box::new(std::io::Cursor::new(self.content.clone())))
    }
}

/// No file.
pub(super) struct Nothing;

impl Files for Nothing {
    fn list(&self, _tell: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        Ok(())
    }

    fn open(&self, path: &str) -> Result<Box<dyn Read>> {
        Err(format!("open {path}: no such file or directory"))
    }
}

struct Walk<'a> {
    root: &'a Path,
    /// What is told of; everything without.
    include: Option<Matcher>,
    /// The components of what is included.
    patterns: Vec<Vec<&'a str>>,
    exclude: Matcher,
    /// Directories on the way that were not told of, because nothing in them was yet.
    above: Vec<Entry>,
    /// The first paths of files with several names.
    links: HashMap<(u64, u64), String>,
    tell: &'a mut dyn FnMut(Entry) -> Result<()>,
}

impl Walk<'_> {
    fn directory(&mut self, path: &str, included: &Matched, excluded: &Matched) -> Result<()> {
        let failed = |error: &std::io::Error| {
            let shown = if path.is_empty() { "." } else { path };
            format!("open {shown}: {}", plain(error))
        };
        let mut all = Vec::new();
        let found = std::fs::read_dir(self.root.join(path)).map_err(|error| failed(&error))?;
        for entry in found {
            let entry = entry.map_err(|error| failed(&error))?;
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            all.push((entry.file_name(), is_directory));
        }
        all.sort_unstable();
        for (name, is_directory) in all {
            self.file(path, &name, is_directory, included, excluded)?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        parent: &str,
        name: &OsStr,
        is_directory: bool,
        included: &Matched,
        excluded: &Matched,
    ) -> Result<()> {
        let text = name.to_string_lossy();
        let path = match parent {
            "" => text.clone().into_owned(),
            parent => format!("{parent}/{text}"),
        };
        let (is_excluded, excluded) = self.exclude.excludes_in(&path, excluded);
        let (is_included, included) = match &self.include {
            None => (true, Matched::default()),
            // Its patterns say what is meant, not what is not.
            Some(include) => include.excludes_in(&path, included),
        };
        let is_wanted = is_included && !is_excluded;
        let may_have = is_directory
            && (is_included || self.leads_to(&path))
            && (!is_excluded || self.exclude.has_exceptions());
        if !is_wanted && !may_have {
            return Ok(());
        }
        if name.to_str().is_none() {
            return match is_wanted {
                true => Err(format!("file name {path:?} is not UTF-8")),
                false => Ok(()),
            };
        }
        let found = match self.root.join(&path).symlink_metadata() {
            Ok(found) => found,
            // It was removed meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(format!("lstat {path}: {}", plain(&error))),
        };
        if !found.is_dir() {
            // A socket is of no use in another place.
            return match is_wanted && !found.file_type().is_socket() {
                true => {
                    let entry = self.entry(path, &found)?;
                    self.told(entry)
                }
                false => Ok(()),
            };
        }
        let entry = self.entry(path.clone(), &found)?;
        let depth = self.above.len();
        match is_wanted {
            true => self.told(entry)?,
            false => self.above.push(entry),
        }
        if may_have {
            self.directory(&path, &included, &excluded)?;
        }
        self.above.truncate(depth);
        Ok(())
    }

    /// Whether something below a directory may be included.
    fn leads_to(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').collect();
        self.patterns.iter().any(|pattern| {
            for (index, name) in names.iter().enumerate() {
                match pattern.get(index) {
                    None => return false,
                    Some(part) if part.contains("**") => return true,
                    Some(part) if glob::matches(part, name).unwrap_or(true) => {}
                    Some(_) => return false,
                }
            }
            true
        })
    }

    /// Tells of a file, and before of the directories that lead to it.
    fn told(&mut self, entry: Entry) -> Result<()> {
        for directory in std::mem::take(&mut self.above) {
            (self.tell)(directory)?;
        }
        (self.tell)(entry)
    }

    fn entry(&mut self, path: String, found: &Metadata) -> Result<Entry> {
        let kind = found.file_type();
        let full = self.root.join(&path);
        let mut size = 0;
        let kind = if kind.is_dir() {
            Kind::Directory
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&full);
            let target = target.map_err(|error| format!("readlink {path}: {}", plain(&error)))?;
            let target = target.into_os_string().into_string();
            Kind::Symlink(target.map_err(|_| format!("the link {path} is not UTF-8"))?)
        } else if kind.is_fifo() {
            Kind::Fifo
        } else if kind.is_file() {
            let first = match found.nlink() {
                1 => None,
                _ => self.links.get(&(found.dev(), found.ino())).cloned(),
            };
            match first {
                Some(first) => Kind::HardLink(first),
                None => {
                    if found.nlink() > 1 {
                        self.links.insert((found.dev(), found.ino()), path.clone());
                    }
                    size = found.size();
                    Kind::File
                }
            }
        } else {
            return Err(format!(
                "{path} is a device, which a build context cannot have"
            ));
        };
        Ok(Entry {
            xattrs: match kind {
                Kind::Symlink(_) => BTreeMap::new(),
                _ => attributes(&full),
            },
            kind,
            mode: found.mode() & 0o7777,
            size,
            mtime: found
                .mtime()
                .saturating_mul(1_000_000_000)
                .saturating_add(found.mtime_nsec()),
            path,
        })
    }
}

/// Returns the extended attributes of a file that the engine keeps.
fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut names = [0_u8; 4096];
    // What has none, or has too many of them, is sent without.
    let Ok(length) = rustix::fs::llistxattr(path, &mut names) else {
        return found;
    };
    let names = names[..length].split(|byte| *byte == 0);
    for name in names.filter_map(|name| std::str::from_utf8(name).ok()) {
        if name != "security.capability" && !name.starts_with("user.") {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        if let Ok(length) = rustix::fs::lgetxattr(path, name, &mut value) {
            value.truncate(length);
            found.insert(name.to_owned(), value);
        }
    }
    found
}

/// Returns paths, and what those of them that are symbolic links lead to. They stay in the directory: `/` is its root.
fn followed(root: &Path, paths: &[String]) -> Result<Vec<String>> {
    /// Links that lead to each other end here.
    const MAX: usize = 10_000;
    let mut found = BTreeSet::new();
    let mut waiting: Vec<String> = paths.iter().map(|path| clean(path)).collect();
    let mut count = 0;
    while let Some(path) = waiting.pop() {
        count += 1;
        if count > MAX {
            return Err(format!("too many symbolic links on the way to {path}"));
        }
        let parts: Vec<&str> = path.split('/').collect();
        let mut is_done = false;
        for end in 1..=parts.len() {
            let current = parts[..end].join("/");
            let targets = targets(root, &current)?;
            if targets.is_empty() {
                continue;
            }
            if !found.insert(current) {
                is_done = true;
                break;
            }
            let rest = parts[end..].join("/");
            waiting.extend(
                targets
                    .iter()
                    .map(|target| clean(&format!("{target}/{rest}"))),
            );
            is_done = true;
            break;
        }
        if !is_done {
            found.insert(path);
        }
    }
    Ok(found.into_iter().collect())
}

/// Returns what a path leads to if it is a symbolic link, or a pattern of some.
fn targets(root: &Path, path: &str) -> Result<Vec<String>> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let is_pattern = name.contains(['*', '?', '[', '\\']);
    let names = match is_pattern {
        false => vec![name.to_owned()],
        true => {
            let Ok(list) = std::fs::read_dir(root.join(parent)) else {
                return Ok(Vec::new());
            };
            let names = list.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let is_meant = |other: &String| glob::matches(name, other).unwrap_or(false);
            names.filter(is_meant).collect()
        }
    };
    let mut found = Vec::new();
    for name in names {
        // What is no link, and what is not there, leads nowhere.
        let Ok(target) = std::fs::read_link(root.join(parent).join(&name)) else {
            continue;
        };
        let target = target.into_os_string().into_string();
        let target = target.map_err(|_| format!("the link {path} is not UTF-8"))?;
        found.push(match target.starts_with('/') {
            true => target,
            false => format!("{parent}/{target}"),
        });
    }
    Ok(found)
}

/// Returns a path in its shortest form, relative to the root, which is empty.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use whelk_sys::Scratch;

    use super::*;

    #[track_caller]
    fn check(root: &Path, wanted: FilesRequest, expected: &[&str]) {
        let mut found = Vec::new();
        let directory = Directory::new(root.to_owned(), wanted);
        directory
            .list(&mut |entry| {
                found.push(entry.path);
                Ok(())
            })
            .unwrap();
        assert_eq!(found, expected);
    }

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn patterns_choose_the_files() {
        let scratch = Scratch::temporary("walk").unwrap();
        let root = scratch.path();
        for path in ["a/b/x.js", "a/b/y.txt", "a/z", "node_modules/m/i.js", "a.b"] {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        check(
            root,
            FilesRequest::default(),
            &[
                "a",
                "a/b",
                "a/b/x.js",
                "a/b/y.txt",
                "a/z",
                "a.b",
                "node_modules",
                "node_modules/m",
                "node_modules/m/i.js",
            ],
        );
        let wanted = FilesRequest {
            exclude: list(&["node_modules", "**/*.txt"]),
            ..FilesRequest::default()
        };
        check(root, wanted, &["a", "a/b", "a/b/x.js", "a/z", "a.b"]);
        let wanted = FilesRequest {
            exclude: list(&["*", "!a/b/*.js"]),
            ..FilesRequest::default()
        };
        check(root, wanted, &["a", "a/b", "a/b/x.js"]);
        let wanted = FilesRequest {
            include: list(&["a/*/x.js"]),
            ..FilesRequest::default()
        };
        check(root, wanted, &["a", "a/b", "a/b/x.js"]);
        use std::os::unix::ffi::OsStrExt as _;
        let broken = root.join(OsStr::from_bytes(b"\xff"));
        std::fs::write(&broken, "x").unwrap();
        let wanted = FilesRequest {
            exclude: list(&["*"]),
            ..FilesRequest::default()
        };
        check(root, wanted, &[]);
        let all = Directory::new(root.to_owned(), FilesRequest::default());
        assert!(all.list(&mut |_| Ok(())).unwrap_err().contains("not UTF-8"));
        std::fs::remove_file(&broken).unwrap();
        symlink("../node_modules/m", root.join("a/link")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let wanted = FilesRequest {
            follow: list(&["a/link/i.js", "none", "loop"]),
            ..FilesRequest::default()
        };
        check(
            root,
            wanted,
            &[
                "a",
                "a/link",
                "loop",
                "node_modules",
                "node_modules/m",
                "node_modules/m/i.js",
            ],
        );
        let wanted = FilesRequest {
            follow: list(&["/"]),
            exclude: list(&["a*", "n*", "l*"]),
            ..FilesRequest::default()
        };
        check(root, wanted, &[]);
    }

    #[test]
    fn paths_stay_in_the_directory() {
        for (path, expected) in [
            ("/../x", "x"),
            ("a/../../b", "b"),
            ("./a//b/", "a/b"),
            ("/", ""),
        ] {
            assert_eq!(clean(path), expected);
        }
    }
}
