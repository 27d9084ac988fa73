//! Receives a blob.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use super::Content;
use crate::digest::{Algorithm, Digest, Hashing};
use crate::error::{Error, Result};
use crate::leases::Lease;

/// Writes the content of a blob whose digest is known. When this is dropped before [`Writer::commit`],
/// the received bytes remain for the next writer of the blob.
#[derive(Debug)]
pub struct Writer {
    digest: Digest,
    size: Option<u64>,
    complete: PathBuf,
    output: Hashing<File>,
    partial: Partial,
}

/// The file of a writer. It is removed on drop unless the next writer can resume it.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    resumable: bool,
    /// The writers of partial files under the blobs' names, and the blob that this one is for;
    /// `None` for a file that only this writer knows.
    claim: Option<(Arc<Mutex<BTreeSet<Digest>>>, Digest)>,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.resumable {
            // If this fails, the file is removed when it is too old, or by the next start.
            let _ = fs::remove_if_exists(&self.path);
        }
        if let Some((writing, digest)) = &self.claim {
            writing.lock().ignore_poison().remove(digest);
        }
    }
}

impl Content {
    /// Returns a writer for a blob, which continues what an earlier one left: see
    /// [`Writer::offset`]. While another writer is at work on the same blob, a second one begins at
    /// the start, in a file of its own that cannot be resumed.
    ///
    /// `lease` holds the blob. Whether the store has it already is for the caller to check first
    /// ([`Content::claim`]).
    ///
    /// # Errors
    /// Returns an error if the partial file cannot be opened or read.
    pub fn writer(&self, lease: &Lease, digest: &Digest, size: Option<u64>) -> Result<Writer> {
        lease.hold(digest);
        let first = self.writing.lock().ignore_poison().insert(digest.clone());
        let partial = if first {
            Partial {
                path: self.partial.join(digest.hex()),
                resumable: true,
                claim: Some((self.writing.clone(), digest.clone())),
            }
        } else {
            Partial {
                path: self.staging.path(),
                resumable: false,
                claim: None,
            }
        };
        Ok(Writer {
            digest: digest.clone(),
            size,
            complete: self.path(digest),
            output: resume(&partial.path, digest.algorithm(), size)?,
            partial,
        })
    }
}

/// Opens a partial file, or creates it, and hashes what it has. A file with more than `size` bytes
/// is not the beginning of the blob, so it is emptied.
fn resume(path: &Path, algorithm: Algorithm, size: Option<u64>) -> Result<Hashing<File>> {
    let at = || fs::at("read", path);
    let file = fs::append(path, 0o600)?;
    let length = file.metadata().map_err(at())?.len();
    if size.is_some_and(|size| length > size) {
        file.set_len(0).map_err(at())?;
    }
    let mut output = Hashing::with(algorithm, file);
    let mut buffer = vec![0; 256 << 10];
    // Reading hashes too. The file is opened to append, so it does not matter where reading ends.
    while output.read(&mut buffer).map_err(at())? > 0 {}
    Ok(output)
}

impl Writer {
    /// Returns the number of bytes received so far, by this writer and those before it: the content
    /// must be continued from there.
    pub fn offset(&self) -> u64 {
        self.output.count()
    }

    /// Discards the received bytes, for a sender that cannot resume.
    ///
    /// # Errors
    /// Returns an error if the file cannot be truncated.
    pub fn restart(&mut self) -> Result<()> {
        let file = self.output.get_ref();
        let file = file
            .set_len(0)
            .and_then(|()| file.try_clone())
            .map_err(fs::at("truncate", &self.partial.path))?;
        self.output = Hashing::with(self.digest.algorithm(), file);
        Ok(())
    }

    /// Opens the file that is being written, to read what has been received.
    ///
    /// # Errors
    /// Returns an error if it cannot be opened.
    pub fn file(&self) -> Result<File> {
        Ok(fs::open(self.partial_path())?)
    }

    pub(super) fn partial_path(&self) -> &Path {
        &self.partial.path
    }

    /// Verifies the content, flushes it to disk and gives it its name.
    ///
    /// # Errors
    /// Returns [`Error::Invalid`] if the content is too short, in which case it can be resumed, or
    /// does not match the digest, in which case it is removed.
    pub fn commit(self) -> Result<()> {
        let complete = self.complete.clone();
        let (file, partial) = self.verify()?;
        // After an error the file cannot be used: the kernel reports an error of writing back once,
        // and the next fsync(2) would succeed without the data being on disk.
        file.sync_data().map_err(fs::at("sync", &partial.path))?;
        fs::rename(&partial.path, complete)?;
        Ok(())
    }

    /// Verifies the content and removes it.
    ///
    /// # Errors
    /// The same as of [`Writer::commit`].
    pub(super) fn discard(self) -> Result<()> {
        self.verify().map(drop)
    }

    /// Verifies the content. What is returned removes the file when it is dropped.
    fn verify(self) -> Result<(File, Partial)> {
        let Self {
            digest,
            size,
            output,
            mut partial,
            ..
        } = self;
        if let Some(size) = size.filter(|size| output.count() < *size) {
            return Err(Error::invalid(format!(
                "blob {digest} is truncated: {} of {size} bytes",
                output.count()
            )));
        }
        partial.resumable = false;
        let (actual, _, file) = output.finish();
        if actual != digest {
            return Err(Error::invalid(format!(
                "the content of blob {digest} has the digest {actual}"
            )));
        }
        Ok((file, partial))
    }

    /// Removes the content.
    pub fn abort(mut self) {
        self.partial.resumable = false;
    }
}

impl Write for Writer {
    /// Fails with `InvalidData` if the content is longer than the blob. Nothing of it remains then:
    /// a sender that sends too much may have sent anything.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.size.map(|size| size - self.output.count());
        if left.is_some_and(|left| bytes.len() as u64 > left) {
            self.partial.resumable = false;
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "blob {} is longer than its {} bytes",
                    self.digest,
                    self.size.unwrap_or_default()
                ),
            ));
        }
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
