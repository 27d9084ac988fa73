//! Published ports: parses requests, reserves ports of the host and redirects them to containers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use whelk_network::port::{HostPortRequest, Owner, PortMapping, every_address};

use crate::error::{Error, Result};
use crate::model::{Config, ContainerPort, ContainerRecord, HostConfig, PortBinding};
use crate::networks::model::option;
use crate::networks::{NetworkRecord, Networks};
use crate::rollback::Rollback;

/// A request to publish one port of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortRequest {
    pub(crate) container_port: u16,
    pub(crate) host: HostPortRequest,
}

/// Returns all ports that a container's settings publish.
fn port_requests(config: &Config, host: &HostConfig) -> Vec<PortRequest> {
    const ANY: &[PortBinding] = &[PortBinding {
        address: None,
        ports: None,
    }];
    let request = |port: ContainerPort, binding: &PortBinding| PortRequest {
        container_port: port.number,
        host: HostPortRequest {
            protocol: port.protocol,
            address: binding.address,
            ports: binding
                .ports
                .map_or((0, 0), |range| (range.first, range.last)),
        },
    };
    let mut requests = Vec::new();
    for (&port, bindings) in host.bound_ports() {
        let given = bindings.as_deref().filter(|list| !list.is_empty());
        let bindings = given.unwrap_or(ANY).iter();
        requests.extend(bindings.map(|binding| request(port, binding)));
    }
    if host.publish_all_ports {
        let bound: BTreeSet<ContainerPort> = host.bound_ports().map(|(&port, _)| port).collect();
        let exposed = config.exposed_ports.difference(&bound);
        requests.extend(exposed.map(|&port| request(port, &ANY[0])));
    }
    requests
}

impl Networks {
    /// Publishes a container's ports through the network that connects it to the outside. On an
    /// error none is published.
    pub(super) fn publish_ports(&self, record: &mut ContainerRecord) -> Result<()> {
        let requests = port_requests(&record.config, &record.host);
        if requests.is_empty() {
            return Ok(());
        }
        let Some((network, endpoint)) = self.external_network(record) else {
            return Ok(());
        };
        let default: IpAddr = network
            .option(option::HOST_BINDING)
            .and_then(|text| text.parse().ok())
            .unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let targets: BTreeMap<bool, IpAddr> = endpoint
            .addresses()
            .into_iter()
            .map(|address| (address.is_ipv4(), address))
            .collect();
        let (name, endpoint_id) = (record.name.clone(), endpoint.endpoint_id.clone());
        let mut record = Rollback::new("publish", record);
        record.push_undo("withdraw the ports", |record| {
            self.withdraw_ports(record);
            Ok(())
        });
        let failed = |text: String| {
            Error::internal(format!(
                "driver failed programming external connectivity on endpoint {name} ({endpoint_id}): {text}"
            ))
        };
        for request in &requests {
            self.publish_port(&mut record, request, &network, default, &targets)
                .map_err(failed)?;
        }
        let written = self.stack.firewall.publish(&record.ports);
        written.map_err(|error| failed(error.to_string()))?;
        record.commit();
        Ok(())
    }

    /// Reserves the host's ports for one port of a container and adds what was reserved to the
    /// record. `targets` are the container's addresses, by whether they are IPv4.
    ///
    /// # Errors
    /// Returns a message if the container lacks an address of that family, or the port is in use.
    fn publish_port(
        &self,
        record: &mut ContainerRecord,
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
        for address in direct {
            if !address.is_unspecified() || request.host.ports != (0, 0) {
                tracing::info!(
                    container = record.name,
                    "{address}: ignored, because the network is routed: port {} is reached by the container's own address",
                    request.container_port
                );
            }
            let unspecified = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let mapping = mapping(unspecified, 0);
            if !record.ports.contains(&mapping) {
                record.ports.push(mapping);
            }
        }
        if addresses.is_empty() {
            return Ok(());
        }
        if addresses.contains(&Ipv6Addr::LOCALHOST.into()) {
            let redirected = self.stack.firewall.redirect_ipv6_loopback();
            if !redirected.map_err(|error| error.to_string())? {
                return Err(
                    "::1 cannot be redirected to containers while the host filters bridged packets \
                            (net.bridge.bridge-nf-call-ip6tables is 1); use 127.0.0.1"
                        .to_owned(),
                );
            }
        }
        let taken = self.ports.take(&owner_of(record), request.host, &addresses);
        let port = taken.map_err(|error| error.to_string())?;
        record
            .ports
            .extend(addresses.into_iter().map(|address| mapping(address, port)));
        Ok(())
    }

    /// Withdraws a container's ports and releases them.
    pub(super) fn withdraw_ports(&self, record: &mut ContainerRecord) {
        let (ports, id) = (&self.ports, &record.id);
        // Only its own: the record may be outdated, and another container may have the port by now.
        let has = |address: IpAddr| {
            let state = self.state();
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
        let own: Vec<PortMapping> = record.ports.drain(..).filter(is_own).collect();
        // The rules before the reservation: a port that is still redirected must not be allocated
        // to another container.
        if let Err(error) = self.stack.firewall.withdraw(&own) {
            tracing::warn!(container = record.id, "{error}");
        }
        own.iter()
            .filter(|one| !one.is_direct())
            .for_each(|one| ports.release(one.protocol, one.host));
    }

    /// Returns up to `most` of the sockets that reserve a container's ports, for its shim.
    pub fn share_listeners(&self, container: &str, most: usize) -> Vec<OwnedFd> {
        self.ports.share_listeners(container, most)
    }

    /// Records the ports of a running container after a restart of the engine.
    pub(super) fn adopt_ports(&self, record: &mut ContainerRecord) {
        let owner = owner_of(record);
        record.ports.retain(|mapping| {
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
        if let Err(error) = self.stack.firewall.publish(&record.ports) {
            tracing::warn!(container = record.id, "{error}");
        }
    }
}

fn owner_of(record: &ContainerRecord) -> Owner {
    Owner {
        id: record.id.clone(),
        name: record.name.clone(),
    }
}

/// Checks port settings when a container is created.
pub(crate) fn check(host: &HostConfig) -> Result<()> {
    if host.network_mode.container().is_some() && host.publishes() {
        return Err(Error::invalid(
            "conflicting options: port publishing and the container type network mode",
        ));
    }
    Ok(())
}

/// Checks the ports that a client exposes, before those of the image are added.
pub(crate) fn check_exposed(config: &Config, host: &HostConfig) -> Result<()> {
    if host.network_mode.container().is_some()
        && !config.exposed_ports.is_empty()
        && !host.publishes()
    {
        return Err(Error::invalid(
            "conflicting options: port exposing and the container type network mode",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> ContainerPort {
        text.parse().unwrap()
    }

    /// Returns the requests for these bindings of ports, which are exposed besides `exposed`.
    fn requests(bindings: &[(&str, &[(&str, &str)])], exposed: &[&str]) -> String {
        let parse = |&(address, ports): &(&str, &str)| PortBinding::parse(address, ports).unwrap();
        let bindings = bindings
            .iter()
            .map(|(name, list)| (port(name), Some(list.iter().map(parse).collect())));
        let host = HostConfig {
            port_bindings: Some(bindings.collect()),
            publish_all_ports: !exposed.is_empty(),
            ..HostConfig::default()
        };
        let config = Config {
            exposed_ports: exposed.iter().map(|text| port(text)).collect(),
            ..Config::default()
        };
        let one = |request: &PortRequest| {
            let HostPortRequest {
                protocol,
                address,
                ports,
            } = request.host;
            format!(
                "{}/{protocol} at {address:?} {ports:?}",
                request.container_port
            )
        };
        let requests = port_requests(&config, &host);
        requests.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn bound_ports_are_published_at_each_binding() {
        assert_eq!(requests(&[], &[]), "");
        assert_eq!(requests(&[("80/tcp", &[])], &[]), "80/tcp at None (0, 0)");
        assert_eq!(
            requests(&[("53/udp", &[("127.0.0.1", "5300-5310")])], &[]),
            "53/udp at Some(127.0.0.1) (5300, 5310)"
        );
        assert_eq!(
            requests(&[("80", &[("[2001:db8::1]", "1"), ("", "2")])], &[]),
            "80/tcp at Some(2001:db8::1) (1, 1); 80/tcp at None (2, 2)"
        );
    }

    #[test]
    fn exposed_ports_without_bindings_are_published_at_any_port() {
        assert_eq!(
            requests(&[("80", &[("", "8080")])], &["80/tcp", "80/udp", "443"]),
            "80/tcp at None (8080, 8080); 80/udp at None (0, 0); 443/tcp at None (0, 0)"
        );
    }
}
