//! Temporary directories.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::fs::{self, Result};

/// A temporary directory, removed on drop.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates a temporary directory, whose parent exists. What a process that was killed has left
    /// at this path is deleted.
    ///
    /// # Errors
    /// Returns an error if what is there cannot be deleted, or the directory cannot be created.
    pub fn at(path: PathBuf) -> Result<Self> {
        fs::remove_tree(&path)?;
        fs::create_dir(&path, 0o700)?;
        Ok(Self(path))
    }

    /// Creates a directory, whose name contains `name`, in the system's directory of temporary files.
    ///
    /// # Errors
    /// As [`Scratch::at`].
    pub fn temporary(name: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("whelk-{name}-{}-{number}", std::process::id());
        Self::at(std::env::temp_dir().join(name))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody could handle an error. The engine's next start removes what is left in its root.
        let _ = fs::remove_tree(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletes_existing_content_of_the_path_and_itself() {
        let outer = Scratch::temporary("scratch").expect("a directory");
        let path = outer.path().join("inner");
        fs::create_dir(&path, 0o700).expect("a directory");
        fs::write(path.join("left"), "").expect("a file");
        let inner = Scratch::at(path.clone()).expect("a directory");
        assert!(fs::list(inner.path()).expect("its entries").is_empty());
        drop(inner);
        assert!(!fs::exists(&path));
    }
}
