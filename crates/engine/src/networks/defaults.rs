//! Network settings of the engine's configuration: the default network, and defaults for new
//! networks.

use std::collections::BTreeMap;

use ipnet::IpNet;
use whelk_network::ipam::Pool;

use super::NetworkDriverKind;
use super::create::{CreateNetwork, MIN_IPV6_MTU};
use super::model::{Ipam, IpamConfig, NetworkRecord, option};
use super::stack::default_bridge;
use crate::error::{Error, Result};
use crate::instance::{Instance, NetworkDefaults};

/// The smallest MTU of IPv4 (RFC 791), and the largest packet, in bytes.
pub(super) const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;

impl NetworkDefaults {
    /// Checks the settings.
    ///
    /// # Errors
    /// Returns an error if a setting is invalid or contradicts another.
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
                    "{key} {address}: is not a host address of its subnet"
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
                    "fixed-cidr {range}: is not within {}",
                    bridge.trunc()
                )));
            }
        }
        for Pool { base, size } in &self.pools {
            let longest = if base.addr().is_ipv4() { 30 } else { 126 };
            if !(base.prefix_len()..=longest).contains(size) {
                return Err(Error::invalid(format!(
                    "default-address-pools: {base} cannot be divided into /{size} subnets"
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
        if let Some(mtu) = self.mtu.filter(|mtu| self.ipv6 && *mtu < MIN_IPV6_MTU) {
            return Err(Error::invalid(format!(
                "mtu {mtu}: IPv6 needs at least {MIN_IPV6_MTU}"
            )));
        }
        Ok(())
    }

    /// Returns the request that creates the default network.
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
        // A network without IPv6 has no subnet of it.
        let families = [true, false].into_iter();
        let families = families.filter(|ipv4| *ipv4 || self.ipv6);
        let config = families.filter_map(|ipv4| {
            let of_family = |list: &[IpNet]| {
                list.iter()
                    .copied()
                    .find(|net| net.addr().is_ipv4() == ipv4)
            };
            let (bridge, range) = (of_family(&self.bridge_addresses), of_family(&self.ranges));
            // Without a bridge address, the range is the subnet.
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
            driver: NetworkDriverKind::Bridge.to_string(),
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

    /// Adds the default options that a new network does not set.
    pub(super) fn complete(
        &self,
        driver: NetworkDriverKind,
        options: &mut BTreeMap<String, String>,
    ) {
        for (key, value) in self.options.get(driver.name()).into_iter().flatten() {
            options.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// Returns whether an existing default network has the wanted settings.
pub(super) fn matches(record: &NetworkRecord, wanted: &CreateNetwork) -> bool {
    let matches_config = |wanted: &IpamConfig| {
        record.ipam.config.iter().any(|config| {
            config.subnet == wanted.subnet
                && config.ip_range == wanted.ip_range
                && (wanted.gateway.is_empty() || config.gateway == wanted.gateway)
        })
    };
    record.options == wanted.options
        && wanted.enable_ipv6 == Some(record.enable_ipv6)
        && wanted.ipam.config.iter().all(matches_config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ipv6_the_default_network_has_no_subnet_of_it() {
        let instance = Instance::new("/root".into(), "/run".into(), "test".into()).unwrap();
        let subnets = |ipv6: bool| {
            let settings = NetworkDefaults {
                bridge_addresses: vec!["10.1.2.1/24".parse().unwrap()],
                ranges: vec!["fd00:1::/64".parse().unwrap()],
                ipv6,
                ..NetworkDefaults::default()
            };
            let config = settings.bridge(&instance).ipam.config.into_iter();
            config.map(|config| config.subnet).collect::<Vec<_>>()
        };
        assert_eq!(subnets(true), ["10.1.2.0/24", "fd00:1::/64"]);
        assert_eq!(subnets(false), ["10.1.2.0/24"]);
    }
}
