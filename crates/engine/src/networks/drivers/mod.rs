//! Network drivers: how the containers of a network are connected.
//!
//! A driver has no state of its own. What it needs to know is in the network's record and the
//! endpoint's, so that an engine that was killed can be followed by one that only has the records;
//! sockets and what is shared between networks are in [`HostStack`]. The tests in `contract` are
//! what every driver must pass.

mod bridge;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod fake;
mod host;
mod ipvlan;
mod macvlan;
mod null;
mod parent;

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::BorrowedFd;

pub(super) use bridge::{attach_port, delete_bridge};

use super::create::check_interface_name;
use super::model::{Assigned, NetworkDriverKind, NetworkRecord, option};
use super::stack::HostStack;
use crate::error::{Error, Result};

/// One way to connect the containers of a network. All methods may block.
pub(super) trait NetworkDriver: fmt::Debug + Sync {
    fn facts(&self) -> Facts;

    /// Checks an option of a new network. Returns whether the driver has it.
    ///
    /// # Errors
    /// Returns an error if the driver has the option, but not this value.
    fn check_option(&self, _key: &str, _value: &str) -> Result<bool> {
        Ok(false)
    }

    /// Checks a new network against the `others`, and completes its record before it is saved.
    fn plan(
        &self,
        _stack: &HostStack,
        _network: &mut NetworkRecord,
        _others: &[NetworkRecord],
    ) -> Result<()> {
        Ok(())
    }

    /// Returns what the default route of a network's endpoints leads to, for one address family.
    fn gateway(&self, network: &NetworkRecord, _ipv4: bool) -> Gateway {
        if network.internal {
            Gateway::None
        } else {
            Gateway::Address
        }
    }

    /// Returns whether a gateway that a new network's request does not set is chosen, for one address
    /// family.
    fn reserves_gateway(&self, network: &NetworkRecord, ipv4: bool) -> bool {
        self.gateway(network, ipv4) == Gateway::Address
    }

    /// Creates those of a network's objects on the host that do not exist: for a new network, after
    /// a restart, or where others have deleted them.
    fn create(&self, _stack: &HostStack, _network: &NetworkRecord) -> Result<()> {
        Ok(())
    }

    /// Deletes those of a network's objects on the host that exist and that none of the `others`
    /// needs.
    fn remove(
        &self,
        _stack: &HostStack,
        _network: &NetworkRecord,
        _others: &[NetworkRecord],
    ) -> Result<()> {
        Ok(())
    }

    /// Creates an endpoint's interface, with the name, hardware address and addresses that are set
    /// in `endpoint`; the addresses are not added to it yet. Called only if containers join by an
    /// interface. After an error, the endpoint is detached.
    fn attach(
        &self,
        _stack: &HostStack,
        _network: &NetworkRecord,
        _endpoint: &mut Assigned,
        _inner: Inner<'_>,
    ) -> Result<()> {
        Ok(())
    }

    /// Deletes what an endpoint has on the host, now or at the next maintenance. Its inner interface
    /// is gone, or about to be deleted with its namespace.
    fn detach(&self, _stack: &HostStack, _endpoint: &Assigned) {}

    /// Takes over the endpoint of a container that kept running while there was no engine. Returns
    /// whether the endpoint still exists: it does not if it was being detached.
    fn adopt(&self, _stack: &HostStack, _endpoint: &Assigned) -> Result<bool> {
        Ok(true)
    }
}

/// The properties of a driver's networks and their endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) joining: Joining,
    /// The driver has one network only, with this name.
    pub(super) only: Option<&'static str>,
    /// The host is a network's router: it has an address in each subnet, publishes ports of the
    /// endpoints, and masquerades.
    pub(super) host_routes: bool,
    /// Endpoints have their parent interface's hardware address, and cannot choose another.
    pub(super) parents_mac: bool,
    /// An endpoint is a veth pair, which a warm namespace can have already.
    pub(super) warm: bool,
}

/// How a container joins a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joining {
    /// By an interface with addresses from the network's subnets.
    Interface,
    /// Without an interface, and in no other network.
    Alone,
    /// By having the host's namespace since its creation.
    HostNamespace,
}

/// What a default route leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gateway {
    /// There is no default route through this network.
    None,
    /// The network's gateway.
    Address,
    /// The interface itself: the other side answers for every address.
    Interface,
}

/// The inner end of an endpoint's interface.
#[derive(Clone, Copy, Debug)]
pub(super) enum Inner<'a> {
    /// To be created in this namespace.
    New(BorrowedFd<'a>),
    /// There already, in a warm namespace; the outer end has the endpoint's name. Only for drivers
    /// with [`Facts::warm`].
    Warm,
}

impl<'a> Inner<'a> {
    /// Returns the namespace in which to create the interface.
    fn namespace(self) -> Result<BorrowedFd<'a>> {
        match self {
            Self::New(namespace) => Ok(namespace),
            Self::Warm => Err(Error::internal(
                "a warm namespace was given to a driver that cannot use one",
            )),
        }
    }
}

impl NetworkDriverKind {
    pub(super) fn driver(self) -> &'static dyn NetworkDriver {
        match self {
            Self::Bridge => &bridge::Bridge,
            Self::Macvlan => &macvlan::Macvlan,
            Self::Ipvlan => &ipvlan::Ipvlan,
            Self::Host => &host::Host,
            Self::Null => &null::Null,
            #[cfg(test)]
            Self::Fake => &fake::Fake,
        }
    }

    pub(super) fn facts(self) -> Facts {
        self.driver().facts()
    }

    /// Checks the options of a new network.
    ///
    /// # Errors
    /// Returns an error if the driver does not have an option, or not this value of it.
    pub(super) fn check_options(self, options: &BTreeMap<String, String>) -> Result<()> {
        for (key, value) in options {
            let known = match key.as_str() {
                option::MTU if value.parse::<u32>().is_err() => {
                    return Err(unparsed(
                        key,
                        value,
                        &format!("strconv.Atoi: parsing {value:?}: invalid syntax"),
                    ));
                }
                option::MTU => true,
                option::ENABLE_IPV4 | option::ENABLE_IPV6
                    if whelk_text::parse_bool(value).is_none() =>
                {
                    return Err(Error::invalid(format!(
                        "driver-opt {key:?} is not a valid bool"
                    )));
                }
                option::ENABLE_IPV4 | option::ENABLE_IPV6 => true,
                option::CONTAINER_PREFIX => check_interface_name(value).map(|()| true)?,
                key => self.driver().check_option(key, value)?,
            };
            if !known {
                return Err(Error::Unsupported(format!(
                    "network option {key}: not available with driver {self} in this version of whelk"
                )));
            }
        }
        Ok(())
    }
}

/// The error of an option whose value cannot be parsed, with Docker's text.
fn unparsed(key: &str, value: &str, cause: &str) -> Error {
    Error::invalid(format!("failed to parse {key} value: {value} ({cause})"))
}

impl NetworkRecord {
    /// Returns whether containers get addresses in it.
    pub fn has_subnets(&self) -> bool {
        self.driver.facts().joining == Joining::Interface
    }

    /// Returns what the default route of its endpoints leads to, for one address family.
    pub(super) fn gateway(&self, ipv4: bool) -> Gateway {
        self.driver.driver().gateway(self, ipv4)
    }

    /// Returns whether a gateway that its request does not set is chosen, for one address family.
    pub(super) fn reserves_gateway(&self, ipv4: bool) -> bool {
        self.driver.driver().reserves_gateway(self, ipv4)
    }
}
