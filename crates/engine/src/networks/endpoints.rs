//! Endpoints: created before a container starts, released when it has ended.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use whelk_sys::sync::IgnorePoison as _;

use ipnet::IpNet;
use whelk_network::Links;
use whelk_network::dns_sockets::DnsSockets;
use whelk_network::namespace::{Interface, Ipv6Mode, Namespace};
use whelk_sys::fs;

use super::drivers::{Gateway, Inner, Joining};
use super::model::{Endpoint, NetworkRecord, option};
use super::settings::{
    check_endpoint, disables_ipv6, lacks_ipv6, link_local_addresses, mac_of, sysctls,
};
use super::{Member, Network, Networks, WarmNamespace, gateway_of};
use crate::error::{Error, Result};
use crate::model::{ContainerRecord, NetworkMode};
use crate::random_names::random_id;
use crate::rollback::Rollback;

#[derive(Clone, Debug, Default)]
pub struct ConnectRequest {
    pub container: String,
    pub endpoint: Endpoint,
}

/// The prefix of interface names inside containers; a number follows.
const INTERFACE_PREFIX: &str = "eth";
/// The name of a container's first interface, unless options set another.
pub(super) const FIRST_INTERFACE: &str = "eth0";

impl Networks {
    /// Attaches a container to all its networks and returns a network namespace with its
    /// interfaces, or `None` if its network mode has none of its own.
    ///
    /// # Errors
    /// Returns an error if an endpoint or a published port cannot be created; everything created
    /// before is released.
    pub fn attach(&self, record: &mut ContainerRecord) -> Result<Option<OwnedFd>> {
        if !record.host.network_mode.has_own_networks() {
            let mut networks = std::mem::take(&mut record.networks);
            let found = networks.iter_mut().try_for_each(|(name, endpoint)| {
                endpoint.network_id = self.find(name)?.id;
                endpoint.endpoint_id = random_id();
                self.add_member(record, endpoint);
                Ok(())
            });
            record.networks = networks;
            if found.is_err() {
                drop(self.detach(record));
            }
            return found.map(|()| None);
        }
        self.check_combination(record)?;
        // Without the rules nothing would isolate the container from others.
        self.stack.firewall.require()?;
        let first = self.attach_order(record).into_iter().next();
        let takes_warm = first.is_some_and(|name| {
            self.find(&name)
                .is_ok_and(|network| network.driver.facts().warm)
        });
        let warm = if takes_warm {
            self.warm_pool().pop()
        } else {
            None
        };
        let (mut namespace, pooled, dns) = match warm {
            Some(WarmNamespace {
                namespace,
                interface,
                endpoint_id,
                dns,
            }) => (namespace, Some((interface, endpoint_id)), Some(dns)),
            None => {
                if takes_warm {
                    self.stack.maintenance.notify_one();
                }
                (Namespace::create()?, None, None)
            }
        };
        let outer = pooled
            .as_ref()
            .map(|(_, id)| self.stack.endpoint_interface(id));
        let attached = self.attach_all(record, &mut namespace, pooled, dns);
        match attached {
            Ok(()) => Ok(Some(namespace.into())),
            Err(error) => {
                drop(self.detach(record));
                let gone =
                    outer.is_some_and(|outer| matches!(self.stack.links().find(&outer), Ok(None)));
                // An administrator deleted the pooled interface: try again without it.
                if gone {
                    self.attach(record)
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Checks the networks of a container that is being started.
    ///
    /// # Errors
    /// Returns an error if the container cannot be in all these networks at once, or cannot be
    /// attached to one of them after its creation.
    fn check_combination(&self, record: &ContainerRecord) -> Result<()> {
        for name in record.networks.keys() {
            match self.find(name)?.driver.facts().joining {
                Joining::HostNamespace => return Err(Error::invalid(CREATED_FOR_HOST)),
                Joining::Alone if record.networks.len() > 1 => {
                    return Err(Error::invalid(PRIVATE));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Attaches a container to all its networks. `pooled` is the interface of a warm namespace with
    /// its endpoint id, used for the first network.
    fn attach_all(
        &self,
        record: &mut ContainerRecord,
        namespace: &mut Namespace,
        mut pooled: Option<(Interface, String)>,
        dns: Option<DnsSockets>,
    ) -> Result<()> {
        for name in self.attach_order(record) {
            let network = self.find(&name)?;
            let mut endpoint = record.networks.remove(&name).unwrap_or_default();
            if network.driver.facts().joining == Joining::Alone {
                endpoint.network_id.clone_from(&network.id);
                record.networks.insert(network.name.clone(), endpoint);
                continue;
            }
            // Without IPv6 in the network there must not even be a link-local address
            // (CVE-2024-32473); with IPv6, the addresses are allocated.
            let ipv6 = if has_ipv6(record, &network, &endpoint) {
                Ipv6Mode::Static
            } else {
                Ipv6Mode::Disabled
            };
            if pooled.is_none() {
                namespace.set_ipv6(ipv6)?;
            }
            let outcome = self
                .attach_endpoint(
                    record,
                    &network,
                    &mut endpoint,
                    namespace.as_fd(),
                    pooled.as_ref().map(|(_, id)| id.as_str()),
                )
                .and_then(|()| match pooled.take() {
                    Some((interface, _)) => {
                        configure_pooled(interface, &network, &endpoint, &mut namespace.links, ipv6)
                    }
                    None => Ok(()),
                })
                .and_then(|()| set_sysctls(sysctls(&endpoint)?, namespace.as_fd(), false))
                .and_then(|()| configure_interface(&endpoint, &mut namespace.links));
            record.networks.insert(network.name.clone(), endpoint);
            outcome?;
        }
        // Interfaces that the container creates itself get the kernel's default.
        namespace.set_ipv6(Ipv6Mode::KernelDefault)?;
        self.set_default_gateway(record, &mut namespace.links)?;
        self.publish_ports(record)?;
        self.start_resolver(record, namespace.as_fd(), dns)
    }

    /// Returns the names of a container's networks in the order of their interfaces: the network of
    /// its network mode is first and has eth0, unless the container was disconnected from it.
    fn attach_order(&self, record: &ContainerRecord) -> Vec<String> {
        let mut networks: Vec<String> = record.networks.keys().cloned().collect();
        networks.sort_by_key(|name| !self.is_mode(record, name));
        networks
    }

    /// Returns whether this network is the container's network mode, which can be a network's name
    /// or id.
    pub(super) fn is_mode(&self, record: &ContainerRecord, network: &str) -> bool {
        record.host.network_mode.network().is_some_and(|mode| {
            mode == network || self.find(mode).is_ok_and(|mode| mode.name == network)
        })
    }

    /// Creates a container's endpoint and interface in one network. `pooled` is the id of an
    /// endpoint with an existing veth pair, whose outer end is attached to the bridge.
    fn attach_endpoint(
        &self,
        container: &ContainerRecord,
        network: &NetworkRecord,
        endpoint: &mut Endpoint,
        namespace: BorrowedFd<'_>,
        pooled: Option<&str>,
    ) -> Result<()> {
        link_local_addresses(endpoint)?;
        endpoint.network_id.clone_from(&network.id);
        endpoint.endpoint_id = pooled.map_or_else(random_id, str::to_owned);
        endpoint.interface = self.interface_name(container, network, endpoint)?;
        self.allocate_addresses(container, network, endpoint)?;
        let inner = match pooled {
            Some(_) => Inner::Warm,
            None => Inner::New(namespace),
        };
        let driver = network.driver.driver();
        driver.attach(&self.stack, network, endpoint, inner)
    }

    /// Creates a running container's endpoint and interface in one network. Returns an rtnetlink
    /// socket in its namespace.
    fn attach_endpoint_to_running(
        &self,
        container: &ContainerRecord,
        network: &NetworkRecord,
        endpoint: &mut Endpoint,
        namespace: BorrowedFd<'_>,
    ) -> Result<Links> {
        self.attach_endpoint(container, network, endpoint, namespace, None)?;
        let name = &endpoint.interface;
        let settings: &[(&str, &str)] = if has_ipv6(container, network, endpoint) {
            &[("disable_ipv6", "0"), ("accept_ra", "0")]
        } else {
            &[("disable_ipv6", "1")]
        };
        let settings = settings
            .iter()
            .map(|(key, value)| (format!("net/ipv6/conf/{name}/{key}"), (*value).to_owned()));
        // The files do not exist if the kernel has no IPv6.
        set_sysctls(settings.collect(), namespace, true)?;
        set_sysctls(sysctls(endpoint)?, namespace, false)?;
        let mut links = Links::open_in(namespace)?;
        configure_interface(endpoint, &mut links)?;
        Ok(links)
    }

    fn interface_name(
        &self,
        container: &ContainerRecord,
        network: &NetworkRecord,
        endpoint: &Endpoint,
    ) -> Result<String> {
        let wanted = endpoint
            .driver_opts
            .iter()
            .flatten()
            .find(|(key, _)| *key == option::INTERFACE_NAME)
            .map(|(_, name)| name.clone());
        if let Some(name) = wanted {
            super::create::check_interface_name(&name)?;
            return Ok(name);
        }
        let prefix = network
            .option(option::CONTAINER_PREFIX)
            .unwrap_or(INTERFACE_PREFIX);
        let used = |name: &str| {
            container
                .networks
                .values()
                .any(|endpoint| endpoint.interface == name)
        };
        (0..)
            .map(|number: u32| format!("{prefix}{number}"))
            .find(|name| !used(name))
            .ok_or_else(|| Error::internal("no interface name is free"))
    }

    /// Allocates an endpoint's addresses and adds the container to the network's members, under one
    /// lock.
    fn allocate_addresses(
        &self,
        container: &ContainerRecord,
        network: &NetworkRecord,
        endpoint: &mut Endpoint,
    ) -> Result<()> {
        let mut state = self.state_mut();
        let Some(network) = state.get_mut(&network.id) else {
            return Err(Error::no_such_network(&network.name));
        };
        let asked = endpoint.ipam_config.clone().unwrap_or_default();
        let mut taken: Vec<(IpAddr, u8)> = Vec::new();
        let ipv6 = has_ipv6(container, &network.record, endpoint);
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
        endpoint.dns_names =
            (network.record.name != "bridge").then(|| names_of(container, endpoint));
        network
            .members
            .insert(container.id.clone(), member(container, endpoint));
        Ok(())
    }

    /// Returns the address that `host-gateway` is replaced with: the configured one, or the host's
    /// address on the default network.
    pub fn host_gateway(&self) -> String {
        if let Some(address) = self.stack.instance.networks.host_gateway {
            return address.to_string();
        }
        let state = self.state();
        let bridge = state
            .values()
            .find(|network| network.record.name == "bridge");
        bridge
            .and_then(|bridge| gateway_of(&bridge.blocks, true))
            .map_or_else(|| "127.0.0.1".into(), |gateway| gateway.to_string())
    }

    /// Publishes the `connect` events of a container that has started.
    pub fn publish_connects(&self, record: &ContainerRecord) {
        // Maintenance was not notified before, so that it does not compete with the container's
        // start.
        self.stack.maintenance.notify_one();
        for endpoint in record.networks.values() {
            if let Ok(network) = self.find(&endpoint.network_id) {
                self.publish(&network, "connect", Some(&record.id));
            }
        }
    }

    /// Releases everything that an ended container had in its networks, and returns these networks.
    /// Errors are logged.
    pub fn detach(&self, record: &mut ContainerRecord) -> Vec<NetworkRecord> {
        if let Some(task) = self.resolvers.lock().ignore_poison().remove(&record.id) {
            task.abort();
        }
        self.withdraw_ports(record);
        self.ports.forget(&record.id);
        let mut left = Vec::new();
        for endpoint in record
            .networks
            .values_mut()
            .filter(|endpoint| !endpoint.endpoint_id.is_empty())
        {
            if let Ok(network) = self.find(&endpoint.network_id) {
                self.detach_endpoint(&record.id, &network, endpoint, None);
                left.push(network);
            }
            endpoint.clear();
        }
        left
    }

    /// Publishes the `disconnect` events of a container that has ended.
    pub fn publish_disconnects(&self, container: &str, left: &[NetworkRecord]) {
        left.iter()
            .for_each(|network| self.publish(network, "disconnect", Some(container)));
    }

    /// Deletes an endpoint: its interface, its addresses and the network's member. `namespace` is
    /// given for a container that keeps running: its interface must be gone before its addresses
    /// can be allocated to another.
    fn detach_endpoint(
        &self,
        container: &str,
        network: &NetworkRecord,
        endpoint: &Endpoint,
        namespace: Option<BorrowedFd<'_>>,
    ) {
        if endpoint.endpoint_id.is_empty() {
            return;
        }
        if let Some(namespace) = namespace {
            let interface = endpoint.interface.clone();
            if let Err(error) = within(namespace, move || Ok(Links::open()?.delete(&interface)?)) {
                tracing::warn!(
                    network = network.name,
                    "delete the container's interface: {error}"
                );
            }
        }
        network.driver.driver().detach(&self.stack, endpoint);
        if let Some(network) = self.state_mut().get_mut(&network.id)
            && network
                .members
                .get(container)
                .is_some_and(|member| member.endpoint_id == endpoint.endpoint_id)
        {
            network.members.remove(container);
            release_addresses(network, endpoint.addresses().into_iter());
        }
    }

    /// Adds a container to a network's members.
    fn add_member(&self, container: &ContainerRecord, endpoint: &Endpoint) {
        if let Some(network) = self.state_mut().get_mut(&endpoint.network_id) {
            network
                .members
                .insert(container.id.clone(), member(container, endpoint));
        }
    }

    /// Records the endpoints of a running container after a restart of the engine, and starts its
    /// DNS server.
    pub fn adopt(&self, record: &mut ContainerRecord) {
        if !record.host.network_mode.has_own_networks() {
            record
                .networks
                .values()
                .filter(|endpoint| !endpoint.endpoint_id.is_empty())
                .for_each(|endpoint| self.add_member(record, endpoint));
            return;
        }
        let mut networks = std::mem::take(&mut record.networks);
        for endpoint in networks
            .values_mut()
            .filter(|endpoint| !endpoint.endpoint_id.is_empty())
        {
            let Ok(network) = self.find(&endpoint.network_id) else {
                continue;
            };
            match network.driver.driver().adopt(&self.stack, endpoint) {
                Ok(true) => {}
                Ok(false) => {
                    // It was being disconnected when the engine ended.
                    endpoint.clear();
                    continue;
                }
                Err(error) => tracing::warn!(
                    container = record.id,
                    "add the container's firewall rules: {error}"
                ),
            }
            if let Some(network) = self.state_mut().get_mut(&network.id) {
                for address in endpoint.addresses() {
                    let _ = allocate_address(network, address.is_ipv4(), Some(address));
                }
                endpoint.dns_names = endpoint
                    .dns_names
                    .is_some()
                    .then(|| names_of(record, endpoint));
                network
                    .members
                    .insert(record.id.clone(), member(record, endpoint));
            }
        }
        record.networks = networks;
        self.adopt_ports(record);
        let resolving = open_namespace(record.state.pid)
            .and_then(|namespace| self.start_resolver(record, namespace.as_fd(), None));
        if let Err(error) = resolving {
            tracing::warn!(container = record.id, "start the DNS server: {error}");
        }
    }

    /// Updates the container's name and DNS names after a rename.
    pub fn rename(&self, record: &mut ContainerRecord) {
        self.ports.rename(&record.id, &record.name);
        let mut networks = std::mem::take(&mut record.networks);
        for endpoint in networks
            .values_mut()
            .filter(|endpoint| !endpoint.endpoint_id.is_empty())
        {
            endpoint.dns_names = endpoint
                .dns_names
                .is_some()
                .then(|| names_of(record, endpoint));
            if let Some(network) = self.state_mut().get_mut(&endpoint.network_id)
                && network.members.contains_key(&record.id)
            {
                network
                    .members
                    .insert(record.id.clone(), member(record, endpoint));
            }
        }
        record.networks = networks;
    }

    /// Connects a container to a network: immediately if it is running, else at its next start.
    pub fn connect(
        &self,
        record: &mut ContainerRecord,
        network: &str,
        mut endpoint: Endpoint,
    ) -> Result<()> {
        let network = self.find(network)?;
        check_endpoint(&network.name, Some(&network), &endpoint)?;
        check_connect(record, &network)?;
        endpoint.network_id.clone_from(&network.id);
        if !record.state.status.is_running() || network.driver.facts().joining == Joining::Alone {
            record.networks.insert(network.name.clone(), endpoint);
            return Ok(());
        }
        let namespace = open_namespace(record.state.pid)?;
        let external =
            |record: &ContainerRecord| self.external_network(record).map(|(network, _)| network.id);
        let before = external(record);
        let mut record = Rollback::new("connect", record);
        record.push_undo("publish the ports", |record| {
            if record.ports.is_empty() {
                self.publish_ports(record)?;
            }
            Ok(())
        });
        record.push_undo("set the default gateway", |record| {
            self.set_default_gateway(record, &mut Links::open_in(namespace.as_fd())?)
        });
        record.push_undo("detach the endpoint", |record| {
            if let Some(endpoint) = record.networks.remove(&network.name) {
                self.detach_endpoint(&record.id, &network, &endpoint, Some(namespace.as_fd()));
            }
            Ok(())
        });
        let attached =
            self.attach_endpoint_to_running(&record, &network, &mut endpoint, namespace.as_fd());
        record.networks.insert(network.name.clone(), endpoint);
        self.set_default_gateway(&record, &mut attached?)?;
        self.start_resolver(&record, namespace.as_fd(), None)?;
        // The ports must be redirected to the network that now connects it to the outside.
        if external(&record) != before {
            self.republish_ports(&mut record)?;
        }
        self.publish(&network, "connect", Some(&record.id));
        record.commit();
        Ok(())
    }

    /// Disconnects a container from a network.
    ///
    /// # Errors
    /// Returns an error if the container is not connected to the network.
    pub fn disconnect(&self, record: &mut ContainerRecord, network: &str) -> Result<()> {
        let network = self.find(network)?;
        let is_running = record.state.status.is_running();
        if record.host.network_mode == NetworkMode::Host
            && network.driver.facts().joining == Joining::HostNamespace
        {
            return Err(Error::invalid(
                "cannot disconnect container from host network - container was created in host network mode",
            ));
        }
        let Some(endpoint) = record.networks.remove(&network.name) else {
            let which = if is_running { "network" } else { "the network" };
            return Err(Error::internal(format!(
                "container {} is not connected to {which} {}",
                record.id, network.name
            )));
        };
        if !is_running {
            return Ok(());
        }
        if network.driver.facts().joining == Joining::Alone {
            self.detach_endpoint(&record.id, &network, &endpoint, None);
            self.publish(&network, "disconnect", Some(&record.id));
            return Ok(());
        }
        let had_ports = !record.ports.is_empty();
        if had_ports
            && record
                .ports
                .iter()
                .any(|mapping| endpoint.addresses().contains(&mapping.to.ip()))
        {
            self.withdraw_ports(record);
        }
        // `None` if its process has just ended: its namespace and interfaces are then deleted
        // anyway.
        let namespace = open_namespace(record.state.pid).ok();
        self.detach_endpoint(
            &record.id,
            &network,
            &endpoint,
            namespace.as_ref().map(AsFd::as_fd),
        );
        self.publish(&network, "disconnect", Some(&record.id));
        let Some(namespace) = namespace else {
            return Ok(());
        };
        self.set_default_gateway(record, &mut Links::open_in(namespace.as_fd())?)?;
        if had_ports && record.ports.is_empty() {
            self.publish_ports(record)?;
        }
        Ok(())
    }

    /// Withdraws a container's ports and publishes them through its current network to the outside.
    fn republish_ports(&self, record: &mut ContainerRecord) -> Result<()> {
        self.withdraw_ports(record);
        self.publish_ports(record)
    }

    /// Sets the default routes, through the network with the highest gateway priority, by name if
    /// several have the same.
    fn set_default_gateway(&self, record: &ContainerRecord, links: &mut Links) -> Result<()> {
        let best = |ipv4: bool| {
            record
                .networks
                .iter()
                .filter(|(_, endpoint)| !endpoint.endpoint_id.is_empty())
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

/// Docker's texts for containers that cannot be attached to a network.
const CREATED_FOR_HOST: &str =
    "cannot connect container to host network - container must be created in host network mode";
const PRIVATE: &str = "container cannot be connected to multiple networks with one of the networks in private (none) mode";
const SHARES: &str = "container sharing network namespace with another container or host cannot be connected to any other network";

/// Returns an error if the network mode of the container or the network's driver does not permit
/// the connection.
fn check_connect(record: &ContainerRecord, network: &NetworkRecord) -> Result<()> {
    let mode = &record.host.network_mode;
    if mode.container().is_some() {
        return Err(Error::invalid(SHARES));
    }
    if record.networks.contains_key(&network.name) {
        return Err(Error::Denied(format!(
            "endpoint with name {} already exists in network {}",
            record.name, network.name
        )));
    }
    let joining = network.driver.facts().joining;
    let is_private = *mode == NetworkMode::None
        || record.networks.contains_key("none")
        || joining == Joining::Alone && !record.networks.is_empty();
    match (mode, joining) {
        (NetworkMode::Host, _) => Err(Error::invalid(SHARES)),
        (_, Joining::HostNamespace) => Err(Error::invalid(CREATED_FOR_HOST)),
        (NetworkMode::None, Joining::Alone) => Ok(()),
        _ if is_private => Err(Error::invalid(PRIVATE)),
        _ => Ok(()),
    }
}

/// Returns whether a container has IPv6 in a network.
fn has_ipv6(container: &ContainerRecord, network: &NetworkRecord, endpoint: &Endpoint) -> bool {
    network.enable_ipv6 && !lacks_ipv6(&container.host) && !disables_ipv6(endpoint)
}

/// Allocates an address and returns it with its prefix length, or `None` if the network has no
/// subnet of this family.
fn allocate_address(
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

fn release_addresses(network: &mut Network, addresses: impl Iterator<Item = IpAddr>) {
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

/// Returns a container's DNS names in a user-defined network.
fn names_of(container: &ContainerRecord, endpoint: &Endpoint) -> Vec<String> {
    let short: String = container.id.chars().take(12).collect();
    let mut known = HashSet::new();
    let names = [&container.name]
        .into_iter()
        .chain(endpoint.aliases.iter().flatten())
        .chain([&short, &container.config.hostname]);
    names
        .filter(|name| !name.is_empty() && known.insert(*name))
        .cloned()
        .collect()
}

fn member(container: &ContainerRecord, endpoint: &Endpoint) -> Member {
    Member {
        name: container.name.clone(),
        endpoint_id: endpoint.endpoint_id.clone(),
        mac: endpoint.mac_address.clone(),
        addresses: endpoint.nets(),
        names: endpoint
            .dns_names
            .iter()
            .flatten()
            .map(|name| name.to_ascii_lowercase())
            .collect(),
        links: container
            .host
            .links
            .iter()
            .chain(&endpoint.links)
            .flatten()
            .map(|link| split_link(link))
            .map(|(target, alias)| (target, alias.to_ascii_lowercase()))
            .collect(),
    }
}

/// Splits `container[:alias]`.
pub(crate) fn split_link(link: &str) -> (String, String) {
    let (target, alias) = link.split_once(':').unwrap_or((link, link));
    (
        target.trim_start_matches('/').to_owned(),
        alias.rsplit('/').next().unwrap_or(alias).to_owned(),
    )
}

/// Configures the inner end of a warm namespace's veth pair for a network and endpoint.
fn configure_pooled(
    mut interface: Interface,
    network: &NetworkRecord,
    endpoint: &Endpoint,
    links: &mut Links,
    ipv6: Ipv6Mode,
) -> Result<()> {
    interface.set_ipv6(ipv6)?;
    let name = Some(endpoint.interface.as_str()).filter(|name| *name != FIRST_INTERFACE);
    Ok(links.configure(interface.index, name, mac_of(endpoint)?, network.mtu())?)
}

/// Adds an endpoint's addresses to its interface and brings it up.
fn configure_interface(endpoint: &Endpoint, links: &mut Links) -> Result<()> {
    let link_local = link_local_addresses(endpoint)?;
    let name = endpoint.interface.as_str();
    let link = links.find(name)?.ok_or_else(|| {
        Error::internal(format!(
            "interface {name} is not in the container's namespace"
        ))
    })?;
    for address in endpoint.nets().into_iter().chain(link_local) {
        links.add_address(link.index, address)?;
    }
    Ok(links.set_up(link.index)?)
}

/// Writes sysctls, as paths below `/proc/sys` and values, inside a namespace.
fn set_sysctls(
    settings: Vec<(String, String)>,
    namespace: BorrowedFd<'_>,
    may_be_missing: bool,
) -> Result<()> {
    if settings.is_empty() {
        return Ok(());
    }
    within(namespace, move || {
        settings
            .iter()
            .try_for_each(|(path, value)| super::stack::set_sysctl(path, value, may_be_missing))
    })
}

fn within(namespace: BorrowedFd<'_>, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    whelk_sys::net::within(namespace, work).map_err(|error| {
        Error::internal(format!(
            "enter the container's network namespace: {}",
            whelk_sys::errno_text(&error)
        ))
    })?
}

/// Opens the network namespace of a process.
///
/// # Errors
/// Returns an error if it is the engine's own namespace: the process id was reused.
pub(super) fn open_namespace(pid: i32) -> Result<OwnedFd> {
    use std::os::unix::fs::MetadataExt;
    let inode = |file: &std::fs::File| {
        file.metadata()
            .map(|found| found.ino())
            .map_err(fs::at("stat", "a network namespace"))
    };
    let namespace = fs::open(format!("/proc/{pid}/ns/net"))?;
    if inode(&namespace)? == inode(&fs::open("/proc/self/ns/net")?)? {
        return Err(Error::internal(format!(
            "process {pid} is not in a network namespace of its own"
        )));
    }
    Ok(namespace.into())
}
