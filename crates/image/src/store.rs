//! Image content on disk: blobs, unpacked layers, and where both come from and go to.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use whelk_sys::fs;

use crate::content::Content;
use crate::digest::Digest;
use crate::error::{Result, io};
use crate::snapshots::Snapshots;
use crate::staging::Staging;

/// The image content of an engine. An object found under its name is never partial.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    pub content: Content,
    pub snapshots: Snapshots,
    pub staging: Staging,
}

impl Store {
    /// Opens the store at `root`, creating its directories, and moves incomplete objects of an
    /// earlier run to the trash.
    pub fn open(root: &Path) -> Result<Self> {
        let staging = Staging::open(root)?;
        Ok(Self {
            root: root.to_owned(),
            content: Content::open(root, staging.clone())?,
            snapshots: Snapshots::open(root, staging.clone())?,
            staging,
        })
    }

    /// Moves all blobs and layers that are not listed to the trash and returns their paths there.
    /// The caller removes them, which can take long. Nothing may be added to the store meanwhile.
    ///
    /// # Errors
    /// Returns the first error; the other objects are moved nevertheless, and are removed at the
    /// engine's next start.
    pub fn gc(&self, blobs: &BTreeSet<Digest>, layers: &BTreeSet<Digest>) -> Result<Vec<PathBuf>> {
        let mut outcome = Ok(Vec::new());
        let kinds = [
            (self.content.directory(), blobs),
            (self.snapshots.directory(), layers),
        ];
        for (directory, known) in kinds {
            let known: BTreeSet<&OsStr> = known
                .iter()
                .map(|digest| OsStr::new(digest.hex()))
                .collect();
            for entry in fs::list(directory)? {
                if known.contains(entry.file_name().as_os_str()) {
                    continue;
                }
                match (self.staging.trash(&entry.path()), &mut outcome) {
                    (Ok(trashed), Ok(all)) => all.extend(trashed),
                    (Err(error), Ok(_)) => outcome = Err(error),
                    (_, Err(_)) => {}
                }
            }
        }
        outcome
    }

    /// Flushes the store's file system (syncfs(2)), so that a record may refer to new objects.
    pub fn sync(&self) -> Result<()> {
        let root = rustix::fs::open(
            &self.root,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(fs::at("open", &self.root))?;
        rustix::fs::syncfs(&root)
            .map_err(|error| io(format!("sync {}", self.root.display()))(error.into()))
    }
}
