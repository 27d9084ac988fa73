//! Connecting a container to a network, and disconnecting it, while it runs or not.

use std::os::fd::AsFd;

use whelk_network::Links;

use super::interfaces::open_namespace;
use crate::error::{Error, Result};
use crate::model::{ContainerRecord, NetworkMode};
use crate::networks::drivers::Joining;
use crate::networks::settings::check_endpoint;
use crate::networks::{Endpoint, NetworkRecord, Networks};
use crate::rollback::Rollback;

#[derive(Clone, Debug, Default)]
pub struct ConnectRequest {
    pub container: String,
    pub endpoint: Endpoint,
}

/// Docker's texts for containers that cannot be attached to a network.
pub(super) const CREATED_FOR_HOST: &str =
    "cannot connect container to host network - container must be created in host network mode";

pub(super) const PRIVATE: &str = "container cannot be connected to multiple networks with one of the networks in private (none) mode";

const SHARES: &str = "container sharing network namespace with another container or host cannot be connected to any other network";

impl Networks {
    /// Connects a container to a network: immediately if it is running, else at its next start.
    pub fn connect(
        &self,
        record: &mut ContainerRecord,
        network: &str,
        mut endpoint: Endpoint,
    ) -> Result<()> {
        let network = self.find(network)?;
        check_endpoint(&network.name, Some(&network), &endpoint)?;
        check_connect(record, &network)?;
        endpoint.network_id.clone_from(&network.id);
        if !record.state.status.is_running() || network.driver.facts().joining == Joining::Alone {
            record.networks.insert(network.name.clone(), endpoint);
            return Ok(());
        }
        let namespace = open_namespace(record.state.pid)?;
        let external =
            |record: &ContainerRecord| self.external_network(record).map(|(network, _)| network.id);
        let before = external(record);
        let mut record = Rollback::new("connect", record);
        record.push_undo("publish the ports", |record| {
            if record.ports.is_empty() {
                self.publish_ports(record)?;
            }
            Ok(())
        });
        record.push_undo("set the default gateway", |record| {
            self.set_default_gateway(record, &mut Links::open_in(namespace.as_fd())?)
        });
        record.push_undo("detach the endpoint", |record| {
            if let Some(endpoint) = record.networks.remove(&network.name) {
                self.detach_endpoint(&record.id, &network, &endpoint, Some(namespace.as_fd()));
            }
            Ok(())
        });
        let attached =
            self.attach_endpoint_to_running(&record, &network, &mut endpoint, namespace.as_fd());
        record.networks.insert(network.name.clone(), endpoint);
        self.set_default_gateway(&record, &mut attached?)?;
        self.start_resolver(&record, namespace.as_fd(), None)?;
        // The ports must be redirected to the network that now connects it to the outside.
        if external(&record) != before {
            self.republish_ports(&mut record)?;
        }
        self.publish(&network, "connect", Some(&record.id));
        record.commit();
        Ok(())
    }

    /// Disconnects a container from a network.
    ///
    /// # Errors
    /// Returns an error if the container is not connected to the network.
    pub fn disconnect(&self, record: &mut ContainerRecord, network: &str) -> Result<()> {
        let network = self.find(network)?;
        let is_running = record.state.status.is_running();
        if record.host.network_mode == NetworkMode::Host
            && network.driver.facts().joining == Joining::HostNamespace
        {
            return Err(Error::invalid(
                "cannot disconnect container from host network - container was created in host network mode",
            ));
        }
        let Some(endpoint) = record.networks.remove(&network.name) else {
            let which = if is_running { "network" } else { "the network" };
            return Err(Error::internal(format!(
                "container {} is not connected to {which} {}",
                record.id, network.name
            )));
        };
        if !is_running {
            return Ok(());
        }
        if network.driver.facts().joining == Joining::Alone {
            self.detach_endpoint(&record.id, &network, &endpoint, None);
            self.publish(&network, "disconnect", Some(&record.id));
            return Ok(());
        }
        let had_ports = !record.ports.is_empty();
        if had_ports
            && record
                .ports
                .iter()
                .any(|mapping| endpoint.addresses().contains(&mapping.to.ip()))
        {
            self.withdraw_ports(record);
        }
        // `None` if its process has just ended: its namespace and interfaces are then deleted
        // anyway.
        let namespace = open_namespace(record.state.pid).ok();
        self.detach_endpoint(
            &record.id,
            &network,
            &endpoint,
            namespace.as_ref().map(AsFd::as_fd),
        );
        self.publish(&network, "disconnect", Some(&record.id));
        let Some(namespace) = namespace else {
            return Ok(());
        };
        self.set_default_gateway(record, &mut Links::open_in(namespace.as_fd())?)?;
        if had_ports && record.ports.is_empty() {
            self.publish_ports(record)?;
        }
        Ok(())
    }

    /// Withdraws a container's ports and publishes them through its current network to the outside.
    fn republish_ports(&self, record: &mut ContainerRecord) -> Result<()> {
        self.withdraw_ports(record);
        self.publish_ports(record)
    }
}

/// Returns an error if the network mode of the container or the network's driver does not permit
/// the connection.
fn check_connect(record: &ContainerRecord, network: &NetworkRecord) -> Result<()> {
    let mode = &record.host.network_mode;
    if mode.container().is_some() {
        return Err(Error::invalid(SHARES));
    }
    if record.networks.contains_key(&network.name) {
        return Err(Error::Denied(format!(
            "endpoint with name {} already exists in network {}",
            record.name, network.name
        )));
    }
    let joining = network.driver.facts().joining;
    let is_private = *mode == NetworkMode::None
        || record.networks.contains_key("none")
        || joining == Joining::Alone && !record.networks.is_empty();
    match (mode, joining) {
        (NetworkMode::Host, _) => Err(Error::invalid(SHARES)),
        (_, Joining::HostNamespace) => Err(Error::invalid(CREATED_FOR_HOST)),
        (NetworkMode::None, Joining::Alone) => Ok(()),
        _ if is_private => Err(Error::invalid(PRIVATE)),
        _ => Ok(()),
    }
}
