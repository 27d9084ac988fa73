//! The addresses of endpoints.

use std::net::IpAddr;

use ipnet::IpNet;
use whelk_network::ipam::Block;

use super::members::{member, names_of};
use crate::error::{Error, Result};
use crate::networks::drivers::Gateway;
use crate::networks::model::{Assigned, AssignedAddress, EndpointRequest};
use crate::networks::{Endpoint, Network, NetworkRecord, Networks, SandboxConfig, gateway_of};
use crate::rollback::Rollback;

impl Networks {
    /// Allocates an endpoint's addresses and adds the sandbox to the network's members, under one
    /// lock. `assigned` has the endpoint's id.
    pub(super) fn allocate_addresses<'e>(
        &self,
        config: &SandboxConfig,
        network: &NetworkRecord,
        endpoint: &'e mut Endpoint,
        mut assigned: Assigned,
    ) -> Result<&'e mut Assigned> {
        let mut state = self.state_mut();
        let Some(network) = state.get_mut(&network.id) else {
            return Err(Error::no_such_network(&network.name));
        };
        set_addresses(config, network, &endpoint.requested, &mut assigned)?;
        endpoint.dns_names =
            (network.record.name != "bridge").then(|| names_of(config, &endpoint.requested));
        let member = member(config, endpoint, &assigned);
        network.members.insert(config.id.clone(), member);
        Ok(endpoint.assigned.insert(assigned))
    }
}

/// Allocates addresses in a network for an endpoint, those that it requests or any, and chooses its
/// hardware address. On an error none is allocated.
fn set_addresses(
    config: &SandboxConfig,
    network: &mut Network,
    endpoint: &EndpointRequest,
    assigned: &mut Assigned,
) -> Result<()> {
    let asked = endpoint.ipam_config.clone().unwrap_or_default();
    let ipv6 = config.has_ipv6(&network.record, endpoint);
    let mut taken: Vec<IpNet> = Vec::new();
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
            release_addresses(network, [found].into_iter());
            Ok(())
        });
        taken.push(found);
    }
    let gateway = |ipv4: bool| {
        gateway_of(&network.blocks, ipv4)
            .filter(|_| network.record.gateway(ipv4) == Gateway::Address)
    };
    for net in taken {
        let ipv4 = net.addr().is_ipv4();
        let address = Some(AssignedAddress {
            net,
            gateway: gateway(ipv4),
        });
        if ipv4 {
            assigned.ipv4 = address;
        } else {
            assigned.ipv6 = address;
        }
    }
    assigned.mac_address = if endpoint.mac_address.is_empty() {
        mac_for(assigned)
    } else {
        endpoint.mac_address.clone()
    };
    network.commit();
    Ok(())
}

/// Allocates an address and returns it with its subnet's prefix length, or `None` if the network has no
/// subnet of this family.
pub(super) fn allocate_address(
    network: &mut Network,
    ipv4: bool,
    wanted: Option<IpAddr>,
) -> Result<Option<IpNet>> {
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
            Ok(address) => Ok(Some(in_subnet(address, block))),
            Err(whelk_network::Error::Conflict(text)) => Err(Error::Denied(text)),
            Err(error) => Err(error.into()),
        };
    }
    if blocks.is_empty() {
        return Ok(None);
    }
    for block in blocks {
        if let Ok(address) = block.take(None) {
            return Ok(Some(in_subnet(address, block)));
        }
    }
    Err(Error::internal(format!(
        "no available {} addresses on this network's address pools: {} ({})",
        if ipv4 { "IPv4" } else { "IPv6" },
        network.record.name,
        network.record.id
    )))
}

/// Returns an address with the prefix length of its subnet.
fn in_subnet(address: IpAddr, block: &Block) -> IpNet {
    // The block has taken it from its subnet, so that the families are the same.
    IpNet::new_assert(address, block.subnet.prefix_len())
}

pub(super) fn release_addresses(network: &mut Network, addresses: impl Iterator<Item = IpNet>) {
    for address in addresses.map(|net| net.addr()) {
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
fn mac_for(endpoint: &Assigned) -> String {
    let bytes = match endpoint.ipv4.map(|address| address.net) {
        Some(IpNet::V4(net)) => net.addr().octets(),
        _ => u32::from_str_radix(&endpoint.endpoint_id[..8], 16)
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

    fn asking(ipv4: &str, ipv6: &str) -> EndpointRequest {
        EndpointRequest {
            ipam_config: Some(EndpointIpam {
                ipv4_address: ipv4.into(),
                ipv6_address: ipv6.into(),
                link_local_ips: None,
            }),
            ..EndpointRequest::default()
        }
    }

    /// Allocates addresses, and returns them, their gateways and the hardware address, or the error.
    fn set(network: &mut Network, ipv6: bool, endpoint: &EndpointRequest) -> String {
        let config = SandboxConfig {
            lacks_ipv6: !ipv6,
            ..SandboxConfig::default()
        };
        let mut assigned = Assigned {
            endpoint_id: "0a0b0c0d0e0f".into(),
            ..Assigned::default()
        };
        let outcome = set_addresses(&config, network, endpoint, &mut assigned);
        let gateway = |address: Option<AssignedAddress>| {
            let gateway = address.and_then(|address| address.gateway);
            gateway.map_or_else(String::new, |gateway| gateway.to_string())
        };
        match outcome {
            Ok(()) => format!(
                "{:?} via {}|{} at {}",
                assigned.nets().collect::<Vec<_>>(),
                gateway(assigned.ipv4),
                gateway(assigned.ipv6),
                assigned.mac_address
            ),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn addresses_are_those_requested_or_the_lowest_free_ones() {
        let mut network = network();
        assert_eq!(
            set(&mut network, true, &asking("", "")),
            "[10.4.0.2/29, fd00:4::2/64] via 10.4.0.1|fd00:4::1 at 02:42:0a:04:00:02"
        );
        assert_eq!(
            set(&mut network, true, &asking("10.4.0.6", "fd00:4::9")),
            "[10.4.0.6/29, fd00:4::9/64] via 10.4.0.1|fd00:4::1 at 02:42:0a:04:00:06"
        );
        assert_eq!(
            set(&mut network, false, &asking("", "")),
            "[10.4.0.3/29] via 10.4.0.1| at 02:42:0a:04:00:03"
        );
        network.blocks.remove(0);
        let chosen = EndpointRequest {
            mac_address: "02:00:00:00:00:07".into(),
            ..asking("", "")
        };
        for (endpoint, expected) in [
            (
                asking("", ""),
                "[fd00:4::3/64] via |fd00:4::1 at 02:42:0a:0b:0c:0d",
            ),
            (chosen, "[fd00:4::4/64] via |fd00:4::1 at 02:00:00:00:00:07"),
        ] {
            assert_eq!(set(&mut network, true, &endpoint), expected);
        }
    }

    #[test]
    fn without_all_addresses_none_is_allocated() {
        let mut network = network();
        set(&mut network, true, &asking("10.4.0.5", "fd00:4::5"));
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
            assert_eq!(set(&mut network, ipv6, &asking(ipv4, wanted)), error);
            let after: Vec<_> = network.blocks.iter().map(Block::usage).collect();
            assert_eq!(after, before, "{ipv4} {wanted}");
        }
    }
}
