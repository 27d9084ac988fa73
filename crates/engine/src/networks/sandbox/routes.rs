//! Which of a sandbox's networks connects it to the outside.

use ipnet::IpNet;
use whelk_network::Links;

use super::{Sandbox, Sandboxes};
use crate::error::Result;
use crate::networks::NetworkRecord;
use crate::networks::drivers::Gateway;
use crate::networks::model::Assigned;

impl Sandboxes {
    /// Returns the network, and the endpoint in it, through which a sandbox is reached from
    /// outside: the non-internal bridge network with the highest gateway priority.
    pub(super) fn external_network(&self, sandbox: &Sandbox) -> Option<(NetworkRecord, Assigned)> {
        sandbox
            .active()
            .filter_map(|(_, endpoint, assigned)| {
                let network = self.networks.find(&endpoint.network_id).ok()?;
                Some((network, endpoint.requested.gw_priority, assigned))
            })
            .filter(|(network, ..)| network.driver.facts().host_routes && !network.internal)
            .max_by_key(|(network, priority, _)| {
                (*priority, std::cmp::Reverse(network.name.clone()))
            })
            .map(|(network, _, assigned)| (network, assigned.clone()))
    }

    /// Sets the default routes, through the network with the highest gateway priority, by name if
    /// several have the same.
    pub(super) fn set_default_gateway(&self, sandbox: &Sandbox, links: &mut Links) -> Result<()> {
        let best = |ipv4: bool| {
            sandbox
                .active()
                .filter_map(|(name, endpoint, assigned)| {
                    let gateway = assigned.address(ipv4)?.gateway;
                    let by_device = || {
                        self.networks
                            .find(name)
                            .is_ok_and(|network| network.gateway(ipv4) == Gateway::Interface)
                    };
                    (gateway.is_some() || by_device()).then_some((
                        (endpoint.requested.gw_priority, std::cmp::Reverse(name)),
                        (ipv4, gateway),
                        &assigned.interface,
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
