//! Published ports: parses requests, reserves ports of the host and redirects them to containers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use whelk_network::port::{HostPortRequest, Owner, PortMapping, Protocol, every_address};

use super::Networks;
use super::model::option;
use crate::error::{Error, Result};
use crate::model::{Config, ContainerRecord, HostConfig, PortBinding};
use crate::rollback::Rollback;

/// A request to publish one port of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortRequest {
    pub(crate) container_port: u16,
    pub(crate) host: HostPortRequest,
}

/// Parses `PORT[/PROTOCOL]`; the default protocol is TCP.
pub(crate) fn parse_port(text: &str) -> Result<(u16, Protocol)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number = number
        .parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| Error::invalid(format!("invalid port specification: {text:?}")))?;
    let protocol = Protocol::parse(protocol)
        .ok_or_else(|| Error::invalid(format!("invalid proto: {protocol}")))?;
    Ok((number, protocol))
}

/// Parses `FIRST[-LAST]`. An empty text means a port that the kernel chooses.
fn parse_range(text: &str) -> Result<(u16, u16)> {
    let invalid = || Error::invalid(format!("invalid port specification: {text:?}"));
    if text.is_empty() {
        return Ok((0, 0));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (
        first.parse().map_err(|_| invalid())?,
        last.parse().map_err(|_| invalid())?,
    );
    if first > last {
        Err(invalid())
    } else {
        Ok((first, last))
    }
}

/// Returns all ports that a container's settings publish.
///
/// # Errors
/// Returns an error if a specification is invalid.
pub(crate) fn port_requests(config: &Config, host: &HostConfig) -> Result<Vec<PortRequest>> {
    let mut requests = Vec::new();
    for (key, bindings) in host.bound_ports() {
        let (port, protocol) = parse_port(key)?;
        let any = [PortBinding::default()];
        let bindings = bindings
            .as_deref()
            .filter(|list| !list.is_empty())
            .unwrap_or(&any);
        for PortBinding { host_ip, host_port } in bindings {
            let address = if host_ip.is_empty() {
                None
            } else {
                let plain = host_ip.trim_matches(['[', ']']);
                let address: IpAddr = plain
                    .parse()
                    .map_err(|_| Error::invalid(format!("invalid IP address: {host_ip}")))?;
                Some(address)
            };
            requests.push(PortRequest {
                container_port: port,
                host: HostPortRequest {
                    protocol,
                    address,
                    ports: parse_range(host_port)?,
                },
            });
        }
    }
    let given: BTreeSet<(u16, Protocol)> = requests
        .iter()
        .map(|request| (request.container_port, request.host.protocol))
        .collect();
    for key in &config.exposed_ports {
        let (port, protocol) = parse_port(key)?;
        if host.publish_all_ports && !given.contains(&(port, protocol)) {
            requests.push(PortRequest {
                container_port: port,
                host: HostPortRequest {
                    protocol,
                    address: None,
                    ports: (0, 0),
                },
            });
        }
    }
    Ok(requests)
}

impl Networks {
    /// Publishes a container's ports through the network that connects it to the outside. On an
    /// error none is published.
    pub(super) fn publish_ports(&self, record: &mut ContainerRecord) -> Result<()> {
        let requests = port_requests(&record.config, &record.host)?;
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
        network: &super::NetworkRecord,
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

    /// Returns the network, and the endpoint in it, through which a container is reached from
    /// outside: the non-internal bridge network with the highest gateway priority.
    pub(super) fn external_network(
        &self,
        record: &ContainerRecord,
    ) -> Option<(super::NetworkRecord, super::Endpoint)> {
        record
            .networks
            .iter()
            .filter(|(_, endpoint)| !endpoint.endpoint_id.is_empty())
            .filter_map(|(_, endpoint)| {
                Some((self.find(&endpoint.network_id).ok()?, endpoint.clone()))
            })
            .filter(|(network, _)| network.driver.facts().host_routes && !network.internal)
            .max_by_key(|(network, endpoint)| {
                (
                    endpoint.gw_priority,
                    std::cmp::Reverse(network.name.clone()),
                )
            })
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
pub(crate) fn check(config: &Config, host: &HostConfig) -> Result<()> {
    port_requests(config, host)?;
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
    use crate::model::PortBinding;

    /// Checks the requests for bindings of one port to addresses and ports of the host.
    fn check(port: &str, bindings: Option<&[(&str, &str)]>, expected: &str) {
        let bindings = bindings.map(|list| {
            let bindings = list.iter().map(|&(address, port)| PortBinding {
                host_ip: address.into(),
                host_port: port.into(),
            });
            bindings.collect()
        });
        let host = HostConfig {
            port_bindings: Some([(port.to_owned(), bindings)].into()),
            ..HostConfig::default()
        };
        let found = port_requests(&Config::default(), &host).map_or_else(
            |error| error.to_string(),
            |requests| {
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
                requests.iter().map(one).collect::<Vec<_>>().join("; ")
            },
        );
        assert_eq!(found, expected);
    }

    #[test]
    fn bindings() {
        check("80/tcp", None, "80/tcp at None (0, 0)");
        check("80", Some(&[("", "8080")]), "80/tcp at None (8080, 8080)");
        check(
            "53/udp",
            Some(&[("127.0.0.1", "5300-5310")]),
            "53/udp at Some(127.0.0.1) (5300, 5310)",
        );
        check(
            "80/tcp",
            Some(&[("[2001:db8::1]", "1"), ("", "2")]),
            "80/tcp at Some(2001:db8::1) (1, 1); 80/tcp at None (2, 2)",
        );
        check("80/tcp", Some(&[("::1", "")]), "80/tcp at Some(::1) (0, 0)");
        check("0/tcp", None, "invalid port specification: \"0/tcp\"");
        check("80/x", None, "invalid proto: x");
        check(
            "80",
            Some(&[("", "9-8")]),
            "invalid port specification: \"9-8\"",
        );
        check("80", Some(&[("x", "")]), "invalid IP address: x");
    }
}
