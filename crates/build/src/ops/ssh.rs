//! Agents with ssh keys, which the client has: `RUN --mount=type=ssh`.
//!
//! A socket in the run directory takes the connections of the process, as long as that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Gid, Uid};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use whelk_llb::pb::{ExecOp, MountType};
use whelk_sys::{Scratch, fs};

use super::mounts::{Mounts, bind};
use crate::client::{Client, Clients};
use crate::error::{Error, Result, os};
use crate::select;

/// The beginning of the names of directories with sockets.
pub(super) const PREFIX: &str = "build-ssh-";

/// The agent that is meant without an id.
const DEFAULT: &str = "default";

/// Permissions of a socket without others.
const MODE: u32 = 0o600;

/// Maximum number of connections of a process to an agent at the same time.
const CONNECTIONS: usize = 64;

/// The agents of a process.
pub(super) struct Agents {
    /// The agent's id and the client that has it, by the index of the mount.
    found: Vec<(usize, String, Arc<dyn Client>)>,
    /// What forwards connections; it ends with this.
    tasks: JoinSet<()>,
    directory: Option<Scratch>,
}

impl Agents {
    /// Asks the clients for the agents of a process.
    pub async fn find(clients: &Clients, op: &ExecOp) -> Result<Self> {
        let mut found = Vec::new();
        for (index, mount) in op.mounts.iter().enumerate() {
            if MountType::try_from(mount.mount_type) != Ok(MountType::Ssh) {
                continue;
            }
            let options = mount.ssh_opt.clone().unwrap_or_default();
            let id = match options.id.as_str() {
                "" => DEFAULT,
                id => id,
            };
            match clients.agent(id).await {
                Ok(client) => found.push((index, id.to_owned(), client)),
                Err(_) if options.optional => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            found,
            tasks: JoinSet::new(),
            directory: None,
        })
    }

    /// Begins to listen below the run directory.
    pub fn listen(&mut self, op: &ExecOp, run: &Path) -> Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if self.found.is_empty() {
            return Ok(());
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = Scratch::at(run.join(format!("{PREFIX}{number}")))?;
        for (index, id, client) in &self.found {
            let path = directory.path().join(index.to_string());
            let failed = || os(format!("listen for ssh at {}", path.display()));
            let listener = UnixListener::bind(&path).map_err(failed())?;
            let options = op.mounts[*index].ssh_opt.clone().unwrap_or_default();
            let mode = match options.mode & 0o777 {
                0 => MODE,
                mode => mode,
            };
            let owner = Some(Uid::from_raw(options.uid));
            let group = Some(Gid::from_raw(options.gid));
            rustix::fs::chown(&path, owner, group)
                .map_err(os(format!("set the owner of {}", path.display())))?;
            fs::set_mode(&path, mode)?;
            self.tasks
                .spawn(serve(listener, client.clone(), id.clone()));
        }
        self.directory = Some(directory);
        Ok(())
    }

    /// Returns the sockets, with the indexes of their mounts.
    pub fn sockets(&self) -> Vec<(usize, PathBuf)> {
        let directory = self.directory.iter();
        let sockets = directory.flat_map(|directory| {
            self.found
                .iter()
                .map(|(index, ..)| (*index, directory.path().join(index.to_string())))
        });
        sockets.collect()
    }
}

/// Adds the mounts of sockets.
pub(super) fn mount(sockets: &[(usize, PathBuf)], op: &ExecOp, mounts: &mut Mounts) {
    for (index, path) in sockets {
        let mount = &op.mounts[*index];
        mounts.specs.push(bind(mount, path));
        mounts.files.push(PathBuf::from(select::clean(&mount.dest)));
    }
}

/// Connects what comes in to the client's agent.
async fn serve(listener: UnixListener, client: Arc<dyn Client>, id: String) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => {
                let Ok((stream, _)) = accepted else { return };
                let (client, id) = (client.clone(), id.clone());
                connections.spawn(async move {
                    if let Err(error) = client.agent(&id, stream).await {
                        tracing::debug!("connection to the ssh agent {id}: {error}");
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Returns the error for a client without an agent.
pub(crate) fn missing(id: &str) -> Error {
    Error::invalid(format!("no SSH key {id:?} forwarded from the client"))
}
