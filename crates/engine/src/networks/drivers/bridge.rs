//! The `bridge` driver: a bridge on the host, with the host as the gateway.
//!
//! A network's objects are the bridge, its addresses and sysctls, and elements of the firewall's
//! sets. An endpoint's are a veth pair with the outer end on the bridge, and elements that define
//! which packets it may send. Bridges are identified by their hardware address, which is derived
//! from the network's id: one that others created under the same name is never changed or deleted.

use std::net::IpAddr;

use ipnet::IpNet;
use whelk_network::{BridgeRules, Link, Links, Peer, Port, SenderRules};
use whelk_sys::fs;

use super::{Facts, Gateway, Inner, Joining, NetworkDriver, unparsed};
use crate::error::{Error, Result};
use crate::networks::create::check_interface_name;
use crate::networks::model::{Assigned, NetworkRecord, option};
use crate::networks::settings::mac_of;
use crate::networks::stack::{HostStack, alias, is_of_instance, set_sysctl, set_sysctl_at};

#[derive(Debug)]
pub(super) struct Bridge;

impl NetworkDriver for Bridge {
    fn facts(&self) -> Facts {
        Facts {
            joining: Joining::Interface,
            only: None,
            host_routes: true,
            parents_mac: false,
            warm: true,
        }
    }

    fn check_option(&self, key: &str, value: &str) -> Result<bool> {
        let failed = |cause: &str| Err(unparsed(key, value, cause));
        match key {
            option::BRIDGE_NAME => check_interface_name(value)?,
            option::GATEWAY_MODE_4 | option::GATEWAY_MODE_6 => {
                if !matches!(value, NAT | ROUTED | ISOLATED | UNPROTECTED) {
                    return failed(&format!("unknown gateway mode {value}"));
                }
            }
            option::DEFAULT_BRIDGE | option::MASQUERADE | option::ICC | option::INHIBIT_IPV4 => {
                if whelk_text::parse_bool(value).is_none() {
                    return failed(&format!(
                        "strconv.ParseBool: parsing {value:?}: invalid syntax"
                    ));
                }
            }
            option::HOST_IPV4 | option::HOST_IPV6 => {
                let fits = |address: IpAddr| address.is_ipv4() == (key == option::HOST_IPV4);
                if !value.parse().is_ok_and(fits) {
                    return failed("nil ip");
                }
            }
            option::HOST_BINDING => {
                if value.parse::<IpAddr>().is_err() {
                    return failed("nil ip");
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn plan(
        &self,
        stack: &HostStack,
        network: &mut NetworkRecord,
        others: &[NetworkRecord],
    ) -> Result<()> {
        let is_isolated = [true, false].map(|ipv4| mode(network, ipv4) == ISOLATED);
        if !network.internal && is_isolated.contains(&true) {
            return Err(Error::invalid(
                "gateway mode 'isolated' can only be used for an internal network",
            ));
        }
        let Some(name) = network.option(option::BRIDGE_NAME) else {
            return Ok(());
        };
        match others
            .iter()
            .find(|other| stack.network_interface(other) == name)
        {
            Some(other) => Err(Error::conflict(format!(
                "bridge name {name} is already used by network {}",
                other.name
            ))),
            None => Ok(()),
        }
    }

    fn gateway(&self, network: &NetworkRecord, ipv4: bool) -> Gateway {
        if network.internal || mode(network, ipv4) == ISOLATED {
            Gateway::None
        } else {
            Gateway::Address
        }
    }

    fn reserves_gateway(&self, network: &NetworkRecord, ipv4: bool) -> bool {
        // The host has an address in internal networks as well.
        mode(network, ipv4) != ISOLATED
            && !(network.internal && ipv4 && network.switch(option::INHIBIT_IPV4, false))
    }

    fn create(&self, stack: &HostStack, network: &NetworkRecord) -> Result<()> {
        let name = stack.network_interface(network);
        let index = create_link(stack, &name, network)?;
        set_sysctls(stack, &name, network)?;
        let mut links = stack.links();
        for address in addresses(network) {
            links.add_address(index, address)?;
        }
        links.set_up(index)?;
        if network.enable_ipv6 && !network.internal {
            links.add_ipv6_loopback_route(index)?;
        }
        drop(links);
        Ok(stack.firewall.add_bridge(&rules(stack, network))?)
    }

    fn remove(
        &self,
        stack: &HostStack,
        network: &NetworkRecord,
        _others: &[NetworkRecord],
    ) -> Result<()> {
        stack.firewall.remove_bridge(&rules(stack, network))?;
        let name = stack.network_interface(network);
        Ok(delete_bridge(&mut stack.links(), &name, network)?)
    }

    fn attach(
        &self,
        stack: &HostStack,
        network: &NetworkRecord,
        endpoint: &mut Assigned,
        inner: Inner<'_>,
    ) -> Result<()> {
        let sender = sender(stack, endpoint)?;
        let bridge = self.find_or_create(stack, network)?;
        let port = port(network);
        let mtu = network.mtu();
        // The rules before the interface: without them it could send spoofed packets.
        stack.firewall.add_sender(&sender)?;
        let (name, mac) = (&sender.interface, sender.mac);
        let mut links = stack.links();
        match inner {
            Inner::Warm => links.attach_to_bridge(name, bridge, mtu, port)?,
            Inner::New(namespace) => {
                let peer = Peer {
                    name: &endpoint.interface,
                    mac,
                    namespace,
                };
                links.create_veth(name, bridge, mtu, peer, port)?;
            }
        }
        Ok(())
    }

    fn detach(&self, stack: &HostStack, endpoint: &Assigned) {
        if let Ok(sender) = sender(stack, endpoint) {
            stack.delete_later(sender);
        }
    }

    fn adopt(&self, stack: &HostStack, endpoint: &Assigned) -> Result<bool> {
        let name = stack.endpoint_interface(&endpoint.endpoint_id);
        if matches!(stack.links().find(&name), Ok(None)) {
            return Ok(false);
        }
        stack.firewall.add_sender(&sender(stack, endpoint)?)?;
        Ok(true)
    }
}

impl Bridge {
    /// Returns the index of a network's bridge, which is created again if an administrator has
    /// deleted it.
    fn find_or_create(&self, stack: &HostStack, network: &NetworkRecord) -> Result<u32> {
        let name = stack.network_interface(network);
        if let Some(bridge) = stack.links().find(&name)? {
            return Ok(bridge.index);
        }
        self.create(stack, network)?;
        let bridge = stack.links().find(&name)?;
        bridge.map(|bridge| bridge.index).ok_or_else(|| {
            Error::internal("the bridge does not exist although it was just created")
        })
    }
}

fn port(network: &NetworkRecord) -> Port {
    Port {
        isolated: !network.connects_containers(),
        hairpin: true,
    }
}

/// Makes the outer end of an endpoint's interface a port of the network's bridge again.
pub(in crate::networks) fn attach_port(
    stack: &HostStack,
    network: &NetworkRecord,
    interface: &str,
) -> Result<()> {
    let bridge = Bridge.find_or_create(stack, network)?;
    let (mtu, port) = (network.mtu(), port(network));
    Ok(stack
        .links()
        .attach_to_bridge(interface, bridge, mtu, port)?)
}

/// The gateway modes.
const NAT: &str = "nat";
const ROUTED: &str = "routed";
const ISOLATED: &str = "isolated";
const UNPROTECTED: &str = "nat-unprotected";

/// Returns the gateway mode of an address family.
fn mode(network: &NetworkRecord, ipv4: bool) -> &str {
    let key = if ipv4 {
        option::GATEWAY_MODE_4
    } else {
        option::GATEWAY_MODE_6
    };
    network.option(key).unwrap_or(NAT)
}

/// Creates the bridge if it is missing, and returns its index.
fn create_link(stack: &HostStack, name: &str, network: &NetworkRecord) -> Result<u32> {
    let mut links = stack.links();
    match links.find(name)? {
        Some(link) if is_bridge_of(&link, network) => return Ok(link.index),
        // Left over from an earlier installation of this instance, whose records are gone.
        Some(link) if is_of_instance(&stack.instance, &link) => links.delete(name)?,
        Some(_) => {
            return Err(Error::conflict(format!(
                "interface {name} already exists and does not belong to this network"
            )));
        }
        None => {}
    }
    let alias = alias(&stack.instance, &network.id);
    Ok(links.create_bridge(name, network.mtu(), mac(&network.id), &alias)?)
}

fn set_sysctls(stack: &HostStack, name: &str, network: &NetworkRecord) -> Result<()> {
    // On a network without IPv6 there must not even be a link-local address (CVE-2024-32473);
    // on one with IPv6 the host's default does not matter.
    set_sysctl(
        &format!("net/ipv6/conf/{name}/disable_ipv6"),
        if network.enable_ipv6 { "0" } else { "1" },
        true,
    )?;
    if network.enable_ipv6 {
        set_sysctl(&format!("net/ipv6/conf/{name}/accept_ra"), "0", true)?;
    }
    // Needed to redirect the host's connections to 127.0.0.1 to containers; a rule keeps
    // containers from using it.
    set_sysctl(&format!("net/ipv4/conf/{name}/route_localnet"), "1", false)?;
    if !network.internal && stack.instance.networks.forward {
        enable_forwarding(network.enable_ipv6)?;
    }
    Ok(())
}

/// Returns the bridge's own addresses: the gateways, except those of isolated families, and of IPv4
/// if it is inhibited.
fn addresses(network: &NetworkRecord) -> impl Iterator<Item = IpNet> {
    network.ipam.config.iter().filter_map(|config| {
        let subnet: IpNet = config.subnet.parse().ok()?;
        let gateway: IpAddr = config.gateway.parse().ok()?;
        let ipv4 = gateway.is_ipv4();
        let lacks_it =
            mode(network, ipv4) == ISOLATED || ipv4 && network.switch(option::INHIBIT_IPV4, false);
        IpNet::new(gateway, subnet.prefix_len())
            .ok()
            .filter(|_| !lacks_it)
    })
}

fn rules(stack: &HostStack, network: &NetworkRecord) -> BridgeRules {
    let masquerade = network.switch(option::MASQUERADE, true);
    let (mode_v4, mode_v6) = (mode(network, true), mode(network, false));
    BridgeRules {
        name: stack.network_interface(network),
        subnets: network.subnets(),
        internal: network.internal,
        masquerade_v4: masquerade && mode_v4.starts_with(NAT),
        masquerade_v6: masquerade && mode_v6.starts_with(NAT),
        host_v4: network.parsed(option::HOST_IPV4),
        host_v6: network.parsed(option::HOST_IPV6),
        icc: network.connects_containers(),
        unprotected_v4: mode_v4 == UNPROTECTED,
        unprotected_v6: mode_v6 == UNPROTECTED,
        routed_v4: mode_v4 == ROUTED,
        routed_v6: mode_v6 == ROUTED,
    }
}

fn sender(stack: &HostStack, endpoint: &Assigned) -> Result<SenderRules> {
    let link_local = endpoint.link_local.iter().copied();
    let mut addresses: Vec<IpAddr> = endpoint
        .nets()
        .chain(link_local)
        .map(|net| net.addr())
        .collect();
    // An element cannot be deleted twice.
    addresses.sort_unstable();
    addresses.dedup();
    Ok(SenderRules {
        interface: stack.endpoint_interface(&endpoint.endpoint_id),
        mac: mac_of(endpoint)?,
        addresses,
    })
}

/// Returns whether an interface has the hardware address of this network's bridge.
fn is_bridge_of(link: &Link, network: &NetworkRecord) -> bool {
    link.kind == "bridge" && link.mac == mac(&network.id)
}

/// Deletes a network's bridge, but not another interface with its name.
pub(in crate::networks) fn delete_bridge(
    links: &mut Links,
    name: &str,
    network: &NetworkRecord,
) -> whelk_network::Result<()> {
    match links.find(name)? {
        Some(link) if is_bridge_of(&link, network) => links.delete(name),
        _ => Ok(()),
    }
}

/// Returns a bridge's hardware address: locally administered, and derived from the network's id, so
/// that it stays the same when the bridge is created again.
fn mac(id: &str) -> [u8; 6] {
    let digits = u64::from_str_radix(&id[..10.min(id.len())], 16)
        .unwrap_or_default()
        .to_be_bytes();
    [0x02, digits[3], digits[4], digits[5], digits[6], digits[7]]
}

/// Lets the host's interfaces accept router advertisements while forwarding is enabled (`accept_ra`
/// 2): with 1 the kernel ignores them then, and the host would lose its default route.
fn keep_router_advertisements() -> Result<()> {
    for interface in fs::list("/proc/sys/net/ipv6/conf")? {
        let path = interface.path().join("accept_ra");
        if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
            // An interface of another engine may have been deleted meanwhile.
            set_sysctl_at(&path, "2", true)?;
        }
    }
    Ok(())
}

/// Enables packet forwarding.
fn enable_forwarding(ipv6: bool) -> Result<()> {
    let on = |key: &str| {
        fs::read_to_string(format!("/proc/sys/{key}")).is_ok_and(|value| value.trim() == "1")
    };
    let mut keys = vec!["net/ipv4/ip_forward"];
    if ipv6 {
        if !on("net/ipv6/conf/all/forwarding") {
            keep_router_advertisements()?;
        }
        keys.extend([
            "net/ipv6/conf/default/forwarding",
            "net/ipv6/conf/all/forwarding",
        ]);
    }
    keys.into_iter()
        .filter(|key| !on(key))
        .try_for_each(|key| set_sysctl(key, "1", true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_not_the_gateway_of_isolated_families() {
        let network = |internal: bool, options: &[(&str, &str)]| NetworkRecord {
            internal,
            options: options
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..NetworkRecord::default()
        };
        let isolated = network(false, &[(option::GATEWAY_MODE_4, ISOLATED)]);
        assert_eq!(isolated.gateway(true), Gateway::None);
        assert_eq!(isolated.gateway(false), Gateway::Address);
        let routed = network(false, &[(option::GATEWAY_MODE_4, ROUTED)]);
        assert_eq!(routed.gateway(true), Gateway::Address);
        let inhibit = [(option::INHIBIT_IPV4, "true")];
        for (network, expected) in [
            (network(true, &[]), [true, true]),
            (isolated, [false, true]),
            (network(false, &inhibit), [true, true]),
            (network(true, &inhibit), [false, true]),
        ] {
            let found = [true, false].map(|ipv4| network.reserves_gateway(ipv4));
            assert_eq!(found, expected, "{:?}", network.options);
        }
    }
}
