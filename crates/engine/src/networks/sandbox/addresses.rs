//! The addresses of endpoints.

use std::net::IpAddr;

use super::SandboxConfig;
use super::members::{member, names_of};
use crate::error::{Error, Result};
use crate::networks::drivers::Gateway;
use crate::networks::{Endpoint, Network, NetworkRecord, Networks, gateway_of};

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
        let asked = endpoint.ipam_config.clone().unwrap_or_default();
        let mut taken: Vec<(IpAddr, u8)> = Vec::new();
        let ipv6 = config.has_ipv6(&network.record, endpoint);
        for (ipv4, text) in [(true, &asked.ipv4_address), (false, &asked.ipv6_address)] {
            if !ipv4 && !ipv6 && text.is_empty() {
                continue;
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
            let found = if ipv4 || ipv6 {
                allocate_address(network, ipv4, wanted)
            } else {
                Err(Error::invalid(format!(
                    "address {text} was requested, but IPv6 is disabled for the container"
                )))
            };
            match found {
                Ok(found) => taken.extend(found),
                Err(error) => {
                    release_addresses(network, taken.iter().map(|(address, _)| *address));
                    return Err(error);
                }
            }
        }
        for (address, bits) in &taken {
            match address {
                IpAddr::V4(_) => {
                    endpoint.ip_address = address.to_string();
                    endpoint.ip_prefix_len = *bits;
                    endpoint.gateway = gateway_of(&network.blocks, true)
                        .filter(|_| network.record.gateway(true) == Gateway::Address)
                        .map_or_else(String::new, |gateway| gateway.to_string());
                }
                IpAddr::V6(_) => {
                    endpoint.global_ipv6_address = address.to_string();
                    endpoint.global_ipv6_prefix_len = *bits;
                    endpoint.ipv6_gateway = gateway_of(&network.blocks, false)
                        .filter(|_| network.record.gateway(false) == Gateway::Address)
                        .map_or_else(String::new, |gateway| gateway.to_string());
                }
            }
        }
        endpoint.mac_address = if endpoint.wanted_mac.is_empty() {
            mac_for(endpoint)
        } else {
            endpoint.wanted_mac.clone()
        };
        endpoint.dns_names = (network.record.name != "bridge").then(|| names_of(config, endpoint));
        network
            .members
            .insert(config.id.clone(), member(config, endpoint));
        Ok(())
    }
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
