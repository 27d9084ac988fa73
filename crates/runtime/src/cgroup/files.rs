//! Reading, writing and removing the files and directories of cgroupfs.

use std::io::Write;
use std::path::Path;

use rustix::io::Errno;
use whelk_sys::fs::{self, PathError};

use crate::error::{Error, Result};

/// Writes a value to a file with one `write` call, as cgroupfs requires.
pub(super) fn set(directory: &Path, file: &str, value: impl std::fmt::Display) -> Result<()> {
    try_set(directory, file, &value.to_string()).map_err(|error| {
        let value = value.to_string();
        Error::Os(format!(
            "write {value:?} to {}: {}",
            error.path.display(),
            whelk_sys::errno_text(&error.source)
        ))
    })
}

pub(super) fn try_set(
    directory: &Path,
    file: &str,
    value: &str,
) -> std::result::Result<(), PathError> {
    let path = directory.join(file);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .map_err(fs::at("open", &path))?;
    file.write_all(value.as_bytes())
        .map_err(fs::at("write", &path))
}

/// Writes a value if there is one.
pub(super) fn set_some<T: std::fmt::Display>(
    directory: &Path,
    file: &str,
    value: Option<T>,
) -> Result<()> {
    value.map_or(Ok(()), |value| set(directory, file, value))
}

/// Returns the number after `key` in a file of "key number" lines; 0 if the file or the key does
/// not exist.
pub(super) fn counter(directory: &Path, file: &str, key: &str) -> u64 {
    let Ok(text) = fs::read_to_string(directory.join(file)) else {
        return 0;
    };
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
        .unwrap_or(0)
}

/// Returns the pids in a cgroup and all cgroups below it.
pub(super) fn processes_below(directory: &Path) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    walk(directory, &mut |directory| {
        if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Removes a cgroup directory and those below it, children first. A missing one is not an error.
pub(super) fn remove_below(directory: &Path) -> std::result::Result<(), PathError> {
    // Most cgroups have no children, so that a single rmdir suffices.
    match fs::remove_dir(directory) {
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error)
            if [Errno::BUSY, Errno::NOTEMPTY]
                .map(Errno::raw_os_error)
                .contains(&error.source.raw_os_error().unwrap_or(0)) => {}
        result => return result,
    }
    walk(
        directory,
        &mut |directory| match fs::remove_dir(directory) {
            Err(error) if error.is_not_found() => Ok(()),
            result => result,
        },
    )
}

/// Calls `visit` for a directory and those below it, children first. A missing one is not an error.
fn walk(
    directory: &Path,
    visit: &mut impl FnMut(&Path) -> std::result::Result<(), PathError>,
) -> std::result::Result<(), PathError> {
    match fs::list(directory) {
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
        Ok(entries) => {
            for entry in entries
                .iter()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            {
                walk(&entry.path(), visit)?;
            }
        }
    }
    visit(directory)
}
