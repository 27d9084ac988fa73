//! Network settings of the engine's configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use whelk_network::ipam::Pool;

/// The network settings, which Docker's daemon.json calls `bip`, `fixed-cidr`,
/// `default-address-pools` and so on.
#[derive(Clone, Debug)]
pub struct NetworkDefaults {
    /// The default bridge's own addresses with the prefix lengths of its subnets, at most one per
    /// family.
    pub bridge_addresses: Vec<IpNet>,
    /// The ranges of dynamic addresses on the default network, at most one per family.
    pub ranges: Vec<IpNet>,
    /// Whether the default network has IPv6 enabled.
    pub ipv6: bool,
    /// The pools to allocate subnets from; empty for the defaults.
    pub pools: Vec<Pool>,
    /// Default options of new networks, by driver.
    pub options: BTreeMap<String, BTreeMap<String, String>>,
    /// The default network's MTU in bytes.
    pub mtu: Option<u32>,
    /// Whether containers on the default network can reach each other.
    pub icc: bool,
    /// Whether outgoing traffic of the default network is masqueraded.
    pub masquerade: bool,
    /// Whether the engine enables packet forwarding where it is disabled.
    pub forward: bool,
    /// The default host address for published ports of the default network.
    pub binding: Option<IpAddr>,
    /// The addresses that `host-gateway` is replaced with, at most one per family; empty for the
    /// host's on the default network.
    pub host_gateway: Vec<IpAddr>,
    /// DNS servers, search list and options of containers without their own.
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub resolver_options: Vec<String>,
}

impl Default for NetworkDefaults {
    fn default() -> Self {
        Self {
            bridge_addresses: Vec::new(),
            ranges: Vec::new(),
            ipv6: false,
            pools: Vec::new(),
            options: BTreeMap::new(),
            mtu: None,
            icc: true,
            masquerade: true,
            forward: true,
            binding: None,
            host_gateway: Vec::new(),
            servers: Vec::new(),
            search: Vec::new(),
            resolver_options: Vec::new(),
        }
    }
}
