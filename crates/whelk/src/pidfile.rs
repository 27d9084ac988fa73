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
    /// Writes this process's id. The caller has locked its instance: a file that names another program was left by
    /// an engine that was killed.
    ///
    /// # Errors
    /// Returns an error if the file names a running process of this program, which may be the engine of another
    /// instance.
    pub(crate) fn write(path: PathBuf) -> anyhow::Result<Self> {
        if let Some(pid) = read(&path)
            && pid != rustix::process::getpid()
            && test_kill_process(pid).is_ok()
        {
            let number = pid.as_raw_nonzero();
            if name(&number.to_string()) == name("self") {
                bail!(
                    "pidfile {}: process with PID {number} is still running; delete the file if it is no engine",
                    path.display(),
                );
            }
            tracing::warn!(
                "pidfile {}: process {number} is no engine: the file is replaced",
                path.display()
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

/// Returns the name of a process's program, of which the kernel keeps 15 bytes.
fn name(process: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{process}/comm")).ok()
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
        // Another program has the id of an engine that was killed.
        let mut other = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        fs::replace(&path, format!("{}\n", other.id()), 0o600).unwrap();
        let file = PidFile::write(path.clone());
        other.kill().and_then(|()| other.wait()).unwrap();
        drop(file.unwrap());
        // Another process of this program.
        let program = std::env::current_exe().unwrap();
        let mut other = std::process::Command::new(program)
            .args(["--exact", "pidfile::tests::waits_if_asked"])
            .env(WAITS, "1")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // It has the name of this thread for a moment.
        while name(&other.id().to_string()) != name("self") {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        fs::replace(&path, format!("{}\n", other.id()), 0o600).unwrap();
        let written = PidFile::write(path.clone());
        other.kill().and_then(|()| other.wait()).unwrap();
        let expected = format!("process with PID {} is still running", other.id());
        let error = written.unwrap_err().to_string();
        assert!(error.contains(&expected), "{error}");
        let kept = fs::read_to_string(&path).unwrap();
        assert_eq!(kept.trim(), other.id().to_string());
    }

    const WAITS: &str = "WHELK_TEST_WAITS";

    /// The process of another engine, for the test above.
    #[test]
    fn waits_if_asked() {
        if std::env::var_os(WAITS).is_some() {
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
    }
}
