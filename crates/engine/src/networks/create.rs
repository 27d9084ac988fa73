//! Creating networks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use whelk_sys::sync::IgnorePoison as _;

use ipnet::IpNet;
use whelk_network::MAX_INTERFACE_NAME;
use whelk_network::ipam::{self, Block};
use whelk_sys::fs;

use super::defaults::MTU;
use super::model::{Ipam, IpamConfig, NetworkRecord, option};
use super::{Network, NetworkDriverKind, Networks, defaults, subnets};
use crate::error::{Error, Result};
use crate::events::now;
use crate::random_names;
use crate::rollback::Rollback;

#[derive(Clone, Debug, Default)]
pub struct CreateNetwork {
    pub name: String,
    /// Empty for `bridge`.
    pub driver: String,
    pub enable_ipv4: Option<bool>,
    pub enable_ipv6: Option<bool>,
    pub ipam: Ipam,
    pub internal: bool,
    pub attachable: bool,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

/// The default network's subnet, if it is free: the same as Docker's.
const DEFAULT_SUBNET: &str = "172.17.0.0/16";
/// Prefix lengths to try for its subnet if that one is not free. A Linux bridge has at most 1,023
/// ports, so nothing larger than a /22 is necessary.
const DEFAULT_SIZES: [u8; 3] = [16, 20, 22];
/// The smallest MTU over which IPv6 works (RFC 8200, section 5).
pub(super) const MIN_IPV6_MTU: u32 = 1280;

impl Networks {
    /// Creates the three predefined networks if they do not exist.
    pub(super) fn create_predefined(&self) -> Result<()> {
        self.create_default()?;
        for driver in NetworkDriverKind::ALL {
            let Some(name) = driver.facts().only else {
                continue;
            };
            if !self
                .state()
                .values()
                .any(|network| network.record.name == name)
            {
                self.create_network(CreateNetwork {
                    name: name.into(),
                    driver: driver.to_string(),
                    enable_ipv4: Some(true),
                    enable_ipv6: Some(false),
                    ..CreateNetwork::default()
                })?;
            }
        }
        Ok(())
    }

    /// Creates the default network, or replaces it if its settings have changed and no container
    /// uses it.
    fn create_default(&self) -> Result<()> {
        let wanted = self.stack.instance.networks.bridge(&self.stack.instance);
        let there = self
            .state()
            .values()
            .find(|network| network.record.name == "bridge")
            .map(|network| network.record.clone());
        if let Some(there) = there {
            if defaults::matches(&there, &wanted) {
                return Ok(());
            }
            let in_use = |record: &crate::model::ContainerRecord| {
                record.state.status.is_running() && record.networks.contains_key("bridge")
            };
            if self.store.containers()?.iter().any(in_use) {
                tracing::warn!(
                    "containers are running on the default network: its new settings take effect when the engine starts without them"
                );
                return Ok(());
            }
            self.delete_host_objects(&there);
            self.store.delete_network(&there.id)?;
            self.state_mut().remove(&there.id);
        }
        self.create_network(wanted).map(drop)
    }

    /// Creates a network.
    ///
    /// # Errors
    /// Returns an error if the name is in use, subnets overlap, settings are invalid, or the host's
    /// objects cannot be created.
    pub fn create(&self, request: CreateNetwork) -> Result<NetworkRecord> {
        if matches!(
            request.name.as_str(),
            "bridge" | "host" | "none" | "default"
        ) {
            return Err(Error::Denied(format!(
                "operation is not permitted on predefined {} network ",
                request.name
            )));
        }
        let record = self.create_network(request)?;
        self.publish(&record, "create", None);
        Ok(record)
    }

    fn create_network(&self, request: CreateNetwork) -> Result<NetworkRecord> {
        let mut record = self.check_request(request)?;
        // Two engines on one host must not allocate the same subnet at the same time.
        let _lock = (!cfg!(test)).then(lock_subnets).transpose()?;
        let _changing = self.changing.lock().ignore_poison();
        self.check_unused(&record)?;
        let (driver, others) = (record.driver.driver(), self.others(&record.id));
        driver.plan(&self.stack, &mut record, &others)?;
        if record.has_subnets() {
            self.plan_subnets(&mut record)?;
        }
        let blocks = blocks(&record)?;
        for (config, block) in record.ipam.config.iter_mut().zip(&blocks) {
            if config.gateway.is_empty()
                && let Some(gateway) = block.gateway
            {
                config.gateway = gateway.to_string();
            }
        }
        // The record before the host's objects: interfaces without a record are deleted at the next
        // start.
        self.store.put_network(&record)?;
        let mut created = Rollback::new("create network", &mut record);
        created.push_undo("delete the record", |record| {
            self.store.delete_network(&record.id)
        });
        created.push_undo("delete the network's objects", |record| {
            self.delete_host_objects(record);
            Ok(())
        });
        self.create_host_objects(&created)?;
        created.commit();
        self.register(&record, blocks);
        Ok(record)
    }

    /// Converts a request to a record, after the checks that need no knowledge of other networks.
    fn check_request(&self, request: CreateNetwork) -> Result<NetworkRecord> {
        let CreateNetwork {
            name,
            driver,
            enable_ipv4,
            enable_ipv6,
            mut ipam,
            internal,
            attachable,
            mut options,
            labels,
        } = request;
        check_name(&name)?;
        let driver: NetworkDriverKind = driver.parse()?;
        if driver.facts().only.is_some_and(|only| only != name) {
            return Err(Error::Denied(format!(
                "only one instance of \"{driver}\" network is allowed"
            )));
        }
        if name != "bridge" {
            self.stack.instance.networks.complete(driver, &mut options);
        }
        let enable_ipv4 = switch(&mut options, option::ENABLE_IPV4, enable_ipv4);
        let enable_ipv6 = switch(&mut options, option::ENABLE_IPV6, enable_ipv6);
        driver.check_options(&options)?;
        if !matches!(ipam.driver.as_str(), "" | "default") {
            return Err(Error::NotFound(format!(
                "could not find an available, non-overlapping address pool: IPAM driver {:?} not found",
                ipam.driver
            )));
        }
        ipam.driver = "default".into();
        // As Docker lists them: clients read the first one.
        ipam.config.sort_by_key(IpamConfig::is_ipv6);
        let enable_ipv4 = enable_ipv4.unwrap_or(true);
        let mtu = options
            .get(option::MTU)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        if mtu != 0 && !MTU.contains(&mtu) {
            return Err(Error::invalid(format!(
                "invalid MTU of network {name}: {mtu}: must be {} to {}",
                MTU.start(),
                MTU.end()
            )));
        }
        let carries_ipv6 = mtu == 0 || mtu >= MIN_IPV6_MTU;
        if enable_ipv6 == Some(true) && !carries_ipv6 {
            return Err(Error::invalid(format!(
                "invalid MTU: {mtu}: IPv6 needs at least {MIN_IPV6_MTU}"
            )));
        }
        // IPv6 is enabled by default, unless only IPv4 subnets were given.
        let enable_ipv6 = enable_ipv6.unwrap_or_else(|| {
            driver.facts().host_routes
                && carries_ipv6
                && host_has_ipv6()
                && (ipam.config.is_empty() || ipam.config.iter().any(IpamConfig::is_ipv6))
        });
        let (id, created_at) = (random_names::random_id(), now());
        let made_parent = false;
        let record = NetworkRecord {
            name,
            id,
            created_at,
            driver,
            enable_ipv4,
            enable_ipv6,
            ipam,
            internal,
            attachable,
            options,
            labels,
            made_parent,
        };
        if record.has_subnets() && !enable_ipv4 && !enable_ipv6 {
            return Err(Error::invalid("IPv4 or IPv6 must be enabled"));
        }
        Ok(record)
    }

    /// Checks that no other network has the name.
    fn check_unused(&self, record: &NetworkRecord) -> Result<()> {
        let is_taken = |network: &Network| network.record.name == record.name;
        if self.state().values().any(is_taken) {
            return Err(Error::conflict(format!(
                "network with name {} already exists",
                record.name
            )));
        }
        Ok(())
    }

    /// Checks the given subnets and allocates missing ones.
    fn plan_subnets(&self, record: &mut NetworkRecord) -> Result<()> {
        let mut taken: Vec<IpNet> = self
            .state()
            .values()
            .flat_map(|network| network.record.subnets())
            .collect();
        subnets::check(record)?;
        for subnet in record.subnets() {
            if let Some(other) = taken.iter().find(|other| ipam::overlaps(other, &subnet)) {
                return Err(Error::Denied(format!(
                    "invalid pool request: Pool overlaps with other one on this address space: {subnet} and {other}"
                )));
            }
            taken.push(subnet);
        }
        // The host has one address of each family on a bridge, so further subnets would have no gateway.
        let is_several = |ipv6: bool| {
            let configs = record.ipam.config.iter();
            configs.filter(|config| config.is_ipv6() == ipv6).count() > 1
        };
        if record.driver.facts().host_routes && (is_several(false) || is_several(true)) {
            let text = "bridge driver doesn't support multiple subnets";
            return Err(Error::Denied(text.into()));
        }
        if record.enable_ipv4 && record.ipam.config.iter().all(IpamConfig::is_ipv6) {
            taken.extend(self.stack.links().routes()?);
            let sizes_are_set = !self.stack.instance.networks.pools.is_empty();
            let subnet =
                choose_subnet(record.name == "bridge", &self.pools, sizes_are_set, &taken)?;
            record.ipam.config.insert(
                0,
                IpamConfig {
                    subnet: subnet.to_string(),
                    ..IpamConfig::default()
                },
            );
        }
        if record.enable_ipv6 && !record.ipam.config.iter().any(IpamConfig::is_ipv6) {
            record.ipam.config.push(IpamConfig {
                subnet: ipam::unique_local(&record.id).to_string(),
                ..IpamConfig::default()
            });
        }
        Ok(())
    }

    /// Creates a network's objects on the host where they are missing.
    pub(super) fn create_host_objects(&self, record: &NetworkRecord) -> Result<()> {
        record.driver.driver().create(&self.stack, record)
    }

    /// Deletes a network's objects on the host.
    pub(super) fn delete_host_objects(&self, record: &NetworkRecord) {
        let driver = record.driver.driver();
        if let Err(error) = driver.remove(&self.stack, record, &self.others(&record.id)) {
            tracing::warn!(
                network = record.name,
                "delete the network's interfaces and rules: {error}"
            );
        }
    }

    /// Returns the records of all networks but one.
    fn others(&self, id: &str) -> Vec<NetworkRecord> {
        self.state()
            .values()
            .map(|network| &network.record)
            .filter(|record| record.id != id)
            .cloned()
            .collect()
    }
}

/// Returns a free IPv4 subnet. Unless the configuration sets the pools, the default network gets a
/// large one.
fn choose_subnet(
    is_default: bool,
    pools: &[ipam::Pool],
    sizes_are_set: bool,
    avoid: &[IpNet],
) -> Result<IpNet> {
    if is_default
        && let Ok(known) = DEFAULT_SUBNET.parse()
        && !avoid.iter().any(|other| ipam::overlaps(&known, other))
    {
        return Ok(known);
    }
    if is_default && !sizes_are_set {
        let resized = |size: u8| -> Vec<ipam::Pool> {
            pools
                .iter()
                .filter(|pool| pool.base.prefix_len() <= size)
                .map(|pool| ipam::Pool { size, ..*pool })
                .collect()
        };
        if let Some(subnet) = DEFAULT_SIZES
            .iter()
            .find_map(|size| ipam::allocate_subnet(&resized(*size), avoid).ok())
        {
            return Ok(subnet);
        }
    }
    Ok(ipam::allocate_subnet(pools, avoid)?)
}

/// Returns the address blocks of a network, one per subnet.
pub(super) fn blocks(record: &NetworkRecord) -> Result<Vec<Block>> {
    let address = |text: &str| -> Result<Option<IpAddr>> {
        if text.is_empty() {
            Ok(None)
        } else {
            text.parse()
                .map(Some)
                .map_err(|_| Error::invalid(format!("invalid address: {text}")))
        }
    };
    record
        .ipam
        .config
        .iter()
        .map(|config| {
            let subnet: IpNet = config
                .subnet
                .parse()
                .map_err(|_| Error::invalid(format!("invalid subnet {}", config.subnet)))?;
            let range = if config.ip_range.is_empty() {
                None
            } else {
                config.ip_range.parse().ok()
            };
            let reserved: Vec<IpAddr> = config
                .auxiliary_addresses
                .values()
                .filter_map(|text| text.parse().ok())
                .collect();
            let gateway = address(&config.gateway)?;
            let block = Block::new(subnet, range, gateway, &reserved)?;
            let is_needed = gateway.is_some() || record.reserves_gateway(subnet.addr().is_ipv4());
            Ok(if is_needed {
                block
            } else {
                block.without_gateway()
            })
        })
        .collect()
}

/// Returns whether an address family is requested: by the request itself, which the option then
/// must not contradict in `inspect`, or by an option of its own or of the configuration.
fn switch(
    options: &mut BTreeMap<String, String>,
    key: &str,
    requested: Option<bool>,
) -> Option<bool> {
    if requested.is_some() {
        options.remove(key);
        return requested;
    }
    options
        .get(key)
        .and_then(|value| whelk_text::parse_bool(value))
}

fn check_name(name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Error::invalid("invalid name: name is empty"));
    }
    const LONGEST: usize = 255;
    if name.len() > LONGEST {
        return Err(Error::invalid(format!(
            "invalid network name: longer than {LONGEST} bytes"
        )));
    }
    // Docker accepts any other name; but names with slashes cannot be used in API paths, and
    // control characters cannot be displayed.
    if name.contains('/') || name.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "invalid network name: {name:?}: it must not contain slashes or control characters"
        )));
    }
    Ok(())
}

/// Checks the name of an interface to create.
///
/// # Errors
/// Returns an error if the kernel would not accept the name, or it is not safe as a part of sysctl
/// paths.
pub(super) fn check_interface_name(name: &str) -> Result<()> {
    let valid = !name.is_empty()
        && name.len() <= MAX_INTERFACE_NAME
        && !matches!(name, "." | ".." | "lo")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "invalid interface name {name:?}: up to {MAX_INTERFACE_NAME} of a-z, A-Z, 0-9, _, . and -"
        )))
    }
}

/// Returns whether IPv6 is enabled for new interfaces of the host.
fn host_has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6")
        .is_ok_and(|value| value.trim() == "0")
}

/// Locks subnet allocation against other engines on this host, by a file that only root can open. It
/// is not in the instance's own directories because all instances share it, and it is never removed:
/// an engine that has opened it would lock a file that others do not see any more.
fn lock_subnets() -> Result<std::fs::File> {
    let file = fs::append("/run/whelk-networks.lock", 0o600)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| Error::internal(format!("lock subnet allocation: {error}")))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_network_is_large() {
        let pools = ipam::default_pools();
        let chosen = |is_default: bool, avoid: &[&str]| {
            let avoid: Vec<IpNet> = avoid.iter().map(|net| net.parse().unwrap()).collect();
            choose_subnet(is_default, &pools, false, &avoid)
                .map_or_else(|error| error.to_string(), |subnet| subnet.to_string())
        };
        assert_eq!(chosen(true, &[]), "172.17.0.0/16");
        assert_eq!(
            chosen(true, &["172.17.3.0/24", "172.18.0.0/24"]),
            "172.19.0.0/16"
        );
        assert_eq!(
            chosen(true, &["172.16.0.0/12", "192.168.0.0/24"]),
            "192.168.16.0/20"
        );
        assert_eq!(chosen(false, &["172.17.0.0/16"]), "172.18.0.0/24");
        let small = [ipam::Pool {
            base: "10.0.0.0/8".parse().unwrap(),
            size: 26,
        }];
        let avoid = ["172.17.0.0/16".parse().unwrap()];
        assert_eq!(
            choose_subnet(true, &small, true, &avoid)
                .unwrap()
                .to_string(),
            "10.0.0.0/26",
            "the size that the configuration sets"
        );
    }
}
