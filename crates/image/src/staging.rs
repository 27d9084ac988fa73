//! Where objects are created and where deleted ones go.
//!
//! ```text
//! <root>/tmp/<random>/…     incomplete objects; moved to the trash when the engine starts
//! <root>/trash/<random>     deleted objects; removed in the background after the engine has started
//! ```
//! Both are on the same file system as the objects, so that an object appears under its name, and
//! disappears from it, by one rename.

use std::path::{Path, PathBuf};
use std::time::Duration;

use whelk_sys::fs;

use crate::error::Result;

/// The directories for objects under construction and for deleted objects.
#[derive(Clone, Debug)]
pub struct Staging {
    root: PathBuf,
}

/// A temporary directory, removed on drop.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates a temporary directory, whose parent exists. What a process that was killed has left
    /// at this path is deleted.
    pub fn at(path: PathBuf) -> Result<Self> {
        fs::remove_tree(&path)?;
        fs::create_dir(&path, 0o700)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If this fails, the engine's next start removes it.
        let _ = fs::remove_tree(&self.0);
    }
}

impl Staging {
    /// Opens the directories below an engine's root, and moves incomplete objects of an earlier run
    /// to the trash.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        for directory in ["tmp", "trash"] {
            fs::create_dir_all(root.join(directory), 0o700)?;
        }
        let staging = Self {
            root: root.to_owned(),
        };
        for entry in fs::list(root.join("tmp"))? {
            staging.trash(&entry.path())?;
        }
        Ok(staging)
    }

    /// Creates a temporary directory for an object under construction.
    pub fn scratch(&self) -> Result<Scratch> {
        Scratch::at(self.path())
    }

    /// Returns a path for a new file or directory under construction.
    pub(crate) fn path(&self) -> PathBuf {
        self.root.join("tmp").join(random_name())
    }

    /// Removes what earlier runs left in the trash. This can take long and can fail permanently (an
    /// immutable file, a disk with errors), so nothing should wait for it.
    ///
    /// # Errors
    /// Returns the first error; the remaining entries are removed nevertheless.
    pub fn empty_trash(&self) -> Result<()> {
        let mut outcome = Ok(());
        for entry in fs::list(self.root.join("trash"))? {
            outcome = outcome.and(fs::remove_tree(entry.path()));
        }
        Ok(outcome?)
    }

    /// Moves a file or directory to the trash and removes it there. After a crash in between, the
    /// engine's next start removes it.
    pub fn discard(&self, path: &Path) -> Result<()> {
        let Some(trashed) = self.trash(path)? else {
            return Ok(());
        };
        Ok(fs::remove_tree(trashed)?)
    }

    /// Moves a file or directory to the trash, without removing it. Returns `None` if it does not
    /// exist. Takes constant time.
    pub fn trash(&self, path: &Path) -> Result<Option<PathBuf>> {
        self.trash_as(path, &random_name())
    }

    /// Moves to the trash under a given name, so that the object can be restored.
    pub fn trash_as(&self, path: &Path, name: &str) -> Result<Option<PathBuf>> {
        let trashed = self.trashed(name);
        match fs::rename(path, &trashed) {
            Ok(()) => Ok(Some(trashed)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the path of an object that was moved with [`Staging::trash_as`].
    pub fn trashed(&self, name: &str) -> PathBuf {
        self.root.join("trash").join(name)
    }
}

/// Returns whether a file was last changed less than `age` ago. A time in the future does not count:
/// the clock was wrong once.
pub(crate) fn is_younger(metadata: &std::fs::Metadata, age: Duration) -> bool {
    let changed = metadata.modified();
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|old| old < age))
}

/// Returns a random file name of 24 hexadecimal digits.
pub(crate) fn random_name() -> String {
    let mut bytes = [0u8; 12];
    // getrandom(2) does not fail for so few bytes once the generator is seeded, which it is long
    // before the engine starts.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_at_the_path_is_deleted() {
        let name = format!("whelk-scratch-{}", random_name());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path, 0o700).unwrap();
        fs::write(path.join("left"), "").unwrap();
        let scratch = Scratch::at(path).unwrap();
        assert!(fs::list(scratch.path()).unwrap().is_empty());
    }
}
