//! Sandboxes that have no record.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Sandbox, SandboxConfig, Sandboxes};
use crate::error::{Error, Result};
use crate::networks::Endpoint;

/// A sandbox that has no record, such as that of a step of a build. It is detached when this is
/// dropped, which must not be before its processes have ended. What is left of those of a killed
/// engine is removed when the next one starts.
#[derive(Debug)]
pub struct OwnedSandbox {
    sandboxes: Arc<Sandboxes>,
    id: String,
    state: Sandbox,
    namespace: OwnedFd,
}

impl Sandboxes {
    /// Creates a sandbox that has no record, with these endpoints, by the network's name. Blocking.
    ///
    /// # Errors
    /// As [`Sandboxes::attach`]; also if its network mode has no namespace of its own.
    pub fn open(
        self: &Arc<Self>,
        config: &SandboxConfig,
        endpoints: &BTreeMap<String, Endpoint>,
    ) -> Result<OwnedSandbox> {
        if !config.mode.has_own_networks() {
            return Err(Error::invalid(format!(
                "open a sandbox for {}: network mode {} has no namespace of its own",
                config.name, config.mode
            )));
        }
        let (state, namespace) = self.attach(config, endpoints)?;
        // Nobody publishes its `connect` events, which wakes maintenance otherwise.
        self.networks.stack.maintenance.notify_one();
        let namespace = namespace.ok_or_else(|| {
            Error::internal(format!("the sandbox for {} has no namespace", config.name))
        })?;
        Ok(OwnedSandbox {
            sandboxes: self.clone(),
            id: config.id.clone(),
            state,
            namespace,
        })
    }
}

impl OwnedSandbox {
    /// Returns its endpoints and published ports.
    pub fn state(&self) -> &Sandbox {
        &self.state
    }
}

impl AsFd for OwnedSandbox {
    /// Returns its network namespace.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Drop for OwnedSandbox {
    fn drop(&mut self) {
        let (sandboxes, id) = (self.sandboxes.clone(), std::mem::take(&mut self.id));
        let mut state = std::mem::take(&mut self.state);
        let mut detach = move || drop(sandboxes.detach(&id, &mut state));
        // Withdrawing ports may block.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(detach)),
            Err(_) => detach(),
        }
    }
}
