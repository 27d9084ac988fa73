//! Endpoints: the connections of sandboxes to networks. While a sandbox is attached, each of its
//! endpoints has addresses and, if the sandbox has a namespace of its own, an interface in it; it
//! is among the members of its network, which the others find by name.

mod addresses;
mod members;
mod names;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use whelk_network::Links;

use addresses::{allocate_address, release_addresses};
use members::member;

use super::create::check_interface_name;
use super::drivers::Inner;
use super::model::{Assigned, EndpointRequest, option};
use super::sandbox::within;
use super::settings::link_local_addresses;
use super::{Endpoint, NetworkRecord, Networks, SandboxConfig};
use crate::error::{Error, Result};

pub(crate) use members::split_link;

/// The prefix of interface names inside containers; a number follows.
const INTERFACE_PREFIX: &str = "eth";

impl Networks {
    /// Creates a sandbox's endpoint and interface in one network. `others` are its other endpoints;
    /// `inner` is where the interface is, with the endpoint's id.
    pub(super) fn attach_endpoint(
        &self,
        config: &SandboxConfig,
        others: &BTreeMap<String, Endpoint>,
        network: &NetworkRecord,
        endpoint: &mut Endpoint,
        (inner, id): (Inner<'_>, String),
    ) -> Result<()> {
        let link_local = link_local_addresses(&endpoint.requested)?;
        endpoint.network_id.clone_from(&network.id);
        let interface = interface_name(others, network, &endpoint.requested)?;
        // Before anything is assigned: undoing it would delete the other endpoint's interface.
        if uses(others, &interface) {
            let outer = self.stack.endpoint_interface(&id);
            return Err(Error::internal(format!(
                "failed to add interface {outer} to sandbox: error renaming interface {outer:?} to {interface:?}: file exists"
            )));
        }
        let assigned = Assigned {
            endpoint_id: id,
            interface,
            link_local,
            ..Assigned::default()
        };
        let assigned = self.allocate_addresses(config, network, endpoint, assigned)?;
        let driver = network.driver.driver();
        driver.attach(&self.stack, network, assigned, inner)
    }

    /// Takes over the endpoint of a sandbox that remained while there was no engine. One that was being
    /// detached when the engine ended is not attached any more.
    pub(super) fn adopt_endpoint(&self, config: &SandboxConfig, endpoint: &mut Endpoint) {
        let Ok(network) = self.find(&endpoint.network_id) else {
            return;
        };
        let Some(assigned) = &endpoint.assigned else {
            return;
        };
        match network.driver.driver().adopt(&self.stack, assigned) {
            Ok(true) => {}
            Ok(false) => {
                endpoint.assigned = None;
                return;
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
        }
        endpoint.rename(config);
        self.add_member(config, endpoint);
    }

    /// Deletes an endpoint: its interface, its addresses and the network's member. `namespace` is
    /// given for a sandbox that remains: its interface must be gone before its addresses can be
    /// allocated to another.
    pub(super) fn detach_endpoint(
        &self,
        id: &str,
        network: &NetworkRecord,
        endpoint: &Endpoint,
        namespace: Option<BorrowedFd<'_>>,
    ) {
        let Some(assigned) = &endpoint.assigned else {
            return;
        };
        if let Some(namespace) = namespace {
            let interface = assigned.interface.clone();
            if let Err(error) = within(namespace, move || Ok(Links::open()?.delete(&interface)?)) {
                tracing::warn!(
                    network = network.name,
                    "delete the container's interface: {error}"
                );
            }
        }
        network.driver.driver().detach(&self.stack, assigned);
        if let Some(network) = self.state_mut().get_mut(&network.id)
            && network
                .members
                .get(id)
                .is_some_and(|member| member.endpoint_id == assigned.endpoint_id)
        {
            network.members.remove(id);
            release_addresses(network, assigned.nets());
        }
    }

    /// Adds a sandbox to a network's members.
    pub(super) fn add_member(&self, config: &SandboxConfig, endpoint: &Endpoint) {
        if let Some(assigned) = &endpoint.assigned
            && let Some(network) = self.state_mut().get_mut(&endpoint.network_id)
        {
            let member = member(config, endpoint, assigned);
            network.members.insert(config.id.clone(), member);
        }
    }

    /// Updates an endpoint's DNS names. `config` has the sandbox's new name.
    pub(super) fn rename_endpoint(&self, config: &SandboxConfig, endpoint: &mut Endpoint) {
        endpoint.rename(config);
        if let Some(assigned) = &endpoint.assigned
            && let Some(network) = self.state_mut().get_mut(&endpoint.network_id)
            && let Some(known) = network.members.get_mut(&config.id)
        {
            *known = member(config, endpoint, assigned);
        }
    }
}

/// Returns the name of an endpoint's interface: the one that its options set, or the first that none
/// of the `others` has.
fn interface_name(
    others: &BTreeMap<String, Endpoint>,
    network: &NetworkRecord,
    endpoint: &EndpointRequest,
) -> Result<String> {
    let wanted = endpoint
        .driver_opts
        .iter()
        .flatten()
        .find(|(key, _)| *key == option::INTERFACE_NAME)
        .map(|(_, name)| name.clone());
    if let Some(name) = wanted {
        check_interface_name(&name)?;
        return Ok(name);
    }
    let prefix = network
        .option(option::CONTAINER_PREFIX)
        .unwrap_or(INTERFACE_PREFIX);
    (0..)
        .map(|number: u32| format!("{prefix}{number}"))
        .find(|name| !uses(others, name))
        .ok_or_else(|| Error::internal("no interface name is free"))
}

/// Returns whether one of the endpoints has an interface with this name.
fn uses(endpoints: &BTreeMap<String, Endpoint>, name: &str) -> bool {
    let mut assigned = endpoints
        .values()
        .filter_map(|endpoint| endpoint.assigned.as_ref());
    assigned.any(|assigned| assigned.interface == name)
}
