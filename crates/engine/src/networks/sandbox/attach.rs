//! Creating a sandbox in its networks, and releasing it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use whelk_network::dns_sockets::DnsSockets;
use whelk_network::namespace::{Interface, Ipv6Mode, Namespace};
use whelk_sys::sync::IgnorePoison as _;

use super::connect::{CREATED_FOR_HOST, PRIVATE};
use super::interfaces::{configure_interface, configure_pooled, set_sysctls};
use super::warm::WarmNamespace;
use super::{Sandbox, SandboxConfig, Sandboxes};
use crate::error::{Error, Result};
use crate::model::NetworkMode;
use crate::networks::drivers::{Inner, Joining};
use crate::networks::model::Assigned;
use crate::networks::settings::sysctls;
use crate::networks::{Endpoint, NetworkRecord};
use crate::random_names::random_id;
use crate::rollback::Rollback;

/// A namespace for a sandbox.
struct PreparedNamespace {
    namespace: Namespace,
    /// The interface of a warm namespace with its endpoint id, for the first network.
    pooled: Option<(Interface, String)>,
    /// The sockets of a warm namespace for a DNS server.
    dns: Option<DnsSockets>,
}

impl Sandboxes {
    /// Creates a sandbox with these endpoints, by the network's name, and publishes its ports.
    /// Returns its state, and the namespace with its interfaces, or `None` if its network mode has
    /// none of its own.
    ///
    /// # Errors
    /// Returns an error if an endpoint or a published port cannot be created; everything created
    /// before is released.
    pub fn attach(
        &self,
        config: &SandboxConfig,
        endpoints: &BTreeMap<String, Endpoint>,
    ) -> Result<(Sandbox, Option<OwnedFd>)> {
        if !config.mode.has_own_networks() {
            return Ok((self.attach_as_member(config, endpoints)?, None));
        }
        self.check_combination(endpoints)?;
        // Without the rules nothing would isolate the container from others.
        self.networks.stack.firewall.require()?;
        let order = self.attach_order(&config.mode, endpoints);
        let mut prepared = self.take_namespace(order.first().copied())?;
        let outer = prepared
            .pooled
            .as_ref()
            .map(|(_, id)| self.networks.stack.endpoint_interface(id));
        match self.attach_all(config, endpoints, &order, &mut prepared) {
            Ok(sandbox) => Ok((sandbox, Some(prepared.namespace.into()))),
            Err(error) => {
                let is_missing =
                    |outer: String| matches!(self.networks.stack.links().find(&outer), Ok(None));
                // An administrator deleted the pooled interface: try again without it.
                if outer.is_some_and(is_missing) {
                    self.attach(config, endpoints)
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Adds a sandbox without a namespace of its own to the members of its networks.
    fn attach_as_member(
        &self,
        config: &SandboxConfig,
        endpoints: &BTreeMap<String, Endpoint>,
    ) -> Result<Sandbox> {
        let mut sandbox = Sandbox {
            endpoints: endpoints.clone(),
            ports: Vec::new(),
        };
        let mut attached = self.undone_by_detach(config, &mut sandbox);
        for (name, endpoint) in &mut attached.endpoints {
            endpoint.network_id = self.networks.find(name)?.id;
            endpoint.assigned = Some(Assigned {
                endpoint_id: random_id(),
                mac_address: endpoint.requested.mac_address.clone(),
                ..Assigned::default()
            });
            self.networks.add_member(config, endpoint);
        }
        attached.commit();
        Ok(sandbox)
    }

    /// Wraps a sandbox's state in a rollback that detaches the sandbox unless it is committed.
    fn undone_by_detach<'a>(
        &'a self,
        config: &'a SandboxConfig,
        sandbox: &'a mut Sandbox,
    ) -> Rollback<'a, &'a mut Sandbox> {
        let mut attached = Rollback::new("attach", sandbox);
        attached.push_undo("detach the endpoints", |sandbox| {
            self.detach(&config.id, sandbox);
            Ok(())
        });
        attached
    }

    /// Checks the networks that a sandbox is to be attached to.
    ///
    /// # Errors
    /// Returns an error if it cannot be in all these networks at once, or cannot be attached to one
    /// of them because it has a namespace.
    fn check_combination(&self, endpoints: &BTreeMap<String, Endpoint>) -> Result<()> {
        for name in endpoints.keys() {
            match self.networks.find(name)?.driver.facts().joining {
                Joining::HostNamespace => return Err(Error::invalid(CREATED_FOR_HOST)),
                Joining::Alone if endpoints.len() > 1 => {
                    return Err(Error::invalid(PRIVATE));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns a namespace for a sandbox whose first network is `first`: a warm one, if there is
    /// one and the network's driver can use its interface.
    fn take_namespace(&self, first: Option<&str>) -> Result<PreparedNamespace> {
        let takes_warm = first.is_some_and(|name| {
            let network = self.networks.find(name);
            network.is_ok_and(|network| network.driver.facts().warm)
        });
        let warm = if takes_warm { self.warm.take() } else { None };
        if let Some(WarmNamespace {
            namespace,
            interface,
            endpoint_id,
            dns,
        }) = warm
        {
            return Ok(PreparedNamespace {
                namespace,
                pooled: Some((interface, endpoint_id)),
                dns: Some(dns),
            });
        }
        if takes_warm {
            self.networks.stack.maintenance.notify_one();
        }
        Ok(PreparedNamespace {
            namespace: Namespace::create()?,
            pooled: None,
            dns: None,
        })
    }

    /// Attaches a namespace to all networks of a sandbox, in this order.
    fn attach_all(
        &self,
        config: &SandboxConfig,
        endpoints: &BTreeMap<String, Endpoint>,
        order: &[&str],
        prepared: &mut PreparedNamespace,
    ) -> Result<Sandbox> {
        let PreparedNamespace {
            namespace,
            pooled,
            dns,
        } = prepared;
        let mut sandbox = Sandbox {
            endpoints: endpoints.clone(),
            ports: Vec::new(),
        };
        let mut attached = self.undone_by_detach(config, &mut sandbox);
        for &name in order {
            let network = self.networks.find(name)?;
            let mut endpoint = attached.endpoints.remove(name).unwrap_or_default();
            if network.driver.facts().joining == Joining::Alone {
                endpoint.network_id.clone_from(&network.id);
                attached.endpoints.insert(network.name.clone(), endpoint);
                continue;
            }
            // Without IPv6 in the network there must not even be a link-local address
            // (CVE-2024-32473); with IPv6, the addresses are allocated.
            let ipv6 = if config.has_ipv6(&network, &endpoint.requested) {
                Ipv6Mode::Static
            } else {
                Ipv6Mode::Disabled
            };
            if pooled.is_none() {
                namespace.set_ipv6(ipv6)?;
            }
            let inner = match pooled.as_ref() {
                Some((_, id)) => (Inner::Warm, id.clone()),
                None => (Inner::New(namespace.as_fd()), random_id()),
            };
            let outcome = self
                .networks
                .attach_endpoint(config, &attached.endpoints, &network, &mut endpoint, inner)
                .and_then(|()| {
                    let assigned = endpoint.assigned()?;
                    let links = &mut namespace.links;
                    if let Some((interface, _)) = pooled.take() {
                        configure_pooled(interface, &network, assigned, links, ipv6)?;
                    }
                    let sysctls = sysctls(&endpoint.requested, &assigned.interface)?;
                    set_sysctls(sysctls, namespace.as_fd(), false)?;
                    configure_interface(assigned, &mut namespace.links)
                });
            // Before the outcome is checked: after an error, what the endpoint has is released.
            attached.endpoints.insert(network.name.clone(), endpoint);
            outcome?;
        }
        // Interfaces that the container creates itself get the kernel's default.
        namespace.set_ipv6(Ipv6Mode::KernelDefault)?;
        self.set_default_gateway(&attached, &mut namespace.links)?;
        self.publish_ports(config, &mut attached)?;
        self.hold(&config.id, namespace.as_fd())?;
        self.start_resolver(config, &attached, dns.take())?;
        attached.commit();
        Ok(sandbox)
    }

    /// Returns the names of networks in the order of their interfaces: the network of the network
    /// mode is first and has eth0, unless the container was disconnected from it.
    fn attach_order<'a>(
        &self,
        mode: &NetworkMode,
        endpoints: &'a BTreeMap<String, Endpoint>,
    ) -> Vec<&'a str> {
        let mut networks: Vec<&str> = endpoints.keys().map(String::as_str).collect();
        networks.sort_by_key(|name| !self.is_mode(mode, name));
        networks
    }

    /// Returns whether this network is the network mode, which can be a network's name or id.
    fn is_mode(&self, mode: &NetworkMode, network: &str) -> bool {
        mode.network().is_some_and(|mode| {
            mode == network
                || self
                    .networks
                    .find(mode)
                    .is_ok_and(|mode| mode.name == network)
        })
    }

    /// Publishes the `connect` events of a sandbox whose processes have started.
    pub fn publish_connects<'a>(
        &self,
        id: &str,
        endpoints: impl IntoIterator<Item = &'a Endpoint>,
    ) {
        // Maintenance was not notified before, so that it does not compete with the container's
        // start.
        self.networks.stack.maintenance.notify_one();
        for endpoint in endpoints {
            if let Ok(network) = self.networks.find(&endpoint.network_id) {
                self.networks.publish(&network, "connect", Some(id));
            }
        }
    }

    /// Releases everything that a sandbox had in its networks, and returns these networks. Its
    /// namespace is gone, or about to be. Errors are logged.
    pub fn detach(&self, id: &str, sandbox: &mut Sandbox) -> Vec<NetworkRecord> {
        drop(self.held.lock().ignore_poison().remove(id));
        self.withdraw_ports(id, &mut sandbox.ports);
        self.ports.forget(id);
        let mut left = Vec::new();
        for endpoint in sandbox.active_mut() {
            if let Ok(network) = self.networks.find(&endpoint.network_id) {
                self.networks.detach_endpoint(id, &network, endpoint, None);
                left.push(network);
            }
            endpoint.assigned = None;
        }
        left
    }

    /// Publishes the `disconnect` events of a sandbox that was detached.
    pub fn publish_disconnects(&self, id: &str, left: &[NetworkRecord]) {
        left.iter()
            .for_each(|network| self.networks.publish(network, "disconnect", Some(id)));
    }
}
