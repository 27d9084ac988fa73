//! Which of a sandbox's networks connects it to the outside.

use std::net::IpAddr;

use ipnet::IpNet;
use whelk_network::Links;

use super::{Sandbox, Sandboxes};
use crate::error::Result;
use crate::networks::drivers::Gateway;
use crate::networks::{Endpoint, NetworkRecord};

impl Sandboxes {
    /// Returns the network, and the endpoint in it, through which a sandbox is reached from
    /// outside: the non-internal bridge network with the highest gateway priority.
    pub(super) fn external_network(&self, sandbox: &Sandbox) -> Option<(NetworkRecord, Endpoint)> {
        sandbox
            .active()
            .filter_map(|(_, endpoint)| {
                Some((
                    self.networks.find(&endpoint.network_id).ok()?,
                    endpoint.clone(),
                ))
            })
            .filter(|(network, _)| network.driver.facts().host_routes && !network.internal)
            .max_by_key(|(network, endpoint)| {
                (
                    endpoint.gw_priority,
                    std::cmp::Reverse(network.name.clone()),
                )
            })
    }

    /// Sets the default routes, through the network with the highest gateway priority, by name if
    /// several have the same.
    pub(super) fn set_default_gateway(&self, sandbox: &Sandbox, links: &mut Links) -> Result<()> {
        let best = |ipv4: bool| {
            sandbox
                .active()
                .filter_map(|(name, endpoint)| {
                    let gateway: Option<IpAddr> = if ipv4 {
                        &endpoint.gateway
                    } else {
                        &endpoint.ipv6_gateway
                    }
                    .parse()
                    .ok();
                    let has_family = if ipv4 {
                        !endpoint.ip_address.is_empty()
                    } else {
                        !endpoint.global_ipv6_address.is_empty()
                    };
                    let by_device = || {
                        has_family
                            && self
                                .networks
                                .find(name)
                                .is_ok_and(|network| network.gateway(ipv4) == Gateway::Interface)
                    };
                    (gateway.is_some() || by_device()).then_some((
                        (endpoint.gw_priority, std::cmp::Reverse(name)),
                        (ipv4, gateway),
                        &endpoint.interface,
                    ))
                })
                .max_by_key(|(rank, _, _)| *rank)
        };
        for (_, (ipv4, gateway), interface) in [best(true), best(false)].into_iter().flatten() {
            if let Some(link) = links.find(interface)? {
                let everything = if ipv4 {
                    IpNet::V4(ipnet::Ipv4Net::default())
                } else {
                    IpNet::V6(ipnet::Ipv6Net::default())
                };
                links.add_route(link.index, everything, gateway, 0)?;
            }
        }
        Ok(())
    }
}
