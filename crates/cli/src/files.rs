//! Replaces files and directories of the user's configuration atomically.

use std::collections::BTreeSet;
use std::fs::{DirEntry, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

const OWNER_ONLY: u32 = 0o700;

/// How a staged file or directory is named, with a random number between the two.
const STAGED: (&str, &str) = (".whelk-", ".part");

/// The age at which a staged file or directory counts as abandoned.
const STALE: Duration = Duration::from_secs(60 * 60);

/// Maximum size of a file of the configuration in bytes.
pub(crate) const MAX_SIZE: u64 = 4 << 20;

/// Creates a file beside `path`, to be written and then renamed to it. Its name does not contain that
/// of `path`, which may be of the maximum length.
pub(crate) fn stage(path: &Path) -> io::Result<(File, PathBuf)> {
    create_beside(path, |staged| {
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        options.open(staged)
    })
}

/// An incomplete file, which is removed unless it is renamed.
#[derive(Debug)]
pub(crate) struct Staged(pub PathBuf);

impl Staged {
    pub(crate) fn rename(self, path: &Path) -> io::Result<()> {
        std::fs::rename(&self.0, path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file that a command writes for its user: one that is replaced when all of it is there, or a device or pipe.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    /// Where it is until then, and its path.
    staged: Option<(Staged, PathBuf)>,
}

impl Output {
    /// Opens it. A file that is there keeps its mode and its owner, and a link to it stays. Blocks while nobody reads a pipe.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let old = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            result => Some(result?),
        };
        if old.as_ref().is_some_and(|old| !old.is_file()) {
            let file = File::options().write(true).open(path)?;
            return Ok(Self { file, staged: None });
        }
        let path = match old {
            Some(_) => path.canonicalize()?,
            None => path.to_owned(),
        };
        let (file, staged) = create_beside(&path, |staged| {
            File::options().write(true).create_new(true).open(staged)
        })?;
        let staged = Staged(staged);
        if let Some(old) = old {
            // Only root may give files to others.
            let _ = fchown(&file, Some(old.uid()), Some(old.gid()));
            file.set_permissions(old.permissions())?;
        }
        Ok(Self {
            file,
            staged: Some((staged, path)),
        })
    }

    /// Gives a file that is complete its name.
    pub(crate) fn finish(self) -> io::Result<()> {
        let Some((staged, path)) = self.staged else {
            return Ok(());
        };
        self.file.sync_all()?;
        staged.rename(&path)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Creates a directory beside `path`, to be filled and then passed to [`replace_directory`]. Missing
/// parents are created.
pub(crate) fn stage_directory(path: &Path) -> io::Result<PathBuf> {
    if let Some(parent) = path.parent() {
        create_directories(parent, OWNER_ONLY)?;
        remove_stale(parent);
    }
    let create = |staged: &Path| std::fs::DirBuilder::new().mode(OWNER_ONLY).create(staged);
    create_beside(path, create).map(|((), staged)| staged)
}

/// Removes what interrupted commands have staged in a directory: it may contain private keys.
fn remove_stale(directory: &Path) {
    let is_stale = |entry: &DirEntry| {
        let name = entry.file_name();
        let is_staged = name
            .to_str()
            .and_then(|name| name.strip_prefix(STAGED.0)?.strip_suffix(STAGED.1))
            .is_some_and(|random| random.len() == 16);
        let modified = || entry.metadata().and_then(|metadata| metadata.modified());
        is_staged && modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age > STALE))
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(is_stale) {
        // A failure concerns only the next clean-up.
        let _ = match entry.file_type() {
            Ok(kind) if kind.is_dir() => remove_directory(&entry.path()),
            _ => std::fs::remove_file(entry.path()),
        };
    }
}

fn create_beside<T>(
    path: &Path,
    create: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf)> {
    const ATTEMPTS: usize = 16;
    let mut created = Err(io::ErrorKind::AlreadyExists.into());
    for _ in 0..ATTEMPTS {
        let random = RandomState::new().build_hasher().finish();
        let staged = path.with_file_name(format!("{}{random:016x}{}", STAGED.0, STAGED.1));
        created = create(&staged).map(|created| (created, staged));
        if !matches!(&created, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
            break;
        }
    }
    created
}

/// Replaces a file: readers, also after a crash, find either the old or the new content. An existing
/// file keeps its owner and its permissions, a new one is its owner's only. A symbolic link is followed.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_within(path, content, 0o777)
}

/// Like [`replace`], for a file that only its owner may read from now on.
pub(crate) fn replace_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_within(path, content, 0o700)
}

/// Replaces a file, which keeps the permissions that are in `allowed`.
fn replace_within(path: &Path, content: &[u8], allowed: u32) -> io::Result<()> {
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if let Some(parent) = target.parent() {
        remove_stale(parent);
    }
    let (mut file, staged) = stage(&target)?;
    let mut write = || {
        if let Ok(old) = target.metadata() {
            let mut mode = old.permissions().mode() & allowed;
            // With sudo, the file may belong to another user. Otherwise only its group may be foreign.
            if fchown(&file, Some(old.uid()), Some(old.gid())).is_err() {
                mode &= 0o707;
            }
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        }
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&staged, &target)
    };
    let replaced = write();
    if replaced.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    replaced
}

/// Replaces a directory by one beside it, whose name is free afterwards.
pub(crate) fn replace_directory(new: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => return remove_directory(new),
        Err(Errno::NOENT) => return std::fs::rename(new, path),
        // Not every file system supports an exchange.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    replace_files(new, path)?;
    remove_directory(new)
}

/// Replaces the files of a directory by those of another one, each atomically. For a moment the
/// directory has old and new ones, but never none: a context without them would be used without TLS.
fn replace_files(new: &Path, path: &Path) -> io::Result<()> {
    create_directories(path, OWNER_ONLY)?;
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(new)? {
        let (entry, target) = entry.map(|entry| (entry.path(), path.join(entry.file_name())))?;
        if entry.is_dir() {
            if !target.is_dir() {
                remove(&target)?;
            }
            replace_files(&entry, &target)?;
        } else {
            if target.is_dir() {
                remove(&target)?;
            }
            std::fs::rename(&entry, &target)?;
        }
        names.insert(target);
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?.path();
        if !names.contains(&entry) {
            remove(&entry)?;
        }
    }
    Ok(())
}

/// Removes a file, or a directory with its content, if it exists.
fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => remove_directory(path),
        removed => removed,
    }
}

/// Creates a directory and its missing parents.
pub(crate) fn create_directories(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
}

/// Removes a directory with its content, if it exists, also what its owner may not write to.
pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(path)?;
            std::fs::remove_dir_all(path)
        }
        removed => removed,
    }
}

/// Lets the owner change a directory, and those below it.
fn make_writable(path: &Path) -> io::Result<()> {
    let mode = path.symlink_metadata()?.permissions().mode();
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode | OWNER_ONLY))?;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
}

/// Reads a file of at most `MAX_SIZE` bytes.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_at_most(path, MAX_SIZE)
}

/// Reads a file of at most `most` bytes.
pub(crate) fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn replacing_files_one_by_one_leaves_only_the_new_ones() {
        let scratch = Scratch::temporary("replace").unwrap();
        let dir = scratch.path();
        let (new, old) = (dir.join("new"), dir.join("old"));
        for (path, content) in [
            ("old/docker/ca.pem", "old ca"),
            ("old/docker/key.pem", "old key"),
            ("old/file", ""),
            ("old/other/ca.pem", ""),
            ("new/docker/ca.pem", "new ca"),
            ("new/file/cert.pem", "cert"),
            ("new/other", "file"),
        ] {
            let path = dir.join(path);
            create_directories(path.parent().unwrap(), 0o700).unwrap();
            std::fs::write(path, content).unwrap();
        }
        replace_files(&new, &old).unwrap();
        let names = |path: &Path| {
            let entries = std::fs::read_dir(path).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&old), ["docker", "file", "other"]);
        assert_eq!(names(&old.join("docker")), ["ca.pem"]);
        for (path, content) in [
            ("docker/ca.pem", "new ca"),
            ("file/cert.pem", "cert"),
            ("other", "file"),
        ] {
            assert_eq!(std::fs::read_to_string(old.join(path)).unwrap(), content);
        }
        // A directory that does not exist yet.
        replace_files(&old, &new.join("x")).unwrap();
        assert_eq!(names(&new.join("x/docker")), ["ca.pem"]);
    }

    #[test]
    fn what_interrupted_commands_have_staged_is_removed() {
        let scratch = Scratch::temporary("stale").unwrap();
        let dir = scratch.path();
        let path = dir.join("certificates");
        let interrupted = stage_directory(&path).unwrap();
        std::fs::write(interrupted.join("key.pem"), "KEY").unwrap();
        let (_, interrupted_file) = stage(&path).unwrap();
        let unrelated = dir.join(".whelk-x.part");
        std::fs::write(&unrelated, "").unwrap();
        let age = |path: &Path, age: Duration| {
            let file = File::open(path).unwrap();
            file.set_modified(std::time::SystemTime::now() - age)
                .unwrap();
        };
        age(&interrupted_file, STALE / 2);
        for path in [&interrupted, &unrelated] {
            age(path, STALE * 2);
        }
        let staged = stage_directory(&path).unwrap();
        assert!(!interrupted.exists());
        // Another command may still be writing.
        assert!(interrupted_file.exists() && unrelated.exists() && staged.exists());
        age(&interrupted_file, STALE * 2);
        replace(&path, b"content").unwrap();
        assert!(!interrupted_file.exists());
    }

    #[test]
    fn replacing_keeps_permissions_and_links() {
        let scratch = Scratch::temporary("files").unwrap();
        let dir = scratch.path();
        let (path, link) = (dir.join("file"), dir.join("link"));
        let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
        replace(&path, b"one").unwrap();
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        replace(&link, b"two").unwrap();
        assert_eq!((mode(), read(&path).unwrap()), (0o640, b"two".to_vec()));
        assert!(link.is_symlink());
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1), Some(2)).unwrap();
            replace(&path, b"two").unwrap();
            let found = path.metadata().unwrap();
            assert_eq!((found.uid(), found.gid(), mode()), (1, 2, 0o640));
        }
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 2);
        remove_directory(dir).unwrap();
        remove_directory(dir).unwrap();
    }
}
