//! What the engine's defaults add to a container's settings at its start. It is kept beside the shim's
//! socket until the next start: an exec has the limits and the confinement of the container that it is
//! in, although the defaults may be others meanwhile.

use serde::{Deserialize, Serialize};
use whelk_sys::fs;

use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::model::{HostConfig, Ulimit};

const FILE: &str = "defaults.json";
/// A seccomp profile may be larger than the built-in one, which has 14 KiB.
const MAX_SIZE: u64 = 4 << 20;

/// The settings of a container's processes that the defaults may change.
#[derive(Debug, Serialize, Deserialize)]
struct Applied {
    security_opt: Option<Vec<String>>,
    /// Names, soft and hard limits.
    ulimits: Option<Vec<(String, i64, i64)>>,
}

impl Containers {
    /// Returns the settings that a start uses: the container's own, completed with the engine's
    /// defaults. What these add is kept for execs.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub(super) fn apply_defaults(
        &self,
        container: &Container,
        host: &HostConfig,
    ) -> Result<HostConfig> {
        let complete = self.instance.live.get().containers.complete(host);
        if complete.security_opt != host.security_opt || complete.ulimits != host.ulimits {
            let applied = Applied {
                security_opt: complete.security_opt.clone(),
                ulimits: complete.ulimits.as_ref().map(|limits| {
                    let limit = |limit: &Ulimit| (limit.name.clone(), limit.soft, limit.hard);
                    limits.iter().map(limit).collect()
                }),
            };
            let json = serde_json::to_vec(&applied)
                .map_err(|error| Error::internal(format!("write {FILE}: {error}")))?;
            fs::write(container.workload.directory().join(FILE), json)?;
        }
        Ok(complete)
    }

    /// Returns the settings that the container was started with.
    ///
    /// # Errors
    /// Returns an error if they cannot be read.
    pub(super) fn applied_defaults(
        &self,
        container: &Container,
        host: &HostConfig,
    ) -> Result<HostConfig> {
        let mut host = host.clone();
        let path = container.workload.directory().join(FILE);
        let content = match fs::read_at_most(&path, MAX_SIZE) {
            Err(error) if error.is_not_found() => return Ok(host),
            content => content?,
        };
        let applied: Applied = serde_json::from_slice(&content)
            .map_err(|error| Error::internal(format!("read {}: {error}", path.display())))?;
        host.security_opt = applied.security_opt;
        host.ulimits = applied.ulimits.map(|limits| {
            let limit = |(name, soft, hard)| Ulimit { name, soft, hard };
            limits.into_iter().map(limit).collect()
        });
        Ok(host)
    }
}
