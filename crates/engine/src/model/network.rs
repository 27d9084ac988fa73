//! Networks and endpoints. Their form on disk is in [`crate::records`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::error::{Error, Result};

/// A network's record: its settings and state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkRecord {
    pub name: String,
    pub id: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub driver: NetworkDriverKind,
    pub enable_ipv4: bool,
    pub enable_ipv6: bool,
    pub ipam: Ipam,
    pub internal: bool,
    pub attachable: bool,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// The engine created the parent interface, and deletes it with the last network that uses it.
    pub made_parent: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ipam {
    pub driver: String,
    pub options: Option<BTreeMap<String, String>>,
    pub config: Vec<IpamConfig>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct IpamConfig {
    pub subnet: String,
    pub ip_range: String,
    pub gateway: String,
    pub auxiliary_addresses: BTreeMap<String, String>,
}

impl IpamConfig {
    pub fn is_ipv6(&self) -> bool {
        self.subnet.contains(':')
    }
}

/// A container's endpoint in a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoint {
    pub requested: EndpointRequest,
    /// Empty until the container is attached for the first time, or connected.
    pub network_id: String,
    /// Its DNS names in the network; `None` until it is attached for the first time, and where names
    /// are not resolved.
    pub dns_names: Option<Vec<String>>,
    /// `None` while it is not attached.
    pub assigned: Option<Assigned>,
}

/// The settings of an endpoint that a client can request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointRequest {
    pub ipam_config: Option<EndpointIpam>,
    pub links: Option<Vec<String>>,
    pub aliases: Option<Vec<String>>,
    /// Empty for any.
    pub mac_address: String,
    pub driver_opts: Option<BTreeMap<String, String>>,
    pub gw_priority: i64,
}

/// What an endpoint has while it is attached.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assigned {
    pub endpoint_id: String,
    /// The interface's name inside the container; empty if it has no namespace of its own.
    pub interface: String,
    /// Empty if it has its parent interface's, or no interface.
    pub mac_address: String,
    pub ipv4: Option<AssignedAddress>,
    pub ipv6: Option<AssignedAddress>,
    /// The additional link-local addresses, which the request names.
    pub link_local: Vec<IpNet>,
}

/// An address of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssignedAddress {
    /// The address, with the prefix length of its subnet.
    pub net: IpNet,
    pub gateway: Option<IpAddr>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointIpam {
    pub ipv4_address: String,
    pub ipv6_address: String,
    pub link_local_ips: Option<Vec<String>>,
}

impl EndpointIpam {
    /// Returns the additional link-local addresses, with the prefix lengths of their kind, or the
    /// texts that are none.
    pub fn link_local(&self) -> impl Iterator<Item = std::result::Result<IpNet, &str>> {
        self.link_local_ips.iter().flatten().map(|text| {
            let net = match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(address)) if address.is_link_local() => {
                    IpNet::new(address.into(), 16).ok()
                }
                Ok(IpAddr::V6(address)) if address.is_unicast_link_local() => {
                    IpNet::new(address.into(), 64).ok()
                }
                _ => None,
            };
            net.ok_or(text.as_str())
        })
    }
}

impl From<EndpointRequest> for Endpoint {
    fn from(requested: EndpointRequest) -> Self {
        Self {
            requested,
            ..Self::default()
        }
    }
}

impl Endpoint {
    /// Returns the addresses; none while it is not attached.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let assigned = self.assigned.iter();
        let nets = assigned.flat_map(Assigned::nets);
        nets.map(|net| net.addr()).collect()
    }

    /// Returns what the endpoint has while it is attached.
    ///
    /// # Errors
    /// Returns an error if it is not attached.
    pub(crate) fn assigned(&self) -> Result<&Assigned> {
        let assigned = self.assigned.as_ref();
        assigned.ok_or_else(|| Error::internal("the endpoint is not attached"))
    }
}

impl Assigned {
    /// Returns the addresses with their prefix lengths.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> + use<> {
        let addresses = [self.ipv4, self.ipv6].into_iter().flatten();
        addresses.map(|address| address.net)
    }

    /// Returns the address of one family.
    pub fn address(&self, ipv4: bool) -> Option<&AssignedAddress> {
        if ipv4 { &self.ipv4 } else { &self.ipv6 }.as_ref()
    }
}

impl NetworkRecord {
    pub fn subnets(&self) -> Vec<IpNet> {
        self.ipam
            .config
            .iter()
            .filter_map(|config| config.subnet.parse().ok())
            .collect()
    }

    /// Returns whether containers are reached by their own addresses instead of ports of the host
    /// (gateway mode `routed`).
    pub fn is_routed(&self, ipv4: bool) -> bool {
        self.option(if ipv4 {
            option::GATEWAY_MODE_4
        } else {
            option::GATEWAY_MODE_6
        }) == Some("routed")
    }

    /// Returns the MTU of its interfaces in bytes; 0 for the kernel's default.
    pub fn mtu(&self) -> u32 {
        self.option(option::MTU)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    }

    /// Returns whether containers can reach each other.
    pub fn connects_containers(&self) -> bool {
        self.switch(option::ICC, true)
    }

    /// Returns whether it is one of the three predefined networks.
    pub fn is_predefined(&self) -> bool {
        matches!(self.name.as_str(), "bridge" | "host" | "none")
    }

    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// Returns the value of an option that was checked when the network was created.
    pub(crate) fn parsed<T: FromStr>(&self, name: &str) -> Option<T> {
        self.option(name)?.parse().ok()
    }

    /// Returns the value of a boolean option, or `default` if it is not set.
    pub fn switch(&self, name: &str, default: bool) -> bool {
        self.option(name)
            .and_then(whelk_text::parse_bool)
            .unwrap_or(default)
    }
}

/// The drivers of networks. Their names are matched here only; what they do is in `networks::drivers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkDriverKind {
    /// A bridge on the host, which routes and masquerades what its containers send to the outside.
    #[default]
    Bridge,
    /// Interfaces with hardware addresses of their own on an interface of the host.
    Macvlan,
    /// Interfaces that share the hardware address of an interface of the host.
    Ipvlan,
    /// The host's network namespace. Its only network is `host`.
    Host,
    /// A network namespace with nothing but a loopback interface. Its only network is `none`.
    Null,
    /// The driver of the engine's own tests.
    #[cfg(test)]
    Fake,
}

impl NetworkDriverKind {
    /// All drivers, in the order of their names.
    pub const ALL: [Self; 5] = [
        Self::Bridge,
        Self::Host,
        Self::Ipvlan,
        Self::Macvlan,
        Self::Null,
    ];

    /// Returns the driver's name in the Engine API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
            Self::Host => "host",
            Self::Null => "null",
            #[cfg(test)]
            Self::Fake => "fake",
        }
    }
}

impl fmt::Display for NetworkDriverKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for NetworkDriverKind {
    type Err = Error;

    /// Parses the name in a request. An empty one means `bridge`.
    fn from_str(name: &str) -> Result<Self> {
        if name.is_empty() {
            return Ok(Self::Bridge);
        }
        if name == "overlay" {
            return Err(Error::unsupported(format_args!("network driver {name}")));
        }
        #[cfg(test)]
        if name == Self::Fake.name() {
            return Ok(Self::Fake);
        }
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| Error::NotFound(format!("plugin {name:?} not found")))
    }
}

/// The names of driver options and endpoint options.
pub mod option {
    pub const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
    pub const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
    pub const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
    pub const ICC: &str = "com.docker.network.bridge.enable_icc";
    pub const HOST_IPV4: &str = "com.docker.network.host_ipv4";
    pub const HOST_IPV6: &str = "com.docker.network.host_ipv6";
    pub const INHIBIT_IPV4: &str = "com.docker.network.bridge.inhibit_ipv4";
    pub const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
    pub const ENABLE_IPV4: &str = "com.docker.network.enable_ipv4";
    pub const ENABLE_IPV6: &str = "com.docker.network.enable_ipv6";
    pub const MTU: &str = "com.docker.network.driver.mtu";
    pub const GATEWAY_MODE_4: &str = "com.docker.network.bridge.gateway_mode_ipv4";
    pub const GATEWAY_MODE_6: &str = "com.docker.network.bridge.gateway_mode_ipv6";
    pub const CONTAINER_PREFIX: &str = "com.docker.network.container_iface_prefix";
    pub const INTERFACE_NAME: &str = "com.docker.network.endpoint.ifname";
    pub const SYSCTLS: &str = "com.docker.network.endpoint.sysctls";
    pub const PARENT: &str = "parent";
    pub const MACVLAN_MODE: &str = "macvlan_mode";
    pub const IPVLAN_MODE: &str = "ipvlan_mode";
    pub const IPVLAN_FLAG: &str = "ipvlan_flag";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_requests_and_records() {
        for kind in NetworkDriverKind::ALL {
            assert_eq!(kind.to_string().parse::<NetworkDriverKind>().unwrap(), kind);
        }
        let refused = |name: &str| name.parse::<NetworkDriverKind>().unwrap_err().to_string();
        assert_eq!(
            refused("overlay"),
            "network driver overlay: not available in this version of whelk"
        );
        assert_eq!(refused("Bridge"), "plugin \"Bridge\" not found");
        assert_eq!("".parse::<NetworkDriverKind>().unwrap().name(), "bridge");
    }
}
