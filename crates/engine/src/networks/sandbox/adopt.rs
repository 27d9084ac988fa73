//! Taking over the sandboxes of processes that kept running while there was no engine.

use std::os::fd::AsFd;

use super::addresses::allocate_address;
use super::interfaces::open_namespace;
use super::members::{member, names_of};
use super::{Sandbox, SandboxConfig};
use crate::networks::Networks;

impl Networks {
    /// Registers the endpoints and ports of a sandbox after a restart of the engine, and starts its
    /// DNS server. What it has lost meanwhile is removed from its state. `process` is a process in
    /// its namespace.
    pub fn adopt(&self, config: &SandboxConfig, process: i32, sandbox: &mut Sandbox) {
        if !config.mode.has_own_networks() {
            sandbox
                .active()
                .for_each(|(_, endpoint)| self.add_member(config, endpoint));
            return;
        }
        for endpoint in sandbox.active_mut() {
            let Ok(network) = self.find(&endpoint.network_id) else {
                continue;
            };
            match network.driver.driver().adopt(&self.stack, endpoint) {
                Ok(true) => {}
                Ok(false) => {
                    // It was being disconnected when the engine ended.
                    endpoint.clear();
                    continue;
                }
                Err(error) => tracing::warn!(
                    container = config.id,
                    "add the container's firewall rules: {error}"
                ),
            }
            if let Some(network) = self.state_mut().get_mut(&network.id) {
                for address in endpoint.addresses() {
                    let _ = allocate_address(network, address.is_ipv4(), Some(address));
                }
                endpoint.dns_names = endpoint
                    .dns_names
                    .is_some()
                    .then(|| names_of(config, endpoint));
                network
                    .members
                    .insert(config.id.clone(), member(config, endpoint));
            }
        }
        self.adopt_ports(config, &mut sandbox.ports);
        let resolving = open_namespace(process)
            .and_then(|namespace| self.start_resolver(config, sandbox, namespace.as_fd(), None));
        if let Err(error) = resolving {
            tracing::warn!(container = config.id, "start the DNS server: {error}");
        }
    }
}
