//! What images are made of, on disk.
//!
//! ```text
//! <root>/blobs/sha256/<digits>     configurations, by digest
//! <root>/layers/<digits>/…         unpacked layers, by diff-id; in the topmost one of an image its init layer
//! <root>/tmp/<random>/…            what is being made; thrown away when the engine starts
//! <root>/trash/<random>            what is being removed; emptied behind the engine's start
//! ```
//! Everything is made in `tmp/` and renamed when it is whole, so nothing half-made is ever found
//! under its name.

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

#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// A layer as it was found or made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub diff_id: Digest,
    /// Bytes of file content.
    pub size: u64,
}

/// A directory that is removed again unless it is kept.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed at the next start.
        let _ = fs::remove_tree(&self.0);
    }
}

/// Configurations are small texts; anything larger is none.
pub const LARGEST_CONFIG: u64 = 8 << 20;

impl Store {
    /// Opens the store below `root`, making its directories and throwing away what was being made
    /// in an earlier run.
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

    /// Removes what earlier runs left in the trash. Takes its time, and may fail for good (an
    /// immutable file, a disk with errors): nobody should wait for it.
    ///
    /// # Errors
    /// The first one; the rest is removed all the same.
    pub fn empty_trash(&self) -> Result<()> {
        let mut outcome = Ok(());
        for entry in fs::list(self.root.join("trash"))? {
            outcome = outcome.and(fs::remove_tree(entry.path()));
        }
        Ok(outcome?)
    }

    /// A new directory for something that is being made.
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

    /// Where the files of a layer are, for an overlay mount.
    pub fn layer_files(&self, diff_id: &Digest) -> PathBuf {
        self.layer_path(diff_id).join("fs")
    }

    /// The directories to mount for these layers (given from the bottom up), the topmost first,
    /// each once.
    pub fn lower_layers(&self, diff_ids: &[Digest]) -> Vec<PathBuf> {
        distinct(
            diff_ids
                .iter()
                .rev()
                .map(|diff_id| self.layer_files(diff_id)),
        )
    }

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

    /// # Errors
    /// [`Error::NotFound`] when there is none; [`Error::Invalid`] when what is there is not what
    /// its name says.
    pub fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let content = match fs::read_at_most(self.blob_path(digest), LARGEST_CONFIG) {
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

    /// All blobs there are.
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

    /// Unpacks a layer from its archive, compressed or not.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a hostile or damaged archive, and for one whose content is not
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
        // Readers of images need not be root, but nobody enters this directory from outside
        // (CVE-2021-41091).
        match fs::rename(scratch.path(), self.layer_path(&applied.diff_id)) {
            // Another load was faster with the same layer; ours is thrown away.
            Err(_) if self.has_layer(&applied.diff_id) => {}
            result => result?,
        }
        Ok(Layer {
            diff_id: applied.diff_id,
            size: applied.size,
        })
    }

    /// Bytes of file content in a layer.
    pub fn layer_size(&self, diff_id: &Digest) -> Result<u64> {
        let text = fs::read_to_string(self.layer_path(diff_id).join("size"))?;
        text.trim()
            .parse()
            .map_err(|_| Error::invalid(format!("layer {diff_id} has no size")))
    }

    /// Writes the archive of a layer, as it came.
    pub fn write_layer(&self, diff_id: &Digest, output: &mut impl Write) -> Result<()> {
        layer::replay(&self.layer_path(diff_id), output)
    }

    /// Takes all blobs and layers out of the store that are not among these, and returns where they
    /// are for now: who calls this removes them, when nobody waits for it. Nothing may be coming in
    /// meanwhile.
    ///
    /// # Errors
    /// The first one; the others are taken out all the same, and removed at the next start.
    pub fn keep_only(
        &self,
        blobs: &BTreeSet<Digest>,
        layers: &BTreeSet<Digest>,
    ) -> Result<Vec<PathBuf>> {
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
    /// next start does.
    pub fn discard(&self, path: &Path) -> Result<()> {
        let Some(trashed) = self.trash(path)? else {
            return Ok(());
        };
        Ok(fs::remove_tree(trashed)?)
    }

    /// Moves something to the trash only; `None` if it is not there. Quick, whatever its size.
    pub fn trash(&self, path: &Path) -> Result<Option<PathBuf>> {
        self.trash_as(path, &random_name())
    }

    /// The same under a name by which it can be found and taken back.
    pub fn trash_as(&self, path: &Path, name: &str) -> Result<Option<PathBuf>> {
        let trashed = self.trashed(name);
        match fs::rename(path, &trashed) {
            Ok(()) => Ok(Some(trashed)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where [`Store::trash_as`] puts something.
    pub fn trashed(&self, name: &str) -> PathBuf {
        self.root.join("trash").join(name)
    }

    /// Waits until all that was written is on disk, so that a record may name it.
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

/// The layers of a stack (the topmost first) that overlay shall be given: each once, since it
/// refuses one that comes twice.
pub(crate) fn distinct(layers: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut lower: Vec<PathBuf> = Vec::new();
    for files in layers {
        if !lower.contains(&files) {
            lower.push(files);
        }
    }
    lower
}

/// A name nobody else has.
pub(crate) fn random_name() -> String {
    let mut bytes = [0u8; 12];
    // The kernel's generator does not fail for so few bytes once it is seeded, which it is long
    // before an engine runs.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
