//! Directories of tests without an engine.

use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A new directory below that for temporary files. It is removed on drop, so also when a test fails.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// # Panics
    /// Panics if it cannot be created.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("whelk-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("create a directory for a test");
        Self(path)
    }

    /// Creates a directory in it, unless that exists, and returns its path.
    ///
    /// # Panics
    /// Panics if it cannot be created.
    #[must_use]
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(&path).expect("create a directory for a test");
        path
    }
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
