//! File operations with errors that name the operation and the path.
//!
//! All other crates use these instead of `std::fs` (banned by clippy.toml), so that no error reads
//! just "No such file or directory".
#![allow(
    clippy::disallowed_methods,
    reason = "this module is the wrapper that the ban points to"
)]

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, utimensat};

use crate::errno_text;

/// Operation, path and cause of an error: "open /etc/x: no such file or directory".
#[derive(Debug)]
pub struct PathError {
    pub operation: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl PathError {
    pub fn new(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self {
            operation,
            path: path.into(),
            source: source.into(),
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

impl std::fmt::Display for PathError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {}: {}",
            self.operation,
            self.path.display(),
            errno_text(&self.source)
        )
    }
}

// No `source()`: the text includes the cause already, which would be printed twice.
impl std::error::Error for PathError {}

pub type Result<T> = std::result::Result<T, PathError>;

/// Returns a closure for `map_err` that adds the operation and the path to an I/O error.
pub fn at<E: Into<io::Error>>(
    operation: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(E) -> PathError {
    move |source| PathError::new(operation, path.as_ref(), source)
}

pub fn open(path: impl AsRef<Path>) -> Result<File> {
    File::open(&path).map_err(at("open", path))
}

/// Returns the path in `/proc` that leads to what a descriptor refers to, whatever name it has by now.
pub fn descriptor_path(fd: impl AsFd) -> PathBuf {
    Path::new("/proc/self/fd").join(fd.as_fd().as_raw_fd().to_string())
}

/// Returns the path of what a descriptor refers to, from the root of its mounts if these are in no mount
/// namespace.
pub fn path_of(fd: impl AsFd) -> Option<PathBuf> {
    std::fs::read_link(descriptor_path(fd)).ok()
}

/// Opens the file that a descriptor, which may be one of `O_PATH`, refers to for reading.
pub fn reopen(fd: impl AsFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(descriptor_path(fd), flags, Mode::empty())
}

/// Creates or truncates a file with the given permission bits.
pub fn create(path: impl AsRef<Path>, mode: u32) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&path)
        .map_err(at("create", path))
}

/// Opens a file to append to, creating it with the given permission bits.
pub fn append(path: impl AsRef<Path>, mode: u32) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .read(true)
        .create(true)
        .mode(mode)
        .open(&path)
        .map_err(at("open", path))
}

pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    std::fs::read(&path).map_err(at("read", path))
}

pub fn read_to_string(path: impl AsRef<Path>) -> Result<String> {
    std::fs::read_to_string(&path).map_err(at("read", path))
}

/// Reads a file of at most `most` bytes.
///
/// # Errors
/// Returns `InvalidData` if the file is larger, so that an untrusted file cannot exhaust memory.
pub fn read_at_most(path: impl AsRef<Path>, most: u64) -> Result<Vec<u8>> {
    read_limited(open(&path)?, path.as_ref(), most)
}

/// Reads a regular file of at most `most` bytes, or the one that a symbolic link leads to. Also
/// returns what the file is. Nothing is waited for: opening a FIFO could block.
///
/// # Errors
/// Returns `InvalidData` if the file is larger, or not a regular file.
pub fn read_regular(path: impl AsRef<Path>, most: u64) -> Result<(Vec<u8>, Metadata)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path.as_ref(), flags, Mode::empty()).map_err(at("open", &path))?;
    let file = File::from(file);
    let found = file.metadata().map_err(at("stat", &path))?;
    if !found.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidData, "not a regular file");
        return Err(PathError::new("open", path.as_ref(), error));
    }
    Ok((read_limited(file, path.as_ref(), most)?, found))
}

fn read_limited(file: File, path: &Path, most: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut content)
        .map_err(at("read", path))?;
    if content.len() as u64 > most {
        let text = format!("larger than {most} bytes");
        let error = io::Error::new(io::ErrorKind::InvalidData, text);
        return Err(PathError::new("read", path, error));
    }
    Ok(content)
}

pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
    crate::fallible_step().map_err(at("write", &path))?;
    std::fs::write(&path, content).map_err(at("write", path))
}

/// Starts writing a file's content to disk and does not wait for it: a later sync takes less time. See
/// sync_file_range(2).
pub fn start_writeback(file: &File) {
    // SAFETY: the call takes only a descriptor, which is open, and numbers.
    let result =
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    // Not all file systems support it, and the later sync reports errors of the disk.
    let _ = result;
}

/// Like [`write()`]. The file is created with the given permission bits; those of an existing one are
/// left as they are.
pub fn write_with_mode(path: impl AsRef<Path>, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    crate::fallible_step().map_err(at("write", &path))?;
    let mut file = create(&path, mode)?;
    file.write_all(content.as_ref()).map_err(at("write", path))
}

/// Creates a file with the given permission bits, unless it exists.
pub fn write_new(path: impl AsRef<Path>, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    let mut options = OpenOptions::new();
    let mut file = match options.write(true).create_new(true).mode(mode).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        opened => opened.map_err(at("create", &path))?,
    };
    let written = crate::fallible_step().and_then(|()| file.write_all(content.as_ref()));
    written.map_err(|error| {
        // It would be taken for complete.
        let _ = std::fs::remove_file(&path);
        at("write", path)(error)
    })
}

/// Replaces a file atomically: readers see either the old or the new content. The file is not
/// synced to disk.
pub fn replace(path: impl AsRef<Path>, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    crate::fallible_step().map_err(at("write", &path))?;
    let path = path.as_ref();
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let staged = path.with_file_name(name);
    let mut file = create(&staged, mode)?;
    file.write_all(content.as_ref())
        .map_err(at("write", &staged))?;
    rename(&staged, path)
}

pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    crate::fallible_step().map_err(at("rename", &from))?;
    std::fs::rename(&from, to).map_err(at("rename", from))
}

pub fn create_dir(path: impl AsRef<Path>, mode: u32) -> Result<()> {
    crate::fallible_step().map_err(at("mkdir", &path))?;
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .mode(mode)
        .create(&path)
        .map_err(at("mkdir", path))
}

/// Creates a directory and its missing parents, all with the given permission bits.
pub fn create_dir_all(path: impl AsRef<Path>, mode: u32) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .mode(mode)
        .recursive(true)
        .create(&path)
        .map_err(at("mkdir", path))
}

pub fn remove_file(path: impl AsRef<Path>) -> Result<()> {
    crate::fallible_step().map_err(at("remove", &path))?;
    std::fs::remove_file(&path).map_err(at("remove", path))
}

pub fn remove_dir(path: impl AsRef<Path>) -> Result<()> {
    crate::fallible_step().map_err(at("rmdir", &path))?;
    std::fs::remove_dir(&path).map_err(at("rmdir", path))
}

/// Removes a tree or a file without following symbolic links or entering mounts. A missing one is
/// not an error.
pub fn remove_tree(path: impl AsRef<Path>) -> Result<()> {
    crate::fallible_step().map_err(at("remove", &path))?;
    crate::remove::tree(path.as_ref()).map_err(at("remove", path))
}

/// Like [`remove_tree`], and calls `after_step` after each file or directory that was removed.
pub fn remove_tree_in_steps(path: impl AsRef<Path>, after_step: &mut dyn FnMut()) -> Result<()> {
    crate::fallible_step().map_err(at("remove", &path))?;
    crate::remove::tree_in_steps(path.as_ref(), after_step).map_err(at("remove", path))
}

/// Removes a file if it exists.
pub fn remove_if_exists(path: impl AsRef<Path>) -> Result<()> {
    match remove_file(path) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Returns the entries of a directory, sorted by name.
pub fn list(path: impl AsRef<Path>) -> Result<Vec<std::fs::DirEntry>> {
    let mut entries = std::fs::read_dir(&path)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(at("list", path))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    Ok(entries)
}

/// Returns the metadata of `path` itself; symbolic links are not followed.
pub fn metadata(path: impl AsRef<Path>) -> Result<Metadata> {
    std::fs::symlink_metadata(&path).map_err(at("stat", path))
}

/// Sets the times of `path` to now, to note when it was used last.
pub fn touch(path: impl AsRef<Path>) -> Result<()> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW as _,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    utimensat(CWD, path.as_ref(), &times, AtFlags::empty()).map_err(at("set the time of", path))
}

/// Whether `path` exists; symbolic links are not followed.
pub fn exists(path: impl AsRef<Path>) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

pub fn set_mode(path: impl AsRef<Path>, mode: u32) -> Result<()> {
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(at("chmod", path))
}

pub fn read_link(path: impl AsRef<Path>) -> Result<PathBuf> {
    std::fs::read_link(&path).map_err(at("readlink", path))
}

pub fn hard_link(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    crate::fallible_step().map_err(at("link", &from))?;
    std::fs::hard_link(&from, to).map_err(at("link", from))
}

/// Returns the absolute form of a path with all symbolic links resolved.
pub fn canonicalize(path: impl AsRef<Path>) -> Result<PathBuf> {
    std::fs::canonicalize(&path).map_err(at("resolve", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_operation_and_path() {
        let error = open("/nonexistent/x").expect_err("no such file");
        assert_eq!(
            error.to_string(),
            "open /nonexistent/x: no such file or directory"
        );
    }

    #[test]
    fn an_existing_file_keeps_its_mode_or_its_content() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = crate::Scratch::temporary("fs").expect("a directory");
        let path = scratch.path().join("file");
        let mode = || {
            let found = metadata(&path).expect("it exists");
            found.permissions().mode() & 0o777
        };
        write_new(&path, "first", 0o600).expect("it is created");
        write_new(&path, "second", 0o644).expect("it is left");
        assert_eq!(read(&path).expect("it can be read"), b"first");
        write_with_mode(&path, "third", 0o644).expect("it is overwritten");
        assert_eq!(read(&path).expect("it can be read"), b"third");
        assert_eq!(mode(), 0o600);
        remove_file(&path).expect("it can be removed");
        write_with_mode(&path, "fourth", 0o640).expect("it is created");
        assert_eq!(mode(), 0o640);
    }

    #[test]
    fn read_at_most_rejects_larger_files() {
        let error = read_at_most("/proc/self/maps", 8).expect_err("maps has more than 8 bytes");
        assert!(
            error.to_string().ends_with("larger than 8 bytes"),
            "{error}"
        );
    }
}
