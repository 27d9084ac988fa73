//! Layers: tar archives of file system changes, each unpacked once, by diff ID: into a directory or
//! an image ([`Form`]). A store can have layers of both forms.
//!
//! ```text
//! <root>/layers/<diff ID digits>/fs         the files, with whiteouts in overlayfs form
//!                               /fs.erofs   or all of them in an EROFS image
//!                               /split.zst  the rest of the archive (see [`tar_split`])
//!                               /size       total size of file content in bytes
//!                               /gzip       digest and size of the compressed blob, after a push
//!                               /init/…     init layers of images whose topmost layer it is
//!                               /pending    kept for the next attempt of a pull (see [`Snapshots::mark_pending`])
//! ```
//! From the first two, the original archive can be reproduced bit for bit, so it is not kept: an
//! image's content is on disk only once.

mod apply;
mod commit;
mod copy_up;
mod diff;
mod directory;
mod erofs;
mod export;
mod extract;
mod init_layer;
mod measure;
mod metadata;
mod mounts;
mod pax;
mod pieces;
mod retime;
pub(crate) mod sparse;
mod tap;
mod tar_split;
mod tree;
mod verify;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use whelk_sys::{Scratch, fs};

use crate::ahead::read_ahead;
use crate::compression;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::gzip;
use crate::leases::Lease;
use crate::staging::{Staging, is_younger};
use crate::writeback::Writeback;

pub use apply::unpack;
pub use copy_up::copy_up;
pub use diff::{Change, ChangeKind, diff};
pub use export::{Copied, export, export_copy, export_directory, export_root, export_roots_at};
pub use extract::{Base, Created, Extraction, Owner, Replaced, extract, extract_until};
pub use mounts::Mounts;
pub(crate) use tap::MAX_HEADERS_SIZE;
pub use verify::{Identity, Lack};

/// How the files of a layer are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// In a directory.
    #[default]
    Directories,
    /// In an EROFS image ([`erofs`]).
    Images,
}

/// The name of a layer's EROFS image.
const IMAGE: &str = "fs.erofs";

/// The unpacked layers of a store.
#[derive(Clone, Debug)]
pub struct Snapshots {
    directory: PathBuf,
    /// The form of layers that are added.
    form: Form,
    /// Memory of images that are being written.
    budget: erofs::Budget,
    pub mounts: Mounts,
    staging: Staging,
    pub(crate) writeback: Writeback,
}

/// A layer that was unpacked into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub diff_id: Digest,
    /// Total size of file content in bytes.
    pub size: u64,
}

impl Snapshots {
    pub(crate) fn open(root: &Path, staging: Staging) -> Result<Self> {
        let directory = root.join("layers");
        fs::create_dir_all(&directory, 0o700)?;
        Ok(Self {
            directory,
            form: Form::default(),
            budget: erofs::Budget::default(),
            mounts: Mounts::default(),
            staging,
            writeback: Writeback::of(root),
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Sets the form of layers that are added from now on; `None`: images if the kernel can mount them, or
    /// else directories.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot mount layers of this form.
    pub fn set_form(&mut self, form: Option<Form>) -> Result<()> {
        self.form = match form {
            Some(Form::Directories) => Form::Directories,
            Some(Form::Images) => {
                mounts::check(&self.staging)?;
                Form::Images
            }
            None => match mounts::check(&self.staging) {
                Ok(()) => Form::Images,
                Err(error) => {
                    tracing::info!("layers are kept as directories: {error}");
                    Form::Directories
                }
            },
        };
        Ok(())
    }

    /// Returns the form of layers that are added.
    pub fn form(&self) -> Form {
        self.form
    }

    pub fn path(&self, diff_id: &Digest) -> PathBuf {
        self.directory.join(diff_id.hex())
    }

    /// Returns the directory with a layer's files, or the image, for an overlay mount
    /// ([`whelk_sys::overlay`]).
    pub fn files(&self, diff_id: &Digest) -> PathBuf {
        let path = self.path(diff_id);
        let image = path.join(IMAGE);
        if fs::exists(&image) {
            image
        } else {
            path.join("fs")
        }
    }

    /// Returns the lower layers of an overlay of these layers (given lowest first), topmost
    /// first, without duplicates.
    pub fn lower(&self, diff_ids: &[Digest]) -> Vec<PathBuf> {
        distinct(diff_ids.iter().rev().map(|diff_id| self.files(diff_id)))
    }

    pub fn has(&self, diff_id: &Digest) -> bool {
        fs::exists(self.path(diff_id))
    }

    /// Holds a layer in `lease`, and returns whether the store has it. It can be relied on only
    /// after this call, because a layer that nothing holds can be collected at any time.
    pub fn claim(&self, lease: &Lease, diff_id: &Digest) -> bool {
        lease.hold(diff_id);
        self.has(diff_id)
    }

    /// Unpacks a layer from its plain or compressed archive, and holds it in `lease`.
    ///
    /// # Errors
    /// Returns [`Error::Invalid`] if the archive is hostile or damaged, or its diff ID is not
    /// `expected`, and [`Error::TooLarge`] if it has too many files for an image:
    /// [`Snapshots::apply_to_directory`] can be used instead.
    pub fn apply(
        &self,
        lease: &Lease,
        archive: impl Read + Send,
        expected: Option<&Digest>,
    ) -> Result<Layer> {
        self.apply_as(self.form, lease, archive, expected)
    }

    /// Like [`Snapshots::apply`], but keeps the layer as a directory in any case.
    ///
    /// # Errors
    /// Returns [`Error::Invalid`] as [`Snapshots::apply`] does.
    pub fn apply_to_directory(
        &self,
        lease: &Lease,
        archive: impl Read + Send,
        expected: Option<&Digest>,
    ) -> Result<Layer> {
        self.apply_as(Form::Directories, lease, archive, expected)
    }

    fn apply_as(
        &self,
        form: Form,
        lease: &Lease,
        archive: impl Read + Send,
        expected: Option<&Digest>,
    ) -> Result<Layer> {
        let scratch = self.staging.scratch()?;
        let (archive, is_compressed) = compression::detect(archive)?;
        let apply =
            |archive: &mut dyn Read| apply::apply(archive, scratch.path(), form, &self.budget);
        let applied = if is_compressed {
            read_ahead(archive, |mut archive| apply(&mut archive))?
        } else {
            apply(&mut { archive })?
        };
        if let Some(expected) = expected.filter(|expected| **expected != applied.diff_id) {
            return Err(Error::invalid(format!(
                "invalid diffID: expected {expected}, got {}",
                applied.diff_id
            )));
        }
        self.keep(lease, &scratch, applied)
    }

    /// Moves a layer that was unpacked in `scratch` into the store.
    fn keep(&self, lease: &Lease, scratch: &Scratch, applied: Layer) -> Result<Layer> {
        fs::write(scratch.path().join("size"), applied.size.to_string())?;
        lease.hold(&applied.diff_id);
        // The layer's own directory has mode 0700, so that only root reaches the files in it
        // (CVE-2021-41091).
        match fs::rename(scratch.path(), self.path(&applied.diff_id)) {
            // It is there already; this copy is removed in the background.
            Err(_) if self.has(&applied.diff_id) => {
                // Or at once, with the scratch directory, if it cannot be moved.
                self.staging
                    .dispose(self.staging.trash(scratch.path()).ok().flatten());
            }
            result => result?,
        }
        self.writeback.start();
        Ok(applied)
    }

    /// Protects a layer from garbage collection for some time although no image has it: if the pull
    /// that has downloaded it fails, the next one needs it.
    ///
    /// The layer's files need not be flushed. The mark is valid only until the next boot, because they
    /// may be incomplete after a power failure.
    pub fn mark_pending(&self, diff_id: &Digest) -> Result<()> {
        Ok(fs::write(self.pending(diff_id), boot()?)?)
    }

    /// Removes the mark of [`Snapshots::mark_pending`], when an image has the layer.
    pub fn clear_pending(&self, diff_id: &Digest) -> Result<()> {
        let marker = self.pending(diff_id);
        if fs::exists(&marker) {
            fs::remove_if_exists(marker)?;
        }
        Ok(())
    }

    /// Returns whether a layer was marked by [`Snapshots::mark_pending`] less than `age` ago.
    pub(crate) fn is_pending(&self, diff_id: &Digest, age: Duration) -> bool {
        let path = self.pending(diff_id);
        let marked = fs::read_to_string(&path).ok();
        marked.is_some_and(|marked| boot().is_ok_and(|boot| boot == marked))
            && fs::metadata(&path).is_ok_and(|metadata| is_younger(&metadata, age))
    }

    fn pending(&self, diff_id: &Digest) -> PathBuf {
        self.path(diff_id).join("pending")
    }

    /// Returns the total size of a layer's file content in bytes.
    pub fn size(&self, diff_id: &Digest) -> Result<u64> {
        let text = fs::read_to_string(self.path(diff_id).join("size"))?;
        text.trim()
            .parse()
            .map_err(|_| Error::invalid(format!("layer {diff_id} has no size")))
    }

    /// Compresses the original archive of a layer with gzip and passes it to `output` in pieces. The
    /// result is the same each time. `progress` is called with the number of further bytes that were
    /// read of the archive.
    ///
    /// # Errors
    /// Returns an error if the layer was changed on disk, or if `output` fails. The output so far must
    /// not be used then.
    pub fn compress(
        &self,
        diff_id: &Digest,
        progress: &mut (dyn FnMut(u64) + Send),
        output: impl FnMut(Vec<u8>) -> std::io::Result<()>,
    ) -> Result<()> {
        let replay = |sink: &mut dyn Write| {
            let mut hashing = Hashing::new(Counting { sink, progress });
            self.replay(diff_id, &mut hashing)?;
            let (digest, ..) = hashing.finish();
            unchanged(diff_id, &digest)
        };
        gzip::compress(replay, output)
    }

    /// Returns digest and size of a layer's compressed blob, if they were recorded.
    pub fn compressed(&self, diff_id: &Digest) -> Option<(Digest, u64)> {
        let text = fs::read_to_string(self.path(diff_id).join(COMPRESSED)).ok()?;
        let (digest, size) = text.trim().split_once(' ')?;
        Some((digest.parse().ok()?, size.parse().ok()?))
    }

    /// Records digest and size of a layer's blob, as [`Snapshots::compress`] has generated it.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn remember_compressed(&self, diff_id: &Digest, digest: &Digest, size: u64) -> Result<()> {
        let path = self.path(diff_id).join(COMPRESSED);
        Ok(fs::replace(path, format!("{digest} {size}"), 0o600)?)
    }

    /// Returns the size of the original uncompressed archive of a layer in bytes.
    pub(crate) fn archive_size(&self, diff_id: &Digest) -> Result<u64> {
        tar_split::archive_size(&self.path(diff_id))
    }

    /// Writes the original uncompressed archive of a layer.
    pub fn replay(&self, diff_id: &Digest, output: &mut impl Write) -> Result<()> {
        tar_split::replay(&self.path(diff_id), output)
    }
}

/// Returns the id of the kernel's boot.
fn boot() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?)
}

/// The name of the file with digest and size of a layer's compressed blob.
const COMPRESSED: &str = "gzip";

/// A writer that reports the number of bytes written.
struct Counting<'a> {
    sink: &'a mut dyn Write,
    progress: &'a mut (dyn FnMut(u64) + Send),
}

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.sink.write(bytes)?;
        (self.progress)(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.sink.flush()
    }
}

/// Checks the digest of a layer's archive that was generated from its files.
pub(crate) fn unchanged(diff_id: &Digest, found: &Digest) -> Result<()> {
    if found == diff_id {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "layer {diff_id} was changed on disk: its content is {found}"
        )))
    }
}

/// Removes duplicates from a stack of layers: overlayfs refuses a lower directory that is given
/// twice.
fn distinct(layers: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut lower: Vec<PathBuf> = Vec::new();
    for files in layers {
        if !lower.contains(&files) {
            lower.push(files);
        }
    }
    lower
}
