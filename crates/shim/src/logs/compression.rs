//! Compression of rotated log files, concurrently with the writer and the readers.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use whelk_sys::fs::{self, Result};

use super::{Driver, LogConfig, rotation};

/// Replaces each rotated file of a log by a compressed one, the newest first: if a log is rotated
/// faster than its files are compressed, the oldest are deleted before they are compressed. Returns
/// immediately if another process compresses the same log. Readers that have a file open keep
/// reading the old one.
///
/// # Errors
/// Returns an error if a file cannot be compressed. It stays uncompressed then.
pub fn compress_rotated(config: &LogConfig) -> Result<()> {
    let suffix = rotation::compressed_suffix(config.driver);
    while let Some(input) = newest_uncompressed(config)? {
        let staged = rotation::with_suffix(&config.path, &format!("{suffix}.new"));
        let Some(output) = create_locked(&staged)? else {
            return Ok(());
        };
        let written = write_compressed(config, &input, output);
        let replaced = written.and_then(|()| {
            // Rotations may have renamed or deleted the file meanwhile.
            let _lock = rotation::lock(config, true)?;
            let inode = inode(&input, &config.path)?;
            let found = (1..u64::from(config.max_files))
                .map(|index| rotation::rotated(config, index))
                .find(|path| {
                    fs::metadata(path)
                        .is_ok_and(|found| std::os::unix::fs::MetadataExt::ino(&found) == inode)
                });
            match found {
                Some(path) => fs::rename(&staged, rotation::with_suffix(&path, suffix))
                    .and_then(|()| fs::remove_file(path)),
                None => fs::remove_file(&staged),
            }
        });
        if replaced.is_err() {
            let _ = fs::remove_if_exists(&staged);
        }
        replaced?;
    }
    Ok(())
}

/// Opens the newest rotated file that is not compressed.
fn newest_uncompressed(config: &LogConfig) -> Result<Option<File>> {
    let _lock = rotation::lock(config, false)?;
    let found = (1..u64::from(config.max_files))
        .map(|index| rotation::rotated(config, index))
        .find(|path| fs::exists(path));
    found.map(fs::open).transpose()
}

/// Creates and locks the file to write to. Returns `None` if another process has locked it.
fn create_locked(staged: &Path) -> Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = File::from(
        rustix::fs::open(staged, flags, Mode::from_raw_mode(0o640))
            .map_err(fs::at("create", staged))?,
    );
    if rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    // The other process may have finished and renamed the file between open and lock.
    let is_named = fs::metadata(staged).is_ok_and(|named| {
        inode(&file, staged).is_ok_and(|own| std::os::unix::fs::MetadataExt::ino(&named) == own)
    });
    if !is_named {
        return Ok(None);
    }
    // A process that was killed may have left an incomplete file.
    file.set_len(0).map_err(fs::at("truncate", staged))?;
    Ok(Some(file))
}

pub(super) fn inode(file: &File, path: &Path) -> Result<u64> {
    file.metadata()
        .map(|found| std::os::unix::fs::MetadataExt::ino(&found))
        .map_err(fs::at("stat", path))
}

fn write_compressed(config: &LogConfig, mut input: &File, output: File) -> Result<()> {
    let step = |error: io::Error| fs::PathError::new("compress", &config.path, error);
    if config.driver == Driver::JsonFile {
        let mut encoder = flate2::write::GzEncoder::new(output, flate2::Compression::fast());
        io::copy(&mut input, &mut encoder)
            .and_then(|_| encoder.finish())
            .and_then(|mut file| file.flush())
            .map_err(step)
    } else {
        const LEVEL: i32 = 1;
        zstd::stream::copy_encode(&mut input, output, LEVEL).map_err(step)
    }
}
