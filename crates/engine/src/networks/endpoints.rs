//! A container's places in networks: taken before it starts, given back when it has ended.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;

use ipnet::IpNet;
use whelk_network::names::NameSockets;
use whelk_network::namespace::{Interface, Ipv6, Namespace};
use whelk_network::{Links, Peer, Port, SenderRules};
use whelk_sys::fs;

use super::model::{Endpoint, NetworkRecord, option};
use super::settings::{
    check_endpoint, disables_ipv6, ipvlan_flag, ipvlan_mode, lacks_ipv6, link_local_addresses,
    macvlan_mode, parse_mac, sysctls,
};
use super::{Member, Network, Networks, Spare, VETH, gateway_of};
use crate::error::{Error, Result};
use crate::model::ContainerRecord;
use crate::random_names::random_id;

#[derive(Clone, Debug, Default)]
pub struct ConnectRequest {
    pub container: String,
    pub endpoint: Endpoint,
}

/// What a container's interface is called, by its number.
const INTERFACE_PREFIX: &str = "eth";
/// So the first is called this, unless something else is wanted.
pub(super) const FIRST_INTERFACE: &str = "eth0";

impl Networks {
    /// Takes a container's places in all its networks and makes a namespace with their interfaces.
    /// `None` for one that has no networks of its own. On an error nothing is kept.
    pub fn join(&self, record: &mut ContainerRecord) -> Result<Option<OwnedFd>> {
        if !has_own_networks(&record.host.network_mode) {
            let mut networks = std::mem::take(&mut record.networks);
            let found = networks.iter_mut().try_for_each(|(name, endpoint)| {
                endpoint.network_id = self.find(name)?.id;
                endpoint.endpoint_id = random_id();
                self.enter(record, endpoint);
                Ok(())
            });
            record.networks = networks;
            if found.is_err() {
                drop(self.leave(record));
            }
            return found.map(|()| None);
        }
        self.check_together(record)?;
        // Without rules nothing would keep the container apart from others.
        self.firewall.require()?;
        // What is there already must fit its first network.
        let first = self.in_order(record).into_iter().next();
        let fits = first.is_some_and(|name| {
            self.find(&name)
                .is_ok_and(|network| network.driver == "bridge")
        });
        let spare = if fits { self.spare().pop() } else { None };
        let (mut namespace, ready, names) = match spare {
            Some(Spare {
                namespace,
                interface,
                endpoint_id,
                names,
            }) => (namespace, Some((interface, endpoint_id)), Some(names)),
            None => {
                if fits {
                    self.refill.notify_one();
                }
                (Namespace::create()?, None, None)
            }
        };
        let outer = ready.as_ref().map(|(_, id)| self.interface(VETH, id));
        let joined = self.join_all(record, &mut namespace, ready, names);
        match joined {
            Ok(()) => Ok(Some(namespace.into())),
            Err(error) => {
                drop(self.leave(record));
                let gone = outer.is_some_and(|outer| matches!(self.links().find(&outer), Ok(None)));
                // Somebody removed it by hand.
                if gone { self.join(record) } else { Err(error) }
            }
        }
    }

    /// # Errors
    /// Networks that a container cannot be in together, or that it had to be made for.
    fn check_together(&self, record: &ContainerRecord) -> Result<()> {
        for name in record.networks.keys() {
            match self.find(name)?.driver.as_str() {
                "host" => return Err(Error::invalid(CREATED_FOR_HOST)),
                "null" if record.networks.len() > 1 => return Err(Error::invalid(PRIVATE)),
                _ => {}
            }
        }
        Ok(())
    }

    fn join_all(
        &self,
        record: &mut ContainerRecord,
        namespace: &mut Namespace,
        mut ready: Option<(Interface, String)>,
        names: Option<NameSockets>,
    ) -> Result<()> {
        for name in self.in_order(record) {
            let network = self.find(&name)?;
            let mut endpoint = record.networks.remove(&name).unwrap_or_default();
            if network.driver == "null" {
                endpoint.network_id.clone_from(&network.id);
                record.networks.insert(network.name.clone(), endpoint);
                continue;
            }
            // Networks without IPv6 must not have it by the back door (CVE-2024-32473); those with
            // it have a planned one.
            let ipv6 = if has_ipv6(record, &network, &endpoint) {
                Ipv6::Given
            } else {
                Ipv6::Off
            };
            if ready.is_none() {
                namespace.set_ipv6(ipv6)?;
            }
            let outcome = self
                .attach(
                    record,
                    &network,
                    &mut endpoint,
                    namespace.as_fd(),
                    ready.as_ref().map(|(_, id)| id.as_str()),
                )
                .and_then(|()| match ready.take() {
                    Some((interface, _)) => {
                        adapt(interface, &network, &endpoint, &mut namespace.links, ipv6)
                    }
                    None => Ok(()),
                })
                .and_then(|()| set_sysctls(sysctls(&endpoint)?, namespace.as_fd(), false))
                .and_then(|()| configure(&endpoint, &mut namespace.links));
            record.networks.insert(network.name.clone(), endpoint);
            outcome?;
        }
        // What the container may make there itself is its own matter.
        namespace.set_ipv6(Ipv6::Automatic)?;
        self.set_default_gateway(record, &mut namespace.links)?;
        self.publish_ports(record)?;
        self.start_resolver(record, namespace.as_fd(), names)
    }

    /// The networks of a container: the one that it was created on comes first and gives it its
    /// eth0, unless it has left it.
    fn in_order(&self, record: &ContainerRecord) -> Vec<String> {
        let mut networks: Vec<String> = record.networks.keys().cloned().collect();
        networks.sort_by_key(|name| !self.is_mode(record, name));
        networks
    }

    /// Whether a container was created on this network, however its mode names it.
    pub(super) fn is_mode(&self, record: &ContainerRecord, network: &str) -> bool {
        record.host.network_mode == network
            || self
                .find(&record.host.network_mode)
                .is_ok_and(|mode| mode.name == network)
    }

    /// Gives a container an interface in one network. `ready` is the id of an endpoint for which a
    /// pair of interfaces is there already: its outer end is connected.
    fn attach(
        &self,
        container: &ContainerRecord,
        network: &NetworkRecord,
        endpoint: &mut Endpoint,
        namespace: BorrowedFd<'_>,
        ready: Option<&str>,
    ) -> Result<()> {
        link_local_addresses(endpoint)?;
        endpoint.network_id.clone_from(&network.id);
        endpoint.endpoint_id = ready.map_or_else(random_id, str::to_owned);
        endpoint.interface = self.interface_name(container, network, endpoint)?;
        self.take_addresses(container, network, endpoint)?;
        let mac = mac_of(endpoint)?;
        let peer = Peer {
            name: &endpoint.interface,
            mac,
            namespace,
        };
        let mtu = network.mtu();
        if network.driver == "macvlan" {
            let mode = macvlan_mode(network.option(option::MACVLAN_MODE).unwrap_or("bridge"))?;
            let parent = self.parent(network)?;
            self.links().create_macvlan(parent, mode, mtu, peer)?;
        } else if network.driver == "ipvlan" {
            let mode = ipvlan_mode(network.option(option::IPVLAN_MODE).unwrap_or("l2"))?;
            let flag = ipvlan_flag(network.option(option::IPVLAN_FLAG).unwrap_or("bridge"))?;
            let parent = self.parent(network)?;
            self.links()
                .create_ipvlan(parent, (mode, flag), mtu, peer)?;
            // It has its parent's.
            endpoint.mac_address.clear();
        } else {
            let port = Port {
                isolated: !network.connects_containers(),
                hairpin: true,
            };
            let name = self.host_interface(endpoint);
            let mut links = self.links();
            let bridge = links.find(&self.bridge_name(network))?;
            let bridge = match bridge {
                Some(bridge) => bridge,
                None => {
                    // Somebody removed it by hand.
                    drop(links);
                    self.materialize(network)?;
                    links = self.links();
                    links
                        .find(&self.bridge_name(network))?
                        .ok_or_else(|| Error::internal("the bridge was removed again"))?
                }
            };
            // The rules first: without them it could send anything.
            self.firewall.add_sender(&SenderRules {
                interface: name.clone(),
                mac,
                addresses: endpoint.addresses(),
            })?;
            match ready {
                Some(_) => links.join_bridge(&name, bridge.index, mtu, port)?,
                None => links.create_veth(&name, bridge.index, mtu, peer, port)?,
            }
        }
        Ok(())
    }

    /// Gives a running container an interface in one network. Returns a connection to what its
    /// namespace has.
    fn attach_running(
        &self,
        container: &ContainerRecord,
        network: &NetworkRecord,
        endpoint: &mut Endpoint,
        namespace: BorrowedFd<'_>,
    ) -> Result<Links> {
        self.attach(container, network, endpoint, namespace, None)?;
        let name = &endpoint.interface;
        let settings: &[(&str, &str)] = if has_ipv6(container, network, endpoint) {
            &[("disable_ipv6", "0"), ("accept_ra", "0")]
        } else {
            &[("disable_ipv6", "1")]
        };
        let settings = settings
            .iter()
            .map(|(key, value)| (format!("net/ipv6/conf/{name}/{key}"), (*value).to_owned()));
        // A kernel without IPv6 has nothing to switch off.
        set_sysctls(settings.collect(), namespace, true)?;
        set_sysctls(sysctls(endpoint)?, namespace, false)?;
        let mut links = Links::open_in(namespace)?;
        configure(endpoint, &mut links)?;
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

    /// Takes the addresses of an endpoint and enters the container among the network's members, as
    /// one step.
    fn take_addresses(
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
                take(network, ipv4, wanted)
            } else {
                Err(Error::invalid(format!(
                    "{text} is asked for, and IPv6 is switched off for the container"
                )))
            };
            match found {
                Ok(found) => taken.extend(found),
                Err(error) => {
                    give_back(network, taken.iter().map(|(address, _)| *address));
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
                        .filter(|_| has_gateway(&network.record, true))
                        .map_or_else(String::new, |gateway| gateway.to_string());
                }
                IpAddr::V6(_) => {
                    endpoint.global_ipv6_address = address.to_string();
                    endpoint.global_ipv6_prefix_len = *bits;
                    endpoint.ipv6_gateway = gateway_of(&network.blocks, false)
                        .filter(|_| has_gateway(&network.record, false))
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

    /// What `host-gateway` stands for: the host's address on the default network, unless another
    /// was set.
    pub fn host_gateway(&self) -> String {
        if let Some(address) = self.instance.networks.host_gateway {
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

    /// Tells that a container has started to use its networks.
    pub fn announce(&self, record: &ContainerRecord) {
        // Not before: on its way to the start nothing shall compete with the container.
        self.refill.notify_one();
        for endpoint in record.networks.values() {
            if let Ok(network) = self.find(&endpoint.network_id) {
                self.publish(&network, "connect", Some(&record.id));
            }
        }
    }

    /// Gives back all that a container that has ended had in its networks, and says which it was
    /// in. Never stops at an error.
    pub fn leave(&self, record: &mut ContainerRecord) -> Vec<NetworkRecord> {
        if let Some(task) = self
            .resolvers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&record.id)
        {
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
                self.detach(&record.id, &network, endpoint, None);
                left.push(network);
            }
            endpoint.clear();
        }
        left
    }

    /// Tells that a container does not use networks any more.
    pub fn announce_left(&self, container: &str, left: &[NetworkRecord]) {
        left.iter()
            .for_each(|network| self.publish(network, "disconnect", Some(container)));
    }

    /// Takes one interface away, and frees its addresses. `namespace` is that of a container that
    /// runs on: it must be out of the network before anything that was its own can be another's.
    fn detach(
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
                tracing::warn!(network = network.name, "{error}");
            }
        }
        if let ("bridge", Ok(mac)) = (network.driver.as_str(), mac_of(endpoint)) {
            // The kernel takes tens of milliseconds to remove an interface, and nobody has to wait
            // for that.
            self.doomed().push(SenderRules {
                interface: self.host_interface(endpoint),
                mac,
                addresses: endpoint.addresses(),
            });
            self.refill.notify_one();
        }
        if let Some(network) = self.state_mut().get_mut(&network.id)
            && network
                .members
                .get(container)
                .is_some_and(|member| member.endpoint_id == endpoint.endpoint_id)
        {
            network.members.remove(container);
            give_back(network, endpoint.addresses().into_iter());
        }
    }

    /// Counts a container among the members of a network.
    fn enter(&self, container: &ContainerRecord, endpoint: &Endpoint) {
        if let Some(network) = self.state_mut().get_mut(&endpoint.network_id) {
            network
                .members
                .insert(container.id.clone(), member(container, endpoint));
        }
    }

    /// Takes note of what a running container has, after the engine was away.
    pub fn adopt(&self, record: &mut ContainerRecord) {
        if !has_own_networks(&record.host.network_mode) {
            record
                .networks
                .values()
                .filter(|endpoint| !endpoint.endpoint_id.is_empty())
                .for_each(|endpoint| self.enter(record, endpoint));
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
            let name = self.host_interface(endpoint);
            if network.driver == "bridge" && matches!(self.links().find(&name), Ok(None)) {
                // It was being disconnected when the engine ended.
                endpoint.clear();
                continue;
            }
            if let Some(network) = self.state_mut().get_mut(&network.id) {
                for address in endpoint.addresses() {
                    let _ = take(network, address.is_ipv4(), Some(address));
                }
                endpoint.dns_names = endpoint
                    .dns_names
                    .is_some()
                    .then(|| names_of(record, endpoint));
                network
                    .members
                    .insert(record.id.clone(), member(record, endpoint));
            }
            if let (Ok(mac), "bridge") = (mac_of(endpoint), network.driver.as_str()) {
                let sender = SenderRules {
                    interface: name,
                    mac,
                    addresses: endpoint.addresses(),
                };
                if let Err(error) = self.firewall.add_sender(&sender) {
                    tracing::warn!(container = record.id, "{error}");
                }
            }
        }
        record.networks = networks;
        self.adopt_ports(record);
        let resolving = open_namespace(record.state.pid)
            .and_then(|namespace| self.start_resolver(record, namespace.as_fd(), None));
        if let Err(error) = resolving {
            tracing::warn!(container = record.id, "answer names: {error}");
        }
    }

    /// A container has another name from now on.
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

    /// Connects a container to a network: at once if it runs, else at its next start.
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
        if !record.state.status.is_running() || network.driver == "null" {
            record.networks.insert(network.name.clone(), endpoint);
            return Ok(());
        }
        let namespace = open_namespace(record.state.pid)?;
        let outward =
            |record: &ContainerRecord| self.outward(record).map(|(network, _)| network.id);
        let before = outward(record);
        let attached = self.attach_running(record, &network, &mut endpoint, namespace.as_fd());
        record.networks.insert(network.name.clone(), endpoint);
        let connected = attached
            .and_then(|mut links| self.set_default_gateway(record, &mut links))
            .and_then(|()| self.start_resolver(record, namespace.as_fd(), None))
            // Ports lead to where the container is reached from outside now.
            .and_then(|()| {
                if outward(record) == before {
                    Ok(())
                } else {
                    self.publish_anew(record)
                }
            });
        if let Err(error) = connected {
            if let Some(endpoint) = record.networks.remove(&network.name) {
                self.detach(&record.id, &network, &endpoint, Some(namespace.as_fd()));
            }
            // As it was before, as far as that can be.
            let restored = Links::open_in(namespace.as_fd())
                .map_err(Error::from)
                .and_then(|mut links| self.set_default_gateway(record, &mut links));
            let published = if record.ports.is_empty() {
                self.publish_ports(record)
            } else {
                Ok(())
            };
            if let Err(error) = restored.and(published) {
                tracing::warn!(container = record.id, "after a failed connect: {error}");
            }
            return Err(error);
        }
        self.publish(&network, "connect", Some(&record.id));
        Ok(())
    }

    /// # Errors
    /// A container that is not in the network.
    pub fn disconnect(&self, record: &mut ContainerRecord, network: &str) -> Result<()> {
        let network = self.find(network)?;
        let is_running = record.state.status.is_running();
        if record.host.network_mode == "host" && network.driver == "host" {
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
        if network.driver == "null" {
            self.detach(&record.id, &network, &endpoint, None);
            self.publish(&network, "disconnect", Some(&record.id));
            return Ok(());
        }
        let had_ports = !record.ports.is_empty();
        if had_ports
            && record
                .ports
                .iter()
                .any(|publication| endpoint.addresses().contains(&publication.to.ip()))
        {
            self.withdraw_ports(record);
        }
        // None if its process has just ended: then all that it had goes anyway.
        let namespace = open_namespace(record.state.pid).ok();
        self.detach(
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

    fn publish_anew(&self, record: &mut ContainerRecord) -> Result<()> {
        self.withdraw_ports(record);
        self.publish_ports(record)
    }

    /// The default routes lead through the network with the highest priority, by name where they
    /// are equal.
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
                            && self.find(name).is_ok_and(|network| {
                                network.is_routed_by_device() && !network.internal
                            })
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

/// In Docker's words: why a container cannot be in a network.
const CREATED_FOR_HOST: &str =
    "cannot connect container to host network - container must be created in host network mode";
const PRIVATE: &str = "container cannot be connected to multiple networks with one of the networks in private (none) mode";
const SHARES: &str = "container sharing network namespace with another container or host cannot be connected to any other network";

/// Refuses to connect a container to a network that its kind or the network's keeps it from.
fn check_connect(record: &ContainerRecord, network: &NetworkRecord) -> Result<()> {
    let mode = record.host.network_mode.as_str();
    if mode.starts_with("container:") {
        return Err(Error::invalid(SHARES));
    }
    if record.networks.contains_key(&network.name) {
        return Err(Error::Denied(format!(
            "endpoint with name {} already exists in network {}",
            record.name, network.name
        )));
    }
    let is_private = mode == "none"
        || record.networks.contains_key("none")
        || network.driver == "null" && !record.networks.is_empty();
    match (mode, network.driver.as_str()) {
        ("host", _) => Err(Error::invalid(SHARES)),
        (_, "host") => Err(Error::invalid(CREATED_FOR_HOST)),
        ("none", "null") => Ok(()),
        _ if is_private => Err(Error::invalid(PRIVATE)),
        _ => Ok(()),
    }
}

/// Whether a container has IPv6 in a network.
fn has_ipv6(container: &ContainerRecord, network: &NetworkRecord, endpoint: &Endpoint) -> bool {
    network.enable_ipv6 && !lacks_ipv6(&container.host) && !disables_ipv6(endpoint)
}

/// Whether a network mode names networks of the container's own.
pub(crate) fn has_own_networks(mode: &str) -> bool {
    !matches!(mode, "none" | "host") && !mode.starts_with("container:")
}

/// Whether a container reaches anything but its own network through this one.
fn has_gateway(record: &NetworkRecord, ipv4: bool) -> bool {
    let mode = record.option(if ipv4 {
        option::GATEWAY_MODE_4
    } else {
        option::GATEWAY_MODE_6
    });
    !record.internal && mode != Some("isolated") && !record.is_routed_by_device()
}

fn take(network: &mut Network, ipv4: bool, wanted: Option<IpAddr>) -> Result<Option<(IpAddr, u8)>> {
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

fn give_back(network: &mut Network, addresses: impl Iterator<Item = IpAddr>) {
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

/// A hardware address made of the IPv4 address, so that neighbours' caches stay right when an
/// address is used again; or of the endpoint's id.
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

fn mac_of(endpoint: &Endpoint) -> Result<[u8; 6]> {
    parse_mac(&endpoint.mac_address)
}

/// The names a container is found under in a network of users.
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

/// `container[:alias]`
pub(crate) fn split_link(link: &str) -> (String, String) {
    let (target, alias) = link.split_once(':').unwrap_or((link, link));
    (
        target.trim_start_matches('/').to_owned(),
        alias.rsplit('/').next().unwrap_or(alias).to_owned(),
    )
}

/// Makes the inner end of a pair that was made ahead what its network and endpoint say.
fn adapt(
    mut interface: Interface,
    network: &NetworkRecord,
    endpoint: &Endpoint,
    links: &mut Links,
    ipv6: Ipv6,
) -> Result<()> {
    interface.set_ipv6(ipv6)?;
    let name = Some(endpoint.interface.as_str()).filter(|name| *name != FIRST_INTERFACE);
    Ok(links.adapt(interface.index, name, mac_of(endpoint)?, network.mtu())?)
}

/// Gives the interface inside the namespace its addresses.
fn configure(endpoint: &Endpoint, links: &mut Links) -> Result<()> {
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

/// Sets what the kernel knows under paths below `/proc/sys`, inside a namespace.
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
            .try_for_each(|(path, value)| super::create::set_sysctl(path, value, may_be_missing))
    })
}

fn within(namespace: BorrowedFd<'_>, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    whelk_sys::net::within(namespace, work).map_err(|error| {
        Error::internal(format!(
            "enter the container's network: {}",
            whelk_sys::errno_text(&error)
        ))
    })?
}

/// The network namespace of a process.
///
/// # Errors
/// It is the engine's own: the process is not the one that was meant any more.
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
