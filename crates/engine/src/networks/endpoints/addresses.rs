//! The addresses of endpoints.

use std::net::IpAddr;

use super::members::{member, names_of};
use crate::error::{Error, Result};
use crate::networks::drivers::Gateway;
use crate::networks::{Endpoint, Network, NetworkRecord, Networks, SandboxConfig, gateway_of};
use crate::rollback::Rollback;

impl Networks {
    /// Allocates an endpoint's addresses and adds the sandbox to the network's members, under one
    /// lock.
    pub(super) fn allocate_addresses(
        &self,
        config: &SandboxConfig,
        network: &NetworkRecord,
        endpoint: &mut Endpoint,
    ) -> Result<()> {
        let mut state = self.state_mut();
        let Some(network) = state.get_mut(&network.id) else {
            return Err(Error::no_such_network(&network.name));
        };
        set_addresses(config, network, endpoint)?;
        endpoint.dns_names = (network.record.name != "bridge").then(|| names_of(config, endpoint));
        network
            .members
            .insert(config.id.clone(), member(config, endpoint));
        Ok(())
    }
}

/// Allocates addresses in a network for an endpoint, those that it requests or any, and sets them in
/// it. On an error none is allocated.
fn set_addresses(
    config: &SandboxConfig,
    network: &mut Network,
    endpoint: &mut Endpoint,
) -> Result<()> {
    let asked = endpoint.ipam_config.clone().unwrap_or_default();
    let ipv6 = config.has_ipv6(&network.record, endpoint);
    let mut taken: Vec<(IpAddr, u8)> = Vec::new();
    let mut network = Rollback::new("allocate addresses", network);
    for (ipv4, text) in [(true, &asked.ipv4_address), (false, &asked.ipv6_address)] {
        if !ipv4 && !ipv6 {
            if text.is_empty() {
                continue;
            }
            return Err(Error::invalid(format!(
                "address {text} was requested, but IPv6 is disabled for the container"
            )));
        }
        let wanted: Option<IpAddr> = if text.is_empty() {
            None
        } else {
            Some(text.parse().map_err(|_| {
                Error::invalid(format!(
                    "invalid endpoint settings:\ninvalid IP address: {text}"
                ))
            })?)
        };
        let Some(found) = allocate_address(&mut network, ipv4, wanted)? else {
            continue;
        };
        network.push_undo("release the address", move |network| {
            release_addresses(network, [found.0].into_iter());
            Ok(())
        });
        taken.push(found);
    }
    let gateway = |ipv4: bool| {
        gateway_of(&network.blocks, ipv4)
            .filter(|_| network.record.gateway(ipv4) == Gateway::Address)
            .map_or_else(String::new, |gateway| gateway.to_string())
    };
    for (address, bits) in taken {
        if address.is_ipv4() {
            endpoint.ip_address = address.to_string();
            endpoint.ip_prefix_len = bits;
            endpoint.gateway = gateway(true);
        } else {
            endpoint.global_ipv6_address = address.to_string();
            endpoint.global_ipv6_prefix_len = bits;
            endpoint.ipv6_gateway = gateway(false);
        }
    }
    endpoint.mac_address = if endpoint.wanted_mac.is_empty() {
        mac_for(endpoint)
    } else {
        endpoint.wanted_mac.clone()
    };
    network.commit();
    Ok(())
}

/// Allocates an address and returns it with its prefix length, or `None` if the network has no
/// subnet of this family.
pub(super) fn allocate_address(
    network: &mut Network,
    ipv4: bool,
    wanted: Option<IpAddr>,
) -> Result<Option<(IpAddr, u8)>> {
    let mut blocks: Vec<_> = network
        .blocks
        .iter_mut()
        .filter(|block| block.subnet.addr().is_ipv4() == ipv4)
        .collect();
    if let Some(wanted) = wanted {
        let Some(block) = blocks
            .iter_mut()
            .find(|block| block.subnet.contains(&wanted))
        else {
            return Err(Error::invalid(format!(
                "invalid address {wanted}: It does not belong to any of this network's subnets"
            )));
        };
        return match block.take(Some(wanted)) {
            Ok(address) => Ok(Some((address, block.subnet.prefix_len()))),
            Err(whelk_network::Error::Conflict(text)) => Err(Error::Denied(text)),
            Err(error) => Err(error.into()),
        };
    }
    if blocks.is_empty() {
        return Ok(None);
    }
    for block in blocks {
        if let Ok(address) = block.take(None) {
            return Ok(Some((address, block.subnet.prefix_len())));
        }
    }
    Err(Error::internal(format!(
        "no available {} addresses on this network's address pools: {} ({})",
        if ipv4 { "IPv4" } else { "IPv6" },
        network.record.name,
        network.record.id
    )))
}

pub(super) fn release_addresses(network: &mut Network, addresses: impl Iterator<Item = IpAddr>) {
    for address in addresses {
        if let Some(block) = network
            .blocks
            .iter_mut()
            .find(|block| block.subnet.contains(&address))
        {
            block.release(address);
        }
    }
}

/// Returns a hardware address derived from the IPv4 address, so that neighbours' caches stay valid
/// when an address is reused; or from the endpoint's id.
fn mac_for(endpoint: &Endpoint) -> String {
    let bytes = match endpoint.ip_address.parse::<std::net::Ipv4Addr>() {
        Ok(address) => address.octets(),
        Err(_) => u32::from_str_radix(&endpoint.endpoint_id[..8], 16)
            .unwrap_or_default()
            .to_be_bytes(),
    };
    format!(
        "02:42:{:02x}:{:02x}:{:02x}:{:02x}",
        bytes[0], bytes[1], bytes[2], bytes[3]
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use whelk_network::ipam::Block;

    use super::*;
    use crate::networks::model::EndpointIpam;

    fn network() -> Network {
        let block = |subnet: &str| Block::new(subnet.parse().unwrap(), None, None, &[]).unwrap();
        Network {
            record: NetworkRecord {
                name: "app".into(),
                enable_ipv4: true,
                enable_ipv6: true,
                ..NetworkRecord::default()
            },
            blocks: vec![block("10.4.0.0/29"), block("fd00:4::/64")],
            members: BTreeMap::new(),
        }
    }

    fn asking(ipv4: &str, ipv6: &str) -> Endpoint {
        Endpoint {
            endpoint_id: "0a0b0c0d0e0f".into(),
            ipam_config: Some(EndpointIpam {
                ipv4_address: ipv4.into(),
                ipv6_address: ipv6.into(),
                link_local_ips: None,
            }),
            ..Endpoint::default()
        }
    }

    /// Allocates addresses, and returns them, their gateways and the hardware address, or the error.
    fn set(network: &mut Network, ipv6: bool, mut endpoint: Endpoint) -> String {
        let config = SandboxConfig {
            lacks_ipv6: !ipv6,
            ..SandboxConfig::default()
        };
        match set_addresses(&config, network, &mut endpoint) {
            Ok(()) => format!(
                "{:?} via {}|{} at {}",
                endpoint.nets(),
                endpoint.gateway,
                endpoint.ipv6_gateway,
                endpoint.mac_address
            ),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn addresses_are_those_requested_or_the_lowest_free_ones() {
        let mut network = network();
        assert_eq!(
            set(&mut network, true, asking("", "")),
            "[10.4.0.2/29, fd00:4::2/64] via 10.4.0.1|fd00:4::1 at 02:42:0a:04:00:02"
        );
        assert_eq!(
            set(&mut network, true, asking("10.4.0.6", "fd00:4::9")),
            "[10.4.0.6/29, fd00:4::9/64] via 10.4.0.1|fd00:4::1 at 02:42:0a:04:00:06"
        );
        assert_eq!(
            set(&mut network, false, asking("", "")),
            "[10.4.0.3/29] via 10.4.0.1| at 02:42:0a:04:00:03"
        );
        network.blocks.remove(0);
        let chosen = Endpoint {
            wanted_mac: "02:00:00:00:00:07".into(),
            ..asking("", "")
        };
        for (endpoint, expected) in [
            (
                asking("", ""),
                "[fd00:4::3/64] via |fd00:4::1 at 02:42:0a:0b:0c:0d",
            ),
            (chosen, "[fd00:4::4/64] via |fd00:4::1 at 02:00:00:00:00:07"),
        ] {
            assert_eq!(set(&mut network, true, endpoint), expected);
        }
    }

    #[test]
    fn without_all_addresses_none_is_allocated() {
        let mut network = network();
        set(&mut network, true, asking("10.4.0.5", "fd00:4::5"));
        let before: Vec<_> = network.blocks.iter().map(Block::usage).collect();
        for (ipv6, ipv4, wanted, error) in [
            (true, "10.4.0.6", "fd00:4::5", "Address already in use"),
            (
                true,
                "",
                "fd00:5::5",
                "invalid address fd00:5::5: It does not belong to any of this network's subnets",
            ),
            (
                false,
                "10.4.0.6",
                "fd00:4::6",
                "address fd00:4::6 was requested, but IPv6 is disabled for the container",
            ),
            (true, "10.4.0.5", "", "Address already in use"),
        ] {
            assert_eq!(set(&mut network, ipv6, asking(ipv4, wanted)), error);
            let after: Vec<_> = network.blocks.iter().map(Block::usage).collect();
            assert_eq!(after, before, "{ipv4} {wanted}");
        }
    }
}
