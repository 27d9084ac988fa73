//! Rotation of log files, and finding the files of a log.
//!
//! The lock is only held while files are renamed, because readers wait for it.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use whelk_sys::fs::{self, Result};

use super::{Driver, LogConfig};

/// A lock on the set of files of a log. The lock file counts the rotations. Unlocks when dropped.
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

pub(super) fn lock(config: &LogConfig, exclusive: bool) -> Result<Lock> {
    let path = with_suffix(&config.path, ".lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = File::from(
        rustix::fs::open(&path, flags, Mode::from_raw_mode(0o640))
            .map_err(fs::at("open", &path))?,
    );
    let operation = if exclusive {
        FlockOperation::LockExclusive
    } else {
        FlockOperation::LockShared
    };
    rustix::fs::flock(file.as_fd(), operation).map_err(fs::at("lock", &path))?;
    Ok(Lock { file, path })
}

impl Lock {
    /// Returns the number of rotations so far.
    pub(super) fn rotations(&self) -> u64 {
        fs::read_to_string(&self.path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Written with a fixed length at offset 0, so that a full disk cannot truncate it.
    fn set_rotations(&self, count: u64) -> Result<()> {
        self.file
            .write_all_at(format!("{count:020}").as_bytes(), 0)
            .map_err(fs::at("write", &self.path))
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn compressed_suffix(driver: Driver) -> &'static str {
    if driver == Driver::JsonFile {
        ".gz"
    } else {
        ".zst"
    }
}

/// Returns the uncompressed path of the `index`th file back from the current one.
pub(super) fn rotated(config: &LogConfig, index: u64) -> PathBuf {
    with_suffix(&config.path, &format!(".{index}"))
}

/// Returns the existing path, compressed or not, of the `index`th file back from the current one,
/// which is 0.
pub(super) fn existing(config: &LogConfig, index: u64) -> Option<PathBuf> {
    if index == 0 {
        return fs::exists(&config.path).then(|| config.path.clone());
    }
    let plain = rotated(config, index);
    let compressed = with_suffix(&plain, compressed_suffix(config.driver));
    [plain, compressed]
        .into_iter()
        .find(|path| fs::exists(path))
}

/// Renames the current file to `.1` and each older one to the next number, and deletes the oldest.
/// If only one file is kept, the current one is deleted. After an error the current file may still
/// exist; no file is lost that would not have been deleted anyway.
pub(super) fn rotate(config: &LogConfig) -> Result<()> {
    let lock = lock(config, true)?;
    if existing(config, 0).is_none() {
        return Ok(());
    }
    let kept = u64::from(config.max_files.max(1)) - 1;
    if kept == 0 {
        fs::remove_file(&config.path)?;
        return lock.set_rotations(lock.rotations() + 1);
    }
    // Only files up to the first free number are renamed: a rotation that failed half-way may have
    // moved the others already.
    let free = (1..=kept).find(|index| existing(config, *index).is_none());
    if let (None, Some(oldest)) = (free, existing(config, kept)) {
        fs::remove_file(oldest)?;
    }
    for index in (1..free.unwrap_or(kept)).rev() {
        let Some(path) = existing(config, index) else {
            continue;
        };
        let compressed = path
            .extension()
            .is_some_and(|extension| extension == "gz" || extension == "zst");
        let suffix = if compressed {
            compressed_suffix(config.driver)
        } else {
            ""
        };
        fs::rename(
            &path,
            with_suffix(&config.path, &format!(".{}{suffix}", index + 1)),
        )?;
    }
    fs::rename(&config.path, rotated(config, 1))?;
    lock.set_rotations(lock.rotations() + 1)
}
