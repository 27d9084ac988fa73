//! Taking over the endpoints of containers that kept running while there was no engine.

use std::os::fd::AsFd;

use super::addresses::allocate_address;
use super::interfaces::open_namespace;
use super::members::{member, names_of};
use crate::model::ContainerRecord;
use crate::networks::Networks;

impl Networks {
    /// Records the endpoints of a running container after a restart of the engine, and starts its
    /// DNS server.
    pub fn adopt(&self, record: &mut ContainerRecord) {
        if !record.host.network_mode.has_own_networks() {
            record
                .networks
                .values()
                .filter(|endpoint| !endpoint.endpoint_id.is_empty())
                .for_each(|endpoint| self.add_member(record, endpoint));
            return;
        }
        let mut networks = std::mem::take(&mut record.networks);
        for endpoint in networks
            .values_mut()
            .filter(|endpoint| !endpoint.endpoint_id.is_empty())
        {
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
                    container = record.id,
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
                    .then(|| names_of(record, endpoint));
                network
                    .members
                    .insert(record.id.clone(), member(record, endpoint));
            }
        }
        record.networks = networks;
        self.adopt_ports(record);
        let resolving = open_namespace(record.state.pid)
            .and_then(|namespace| self.start_resolver(record, namespace.as_fd(), None));
        if let Err(error) = resolving {
            tracing::warn!(container = record.id, "start the DNS server: {error}");
        }
    }
}
