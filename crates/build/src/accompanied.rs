//! Files of results with statements about them beside them, for outputs that are files.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use serde_json::Value;
use whelk_image::digest::Hashing;
use whelk_sys::in_root;

use crate::Builder;
use crate::error::{Error, Result, os};
use crate::layers::View;
use crate::request::Solved;
use crate::statement::{Statement, subject};

impl Solved {
    /// Like [`Solved::mount`], with files for statements about all of the result's regular files. `name` makes the name of such a
    /// file. Blocking.
    ///
    /// # Errors
    /// Returns an error if the files cannot be read or written, or if two have the same name.
    pub fn mount_with(
        &self,
        builder: &Builder,
        statements: &[Statement],
        name: impl Fn(&str) -> String,
    ) -> Result<View> {
        if statements.is_empty() {
            return self.mount(builder);
        }
        let subjects = subjects(&self.mount(builder)?.root)?;
        let view = self.stack.mount_writable(builder.store())?;
        let mut names = BTreeSet::new();
        for statement in statements {
            let statement = statement.encode(&subjects, None, true)?;
            let name = name(&statement.file);
            write(&view.root, &name, &statement.bytes)?;
            if !names.insert(name.clone()) {
                let text = format!("duplicate attestation path name {name}");
                return Err(Error::invalid(text));
            }
        }
        Ok(view)
    }
}

/// Writes a file of the topmost directory, instead of what has its name.
fn write(root: &OwnedFd, name: &str, bytes: &[u8]) -> Result<()> {
    let failed = || format!("write {name}");
    if name.contains('/') {
        return Err(Error::invalid(format!("invalid attestation name {name:?}")));
    }
    match rustix::fs::unlinkat(root, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(Error::os(failed(), error)),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = rustix::fs::openat(root, name, flags, mode).map_err(os(failed()))?;
    std::fs::File::from(file)
        .write_all(bytes)
        .map_err(os(failed()))
}

impl View {
    /// Returns the paths of all files that are no directories. Blocking.
    ///
    /// # Errors
    /// Returns an error if a directory cannot be read.
    pub fn paths(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        walk(&self.root, |path, _, _| {
            found.push(path.to_string_lossy().into_owned());
            Ok(())
        })?;
        Ok(found)
    }
}

/// Returns all regular files with their digests.
fn subjects(root: &OwnedFd) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    walk(root, |path, kind, file| {
        if kind != FileType::RegularFile {
            return Ok(());
        }
        let mut hashing = Hashing::new(std::fs::File::from(file()?));
        let copied = std::io::copy(&mut hashing, &mut std::io::sink());
        copied.map_err(os(format!("read {}", path.display())))?;
        let (digest, ..) = hashing.finish();
        found.push(subject(&path.to_string_lossy(), &[digest.as_str()]));
        Ok(())
    })?;
    found.sort_by_key(|subject| subject["name"].as_str().unwrap_or_default().to_owned());
    Ok(found)
}

/// Visits all files that are no directories: their paths, relative to the root, their types, and what opens them.
fn walk(
    root: &OwnedFd,
    mut visit: impl FnMut(&Path, FileType, &dyn Fn() -> Result<OwnedFd>) -> Result<()>,
) -> Result<()> {
    let mut directories = vec![PathBuf::from("/")];
    while let Some(path) = directories.pop() {
        let failed = || format!("read {}", path.display());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = in_root::open(root, &path, flags, Mode::empty()).map_err(os(failed()))?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory).map_err(os(failed()))? {
            let entry = entry.map_err(os(failed()))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort();
        for name in names {
            let name = Path::new(std::ffi::OsStr::from_bytes(&name));
            let path = path.join(name);
            let failed = || format!("read {}", path.display());
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let stat = rustix::fs::statat(&directory, name, flags).map_err(os(failed()))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => directories.push(path),
                kind => {
                    let open = || {
                        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        let file = rustix::fs::openat(&directory, name, flags, Mode::empty());
                        file.map_err(os(failed()))
                    };
                    visit(path.strip_prefix("/").unwrap_or(&path), kind, &open)?;
                }
            }
        }
    }
    Ok(())
}
