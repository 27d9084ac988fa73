//! Taking over the sandboxes of processes that kept running while there was no engine.

use super::{Sandbox, SandboxConfig, Sandboxes};

impl Sandboxes {
    /// Registers the endpoints and ports of a sandbox after a restart of the engine, opens its
    /// namespace, and starts its DNS server. What it has lost meanwhile is removed from its state.
    /// `process` is a process in its namespace.
    pub fn adopt(&self, config: &SandboxConfig, process: i32, sandbox: &mut Sandbox) {
        if !config.mode.has_own_networks() {
            let endpoints = sandbox.active();
            endpoints.for_each(|(_, endpoint, _)| self.networks.add_member(config, endpoint));
            return;
        }
        for endpoint in sandbox.active_mut() {
            self.networks.adopt_endpoint(config, endpoint);
        }
        self.adopt_ports(config, &mut sandbox.ports);
        let adopted = self
            .namespace(&config.id, process)
            .and_then(|_| self.start_resolver(config, sandbox, None));
        if let Err(error) = adopted {
            tracing::warn!(container = config.id, "take over its namespace: {error}");
        }
    }
}
