//! Connecting a sandbox to a network, and disconnecting it, while its processes run or not.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use whelk_network::Links;

use super::{Sandbox, SandboxConfig, Sandboxes};
use crate::error::{Error, Result};
use crate::model::NetworkMode;
use crate::networks::drivers::Joining;
use crate::networks::model::EndpointRequest;
use crate::networks::settings::check_endpoint;
use crate::networks::{Endpoint, NetworkRecord};
use crate::rollback::Rollback;

#[derive(Clone, Debug, Default)]
pub struct ConnectRequest {
    pub container: String,
    pub endpoint: EndpointRequest,
}

/// Docker's texts for containers that cannot be attached to a network.
pub(super) const CREATED_FOR_HOST: &str =
    "cannot connect container to host network - container must be created in host network mode";

pub(super) const PRIVATE: &str = "container cannot be connected to multiple networks with one of the networks in private (none) mode";

const SHARES: &str = "container sharing network namespace with another container or host cannot be connected to any other network";

impl Sandboxes {
    /// Connects a sandbox to a network: at once if it has processes, one of which is
    /// `process`, else when it is attached. The state is as before if it fails, except that ports may be published at other
    /// ports of the host.
    ///
    /// # Errors
    /// Returns an error if it is connected already, or if its network mode allows no networks.
    pub fn connect(
        &self,
        config: &SandboxConfig,
        process: Option<i32>,
        sandbox: &mut Sandbox,
        network: &str,
        endpoint: EndpointRequest,
    ) -> Result<()> {
        let network = self.networks.find(network)?;
        check_endpoint(&network.name, Some(&network), &endpoint)?;
        check_connect(config, &sandbox.endpoints, &network)?;
        let mut endpoint = Endpoint {
            requested: endpoint,
            network_id: network.id.clone(),
            ..Endpoint::default()
        };
        let is_alone = network.driver.facts().joining == Joining::Alone;
        let Some(process) = process.filter(|_| !is_alone) else {
            sandbox.endpoints.insert(network.name.clone(), endpoint);
            return Ok(());
        };
        let namespace = self.namespace(&config.id, process)?;
        let external = |sandbox: &Sandbox| {
            self.external_network(sandbox)
                .map(|(network, _)| network.id)
        };
        let before = external(sandbox);
        let mut sandbox = Rollback::new("connect", sandbox);
        sandbox.push_undo("publish the ports", |sandbox| {
            if sandbox.ports.is_empty() {
                self.publish_ports(config, sandbox)?;
            }
            Ok(())
        });
        sandbox.push_undo("set the default gateway", |sandbox| {
            self.set_default_gateway(sandbox, &mut Links::open_in(namespace.as_fd())?)
        });
        sandbox.push_undo("detach the endpoint", |sandbox| {
            if let Some(endpoint) = sandbox.endpoints.remove(&network.name) {
                let namespace = Some(namespace.as_fd());
                self.networks
                    .detach_endpoint(&config.id, &network, &endpoint, namespace);
            }
            Ok(())
        });
        let attached = self.attach_endpoint_to_running(
            config,
            &sandbox.endpoints,
            &network,
            &mut endpoint,
            namespace.as_fd(),
        );
        sandbox.endpoints.insert(network.name.clone(), endpoint);
        self.set_default_gateway(&sandbox, &mut attached?)?;
        self.start_resolver(config, &sandbox, None)?;
        // The ports must be redirected to the network that now connects it to the outside.
        if external(&sandbox) != before {
            self.withdraw_ports(&config.id, &mut sandbox.ports);
            self.publish_ports(config, &mut sandbox)?;
        }
        self.networks.publish(&network, "connect", Some(&config.id));
        sandbox.commit();
        Ok(())
    }

    /// Disconnects a sandbox from a network. `process` is one of its processes, if it has any.
    ///
    /// # Errors
    /// Returns an error if the sandbox is not connected to the network.
    pub fn disconnect(
        &self,
        config: &SandboxConfig,
        process: Option<i32>,
        sandbox: &mut Sandbox,
        network: &str,
    ) -> Result<()> {
        let network = self.networks.find(network)?;
        if config.mode == NetworkMode::Host
            && network.driver.facts().joining == Joining::HostNamespace
        {
            return Err(Error::invalid(
                "cannot disconnect container from host network - container was created in host network mode",
            ));
        }
        let Some(endpoint) = sandbox.endpoints.remove(&network.name) else {
            let which = if process.is_some() {
                "network"
            } else {
                "the network"
            };
            return Err(Error::internal(format!(
                "container {} is not connected to {which} {}",
                config.id, network.name
            )));
        };
        let Some(process) = process else {
            return Ok(());
        };
        if network.driver.facts().joining == Joining::Alone {
            self.networks
                .detach_endpoint(&config.id, &network, &endpoint, None);
            self.networks
                .publish(&network, "disconnect", Some(&config.id));
            return Ok(());
        }
        let had_ports = !sandbox.ports.is_empty();
        let leads_here = |to: std::net::IpAddr| endpoint.addresses().contains(&to);
        if sandbox.ports.iter().any(|port| leads_here(port.to.ip())) {
            self.withdraw_ports(&config.id, &mut sandbox.ports);
        }
        // `None` if its process has just ended, and this engine does not hold the namespace: it is
        // deleted with its interfaces.
        let namespace = self.namespace(&config.id, process).ok();
        self.networks.detach_endpoint(
            &config.id,
            &network,
            &endpoint,
            namespace.as_ref().map(|namespace| namespace.as_fd()),
        );
        self.networks
            .publish(&network, "disconnect", Some(&config.id));
        let Some(namespace) = namespace else {
            return Ok(());
        };
        self.set_default_gateway(sandbox, &mut Links::open_in(namespace.as_fd())?)?;
        if had_ports && sandbox.ports.is_empty() {
            self.publish_ports(config, sandbox)?;
        }
        Ok(())
    }
}

/// Returns an error if the network mode of the container or the network's driver does not permit
/// the connection.
fn check_connect(
    config: &SandboxConfig,
    endpoints: &BTreeMap<String, Endpoint>,
    network: &NetworkRecord,
) -> Result<()> {
    let mode = &config.mode;
    if mode.container().is_some() {
        return Err(Error::invalid(SHARES));
    }
    if endpoints.contains_key(&network.name) {
        return Err(Error::Denied(format!(
            "endpoint with name {} already exists in network {}",
            config.name, network.name
        )));
    }
    let joining = network.driver.facts().joining;
    let is_private = *mode == NetworkMode::None
        || endpoints.contains_key("none")
        || joining == Joining::Alone && !endpoints.is_empty();
    match (mode, joining) {
        (NetworkMode::Host, _) => Err(Error::invalid(SHARES)),
        (_, Joining::HostNamespace) => Err(Error::invalid(CREATED_FOR_HOST)),
        (NetworkMode::None, Joining::Alone) => Ok(()),
        _ if is_private => Err(Error::invalid(PRIVATE)),
        _ => Ok(()),
    }
}
