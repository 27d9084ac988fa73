//! The changes from one file tree to another, written as a layer.
//!
//! Files differ as with BuildKit: in kind, mode, owner, device number, size, time or attributes. If all of these are the same, the
//! content decides: archives cut times to seconds, and two steps that write at the same time may give their files the same one,
//! because the kernel's clock for files has steps of some milliseconds. The time of a directory alone is no difference. What is
//! not there any more is a whiteout each; no directory is opaque, so that the layer can stand on others than the tree that it was
//! compared with.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat, makedev, mknodat, openat, readlinkat};
use rustix::io::Errno;
use whelk_sys::{overlay, xattr};

use super::copy::{Attributes, Copy, Run, Target};
use crate::error::{Error, Result, os};
use crate::tree::{self, Filter, MAX_DEPTH};

/// What the upper tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// All files: what only the lower tree has was removed.
    Tree,
    /// A layer above the lower tree, in overlayfs's form.
    Layer,
    /// The same; its files are written also if they do not differ.
    WholeLayer,
}

/// Returns whether nobody waits for the result any more. Then what has begun fails.
pub(super) type IsLeft<'a> = &'a dyn Fn() -> bool;

/// Writes what `upper` changes of `lower` into the empty directory `into`, in the form of a layer. All links stay what they are.
pub(super) fn write(
    lower: Option<&OwnedFd>,
    upper: &OwnedFd,
    form: Form,
    into: &OwnedFd,
    is_left: IsLeft<'_>,
) -> Result<()> {
    let filter = Filter::new(&[], &[])?;
    let copy = Copy {
        root: into,
        destination: "/",
        attributes: Attributes::default(),
        symbolic: None,
        filter: &filter,
        contents: false,
        replaces: false,
        keeps_capabilities: true,
    };
    let open = |directory: &OwnedFd| {
        let opened = tree::open_below(directory, OsStr::new("."));
        opened.map_err(failed(Path::new("")))
    };
    let lower = lower.map(open).transpose()?;
    let mut walk = Walk {
        run: Run::new(&copy, Some(open(into)?)),
        keeps_same: form == Form::WholeLayer,
        is_left,
    };
    let target = Target::opened(open(into)?);
    let is_whole = form == Form::Tree;
    let written = walk.directory(lower.as_ref(), &open(upper)?, &target, is_whole, 0);
    written.map_err(failed(&walk.run.at))
}

fn failed(path: &Path) -> impl FnOnce(Errno) -> Error {
    os(format!("write a layer of changes: /{}", path.display()))
}

struct Walk<'a> {
    run: Run<'a>,
    keeps_same: bool,
    is_left: IsLeft<'a>,
}

impl Walk<'_> {
    /// Writes the changes of what is in a directory. If it is `whole`, what only the lower one has was removed.
    fn directory(
        &mut self,
        lower: Option<&OwnedFd>,
        upper: &OwnedFd,
        to: &Target<'_>,
        is_whole: bool,
        depth: usize,
    ) -> rustix::io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(Errno::LOOP);
        }
        let names = tree::names(upper)?;
        if let Some(lower) = lower.filter(|_| is_whole) {
            for name in tree::names(lower)? {
                if names.binary_search(&name).is_err() && visible(lower, &name)?.is_some() {
                    self.remove(to, &name)?;
                }
            }
        }
        for name in names {
            go_on(self.is_left)?;
            let before = lower.map(|lower| visible(lower, &name)).transpose()?;
            let before = before.flatten();
            let Some(stat) = visible(upper, &name)? else {
                if before.is_some() {
                    self.remove(to, &name)?;
                }
                continue;
            };
            let before = lower.zip(before.as_ref());
            if tree::is_directory(&stat) {
                self.subdirectory(before, (upper, &stat), &name, to, is_whole, depth)?;
                continue;
            }
            let is_same = match before {
                Some(before) if !self.keeps_same => {
                    is_same(before, (upper, &stat), &name, self.is_left)?
                }
                _ => false,
            };
            if !is_same {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let handle = openat(upper, &name, flags, Mode::empty())?;
                self.run.file(&handle, &stat, to, &name)?;
            }
        }
        Ok(())
    }

    fn subdirectory(
        &mut self,
        before: Option<(&OwnedFd, &Stat)>,
        (upper, stat): (&OwnedFd, &Stat),
        name: &OsStr,
        to: &Target<'_>,
        is_whole: bool,
        depth: usize,
    ) -> rustix::io::Result<()> {
        let directory = tree::open_below(upper, name)?;
        let target = Target::of(to, name, &directory, stat);
        let below = lower_directory(before, name)?;
        let is_same = match (before, &below) {
            (Some((_, before)), Some(below)) if !self.keeps_same => {
                is_same_directory((before, below), (stat, &directory))?
            }
            _ => false,
        };
        if !is_same {
            target.open(&self.run)?;
        }
        let is_whole = is_whole || tree::is_opaque(&directory);
        self.run.at.push(name);
        self.directory(below.as_ref(), &directory, &target, is_whole, depth + 1)?;
        self.run.at.pop();
        // What was written into it has changed its time.
        match target.get() {
            Some(opened) => self.run.times(stat, opened, OsStr::new(".")),
            None => Ok(()),
        }
    }

    fn remove(&self, to: &Target<'_>, name: &OsStr) -> rustix::io::Result<()> {
        let (directory, kind) = (to.open(&self.run)?, FileType::CharacterDevice);
        mknodat(directory, name, kind, Mode::empty(), makedev(0, 0))?;
        overlay::mark_whiteouts(directory)
    }
}

/// Returns whether [`write`] would write all that a layer has, and nothing else.
pub(super) fn is_minimal(lower: &OwnedFd, layer: &OwnedFd, is_left: IsLeft<'_>) -> Result<bool> {
    let failed = |error: Errno| Error::os("read a layer", error);
    let open = |directory: &OwnedFd| tree::open_below(directory, OsStr::new(".")).map_err(failed);
    let (lower, layer) = (open(lower)?, open(layer)?);
    let found = changes_of(Some(&lower), &layer, is_left, 0);
    Ok(found.map_err(failed)?.is_some())
}

/// Returns whether a directory of a layer has changes in it; `None` if it has something else.
fn changes_of(
    lower: Option<&OwnedFd>,
    layer: &OwnedFd,
    is_left: IsLeft<'_>,
    depth: usize,
) -> rustix::io::Result<Option<bool>> {
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    let mut has_changes = false;
    for name in tree::names(layer)? {
        go_on(is_left)?;
        let before = lower.map(|lower| visible(lower, &name)).transpose()?;
        let before = before.flatten();
        let before = lower.zip(before.as_ref());
        let is_changed = match visible(layer, &name)? {
            None => true,
            Some(stat) if tree::is_directory(&stat) => {
                let directory = tree::open_below(layer, &name)?;
                if tree::is_opaque(&directory) {
                    return Ok(None);
                }
                let below = lower_directory(before, &name)?;
                let inner = changes_of(below.as_ref(), &directory, is_left, depth + 1)?;
                let Some(has_inner) = inner else {
                    return Ok(None);
                };
                has_inner
                    || match (before, &below) {
                        (Some((_, before)), Some(below)) => {
                            !is_same_directory((before, below), (&stat, &directory))?
                        }
                        _ => true,
                    }
            }
            Some(stat) => match before {
                Some(before) => !is_same(before, (layer, &stat), &name, is_left)?,
                None => true,
            },
        };
        if !is_changed {
            return Ok(None);
        }
        has_changes = true;
    }
    Ok(Some(has_changes))
}

fn go_on(is_left: IsLeft<'_>) -> rustix::io::Result<()> {
    match is_left() {
        true => Err(Errno::CANCELED),
        false => Ok(()),
    }
}

/// Returns the file of a name, or `None` if there is none, or a whiteout. Of an overlay, names of whiteouts may be listed.
fn visible(directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<Stat>> {
    let found = tree::stat(directory, name)?;
    Ok(found.filter(|stat| !tree::is_whiteout(stat)))
}

/// Opens the directory that the lower tree has, if it has one.
fn lower_directory(
    before: Option<(&OwnedFd, &Stat)>,
    name: &OsStr,
) -> rustix::io::Result<Option<OwnedFd>> {
    let before = before.filter(|(_, stat)| tree::is_directory(stat));
    before
        .map(|(lower, _)| tree::open_below(lower, name))
        .transpose()
}

fn has_same_fields(before: &Stat, after: &Stat) -> bool {
    let fields = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    fields(before) == fields(after)
}

fn is_same_directory(
    before: (&Stat, &OwnedFd),
    after: (&Stat, &OwnedFd),
) -> rustix::io::Result<bool> {
    Ok(has_same_fields(before.0, after.0) && attributes(before.1)? == attributes(after.1)?)
}

/// Compares two files that are no directories, each with the directory that it is in.
fn is_same(
    before: (&OwnedFd, &Stat),
    after: (&OwnedFd, &Stat),
    name: &OsStr,
    is_left: IsLeft<'_>,
) -> rustix::io::Result<bool> {
    let (old, new) = (before.1, after.1);
    let is_same = has_same_fields(old, new)
        && old.st_size == new.st_size
        && old.st_mtime == new.st_mtime
        && (old.st_mtime_nsec == new.st_mtime_nsec
            || old.st_mtime_nsec == 0
            || new.st_mtime_nsec == 0);
    if !is_same {
        return Ok(false);
    }
    match FileType::from_raw_mode(new.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let open = |directory: &OwnedFd| openat(directory, name, flags, Mode::empty());
            let (old, new) = (open(before.0)?, open(after.0)?);
            if attributes(&old)? != attributes(&new)? {
                return Ok(false);
            }
            has_same_content(&old, &new, is_left)
        }
        FileType::Symlink => {
            let target = |directory: &OwnedFd| readlinkat(directory, name, Vec::new());
            Ok(target(before.0)? == target(after.0)?)
        }
        _ => Ok(true),
    }
}

/// Returns the extended attributes that belong to a file, sorted.
fn attributes(file: impl AsFd) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let (mut list, mut buffer) = (Vec::new(), Vec::new());
    let mut attributes = Vec::new();
    for name in xattr::names(&file, &mut list)? {
        // They belong to the place where the file is.
        if name.starts_with(xattr::OVERLAY) || name == b"security.selinux" {
            continue;
        }
        if let Some(value) = xattr::value(&file, name, &mut buffer)? {
            attributes.push((name.to_vec(), value.to_vec()));
        }
    }
    attributes.sort_unstable();
    Ok(attributes)
}

fn has_same_content(
    one: &OwnedFd,
    other: &OwnedFd,
    is_left: IsLeft<'_>,
) -> rustix::io::Result<bool> {
    const SIZE: usize = 128 << 10;
    let (mut first, mut second) = (vec![0; SIZE], vec![0; SIZE]);
    let mut at = 0;
    loop {
        go_on(is_left)?;
        let count = read_at(one, &mut first, at)?;
        if read_at(other, &mut second, at)? != count || first[..count] != second[..count] {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
        at += count as u64;
    }
}

/// Fills a buffer, unless the file ends before. Returns the number of bytes.
fn read_at(file: &OwnedFd, buffer: &mut [u8], at: u64) -> rustix::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(file, &mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use whelk_sys::{Scratch, fs};

    use super::*;
    use crate::ops::copy::set_time;

    /// A lower tree, an upper one, and an empty directory.
    struct Trees(Scratch);

    /// The time of all files, in nanoseconds.
    const TIME: i64 = 1_500_000_000_000_000_000;

    impl Trees {
        /// Makes the files `PATH=CONTENT`, the directories `PATH/`, the links `PATH>TARGET`, and whiteouts `PATH!`. Directories
        /// with `opaque` in their names are opaque.
        fn new(name: &str, lower: &str, upper: &str) -> Self {
            let scratch = Scratch::temporary(&format!("build-changes-{name}")).unwrap();
            for (root, files) in [("lower", lower), ("upper", upper), ("into", "")] {
                let root = scratch.path().join(root);
                std::fs::create_dir(&root).unwrap();
                for file in files.split_whitespace() {
                    make(&root, file);
                }
            }
            Self(scratch)
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }

        fn open(&self, name: &str) -> OwnedFd {
            fs::open(self.path(name)).unwrap().into()
        }

        /// Returns the changes in the form of [`Trees::new`].
        fn changes(&self, form: Form) -> String {
            let (lower, upper, into) = (self.open("lower"), self.open("upper"), self.open("into"));
            write(Some(&lower), &upper, form, &into, &|| false).unwrap();
            let mut found = Vec::new();
            list(&self.path("into"), "", &mut found);
            found.join(" ")
        }

        fn is_minimal(&self) -> bool {
            is_minimal(&self.open("lower"), &self.open("upper"), &|| false).unwrap()
        }
    }

    fn make(root: &Path, file: &str) {
        let (path, kind, rest) = match file.find(['=', '>', '!']) {
            Some(at) => (&file[..at], &file[at..=at], &file[at + 1..]),
            None => (file.trim_end_matches('/'), "/", ""),
        };
        let path = root.join(path);
        let parent = path.parent().unwrap();
        let above: Vec<&Path> = parent.ancestors().collect();
        for above in above.into_iter().rev().filter(|above| !above.exists()) {
            directory(above);
        }
        match kind {
            "=" => std::fs::write(&path, rest).unwrap(),
            ">" => symlink(rest, &path).unwrap(),
            "!" => {
                let (kind, number) = (FileType::CharacterDevice, makedev(0, 0));
                mknodat(rustix::fs::CWD, &path, kind, Mode::empty(), number).unwrap();
            }
            _ => directory(&path),
        }
        let parent: OwnedFd = fs::open(parent).unwrap().into();
        set_time(&parent, path.file_name().unwrap(), TIME).unwrap();
    }

    fn directory(path: &Path) {
        std::fs::create_dir(path).unwrap();
        if path.to_string_lossy().ends_with("opaque") {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(path, "trusted.overlay.opaque", b"y", flags).unwrap();
        }
    }

    fn list(directory: &Path, path: &str, found: &mut Vec<String>) {
        let opened: OwnedFd = fs::open(directory).unwrap().into();
        assert!(!tree::is_opaque(&opened), "{path}");
        for name in tree::names(&opened).unwrap() {
            let stat = tree::stat(&opened, &name).unwrap().unwrap();
            let (full, path) = (directory.join(&name), format!("{path}{}", name.display()));
            if tree::is_directory(&stat) {
                let before = found.len();
                list(&full, &format!("{path}/"), found);
                if found.len() == before {
                    found.push(format!("{path}/"));
                }
            } else if tree::is_whiteout(&stat) {
                assert_eq!(overlay::is_marked(&opened), Ok(true), "{path}");
                found.push(format!("{path}!"));
            } else if let Ok(target) = std::fs::read_link(&full) {
                found.push(format!("{path}>{}", target.display()));
            } else {
                found.push(format!("{path}={}", std::fs::read_to_string(full).unwrap()));
            }
        }
    }

    #[test]
    fn trees_are_compared() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let check = |lower: &str, upper: &str, expected: &str| {
            let trees = Trees::new("trees", lower, upper);
            assert_eq!(trees.changes(Form::Tree), expected, "{lower} -> {upper}");
        };
        check("", "", "");
        check("a=1 d/b=2", "a=1 d/b=2", "");
        check("a=1 b=1 c=1", "b=2 c=1 d=1", "a! b=2 d=1");
        check("a=1 d/e/b=2 d/c=3", "", "a! d!");
        check("", "a=1 d/e/b=2 x/", "a=1 d/e/b=2 x/");
        // What leads to a change is part of it, and nothing beside that.
        check("a/b/c/x=1 a/y=1 a/z/", "a/b/c/x=2 a/y=1 a/z/", "a/b/c/x=2");
        check("a/b/x=1 a/b/y=1", "a/b/y=1", "a/b/x!");
        // Other kinds of files.
        check(
            "a/x=1 b=1 c>x e>x",
            "a=1 b/x=1 c>y e=1",
            "a=1 b/x=1 c>y e=1",
        );
        // Whiteouts of a single layer.
        check("a!  b=1 c=1", "a=1 b! c=1 d!", "a=1 b!");
    }

    #[test]
    fn layers_lose_what_is_no_change() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let check = |lower: &str, upper: &str, expected: &str, is_minimal: bool| {
            let trees = Trees::new("layers", lower, upper);
            assert_eq!(trees.is_minimal(), is_minimal, "{lower} -> {upper}");
            assert_eq!(trees.changes(Form::Layer), expected, "{lower} -> {upper}");
        };
        check("a=1 d/x=1", "", "", true);
        check("a=1 d/x=1", "a=2 d/x! d/y=1", "a=2 d/x! d/y=1", true);
        check("a=1", "d/", "d/", true);
        check("a=1 d/x=1", "a=1 d/x=1", "", false);
        check("a=1 d/x=1", "d/", "", false);
        check(
            "d/opaque/x=1 d/opaque/s/y=1 d/opaque/s/z=1 d/opaque/t/u=1 d/same=1",
            "d/opaque/new=1 d/opaque/s/z=1 d/same=1",
            "d/opaque/new=1 d/opaque/s/y! d/opaque/t! d/opaque/x!",
            false,
        );
        // Whiteouts of what is not there do no harm.
        check("a=1 d/x=1", "a! d/none!", "a!", true);
        // A link is not followed: what it leads to is not what is removed.
        check("d>/bar bar/x=1", "d/x!", "d/", true);
    }

    #[test]
    fn whole_layers_keep_what_they_have() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let trees = Trees::new(
            "whole",
            "opaque/x=1 opaque/same=1 same=1",
            "opaque/new=1 opaque/same=1 same=1 e/",
        );
        let expected = "e/ opaque/new=1 opaque/same=1 opaque/x! same=1";
        assert_eq!(trees.changes(Form::WholeLayer), expected);
        // The lowest layer.
        let (upper, into) = (trees.open("upper"), trees.path("lowest"));
        std::fs::create_dir(&into).unwrap();
        let into: OwnedFd = fs::open(into).unwrap().into();
        write(None, &upper, Form::WholeLayer, &into, &|| false).unwrap();
        let mut found = Vec::new();
        list(&trees.path("lowest"), "", &mut found);
        assert_eq!(found.join(" "), "e/ opaque/new=1 opaque/same=1 same=1");
    }

    #[test]
    fn attributes_are_changes() {
        let files = "a=1 b=1 c=1 d/x=1 e/x=1 f/x=1";
        let trees = Trees::new("attributes", files, files);
        let upper = |name: &str| trees.path("upper").join(name);
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(upper("a"), mode.clone()).unwrap();
        std::fs::set_permissions(upper("d"), mode).unwrap();
        let root = trees.open("upper");
        let set = |name: &str, time: i64| {
            set_time(&root, OsStr::new(name), time).unwrap();
        };
        // A later second; a part of one, which archives may cut off; a directory.
        set("b", TIME + 1_000_000_000);
        set("c", TIME + 1);
        set("e", 0);
        let flags = rustix::fs::XattrFlags::empty();
        let has_attributes = rustix::fs::setxattr(upper("f"), "user.a", b"1", flags).is_ok();
        std::fs::hard_link(upper("a"), upper("link")).unwrap();
        let expected = match has_attributes {
            true => "a=1 b=1 d/ f/ link=1",
            false => "a=1 b=1 d/ link=1",
        };
        assert_eq!(trees.changes(Form::Tree), expected);
        let found = |name: &str| trees.path("into").join(name).metadata().unwrap();
        assert_eq!(found("a").mode() & 0o7777, 0o700);
        assert_eq!(found("d").mode() & 0o7777, 0o700);
        assert_eq!(found("a").ino(), found("link").ino());
        assert_eq!(found("b").mtime(), TIME / 1_000_000_000 + 1);
    }

    #[test]
    fn files_of_the_same_time_are_compared() {
        let trees = Trees::new("times", "a=1 b=1 l>x m>x", "a=2 b=1 l>y m>x");
        for tree in ["lower", "upper"] {
            let root = trees.open(tree);
            for name in ["a", "b", "l", "m"] {
                set_time(&root, OsStr::new(name), TIME + 1).unwrap();
            }
        }
        assert_eq!(trees.changes(Form::Tree), "a=2 l>y");
    }

    #[test]
    fn depth_is_limited() {
        let trees = Trees::new("depth", "", "");
        for name in ["lower", "upper"] {
            let mut directory = trees.open(name);
            for _ in 0..MAX_DEPTH + 2 {
                rustix::fs::mkdirat(&directory, "d", Mode::RWXU).unwrap();
                directory = tree::open_below(&directory, OsStr::new("d")).unwrap();
            }
            let (upper, into) = (trees.open(name), trees.open("into"));
            assert!(write(None, &upper, Form::Tree, &into, &|| false).is_err());
            assert!(write(Some(&upper), &upper, Form::Layer, &into, &|| false).is_err());
            assert!(is_minimal(&upper, &upper, &|| false).is_err());
        }
    }

    #[test]
    fn what_nobody_waits_for_ends() {
        let trees = Trees::new("left", "a=1", "a=1");
        let (lower, upper, into) = (trees.open("lower"), trees.open("upper"), trees.open("into"));
        assert!(write(Some(&lower), &upper, Form::Tree, &into, &|| true).is_err());
        assert!(is_minimal(&lower, &upper, &|| true).is_err());
    }
}
