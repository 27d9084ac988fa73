//! Published ports: reserves ports of the host and redirects them to sandboxes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use whelk_network::port::{PortMapping, every_address};

use super::{PortRequest, Sandbox, SandboxConfig, Sandboxes};
use crate::error::{Error, Result};
use crate::networks::NetworkRecord;
use crate::networks::model::option;
use crate::rollback::Rollback;

impl Sandboxes {
    /// Publishes a sandbox's ports through the network that connects it to the outside. On an
    /// error none is published.
    pub(super) fn publish_ports(
        &self,
        config: &SandboxConfig,
        sandbox: &mut Sandbox,
    ) -> Result<()> {
        if config.ports.is_empty() {
            return Ok(());
        }
        let Some((network, endpoint)) = self.external_network(sandbox) else {
            return Ok(());
        };
        let default: IpAddr = network
            .option(option::HOST_BINDING)
            .and_then(|text| text.parse().ok())
            .unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let targets: BTreeMap<bool, IpAddr> = endpoint
            .nets()
            .map(|net| (net.addr().is_ipv4(), net.addr()))
            .collect();
        let (name, endpoint_id) = (&config.name, &endpoint.endpoint_id);
        let mut ports = Rollback::new("publish", &mut sandbox.ports);
        ports.push_undo("withdraw the ports", |ports| {
            self.withdraw_ports(&config.id, ports);
            Ok(())
        });
        let failed = |text: String| {
            Error::internal(format!(
                "driver failed programming external connectivity on endpoint {name} ({endpoint_id}): {text}"
            ))
        };
        for request in &config.ports {
            self.publish_port(config, &mut ports, request, &network, default, &targets)
                .map_err(failed)?;
        }
        let written = self.networks.stack.firewall.publish(&ports);
        written.map_err(|error| failed(error.to_string()))?;
        ports.commit();
        Ok(())
    }

    /// Reserves the host's ports for one port of a sandbox and adds what was reserved to `ports`.
    /// `targets` are the sandbox's addresses, by whether they are IPv4.
    ///
    /// # Errors
    /// Returns a message if the container lacks an address of that family, or the port is in use.
    fn publish_port(
        &self,
        config: &SandboxConfig,
        ports: &mut Vec<PortMapping>,
        request: &PortRequest,
        network: &NetworkRecord,
        default: IpAddr,
        targets: &BTreeMap<bool, IpAddr>,
    ) -> std::result::Result<(), String> {
        let addresses = match request.host.address {
            None if default.is_unspecified() => {
                every_address(targets.contains_key(&true), targets.contains_key(&false))
            }
            None => vec![default],
            Some(address) => vec![address],
        };
        let reachable = |address: &IpAddr| targets.contains_key(&address.is_ipv4());
        let addresses: Vec<IpAddr> = addresses.into_iter().filter(reachable).collect();
        if addresses.is_empty() {
            let is_ipv6 = request
                .host
                .address
                .is_some_and(|address| address.is_ipv6());
            return Err(format!(
                "the container has no {} address in network {}",
                if is_ipv6 { "IPv6" } else { "IPv4" },
                network.name
            ));
        }
        let mapping = |address: IpAddr, host_port: u16| PortMapping {
            protocol: request.host.protocol,
            host: SocketAddr::new(address, host_port),
            to: SocketAddr::new(targets[&address.is_ipv4()], request.container_port),
        };
        let (direct, addresses): (Vec<IpAddr>, Vec<IpAddr>) = addresses
            .into_iter()
            .partition(|address| network.is_routed(address.is_ipv4()));
        let first = ports.len();
        for address in direct {
            if !address.is_unspecified() || request.host.ports != (0, 0) {
                tracing::info!(
                    container = config.name,
                    "{address}: ignored, because the network is routed: port {} is reached by the container's own address",
                    request.container_port
                );
            }
            let unspecified = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let mapping = mapping(unspecified, 0);
            if !ports.contains(&mapping) {
                ports.push(mapping);
            }
        }
        if addresses.is_empty() {
            return Ok(());
        }
        if addresses.contains(&Ipv6Addr::LOCALHOST.into()) {
            let redirected = self.networks.stack.firewall.redirect_ipv6_loopback();
            if !redirected.map_err(|error| error.to_string())? {
                return Err(
                    "::1 cannot be redirected to containers while the host filters bridged packets \
                            (net.bridge.bridge-nf-call-ip6tables is 1); use 127.0.0.1"
                        .to_owned(),
                );
            }
        }
        let taken = self.ports.take(&config.owner(), request.host, &addresses);
        let port = taken.map_err(|error| error.to_string())?;
        ports.extend(addresses.into_iter().map(|address| mapping(address, port)));
        // IPv4 comes first, as in Docker, also where only IPv6 is routed.
        ports[first..].sort_by_key(|mapping| mapping.host.is_ipv6());
        Ok(())
    }

    /// Withdraws the published ports of the sandbox `id` and releases them.
    pub(super) fn withdraw_ports(&self, id: &str, published: &mut Vec<PortMapping>) {
        let ports = &self.ports;
        // Only its own: the state may be outdated, and another sandbox may have the port by now.
        let has = |address: IpAddr| {
            let state = self.networks.state();
            let mut places = state.values().filter_map(|network| network.members.get(id));
            places.any(|member| member.addresses.iter().any(|net| net.addr() == address))
        };
        let is_own = |one: &PortMapping| {
            if one.is_direct() {
                has(one.to.ip())
            } else {
                ports.is_own(id, one.protocol, one.host)
            }
        };
        let own: Vec<PortMapping> = published.drain(..).filter(is_own).collect();
        // The rules before the reservation: a port that is still redirected must not be allocated
        // to another container.
        if let Err(error) = self.networks.stack.firewall.withdraw(&own) {
            tracing::warn!(container = id, "{error}");
        }
        own.iter()
            .filter(|one| !one.is_direct())
            .for_each(|one| ports.release(one.protocol, one.host));
    }

    /// Returns up to `most` of the sockets that reserve a sandbox's ports, for the shim of its
    /// processes.
    pub fn share_listeners(&self, id: &str, most: usize) -> Vec<OwnedFd> {
        self.ports.share_listeners(id, most)
    }

    /// Reserves the published ports of a sandbox again after a restart of the engine, and removes
    /// those that another process has.
    pub(super) fn adopt_ports(&self, config: &SandboxConfig, published: &mut Vec<PortMapping>) {
        let owner = config.owner();
        published.retain(|mapping| {
            if mapping.is_direct() {
                return true;
            }
            let held = self.ports.adopt(&owner, mapping.protocol, mapping.host);
            if let Err(error) = &held {
                tracing::warn!(
                    container = owner.id,
                    "a published port was taken while the engine was not running: {error}"
                );
            }
            held.is_ok()
        });
        if let Err(error) = self.networks.stack.firewall.publish(published) {
            tracing::warn!(container = config.id, "{error}");
        }
    }
}
