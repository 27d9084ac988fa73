//! Renaming a full log file out of the way, and finding the files of a log again.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use whelk_sys::fs::{self, Result};

use super::{Driver, LogConfig};

/// A held lock on a log's set of files. Unlocks when dropped.
pub(super) struct Lock {
    _file: File,
    path: PathBuf,
}

pub(super) fn lock(config: &LogConfig, exclusive: bool) -> Result<Lock> {
    let path = with_suffix(&config.path, ".lock");
    let file = fs::append(&path, 0o640)?;
    let operation = if exclusive { FlockOperation::LockExclusive } else { FlockOperation::LockShared };
    rustix::fs::flock(file.as_fd(), operation).map_err(fs::at("lock", &path))?;
    Ok(Lock { _file: file, path })
}

impl Lock {
    /// How often the log was rotated so far.
    pub(super) fn rotations(&self) -> u64 {
        fs::read_to_string(&self.path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn set_rotations(&self, count: u64) -> Result<()> {
        fs::write(&self.path, count.to_string())
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn compressed_suffix(driver: Driver) -> &'static str {
    if driver == Driver::JsonFile { ".gz" } else { ".zst" }
}

/// The `index`th file back from the current one, which is 0: as it is, or compressed.
pub(super) fn existing(config: &LogConfig, index: u64) -> Option<PathBuf> {
    if index == 0 {
        return fs::exists(&config.path).then(|| config.path.clone());
    }
    let plain = with_suffix(&config.path, &format!(".{index}"));
    let packed = with_suffix(&plain, compressed_suffix(config.driver));
    [plain, packed].into_iter().find(|path| fs::exists(path))
}

/// Moves the current file to `.1`, each older one a number up, and removes the oldest. With one file only, the current
/// one just goes.
pub(super) fn rotate(config: &LogConfig) -> Result<()> {
    let lock = lock(config, true)?;
    let kept = u64::from(config.max_files.max(1)) - 1;
    for index in (1..=kept).rev() {
        let Some(path) = existing(config, index) else { continue };
        if index == kept {
            fs::remove_file(&path)?;
        } else {
            let packed = path.extension().is_some_and(|extension| extension == "gz" || extension == "zst");
            let suffix = if packed { compressed_suffix(config.driver) } else { "" };
            fs::rename(&path, with_suffix(&config.path, &format!(".{}{suffix}", index + 1)))?;
        }
    }
    if kept == 0 {
        fs::remove_if_there(&config.path)?;
    } else {
        let first = with_suffix(&config.path, ".1");
        fs::rename(&config.path, &first)?;
        if config.compress {
            compress(config.driver, &first)?;
        }
    }
    lock.set_rotations(lock.rotations() + 1)
}

/// Replaces a file by its compressed form. Readers that have it open go on reading the old one.
fn compress(driver: Driver, path: &Path) -> Result<()> {
    let packed = with_suffix(path, compressed_suffix(driver));
    let staged = with_suffix(&packed, ".new");
    let mut input = fs::open(path)?;
    let output = fs::create(&staged, 0o640)?;
    let step = |error: io::Error| fs::PathError::new("compress", path, error);
    if driver == Driver::JsonFile {
        let mut encoder = flate2::write::GzEncoder::new(output, flate2::Compression::fast());
        io::copy(&mut input, &mut encoder).and_then(|_| encoder.finish()).and_then(|mut file| file.flush()).map_err(step)?;
    } else {
        const LEVEL: i32 = 1;
        zstd::stream::copy_encode(&mut input, output, LEVEL).map_err(step)?;
    }
    fs::rename(&staged, &packed)?;
    fs::remove_file(path)
}
