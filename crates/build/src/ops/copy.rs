//! Copies between results, with the rules of BuildKit's `COPY`.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat, fstat,
    mkdirat, mknodat, openat, readlinkat, symlinkat, utimensat,
};
use rustix::io::Errno;
use whelk_sys::copy::Source;
use whelk_sys::{fs, in_root};

use super::chmod::Symbolic;
use crate::error::{Error, Result, os};
use crate::select::Selected;
use crate::tree::{self, Filter, MAX_DEPTH, Verdict};

/// How files are written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attributes {
    /// User and group; those of the copied file if there are none.
    pub owner: Option<(u32, u32)>,
    /// Permissions; those of the copied file if there are none.
    pub mode: Option<u32>,
    /// Time of modification in nanoseconds since the epoch; that of the copied file if there is none.
    pub time: Option<i64>,
}

/// A place to write to: an opened directory, and a name in it, which may not exist.
pub(crate) struct Place {
    pub parent: OwnedFd,
    pub name: OsString,
}

/// Maximum length of the path of a directory that is opened, in bytes: less than `PATH_MAX`.
const MAX_PATH: usize = 4000;

/// Maximum number of links that are followed to find a place, as in the kernel.
const MAX_LINKS: usize = 40;

/// Opens a directory below `root`; missing ones are created with these attributes, also where links lead to.
pub(crate) fn make_directories(
    root: &OwnedFd,
    path: &Path,
    mode: u32,
    attributes: &Attributes,
) -> Result<OwnedFd> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match make_until_link(root, &path, mode, attributes)? {
            Created::Opened(directory) => return Ok(directory),
            Created::Link(behind) => path = behind,
        }
    }
    let what = format!("create {}", path.display());
    Err(Error::os(what, Errno::LOOP))
}

/// The result of creating the directories of a path.
enum Created {
    Opened(OwnedFd),
    /// The path behind a link to something that does not exist.
    Link(PathBuf),
}

fn make_until_link(
    root: &OwnedFd,
    path: &Path,
    mode: u32,
    attributes: &Attributes,
) -> Result<Created> {
    let failed = |error: std::io::Error| Error::os(format!("create {}", path.display()), error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut missing: Vec<OsString> = Vec::new();
    let mut at = path.to_owned();
    // The nearest directory above that exists. Links in the path are resolved in the root.
    let mut directory = loop {
        match in_root::open(root, &at, flags, Mode::empty()) {
            Ok(directory) => break directory,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        match at.components().next_back() {
            Some(Component::Normal(name)) => missing.push(name.to_owned()),
            _ => return Err(failed(Errno::NOENT.into())),
        }
        at.pop();
    };
    while let Some(name) = missing.pop() {
        match mkdirat(&directory, &name, Mode::from_raw_mode(mode)) {
            Ok(()) => {
                set_created(&directory, &name, mode, attributes)
                    .map_err(|error| failed(error.into()))?;
            }
            Err(Errno::EXIST) => {
                if let Ok(target) = link_target(&directory, &name) {
                    // An absolute target replaces the path.
                    let behind = at.join(target);
                    let rest = missing.iter().rev();
                    return Ok(Created::Link(
                        rest.fold(behind, |path, name| path.join(name)),
                    ));
                }
            }
            Err(error) => return Err(failed(error.into())),
        }
        directory = tree::open_below(&directory, &name).map_err(|error| failed(error.into()))?;
        at.push(name);
    }
    Ok(Created::Opened(directory))
}

/// Returns what a symbolic link names.
fn link_target(directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let target = readlinkat(directory, name, Vec::new())?;
    Ok(PathBuf::from(OsStr::from_bytes(target.to_bytes())))
}

fn set_created(
    parent: &OwnedFd,
    name: &OsStr,
    mode: u32,
    attributes: &Attributes,
) -> rustix::io::Result<()> {
    if let Some((uid, gid)) = attributes.owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        chownat(
            parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    if let Some(time) = attributes.time {
        set_time(parent, name, time)?;
    }
    Ok(())
}

/// Sets both times of a file, in nanoseconds since the epoch.
pub(crate) fn set_time(parent: &OwnedFd, name: &OsStr, time: i64) -> rustix::io::Result<()> {
    const SECOND: i64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: time.div_euclid(SECOND),
        tv_nsec: time.rem_euclid(SECOND),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Finds the place of a path, following links at its end. Its directory exists.
pub(crate) fn place(root: &OwnedFd, path: &Path) -> Result<Place> {
    let failed = |error: std::io::Error| Error::os(format!("open {}", path.display()), error);
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Some(Component::Normal(name)) = at.components().next_back() else {
            return Err(failed(Errno::ISDIR.into()));
        };
        let above = at.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let parent = in_root::open(root, above, flags, Mode::empty()).map_err(failed)?;
        match link_target(&parent, name) {
            // Absolute targets replace the path.
            Ok(target) => at = above.join(target),
            Err(Errno::INVAL | Errno::NOENT) => {
                let name = name.to_owned();
                return Ok(Place { parent, name });
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
    Err(failed(Errno::LOOP.into()))
}

/// A copy of one selected file or directory.
pub(crate) struct Copy<'a> {
    pub root: &'a OwnedFd,
    /// With a slash at the end if it is a directory in any case.
    pub destination: &'a str,
    pub attributes: Attributes,
    /// Replaces the mode of [`Copy::attributes`].
    pub symbolic: Option<&'a Symbolic>,
    pub filter: &'a Filter,
    /// Whether the content of a directory is copied, not the directory.
    pub contents: bool,
    /// Whether files of another kind are replaced.
    pub replaces: bool,
    /// Whether files keep their capabilities. Those of a client's directory do not, as with BuildKit.
    pub keeps_capabilities: bool,
}

impl Copy<'_> {
    pub fn run(&self, selected: &Selected) -> Result<()> {
        let failed = |error: Errno| {
            let what = format!("copy {} to {}", selected.path, self.destination);
            Error::os(what, error)
        };
        let clean = crate::select::clean(self.destination);
        let mut path = PathBuf::from(&clean);
        let is_directory = tree::is_directory(&selected.stat);
        let above = if self.destination.ends_with('/') {
            path.clone()
        } else {
            path.parent().unwrap_or(Path::new("/")).to_owned()
        };
        let exists =
            |path: &Path| in_root::open(self.root, path, OFlags::PATH, Mode::empty()).is_ok();
        let mut is_new = !exists(&path);
        make_directories(self.root, &above, 0o755, &self.attributes)?;
        let existing = in_root::open(self.root, &path, OFlags::PATH, Mode::empty()).ok();
        let is_into = existing
            .as_ref()
            .map(|handle| fstat(handle).map(|stat| tree::is_directory(&stat)))
            .transpose()
            .map_err(failed)?;
        if (is_directory && !self.contents && is_into.is_some())
            || (!is_directory && is_into == Some(true))
        {
            // The root has no name of its own: its content is copied.
            if selected.name != "/" {
                path.push(&selected.name);
            }
            is_new = !exists(&path);
        }
        let mut run = Run::new(self, None);
        if is_directory {
            let from = tree::open_below(&selected.handle, OsStr::new(".")).map_err(failed)?;
            let target = make_directories(self.root, &path, 0o755, &self.attributes)?;
            let is_new = is_new && self.filter.is_all();
            if is_new {
                run.made(&from, &selected.stat, &target).map_err(failed)?;
            }
            let top = rustix::io::fcntl_dupfd_cloexec(&target, 0).map_err(failed)?;
            run.top = Some(top);
            let target = Target::opened(target);
            run.content(&from, &target, "", &Verdict::default(), 0)
                .map_err(failed)?;
            // The files that were created in it have changed its time.
            if let (true, Some(opened)) = (is_new, target.get()) {
                run.times(&selected.stat, opened, OsStr::new("."))
                    .map_err(failed)?;
            }
            return Ok(());
        }
        let place = place(self.root, &path)?;
        let target = Target::opened(place.parent);
        run.file(&selected.handle, &selected.stat, &target, &place.name)
            .map_err(failed)
    }
}

/// A directory that is created when something is put into it.
pub(super) struct Target<'a> {
    opened: OnceCell<OwnedFd>,
    /// The directory that it is in, its name, and the directory that it is a copy of.
    origin: Option<(&'a Target<'a>, &'a OsStr, &'a OwnedFd, &'a Stat)>,
}

impl<'a> Target<'a> {
    pub(super) fn opened(directory: OwnedFd) -> Self {
        Self {
            opened: OnceCell::from(directory),
            origin: None,
        }
    }

    /// Returns the copy of the directory `from` with a name in another one.
    pub(super) fn of(
        parent: &'a Target<'a>,
        name: &'a OsStr,
        from: &'a OwnedFd,
        stat: &'a Stat,
    ) -> Self {
        Self {
            opened: OnceCell::new(),
            origin: Some((parent, name, from, stat)),
        }
    }

    /// Returns the directory if it was created.
    pub(super) fn get(&self) -> Option<&OwnedFd> {
        self.opened.get()
    }

    pub(super) fn open(&self, run: &Run<'_>) -> rustix::io::Result<&OwnedFd> {
        if let Some(directory) = self.opened.get() {
            return Ok(directory);
        }
        let Some((above, name, from, stat)) = self.origin else {
            return Err(Errno::NOENT);
        };
        let parent = above.open(run)?;
        match tree::stat(parent, name)? {
            Some(found) if tree::is_directory(&found) => {}
            Some(_) if !run.copy.replaces => return Err(Errno::NOTDIR),
            found => {
                if found.is_some() {
                    tree::remove(parent, name)?;
                }
                mkdirat(parent, name, Mode::RWXU)?;
            }
        }
        let directory = tree::open_below(parent, name)?;
        run.directory_attributes(from, stat, &directory)?;
        Ok(self.opened.get_or_init(|| directory))
    }
}

pub(super) struct Run<'a> {
    copy: &'a Copy<'a>,
    /// The copy of the directory whose content is copied, and the path of the one below that is filled now.
    top: Option<OwnedFd>,
    pub(super) at: PathBuf,
    /// The first copy of each file that has hard links, by device and inode: its path below `top`. There may be more than
    /// there are descriptors.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<'a> Run<'a> {
    pub(super) fn new(copy: &'a Copy<'a>, top: Option<OwnedFd>) -> Self {
        Self {
            copy,
            top,
            at: PathBuf::new(),
            links: HashMap::new(),
        }
    }
}

impl Run<'_> {
    fn content(
        &mut self,
        from: &OwnedFd,
        to: &Target<'_>,
        path: &str,
        verdict: &Verdict,
        depth: usize,
    ) -> rustix::io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(Errno::LOOP);
        }
        for name in tree::names(from)? {
            let below = tree::join(path, &name);
            let (is_taken, may_have, inner) = self.copy.filter.takes(&below, verdict);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let handle = openat(from, &name, flags, Mode::empty())?;
            let stat = fstat(&handle)?;
            if !tree::is_directory(&stat) {
                if is_taken {
                    self.file(&handle, &stat, to, &name)?;
                }
                continue;
            }
            if !is_taken && !may_have {
                continue;
            }
            let directory = tree::open_below(from, &name)?;
            let target = Target::of(to, &name, &directory, &stat);
            if is_taken {
                target.open(self)?;
            }
            self.at.push(&name);
            self.content(&directory, &target, &below, &inner, depth + 1)?;
            self.at.pop();
            // The files that were created in it have changed its time.
            if let Some(opened) = target.get() {
                self.times(&stat, opened, OsStr::new("."))?;
            }
        }
        Ok(())
    }

    fn owner(&self, stat: &Stat) -> (u32, u32) {
        let own = (stat.st_uid, stat.st_gid);
        self.copy.attributes.owner.unwrap_or(own)
    }

    fn mode(&self, stat: &Stat) -> Mode {
        let own = stat.st_mode & 0o7777;
        if let Some(symbolic) = self.copy.symbolic {
            return Mode::from_raw_mode(symbolic.apply(own, tree::is_directory(stat)));
        }
        Mode::from_raw_mode(self.copy.attributes.mode.unwrap_or(own))
    }

    #[allow(
        clippy::useless_conversion,
        clippy::cast_possible_wrap,
        reason = "the field types differ between architectures"
    )]
    pub(super) fn times(
        &self,
        stat: &Stat,
        parent: &OwnedFd,
        name: &OsStr,
    ) -> rustix::io::Result<()> {
        const SECOND: i64 = 1_000_000_000;
        let own = i64::from(stat.st_mtime)
            .saturating_mul(SECOND)
            .saturating_add(stat.st_mtime_nsec as i64);
        set_time(parent, name, self.copy.attributes.time.unwrap_or(own))
    }

    /// Sets the attributes of the directory that was made for a copy. One that is made for the content of another has not the
    /// mode of that one, as with BuildKit: a context's directory may be closed to others than its owner.
    fn made(&self, from: &OwnedFd, stat: &Stat, to: &OwnedFd) -> rustix::io::Result<()> {
        if !self.copy.contents {
            return self.directory_attributes(from, stat, to);
        }
        match (self.copy.attributes.mode, self.copy.symbolic) {
            (Some(mode), None) => rustix::fs::fchmod(to, Mode::from_raw_mode(mode)),
            _ => Ok(()),
        }
    }

    fn directory_attributes(
        &self,
        from: &OwnedFd,
        stat: &Stat,
        to: &OwnedFd,
    ) -> rustix::io::Result<()> {
        whelk_sys::copy::attributes(from, to, Source::Layers)?;
        let (uid, gid) = self.owner(stat);
        rustix::fs::fchown(to, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::fchmod(to, self.mode(stat))?;
        self.times(stat, to, OsStr::new("."))
    }

    /// Copies a file that is no directory.
    pub(super) fn file(
        &mut self,
        handle: &OwnedFd,
        stat: &Stat,
        to: &Target<'_>,
        name: &OsStr,
    ) -> rustix::io::Result<()> {
        let parent = to.open(self)?;
        if let Some(found) = tree::stat(parent, name)? {
            if tree::is_directory(&found) && !self.copy.replaces {
                return Err(Errno::ISDIR);
            }
            tree::remove(parent, name)?;
        }
        let key = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(known) = self.links.get(&key)
            && let Some(top) = &self.top
        {
            let above = known.parent().unwrap_or(Path::new(""));
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let first = in_root::open_no_links(top, above, flags);
            let first = first.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            let known = known.file_name().unwrap_or_default();
            return rustix::fs::linkat(first, known, parent, name, AtFlags::empty());
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut file = None;
        match kind {
            FileType::Symlink => {
                let target = readlinkat(handle, "", Vec::new())?;
                symlinkat(target.as_c_str(), parent, name)?;
            }
            FileType::RegularFile => {
                let input = fs::reopen(handle)?;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let output = openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                whelk_sys::copy::data(&input, &output, size)?;
                whelk_sys::copy::attributes(&input, &output, Source::Layers)?;
                file = Some((input, output));
            }
            FileType::Socket => return Ok(()),
            kind => mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
        }
        let (uid, gid) = self.owner(stat);
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        // The owner is set before the mode, because changing it clears the set-id bits.
        chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            chmodat(parent, name, self.mode(stat), AtFlags::empty())?;
        }
        if let Some((input, output)) = &file
            && self.copy.keeps_capabilities
        {
            whelk_sys::copy::capabilities(input, output)?;
        }
        self.times(stat, parent, name)?;
        // A path that is too long cannot be linked to: later links of the file become files of their own.
        let is_short = self.at.as_os_str().len() < MAX_PATH;
        if stat.st_nlink > 1 && is_short && self.top.is_some() {
            self.links.insert(key, self.at.join(name));
        }
        Ok(())
    }
}

/// Writes a new file, and replaces what is there.
pub(crate) fn write(place: &Place, data: &[u8], mode: u32, attributes: &Attributes) -> Result<()> {
    let failed = |error: Errno| Error::os(format!("write {}", place.name.display()), error);
    if let Some(found) = tree::stat(&place.parent, &place.name).map_err(failed)? {
        if tree::is_directory(&found) {
            return Err(failed(Errno::ISDIR));
        }
        tree::remove(&place.parent, &place.name).map_err(failed)?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file =
        openat(&place.parent, &place.name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, data)
        .map_err(os(format!("write {}", place.name.display())))?;
    set_created(&place.parent, &place.name, mode, attributes).map_err(failed)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use whelk_llb::key::Selector;
    use whelk_sys::Scratch;

    use super::*;
    use crate::select;

    struct Roots {
        scratch: Scratch,
        from: OwnedFd,
        to: OwnedFd,
    }

    impl Roots {
        /// Makes both trees; names that end with a slash are directories.
        fn new(name: &str, from: &[&str], to: &[&str]) -> Self {
            let scratch = Scratch::temporary(&format!("build-copy-{name}")).unwrap();
            for (root, files) in [("from", from), ("to", to)] {
                let root = scratch.path().join(root);
                std::fs::create_dir(&root).unwrap();
                for file in files {
                    let path = root.join(file);
                    if file.ends_with('/') {
                        std::fs::create_dir_all(path).unwrap();
                    } else {
                        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                        std::fs::write(path, *file).unwrap();
                    }
                }
            }
            let open = |name: &str| fs::open(scratch.path().join(name)).unwrap().into();
            let (from, to) = (open("from"), open("to"));
            Self { scratch, from, to }
        }

        fn copy_with(&self, source: &str, destination: &str, lists: [&[&str]; 2]) -> Result<()> {
            self.copy_as(source, destination, lists, true)
        }

        fn copy_as(
            &self,
            source: &str,
            destination: &str,
            lists: [&[&str]; 2],
            contents: bool,
        ) -> Result<()> {
            let selector = Selector {
                path: source.into(),
                wildcard: true,
                follow: true,
                ..Selector::default()
            };
            let [include, exclude] =
                lists.map(|list| list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
            let filter = Filter::new(&include, &exclude)?;
            let copy = Copy {
                root: &self.to,
                destination,
                attributes: Attributes {
                    owner: Some((1, 2)),
                    ..Attributes::default()
                },
                filter: &filter,
                symbolic: None,
                contents,
                replaces: false,
                keeps_capabilities: true,
            };
            for selected in select::find(&self.from, &selector)? {
                copy.run(&selected)?;
            }
            Ok(())
        }

        fn copy(&self, source: &str, destination: &str) -> Result<()> {
            self.copy_with(source, destination, [&[], &[]])
        }

        /// Returns the files and the empty directories.
        fn found(&self) -> Vec<String> {
            fn walk(directory: &Path, path: &str, found: &mut Vec<String>) {
                let mut names: Vec<_> = std::fs::read_dir(directory)
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect();
                names.sort();
                if names.is_empty() && !path.is_empty() {
                    found.push(path.to_owned());
                }
                for name in names {
                    let below = directory.join(&name);
                    let path = format!("{path}{name}");
                    if below.symlink_metadata().unwrap().is_dir() {
                        walk(&below, &format!("{path}/"), found);
                    } else {
                        found.push(path);
                    }
                }
            }
            let mut found = Vec::new();
            walk(&self.scratch.path().join("to"), "", &mut found);
            found
        }
    }

    #[test]
    fn destinations_follow_the_rules_of_copy() {
        let check = |source: &str, destination: &str, expected: &[&str]| {
            let roots = Roots::new(
                "rules",
                &["one", "two", "d/x", "d/e/y", "d/n/"],
                &["old/file"],
            );
            roots.copy(source, destination).unwrap();
            let mut expected = expected.to_vec();
            if !expected.iter().any(|path| path.starts_with("old/")) {
                expected.push("old/file");
            }
            expected.sort_unstable();
            assert_eq!(roots.found(), expected, "{source} {destination}");
        };
        check("one", "/new", &["new"]);
        check("one", "/new/", &["new/one"]);
        check("one", "/old", &["old/file", "old/one"]);
        check("one", "/a/b/c", &["a/b/c"]);
        check("one", "/old/file", &["old/file"]);
        check("*o*", "/new/", &["new/one", "new/two"]);
        check("d", "/new", &["new/e/y", "new/n/", "new/x"]);
        check("d", "/old/", &["old/e/y", "old/file", "old/n/", "old/x"]);
        check("d/*", "/new/", &["new/x", "new/y"]);
    }

    #[test]
    fn a_directory_is_copied_under_its_name_and_the_root_as_its_content() {
        for (source, destination, expected) in [
            ("d", "/new", "new/x"),
            ("d", "/new/", "new/d/x"),
            ("d", "/old", "old/d/x"),
            ("/", "/new", "new/d/x"),
            ("/", "/new/", "new/d/x"),
            ("/", "/old", "old/d/x"),
            ("/", "/", "d/x"),
        ] {
            let roots = Roots::new("names", &["d/x"], &["old/"]);
            roots
                .copy_as(source, destination, [&[], &[]], false)
                .unwrap();
            let found = roots.found();
            let mut found = found.iter().filter(|path| *path != "old/");
            assert_eq!(found.next().unwrap(), expected, "{source} {destination}");
            assert_eq!(found.next(), None, "{source} {destination}");
        }
    }

    #[test]
    fn nothing_is_written_outside() {
        let roots = Roots::new("outside", &["one", "d/x"], &["in/"]);
        let (to, outside) = (
            roots.scratch.path().join("to"),
            roots.scratch.path().join("outside"),
        );
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, to.join("absolute")).unwrap();
        symlink("../../../../outside", to.join("up")).unwrap();
        symlink("/in", to.join("link")).unwrap();
        symlink("/in/new", to.join("dangling")).unwrap();
        for destination in [
            "/absolute/x",
            "/up/x/y",
            "/absolute/",
            "/../../outside/../up/x",
        ] {
            let _ = roots.copy("one", destination);
            let _ = roots.copy("d", destination);
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        roots.copy("one", "/link/").unwrap();
        roots.copy("one", "/dangling").unwrap();
        for path in ["in/one", "in/new"] {
            assert_eq!(std::fs::read(to.join(path)).unwrap(), b"one", "{path}");
        }
    }

    #[test]
    fn filters_make_only_the_directories_that_are_needed() {
        let files = ["a/one.txt", "a/two.log", "b/c/three.txt", "d/four.log"];
        let roots = Roots::new("filters", &files, &[]);
        roots
            .copy_with("/", "/new", [&["**/*.txt"], &["b/**/x"]])
            .unwrap();
        assert_eq!(roots.found(), ["new/a/one.txt", "new/b/c/three.txt"]);
        let roots = Roots::new("excluded", &files, &[]);
        roots.copy_with("/", "/new", [&[], &["*/*.log"]]).unwrap();
        let expected = ["new/a/one.txt", "new/b/c/three.txt", "new/d/"];
        assert_eq!(roots.found(), expected);
    }

    #[test]
    fn owners_links_and_times_are_kept_or_set() {
        let roots = Roots::new("attributes", &["d/x", "d/e/f/z", "d/a/"], &[]);
        let from = roots.scratch.path().join("from/d");
        std::fs::hard_link(from.join("x"), from.join("y")).unwrap();
        for (file, link) in [("x", "e/x"), ("e/f/z", "a/z"), ("e/f/z", "e/z")] {
            std::fs::hard_link(from.join(file), from.join(link)).unwrap();
        }
        symlink("x", from.join("link")).unwrap();
        set_time(&roots.from, OsStr::new("d/x"), 1_500_000_000).unwrap();
        roots.copy("d", "/new").unwrap();
        let meta = |name: &str| {
            let path = roots.scratch.path().join("to/new").join(name);
            path.symlink_metadata().unwrap()
        };
        for (one, other) in [("x", "y"), ("x", "e/x"), ("e/f/z", "a/z"), ("a/z", "e/z")] {
            assert_eq!(meta(one).ino(), meta(other).ino(), "{one} {other}");
        }
        assert_eq!((meta("x").nlink(), meta("a/z").nlink()), (3, 3));
        assert_eq!(
            (meta("x").mtime(), meta("x").mtime_nsec()),
            (1, 500_000_000)
        );
        for name in ["", "x", "link"] {
            assert_eq!((meta(name).uid(), meta(name).gid()), (1, 2), "{name}");
        }
        assert!(meta("link").is_symlink());
    }

    #[test]
    fn a_directory_for_the_content_of_another_is_open() {
        use std::os::unix::fs::PermissionsExt as _;
        let roots = Roots::new("closed", &["d/x", "d/e/"], &[]);
        let closed = std::fs::Permissions::from_mode(0o700);
        for name in ["from/d", "from/d/e"] {
            std::fs::set_permissions(roots.scratch.path().join(name), closed.clone()).unwrap();
        }
        roots.copy("d", "/new").unwrap();
        let mode = |name: &str| {
            let path = roots.scratch.path().join(name);
            path.metadata().unwrap().permissions().mode() & 0o7777
        };
        assert_eq!((mode("to/new"), mode("to/new/e")), (0o755, 0o700));
    }

    #[test]
    fn a_file_does_not_replace_a_directory() {
        let roots = Roots::new("kinds", &["d/x", "e/x/y"], &["x/file"]);
        assert!(roots.copy("d", "/").is_err());
        let roots = Roots::new("kinds", &["e/x/y"], &["x"]);
        assert!(roots.copy("e", "/").is_err());
        assert_eq!(roots.found(), ["x"]);
    }
}
