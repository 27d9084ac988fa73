//! Attaching a container to its networks before it starts, and detaching it when it has ended.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use whelk_network::Links;
use whelk_network::dns_sockets::DnsSockets;
use whelk_network::namespace::{Interface, Ipv6Mode, Namespace};
use whelk_sys::sync::IgnorePoison as _;

use super::addresses::{has_ipv6, release_addresses};
use super::connect::{CREATED_FOR_HOST, PRIVATE};
use super::interfaces::{configure_interface, configure_pooled, set_sysctls, within};
use crate::error::{Error, Result};
use crate::model::ContainerRecord;
use crate::networks::drivers::{Inner, Joining};
use crate::networks::settings::{link_local_addresses, sysctls};
use crate::networks::{Endpoint, NetworkRecord, Networks, WarmNamespace};
use crate::random_names::random_id;

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
    pub(super) fn attach_endpoint(
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
    pub(super) fn detach_endpoint(
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
}
