//! The file with the engine's process id.

use std::path::{Path, PathBuf};

use anyhow::bail;
use rustix::process::{Pid, test_kill_process};
use whelk_sys::fs;

const MAX_SIZE: u64 = 4096;

/// The file with the engine's process id, which is removed when the engine ends.
#[derive(Debug)]
pub(crate) struct PidFile(PathBuf);

impl PidFile {
    /// Writes this process's id.
    ///
    /// # Errors
    /// Returns an error if the file names another process that is running.
    pub(crate) fn write(path: PathBuf) -> anyhow::Result<Self> {
        if let Some(pid) = read(&path)
            && pid != rustix::process::getpid()
            && test_kill_process(pid).is_ok()
        {
            bail!(
                "pidfile {}: process with PID {} is still running; delete the file if it is no engine",
                path.display(),
                pid.as_raw_nonzero()
            );
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent, 0o755)?;
        }
        fs::replace(&path, std::process::id().to_string(), 0o644)?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if read(&self.0) == Some(rustix::process::getpid()) {
            let _ = fs::remove_file(&self.0);
        }
    }
}

fn read(path: &Path) -> Option<Pid> {
    let content = fs::read_at_most(path, MAX_SIZE).ok()?;
    let pid = String::from_utf8_lossy(&content).trim().parse().ok()?;
    Pid::from_raw(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_running_process_stays() {
        let scratch = whelk_sys::Scratch::temporary("pidfile").unwrap();
        let path = scratch.path().join("run/whelk.pid");
        let own = std::process::id().to_string();
        drop(PidFile::write(path.clone()).unwrap());
        assert!(!fs::exists(&path));
        // No process, and a file that is no pid file.
        for stale in ["4194305", "x", ""] {
            fs::replace(&path, stale, 0o600).unwrap();
            let file = PidFile::write(path.clone()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), own);
            drop(file);
        }
        fs::replace(&path, "1\n", 0o600).unwrap();
        let error = PidFile::write(path.clone()).unwrap_err().to_string();
        assert!(
            error.contains("process with PID 1 is still running"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    }
}
