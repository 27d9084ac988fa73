//! Published ports: what was asked for becomes ports of the host, held and led to the container.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use whelk_network::port::{Owner, Protocol, Publication, Wanted, every_address};

use super::Networks;
use super::model::option;
use crate::error::{Error, Result};
use crate::model::{Config, ContainerRecord, HostConfig, PortBinding};

/// One port as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortWish {
    /// The container's.
    pub(crate) port: u16,
    pub(crate) wanted: Wanted,
}

/// `80/tcp`, or without a protocol for TCP.
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

/// All ports that a container wants published.
///
/// # Errors
/// A specification that makes no sense.
pub(crate) fn wishes(config: &Config, host: &HostConfig) -> Result<Vec<PortWish>> {
    let mut wishes = Vec::new();
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
            wishes.push(PortWish {
                port,
                wanted: Wanted {
                    protocol,
                    address,
                    ports: parse_range(host_port)?,
                },
            });
        }
    }
    let given: BTreeSet<(u16, Protocol)> = wishes
        .iter()
        .map(|wish| (wish.port, wish.wanted.protocol))
        .collect();
    for key in config.exposed_ports.keys() {
        let (port, protocol) = parse_port(key)?;
        if host.publish_all_ports && !given.contains(&(port, protocol)) {
            wishes.push(PortWish {
                port,
                wanted: Wanted {
                    protocol,
                    address: None,
                    ports: (0, 0),
                },
            });
        }
    }
    Ok(wishes)
}

impl Networks {
    /// Publishes a container's ports through the network that leads it outside. On an error none is
    /// published.
    pub(super) fn publish_ports(&self, record: &mut ContainerRecord) -> Result<()> {
        let wishes = wishes(&record.config, &record.host)?;
        if wishes.is_empty() {
            return Ok(());
        }
        let Some((network, endpoint)) = self.outward(record) else {
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
        let published = wishes
            .iter()
            .try_for_each(|wish| self.publish_port(record, wish, &network, default, &targets))
            .and_then(|()| {
                let written = self.firewall.publish(&record.ports);
                written.map_err(|error| error.to_string())
            });
        published.map_err(|text| {
            self.withdraw_ports(record);
            Error::internal(format!(
                "driver failed programming external connectivity on endpoint {name} ({endpoint_id}): {text}"
            ))
        })
    }

    /// Reserves the host's ports for one port of a container and adds what was reserved to the
    /// record. `targets` are the container's addresses, by whether they are IPv4.
    ///
    /// # Errors
    /// A text for people: the container lacks an address of that family, or the port is in use.
    fn publish_port(
        &self,
        record: &mut ContainerRecord,
        wish: &PortWish,
        network: &super::NetworkRecord,
        default: IpAddr,
        targets: &BTreeMap<bool, IpAddr>,
    ) -> std::result::Result<(), String> {
        let addresses = match wish.wanted.address {
            None if default.is_unspecified() => {
                every_address(targets.contains_key(&true), targets.contains_key(&false))
            }
            None => vec![default],
            Some(address) => vec![address],
        };
        let reachable = |address: &IpAddr| targets.contains_key(&address.is_ipv4());
        let addresses: Vec<IpAddr> = addresses.into_iter().filter(reachable).collect();
        if addresses.is_empty() {
            let is_ipv6 = wish.wanted.address.is_some_and(|address| address.is_ipv6());
            return Err(format!(
                "the container has no {} address in network {}",
                if is_ipv6 { "IPv6" } else { "IPv4" },
                network.name
            ));
        }
        let publication = |address: IpAddr, host_port: u16| Publication {
            protocol: wish.wanted.protocol,
            host: SocketAddr::new(address, host_port),
            to: SocketAddr::new(targets[&address.is_ipv4()], wish.port),
        };
        let (direct, addresses): (Vec<IpAddr>, Vec<IpAddr>) = addresses
            .into_iter()
            .partition(|address| network.is_routed(address.is_ipv4()));
        for address in direct {
            if !address.is_unspecified() || wish.wanted.ports != (0, 0) {
                tracing::info!(
                    container = record.name,
                    "{address}: its network is routed: no address or port of the host's leads to port {}",
                    wish.port
                );
            }
            let unspecified = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let publication = publication(unspecified, 0);
            if !record.ports.contains(&publication) {
                record.ports.push(publication);
            }
        }
        if addresses.is_empty() {
            return Ok(());
        }
        if addresses.contains(&Ipv6Addr::LOCALHOST.into()) {
            let led = self.firewall.lead_loopback6();
            if !led.map_err(|error| error.to_string())? {
                return Err(
                    "::1 leads to no container while the host filters bridged packets \
                            (net.bridge.bridge-nf-call-ip6tables is 1); 127.0.0.1 does"
                        .to_owned(),
                );
            }
        }
        let taken = self.ports.take(&owner_of(record), wish.wanted, &addresses);
        let port = taken.map_err(|error| error.to_string())?;
        record.ports.extend(
            addresses
                .into_iter()
                .map(|address| publication(address, port)),
        );
        Ok(())
    }

    /// The network through which a container is reached from outside.
    pub(super) fn outward(
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
            .filter(|(network, _)| network.driver == "bridge" && !network.internal)
            .max_by_key(|(network, endpoint)| {
                (
                    endpoint.gw_priority,
                    std::cmp::Reverse(network.name.clone()),
                )
            })
    }

    pub(super) fn withdraw_ports(&self, record: &mut ContainerRecord) {
        let (ports, id) = (&self.ports, &record.id);
        // Only what is its own: a record may be older than who has the port now.
        let has = |address: IpAddr| {
            let state = self.state();
            let mut places = state.values().filter_map(|network| network.members.get(id));
            places.any(|member| member.addresses.iter().any(|net| net.addr() == address))
        };
        let is_own = |one: &Publication| {
            if one.is_direct() {
                has(one.to.ip())
            } else {
                ports.is_own(id, one.protocol, one.host)
            }
        };
        let own: Vec<Publication> = record.ports.drain(..).filter(is_own).collect();
        // While a rule leads a port elsewhere it cannot be another's.
        if let Err(error) = self.firewall.withdraw(&own) {
            tracing::warn!(container = record.id, "{error}");
        }
        own.iter()
            .filter(|one| !one.is_direct())
            .for_each(|one| ports.release(one.protocol, one.host));
    }

    /// The sockets that hold a container's ports, for its shim.
    pub fn lend_ports(&self, container: &str, most: usize) -> Vec<OwnedFd> {
        self.ports.lend(container, most)
    }

    /// Takes note of the ports of a running container again.
    pub(super) fn adopt_ports(&self, record: &mut ContainerRecord) {
        let owner = owner_of(record);
        record.ports.retain(|publication| {
            if publication.is_direct() {
                return true;
            }
            let held = self
                .ports
                .adopt(&owner, publication.protocol, publication.host);
            if let Err(error) = &held {
                tracing::warn!(
                    container = owner.id,
                    "a published port was lost while the engine was away: {error}"
                );
            }
            held.is_ok()
        });
        if let Err(error) = self.firewall.publish(&record.ports) {
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

/// Refuses settings that cannot work, at create.
pub(crate) fn check(config: &Config, host: &HostConfig) -> Result<()> {
    wishes(config, host)?;
    if host.network_mode.starts_with("container:") && host.publishes() {
        return Err(Error::invalid(
            "conflicting options: port publishing and the container type network mode",
        ));
    }
    Ok(())
}

/// Checks what a client asks to expose, which is not yet joined by what the image does.
pub(crate) fn check_exposed(config: &Config, host: &HostConfig) -> Result<()> {
    if host.network_mode.starts_with("container:")
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
    use serde_json::json;

    use super::*;

    fn check(bindings: serde_json::Value, expected: &str) {
        let host = HostConfig {
            port_bindings: serde_json::from_value(bindings).unwrap(),
            ..HostConfig::default()
        };
        let found = wishes(&Config::default(), &host).map_or_else(
            |error| error.to_string(),
            |wishes| {
                let one = |wish: &PortWish| {
                    let Wanted {
                        protocol,
                        address,
                        ports,
                    } = wish.wanted;
                    format!("{}/{protocol} at {address:?} {ports:?}", wish.port)
                };
                wishes.iter().map(one).collect::<Vec<_>>().join("; ")
            },
        );
        assert_eq!(found, expected);
    }

    #[test]
    fn bindings() {
        check(json!({"80/tcp": null}), "80/tcp at None (0, 0)");
        check(
            json!({"80": [{"HostPort": "8080"}]}),
            "80/tcp at None (8080, 8080)",
        );
        check(
            json!({"53/udp": [{"HostIp": "127.0.0.1", "HostPort": "5300-5310"}]}),
            "53/udp at Some(127.0.0.1) (5300, 5310)",
        );
        check(
            json!({"80/tcp": [{"HostIp": "[2001:db8::1]", "HostPort": "1"}, {"HostPort": "2"}]}),
            "80/tcp at Some(2001:db8::1) (1, 1); 80/tcp at None (2, 2)",
        );
        check(
            json!({"80/tcp": [{"HostIp": "::1"}]}),
            "80/tcp at Some(::1) (0, 0)",
        );
        check(
            json!({"0/tcp": null}),
            "invalid port specification: \"0/tcp\"",
        );
        check(json!({"80/x": null}), "invalid proto: x");
        check(
            json!({"80": [{"HostPort": "9-8"}]}),
            "invalid port specification: \"9-8\"",
        );
        check(json!({"80": [{"HostIp": "x"}]}), "invalid IP address: x");
    }
}
