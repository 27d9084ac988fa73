//! Storage of image content on disk.
//!
//! ```text
//! <root>/blobs/sha256/<digits>     image configurations, by digest
//! <root>/layers/<digits>/…         unpacked layers, by diff ID; an image's topmost layer also has its init layer
//! <root>/tmp/<random>/…            incomplete objects; moved to the trash when the engine starts
//! <root>/trash/<random>            deleted objects; removed in the background after the engine has started
//! ```
//! Objects are created in `tmp/` and renamed when they are complete, so an object found under its
//! name is never partial.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use whelk_sys::fs;

use crate::compression::decompress;
use crate::digest::Digest;
use crate::error::{Error, Result, io};
use crate::layer;

/// Blobs and layers on disk, addressed by digest.
#[derive(Clone, Debug)]
pub struct ContentStore {
    root: PathBuf,
}

/// A layer that was unpacked into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub diff_id: Digest,
    /// Total size of file content in bytes.
    pub size: u64,
}

/// A temporary directory, removed on drop.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
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

/// Maximum size of an image configuration in bytes.
pub const MAX_CONFIG_SIZE: u64 = 8 << 20;

impl ContentStore {
    /// Opens the store at `root`, creating its directories, and moves incomplete objects of an
    /// earlier run to the trash.
    pub fn open(root: &Path) -> Result<Self> {
        for (directory, mode) in [
            ("blobs/sha256", 0o700),
            ("layers", 0o700),
            ("tmp", 0o700),
            ("trash", 0o700),
        ] {
            fs::create_dir_all(root.join(directory), mode)?;
        }
        let store = Self {
            root: root.to_owned(),
        };
        for entry in fs::list(root.join("tmp"))? {
            store.trash(&entry.path())?;
        }
        Ok(store)
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

    /// Creates a temporary directory for an object under construction.
    pub fn scratch(&self) -> Result<Scratch> {
        let path = self.root.join("tmp").join(random_name());
        fs::create_dir(&path, 0o700)?;
        Ok(Scratch(path))
    }

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    /// Returns the directory with a layer's files, for an overlay mount.
    pub fn layer_files(&self, diff_id: &Digest) -> PathBuf {
        self.layer_path(diff_id).join("fs")
    }

    /// Returns the lower directories of an overlay of these layers (given lowest first), topmost
    /// first, without duplicates.
    pub fn lower_layers(&self, diff_ids: &[Digest]) -> Vec<PathBuf> {
        distinct(
            diff_ids
                .iter()
                .rev()
                .map(|diff_id| self.layer_files(diff_id)),
        )
    }

    /// Stores a blob durably and returns its digest.
    pub fn put_blob(&self, content: &[u8]) -> Result<Digest> {
        let digest = Digest::of(content);
        let path = self.blob_path(&digest);
        if !fs::exists(&path) {
            let staged = self.root.join("tmp").join(random_name());
            let mut file = fs::create(&staged, 0o600)?;
            file.write_all(content)
                .and_then(|()| file.sync_data())
                .map_err(fs::at("write", &staged))?;
            fs::rename(&staged, &path)?;
        }
        Ok(digest)
    }

    /// Reads a blob.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if it does not exist, and [`Error::Invalid`] if its content does
    /// not match its digest.
    pub fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let content = match fs::read_at_most(self.blob_path(digest), MAX_CONFIG_SIZE) {
            Err(error) if error.is_not_found() => {
                return Err(Error::NotFound(format!(
                    "blob {digest} is not in the store"
                )));
            }
            result => result?,
        };
        if Digest::of(&content) == *digest {
            Ok(content)
        } else {
            Err(Error::invalid(format!("blob {digest} is damaged")))
        }
    }

    /// Returns the digests of all blobs.
    pub fn blobs(&self) -> Result<Vec<Digest>> {
        let entries = fs::list(self.root.join("blobs/sha256"))?;
        Ok(entries
            .iter()
            .filter_map(|entry| {
                format!("sha256:{}", entry.file_name().to_str()?)
                    .parse()
                    .ok()
            })
            .collect())
    }

    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        fs::exists(self.layer_path(diff_id))
    }

    /// Unpacks a layer from its plain or compressed archive.
    ///
    /// # Errors
    /// Returns [`Error::Invalid`] if the archive is hostile or damaged, or its diff ID is not
    /// `expected`.
    pub fn put_layer(&self, archive: impl Read + Send, expected: Option<&Digest>) -> Result<Layer> {
        let scratch = self.scratch()?;
        let applied = layer::apply(decompress(archive)?, scratch.path())?;
        if let Some(expected) = expected.filter(|expected| **expected != applied.diff_id) {
            return Err(Error::invalid(format!(
                "invalid diffID: expected {expected}, got {}",
                applied.diff_id
            )));
        }
        fs::write(scratch.path().join("size"), applied.size.to_string())?;
        // The layer's own directory has mode 0700, so that only root reaches the files in it
        // (CVE-2021-41091).
        match fs::rename(scratch.path(), self.layer_path(&applied.diff_id)) {
            // A concurrent load stored the same layer first; this copy is dropped.
            Err(_) if self.has_layer(&applied.diff_id) => {}
            result => result?,
        }
        Ok(Layer {
            diff_id: applied.diff_id,
            size: applied.size,
        })
    }

    /// Returns the total size of a layer's file content in bytes.
    pub fn layer_size(&self, diff_id: &Digest) -> Result<u64> {
        let text = fs::read_to_string(self.layer_path(diff_id).join("size"))?;
        text.trim()
            .parse()
            .map_err(|_| Error::invalid(format!("layer {diff_id} has no size")))
    }

    /// Writes the original uncompressed archive of a layer.
    pub fn write_layer(&self, diff_id: &Digest, output: &mut impl Write) -> Result<()> {
        layer::replay(&self.layer_path(diff_id), output)
    }

    /// Moves all blobs and layers that are not listed to the trash and returns their paths there.
    /// The caller removes them, which can take long. Nothing may be added to the store meanwhile.
    ///
    /// # Errors
    /// Returns the first error; the other objects are moved nevertheless, and are removed at the
    /// engine's next start.
    pub fn gc(&self, blobs: &BTreeSet<Digest>, layers: &BTreeSet<Digest>) -> Result<Vec<PathBuf>> {
        let mut outcome = Ok(Vec::new());
        for (directory, known) in [("blobs/sha256", blobs), ("layers", layers)] {
            let known: BTreeSet<&OsStr> = known
                .iter()
                .map(|digest| OsStr::new(digest.hex()))
                .collect();
            for entry in fs::list(self.root.join(directory))? {
                if known.contains(entry.file_name().as_os_str()) {
                    continue;
                }
                match (self.trash(&entry.path()), &mut outcome) {
                    (Ok(trashed), Ok(all)) => all.extend(trashed),
                    (Err(error), Ok(_)) => outcome = Err(error),
                    (_, Err(_)) => {}
                }
            }
        }
        outcome
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

    /// Returns the path of an object that was moved with [`ContentStore::trash_as`].
    pub fn trashed(&self, name: &str) -> PathBuf {
        self.root.join("trash").join(name)
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

/// Removes duplicates from a stack of layers: overlayfs refuses a lower directory that is given
/// twice.
pub(crate) fn distinct(layers: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut lower: Vec<PathBuf> = Vec::new();
    for files in layers {
        if !lower.contains(&files) {
            lower.push(files);
        }
    }
    lower
}

/// Returns a random file name of 24 hexadecimal digits.
pub(crate) fn random_name() -> String {
    let mut bytes = [0u8; 12];
    // getrandom(2) does not fail for so few bytes once the generator is seeded, which it is long
    // before the engine starts.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
