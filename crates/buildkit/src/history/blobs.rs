//! Blobs of the history.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use super::History;
use crate::pb::control::{BuildHistoryRecord, Descriptor};

/// Returns what a record refers to.
pub(super) fn of(record: &BuildHistoryRecord) -> impl Iterator<Item = &Descriptor> {
    let single = [&record.logs, &record.trace, &record.external_error];
    let result = record.result.iter().chain(record.results.values());
    let results = result.flat_map(|result| {
        let attestations = result.attestations.iter();
        attestations.chain(result.results.values())
    });
    single.into_iter().flatten().chain(results)
}

/// Returns the path of a blob; `None` if its digest is not valid.
pub(super) fn path(place: &Path, digest: &str) -> Option<PathBuf> {
    let digits = digest.strip_prefix("sha256:")?;
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_valid = digits.len() == 64 && digits.bytes().all(is_digit);
    is_valid.then(|| place.join("blobs").join(digits))
}

/// A blob that is being written. It is removed if it is dropped before it is finished.
#[derive(Debug)]
pub struct Writer {
    file: Option<BufWriter<File>>,
    path: PathBuf,
    hash: Sha256,
    size: u64,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = fs::remove_if_exists(&self.path);
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        }
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Writer {
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl History {
    /// Begins a blob.
    ///
    /// # Errors
    /// Returns an error if its file cannot be created.
    pub fn writer(&self) -> fs::Result<Writer> {
        let number = {
            let mut state = self.state.lock().ignore_poison();
            state.next += 1;
            state.next
        };
        let path = self.place.join("new").join(number.to_string());
        Ok(Writer {
            file: Some(BufWriter::new(fs::create(&path, 0o600)?)),
            path,
            hash: Sha256::new(),
            size: 0,
        })
    }

    /// Completes a blob, which stays until the record that refers to it is completed.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn finish(&self, mut writer: Writer, media_type: &str) -> io::Result<Descriptor> {
        writer.flush()?;
        let mut digits = String::new();
        for byte in writer.hash.clone().finalize() {
            use std::fmt::Write as _;
            let _ = write!(digits, "{byte:02x}");
        }
        let target = self.place.join("blobs").join(&digits);
        let digest = format!("sha256:{digits}");
        let _disk = self.disk.lock().ignore_poison();
        fs::rename(&writer.path, target).map_err(io::Error::other)?;
        let mut state = self.state.lock().ignore_poison();
        *state.held.entry(digits).or_default() += 1;
        writer.file = None;
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size: i64::try_from(writer.size).unwrap_or(i64::MAX),
            ..Descriptor::default()
        })
    }

    /// Opens a blob of a record, and returns its size.
    ///
    /// # Errors
    /// Returns an error if it cannot be opened.
    pub fn blob(&self, digest: &str) -> fs::Result<Option<(File, u64)>> {
        let found = {
            let state = self.state.lock().ignore_poison();
            let mut known = state.ended.values().flat_map(of);
            let found = known.find(|blob| blob.digest == digest);
            found.and_then(|blob| Some((path(&self.place, &blob.digest)?, blob.size)))
        };
        let Some((path, size)) = found else {
            return Ok(None);
        };
        match fs::open(path) {
            Ok(file) => Ok(Some((file, u64::try_from(size).unwrap_or(0)))),
            // Its record was removed meanwhile.
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
