//! Sharing the namespaces of another container, the donor: `container:NAME` as network, PID or IPC
//! mode.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::model::{ContainerRecord, HostConfig, IpcMode, NetworkMode, PidMode, Status};

/// The kind of a shared namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shared {
    Network,
    Pid,
    Ipc,
}

impl Shared {
    /// Adds Docker's prefix to an error of joining the namespace.
    fn failed(self, error: Error) -> Error {
        error.prefixed(match self {
            Self::Network => "joining network namespace of container",
            Self::Pid => "failed to join PID namespace",
            Self::Ipc => "failed to join IPC namespace",
        })
    }
}

impl Containers {
    /// Replaces the names of donors by their ids, so that the modes survive renames.
    ///
    /// # Errors
    /// Returns [`Error::Invalid`] if there is no such container. Not [`Error::NotFound`], because
    /// clients take that for a missing image, and pull it.
    pub(super) fn resolve_donors(&self, host: &mut HostConfig) -> Result<()> {
        let find = |name: &str| {
            self.find(name)
                .map(|donor| donor.id.clone())
                .map_err(|error| Error::invalid(error.to_string()))
        };
        if let NetworkMode::Container(name) = &mut host.network_mode {
            // Docker resolves the network mode only at the start, and its error says what was being
            // done.
            *name = find(name).map_err(|error| Shared::Network.failed(error))?;
        }
        if let PidMode::Container(name) = &mut host.pid_mode {
            *name = find(name)?;
        }
        if let IpcMode::Container(name) = &mut host.ipc_mode {
            *name = find(name)?;
        }
        Ok(())
    }

    /// Returns the directory of the `hosts`, `hostname` and `resolv.conf` that a container mounts:
    /// its own, or that of the container whose network it shares.
    pub(super) fn names_dir(&self, record: &ContainerRecord) -> Result<PathBuf> {
        let owner = record
            .host
            .network_mode
            .container()
            .map(|name| self.owner_of_network(name))
            .transpose()?;
        Ok(self
            .instance
            .container_dir(owner.as_ref().map_or(&record.id, |owner| &owner.id)))
    }

    /// Returns the container that owns the network namespace of the container `name`: itself, or
    /// the last of those that its `container:` mode leads to.
    pub(super) fn owner_of_network(&self, name: &str) -> Result<Arc<Container>> {
        /// Maximum number of modes that are followed. Ids refer to older containers only, so that
        /// they form no cycle; records of earlier versions have names, which may.
        const MOST: usize = 32;
        let mut name = name.to_owned();
        for _ in 0..MOST {
            let found = self.find(&name)?;
            match found.record().host.network_mode.container() {
                Some(donor) => name = donor.to_owned(),
                None => return Ok(found.clone()),
            }
        }
        Err(Error::invalid(format!(
            "container {name} shares a network that has no owner"
        )))
    }

    /// Returns the pid of the container that a mode names, if it names one.
    ///
    /// # Errors
    /// Returns an error if the container does not exist, does not run, or does not share this
    /// namespace.
    pub(super) fn donor(&self, shared: Shared, name: Option<&str>) -> Result<Option<i32>> {
        let Some(name) = name else {
            return Ok(None);
        };
        let donor = self
            .find(name)
            .map_err(|error| shared.failed(Error::internal(error.to_string())))?;
        let record = donor.record();
        if record.state.status == Status::Restarting {
            // At the engine's start both are restarted concurrently, so that a retry can succeed.
            let error = Error::Restarting(format!(
                "container {} is restarting, wait until the container is running",
                donor.id
            ));
            return Err(match shared {
                Shared::Network => error.prefixed("cannot join network namespace of container"),
                Shared::Pid | Shared::Ipc => shared.failed(error),
            });
        }
        if !record.state.status.is_running() {
            let stopped = format!("container {} is not running", donor.id);
            return Err(match shared {
                Shared::Network => Error::conflict(format!(
                    "cannot join network namespace of a non running container: container {} is {}",
                    record.name,
                    record.state.status.as_str()
                )),
                Shared::Pid => shared.failed(Error::internal(stopped)),
                Shared::Ipc => shared.failed(Error::conflict(stopped)),
            });
        }
        if shared == Shared::Ipc && record.host.ipc_mode != IpcMode::Shareable {
            return Err(shared.failed(Error::invalid(format!(
                "container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
                donor.id
            ))));
        }
        Ok(Some(record.state.pid))
    }
}
