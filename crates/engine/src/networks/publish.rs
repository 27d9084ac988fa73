//! Published ports: what was asked for becomes ports of the host, held and led to the container.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use whelk_network::port::{Owner, Protocol, Publication, Wanted, every_address};

use super::Networks;
use super::model::option;
use crate::error::{Error, Result};
use crate::model::{Config, HostConfig, PortBinding, Record};

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
    pub(super) fn publish_ports(&self, record: &mut Record) -> Result<()> {
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
        let failed = |text: String| {
            Error::internal(format!(
                "driver failed programming external connectivity on endpoint {name} ({endpoint_id}): {text}"
            ))
        };
        for wish in wishes {
            let addresses = match wish.wanted.address {
                None if default.is_unspecified() => {
                    every_address(targets.contains_key(&true), targets.contains_key(&false))
                }
                None => vec![default],
                Some(address) => vec![address],
            };
            let addresses: Vec<IpAddr> = addresses
                .into_iter()
                .filter(|address| targets.contains_key(&address.is_ipv4()))
                .collect();
            if addresses.is_empty() {
                let family = if wish.wanted.address.is_some_and(|address| address.is_ipv6()) {
                    "IPv6"
                } else {
                    "IPv4"
                };
                self.withdraw_ports(record);
                return Err(failed(format!(
                    "the container has no {family} address in network {}",
                    network.name
                )));
            }
            let to = |address: &IpAddr| SocketAddr::new(targets[&address.is_ipv4()], wish.port);
            let (direct, addresses): (Vec<IpAddr>, Vec<IpAddr>) = addresses
                .into_iter()
                .partition(|address| network.is_routed(address.is_ipv4()));
            for address in direct {
                if !address.is_unspecified() || wish.wanted.ports != (0, 0) {
                    tracing::info!(
                        container = name,
                        "{address}: its network is routed: no address or port of the host's leads to port {}",
                        wish.port
                    );
                }
                let host = SocketAddr::new(
                    if address.is_ipv4() {
                        Ipv4Addr::UNSPECIFIED.into()
                    } else {
                        Ipv6Addr::UNSPECIFIED.into()
                    },
                    0,
                );
                let publication = Publication {
                    protocol: wish.wanted.protocol,
                    host,
                    to: to(&address),
                };
                if !record.ports.contains(&publication) {
                    record.ports.push(publication);
                }
            }
            if addresses.is_empty() {
                continue;
            }
            if addresses.contains(&Ipv6Addr::LOCALHOST.into()) {
                const FILTERED: &str = "::1 leads to no container while the host filters bridged packets \
                                        (net.bridge.bridge-nf-call-ip6tables is 1); 127.0.0.1 does";
                let led = self
                    .firewall
                    .lead_loopback6()
                    .map_err(|error| error.to_string());
                if let Err(text) = led.and_then(|led| {
                    if led {
                        Ok(())
                    } else {
                        Err(FILTERED.to_owned())
                    }
                }) {
                    self.withdraw_ports(record);
                    return Err(failed(text));
                }
            }
            match self.ports.take(&owner_of(record), wish.wanted, &addresses) {
                Ok(port) => record
                    .ports
                    .extend(addresses.iter().map(|address| Publication {
                        protocol: wish.wanted.protocol,
                        host: SocketAddr::new(*address, port),
                        to: to(address),
                    })),
                Err(error) => {
                    self.withdraw_ports(record);
                    return Err(failed(error.to_string()));
                }
            }
        }
        if let Err(error) = self.firewall.publish(&record.ports) {
            self.withdraw_ports(record);
            return Err(failed(error.to_string()));
        }
        Ok(())
    }

    /// The network through which a container is reached from outside.
    pub(super) fn outward(
        &self,
        record: &Record,
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

    pub(super) fn withdraw_ports(&self, record: &mut Record) {
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
    pub(super) fn adopt_ports(&self, record: &mut Record) {
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

fn owner_of(record: &Record) -> Owner {
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
