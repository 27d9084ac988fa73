//! Verifies layers on disk.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::io::Errno;
use whelk_sys::fs;

use super::{IMAGE, Snapshots, tar_split, unchanged};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};

/// What a layer lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It is not there at all.
    Layer,
    Files,
    /// Its EROFS image is cut off, or is none.
    Image,
    /// The rest of its archive: containers can run, but the archive cannot be written any more.
    Index,
    /// See [`Snapshots::restore_size`].
    Size,
}

/// A predicate for an error text.
impl fmt::Display for Lack {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Layer => "is missing",
            Self::Files => "has lost its files",
            Self::Image => "is damaged: its image is cut off, or is none",
            Self::Index => "has lost the index of its archive",
            Self::Size => "has lost its size",
        })
    }
}

/// Distinguishes a layer from one with the same content that replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    /// Unknown on some file systems.
    created: Option<SystemTime>,
}

impl Snapshots {
    /// Returns what a layer lacks. Its content is not read.
    pub fn lack(&self, diff_id: &Digest) -> Option<Lack> {
        let files = self.files(diff_id);
        if !self.has(diff_id) {
            Some(Lack::Layer)
        } else if !fs::exists(&files) {
            Some(Lack::Files)
        } else if files.ends_with(IMAGE) && whelk_sys::erofs::check(&files) == Err(Errno::UCLEAN) {
            Some(Lack::Image)
        } else if !fs::exists(tar_split::path(&self.path(diff_id))) {
            Some(Lack::Index)
        } else if self.size(diff_id).is_err() {
            Some(Lack::Size)
        } else {
            None
        }
    }

    /// Returns which of several layers with the same content is there.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub fn identity(&self, diff_id: &Digest) -> Result<Identity> {
        let metadata = fs::metadata(self.path(diff_id))?;
        Ok(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            created: metadata.created().ok(),
        })
    }

    /// Compares a layer with its digest, for which its archive is generated from its files. Reads all of
    /// them, as long as `goes_on` returns true.
    ///
    /// # Errors
    /// Returns [`Error::Invalid`] if the layer was changed on disk, and another error if it cannot be read now,
    /// or if `goes_on` returned false.
    pub fn verify(&self, diff_id: &Digest, goes_on: &dyn Fn() -> bool) -> Result<()> {
        let mut hashing = Hashing::new(Discarded(goes_on));
        self.replay(diff_id, &mut hashing).map_err(proven)?;
        let (digest, ..) = hashing.finish();
        unchanged(diff_id, &digest)
    }

    /// Moves a damaged layer to `lost+found`. Returns its path there.
    ///
    /// # Errors
    /// Returns an error if it cannot be moved.
    pub(crate) fn set_aside(&self, diff_id: &Digest) -> Result<PathBuf> {
        let path = self.path(diff_id);
        let place = self.staging.set_aside(&path)?;
        self.mounts.forget(&path);
        Ok(place)
    }
}

/// Takes bytes as long as a function returns true.
struct Discarded<'a>(&'a dyn Fn() -> bool);

impl Write for Discarded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.0)() {
            Ok(bytes.len())
        } else {
            Err(Errno::CANCELED.into())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes an error that proves damage invalid: a file of the layer is missing, is another kind of file, or is
/// too short. Others, such as a lack of descriptors or memory, may pass.
fn proven(error: Error) -> Error {
    let source = match &error {
        Error::Path(error) => &error.source,
        Error::Io { source, .. } => source,
        _ => return error,
    };
    const PROOFS: [Errno; 4] = [Errno::NOENT, Errno::NOTDIR, Errno::ISDIR, Errno::LOOP];
    let is_proof = |code: i32| PROOFS.iter().any(|errno| errno.raw_os_error() == code);
    if source.raw_os_error().is_none_or(is_proof) {
        Error::Invalid(error.to_string())
    } else {
        error
    }
}
