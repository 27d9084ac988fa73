//! Temporary directories.

use std::path::{Path, PathBuf};

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

    /// Creates a directory in the system's directory of temporary files. `name` is unique among
    /// those of this process.
    ///
    /// # Errors
    /// As [`Scratch::at`].
    pub fn temporary(name: &str) -> Result<Self> {
        Self::at(std::env::temp_dir().join(format!("whelk-{name}-{}", std::process::id())))
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
