//! Replaces files and directories of the user's configuration atomically.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

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

/// Creates a directory beside `path`, to be filled and then passed to [`replace_directory`]. Missing
/// parents are created.
pub(crate) fn stage_directory(path: &Path) -> io::Result<PathBuf> {
    const OWNER_ONLY: u32 = 0o700;
    if let Some(parent) = path.parent() {
        create_directories(parent, OWNER_ONLY)?;
    }
    let create = |staged: &Path| std::fs::DirBuilder::new().mode(OWNER_ONLY).create(staged);
    create_beside(path, create).map(|((), staged)| staged)
}

fn create_beside<T>(
    path: &Path,
    create: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf)> {
    const ATTEMPTS: usize = 16;
    let mut created = Err(io::ErrorKind::AlreadyExists.into());
    for _ in 0..ATTEMPTS {
        let random = RandomState::new().build_hasher().finish();
        let staged = path.with_file_name(format!(".whelk-{random:016x}.part"));
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
    let (mut file, staged) = stage(&target)?;
    let mut write = || {
        if let Ok(old) = target.metadata() {
            let mut mode = old.permissions().mode() & allowed;
            // With sudo, the file is another user's. Without, its group may be one of others.
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
        // Not every file system can.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    let old = new.with_extension("old");
    std::fs::rename(path, &old)?;
    if let Err(error) = std::fs::rename(new, path) {
        let _ = std::fs::rename(&old, path);
        return Err(error);
    }
    remove_directory(&old)
}

/// Creates a directory and its missing parents.
pub(crate) fn create_directories(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
}

/// Removes a directory with its content, if it exists.
pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Reads a file of at most `MAX_SIZE` bytes.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?
        .take(MAX_SIZE + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > MAX_SIZE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_keeps_permissions_and_links() {
        let dir = std::env::temp_dir().join(format!("whelk-files-{}", std::process::id()));
        create_directories(&dir, 0o700).unwrap();
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
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
        remove_directory(&dir).unwrap();
        remove_directory(&dir).unwrap();
    }
}
