//! Secrets of a process: files (`RUN --mount=type=secret`) and variables.
//!
//! A file of a secret is in the run directory, which is usually in memory, as long as the process runs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Gid, Uid};
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
        let scratch = Scratch::at(run.join(format!("{PREFIX}{number}")))?;
        for (index, content) in &self.files {
            let mount = &op.mounts[*index];
            let options = mount.secret_opt.clone().unwrap_or_default();
            let mode = match options.mode & 0o7777 {
                0 => MODE,
                mode => mode,
            };
            let path = scratch.path().join(index.to_string());
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
        mounts.secrets = Some(scratch);
        Ok(())
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
            fs::remove_tree(entry.path())?;
        }
    }
    Ok(())
}
