//! What an administrator has set for networks: how the default one is made, and what others get
//! that do not say.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use whelk_network::ipam::Pool;

use super::create::{CreateNetwork, LEAST_IPV6_MTU};
use super::default_bridge;
use super::model::{Ipam, IpamConfig, NetworkRecord, option};
use crate::error::{Error, Result};
use crate::instance::Instance;

/// Docker's daemon.json names these `bip`, `fixed-cidr`, `default-address-pools` and so on.
#[derive(Clone, Debug)]
pub struct NetworkDefaults {
    /// The default bridge's own addresses, at most one of each family, with its subnets' lengths.
    pub bridge_addresses: Vec<IpNet>,
    /// Where addresses of containers on the default network come from, at most one of each family.
    pub ranges: Vec<IpNet>,
    /// Whether the default network has IPv6.
    pub ipv6: bool,
    /// Where subnets come from; empty for the usual ones.
    pub pools: Vec<Pool>,
    /// Options that new networks have unless they say otherwise, by driver.
    pub options: BTreeMap<String, BTreeMap<String, String>>,
    /// Of the default network, in bytes.
    pub mtu: Option<u32>,
    /// Whether containers on the default network reach each other.
    pub icc: bool,
    /// Whether the default network's containers are seen outside under the host's address.
    pub masquerade: bool,
    /// Whether the kernel's forwarding is switched on where it is off.
    pub forward: bool,
    /// Where ports of the default network are published that do not say where.
    pub binding: Option<IpAddr>,
    /// What `host-gateway` stands for.
    pub host_gateway: Option<IpAddr>,
    /// Resolvers, search list and options of containers that have none of their own.
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
            host_gateway: None,
            servers: Vec::new(),
            search: Vec::new(),
            resolver_options: Vec::new(),
        }
    }
}

/// The smallest MTU that IPv4 knows (RFC 791), and the largest packet.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;

impl NetworkDefaults {
    /// # Errors
    /// Settings that contradict themselves or each other.
    pub fn check(&self) -> Result<()> {
        for address in &self.bridge_addresses {
            let key = if address.addr().is_ipv4() {
                "bip"
            } else {
                "bip6"
            };
            if address.addr() == address.network()
                || address.addr() == address.broadcast() && address.addr().is_ipv4()
            {
                return Err(Error::invalid(format!(
                    "{key} {address}: not the address of a host in its subnet"
                )));
            }
        }
        for range in &self.ranges {
            let bridge = self
                .bridge_addresses
                .iter()
                .find(|bridge| bridge.addr().is_ipv4() == range.addr().is_ipv4());
            if let Some(bridge) = bridge.filter(|bridge| !bridge.trunc().contains(range)) {
                return Err(Error::invalid(format!(
                    "fixed-cidr {range}: not a part of {}",
                    bridge.trunc()
                )));
            }
        }
        for Pool { base, size } in &self.pools {
            let longest = if base.addr().is_ipv4() { 30 } else { 126 };
            if !(base.prefix_len()..=longest).contains(size) {
                return Err(Error::invalid(format!(
                    "default-address-pools: no subnets of /{size} fit into {base}"
                )));
            }
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(Error::invalid(format!(
                "mtu {mtu}: must be {} to {}",
                MTU.start(),
                MTU.end()
            )));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| self.ipv6 && *mtu < LEAST_IPV6_MTU) {
            return Err(Error::invalid(format!(
                "mtu {mtu}: IPv6 needs {LEAST_IPV6_MTU} at least"
            )));
        }
        Ok(())
    }

    /// The default network as it should be.
    pub(super) fn bridge(&self, instance: &Instance) -> CreateNetwork {
        const USUAL_MTU: u32 = 1500;
        let options = [
            (option::BRIDGE_NAME, default_bridge(instance)),
            (option::DEFAULT_BRIDGE, "true".into()),
            (option::ICC, self.icc.to_string()),
            (option::MASQUERADE, self.masquerade.to_string()),
            (
                option::HOST_BINDING,
                self.binding
                    .map_or_else(|| "0.0.0.0".into(), |address| address.to_string()),
            ),
            (option::MTU, self.mtu.unwrap_or(USUAL_MTU).to_string()),
        ];
        let config = [true, false].into_iter().filter_map(|ipv4| {
            let of_family = |list: &[IpNet]| {
                list.iter()
                    .copied()
                    .find(|net| net.addr().is_ipv4() == ipv4)
            };
            let (bridge, range) = (of_family(&self.bridge_addresses), of_family(&self.ranges));
            // A range alone is the subnet too.
            let subnet = bridge.or(range)?.trunc();
            Some(IpamConfig {
                subnet: subnet.to_string(),
                ip_range: range
                    .map(|range| range.trunc().to_string())
                    .unwrap_or_default(),
                gateway: bridge
                    .map(|bridge| bridge.addr().to_string())
                    .unwrap_or_default(),
                ..IpamConfig::default()
            })
        });
        CreateNetwork {
            name: "bridge".into(),
            driver: "bridge".into(),
            enable_ipv4: Some(true),
            enable_ipv6: Some(self.ipv6),
            ipam: Ipam {
                config: config.collect(),
                ..Ipam::default()
            },
            options: options.map(|(key, value)| (key.to_owned(), value)).into(),
            ..CreateNetwork::default()
        }
    }

    /// Puts in what a new network does not say.
    pub(super) fn complete(&self, driver: &str, options: &mut BTreeMap<String, String>) {
        for (key, value) in self.options.get(driver).into_iter().flatten() {
            options.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// Whether a default network that is there is what is asked for now.
pub(super) fn fits(record: &NetworkRecord, wanted: &CreateNetwork) -> bool {
    let fits_config = |wanted: &IpamConfig| {
        record.ipam.config.iter().any(|config| {
            config.subnet == wanted.subnet
                && config.ip_range == wanted.ip_range
                && (wanted.gateway.is_empty() || config.gateway == wanted.gateway)
        })
    };
    record.options == wanted.options
        && wanted.enable_ipv6 == Some(record.enable_ipv6)
        && wanted.ipam.config.iter().all(fits_config)
}
