//! Secrets of a process: files (`RUN --mount=type=secret`) and variables.
//!
//! A file of a secret is in memory as long as the process runs: in the run directory, or in a tmpfs below it if it is on a disk.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Gid, Uid};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use whelk_llb::pb::{ExecOp, MountType};
use whelk_sys::{Scratch, fs};

use super::mounts::{Mounts, bind};
use crate::client::Clients;
use crate::error::{Error, Result, os};
use crate::select;

/// The beginning of the names of directories with secrets.
const PREFIX: &str = "build-secrets-";

/// Permissions of a secret without others.
const MODE: u32 = 0o400;

/// The secrets of a process.
#[derive(Default)]
pub(super) struct Secrets {
    /// By the index of the mount.
    files: Vec<(usize, Vec<u8>)>,
    /// `NAME=VALUE`
    pub environment: Vec<String>,
}

impl Secrets {
    /// Asks the clients for the secrets of a process.
    pub async fn fetch(clients: &Clients, op: &ExecOp) -> Result<Self> {
        let mut secrets = Self::default();
        for (index, mount) in op.mounts.iter().enumerate() {
            if MountType::try_from(mount.mount_type) != Ok(MountType::Secret) {
                continue;
            }
            let options = mount.secret_opt.clone().unwrap_or_default();
            let content = get(clients, &options.id, options.optional).await?;
            secrets
                .files
                .extend(content.map(|content| (index, content)));
        }
        for variable in &op.secretenv {
            if let Some(value) = get(clients, &variable.id, variable.optional).await? {
                let value = String::from_utf8(value).ok();
                let value = value.filter(|value| !value.contains('\0'));
                let value = value
                    .ok_or_else(|| Error::invalid(format!("secret {}: not a text", variable.id)))?;
                secrets
                    .environment
                    .push(format!("{}={value}", variable.name));
            }
        }
        Ok(secrets)
    }

    /// Writes the files below the run directory, and adds their mounts. Blocking.
    pub fn mount(&self, op: &ExecOp, run: &Path, mounts: &mut Mounts) -> Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if self.files.is_empty() {
            return Ok(());
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let memory = InMemory::at(run.join(format!("{PREFIX}{number}")))?;
        for (index, content) in &self.files {
            let mount = &op.mounts[*index];
            let options = mount.secret_opt.clone().unwrap_or_default();
            let mode = match options.mode & 0o7777 {
                0 => MODE,
                mode => mode,
            };
            let path = memory.path().join(index.to_string());
            fs::write_with_mode(&path, content, mode)?;
            fs::set_mode(&path, mode)?;
            let owner = Some(Uid::from_raw(options.uid));
            let group = Some(Gid::from_raw(options.gid));
            rustix::fs::chown(&path, owner, group).map_err(os("set the owner of a secret"))?;
            let mut spec = bind(mount, &path);
            spec.options
                .extend(["ro", "nosuid", "nodev", "noexec"].map(str::to_owned));
            mounts.specs.push(spec);
            mounts.files.push(PathBuf::from(select::clean(&mount.dest)));
        }
        mounts.secrets = Some(memory);
        Ok(())
    }
}

/// A directory in memory.
#[derive(Debug)]
pub(super) struct InMemory {
    directory: Scratch,
    /// Whether it has a file system of its own.
    is_mounted: bool,
}

impl InMemory {
    fn at(path: PathBuf) -> Result<Self> {
        /// `TMPFS_MAGIC` of `linux/magic.h`.
        const TMPFS: rustix::fs::FsWord = 0x0102_1994;
        let directory = Scratch::at(path)?;
        let path = directory.path();
        let failed = || os(format!("mount a tmpfs at {}", path.display()));
        let found = rustix::fs::statfs(path).map_err(failed())?;
        let is_mounted = found.f_type != TMPFS;
        if is_mounted {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount("tmpfs", path, "tmpfs", flags, c"mode=700").map_err(failed())?;
        }
        Ok(Self {
            directory,
            is_mounted,
        })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        if self.is_mounted {
            // Steps that still have files of it keep them.
            let _ = unmount(self.path(), UnmountFlags::DETACH);
        }
    }
}

async fn get(clients: &Clients, id: &str, optional: bool) -> Result<Option<Vec<u8>>> {
    match clients.secret(id).await? {
        None if !optional => Err(Error::invalid(format!("secret {id}: not found"))),
        found => Ok(found),
    }
}

/// Removes what an engine that was killed has left in its run directory.
pub(crate) fn remove(run: &Path) -> Result<()> {
    for entry in fs::list(run)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) || name.starts_with(super::ssh::PREFIX) {
            // It may be no mount point.
            let _ = unmount(entry.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            fs::remove_tree(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn files_are_in_memory_and_nothing_is_left_of_them() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let run = Scratch::temporary("build-secrets").unwrap();
        let place = || run.path().join(format!("{PREFIX}1"));
        for is_killed in [false, true] {
            let memory = InMemory::at(place()).unwrap();
            let found = rustix::fs::statfs(memory.path()).unwrap();
            assert_eq!(found.f_type, 0x0102_1994);
            fs::write(memory.path().join("0"), "secret").unwrap();
            match is_killed {
                true => {
                    std::mem::forget(memory);
                    remove(run.path()).unwrap();
                }
                false => drop(memory),
            }
            assert!(!fs::exists(place()), "{is_killed}");
        }
    }
}
