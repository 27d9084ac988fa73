//! Networks: connect containers to each other and to the outside.
//!
//! A network is a record; a bridge network also has a bridge on the host, and its addresses in
//! [`Block`]s. A running container's *endpoint* in it is a veth pair, addresses, elements in the
//! firewall's sets, and DNS names. When the engine starts, all of it is created again from the
//! records, and interfaces of this instance that belong to no record are deleted. A container's
//! namespace with its endpoints and published ports is a sandbox ([`Sandboxes`]).

mod check;
mod create;
mod defaults;
mod drivers;
mod endpoints;
mod list;
mod maintenance;
mod remove;
pub(crate) mod resolv_conf;
mod sandbox;
mod settings;
mod stack;
mod subnets;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, RwLock};
use whelk_sys::sync::IgnorePoison as _;

use ipnet::IpNet;
use whelk_network::ForwardAccept;
use whelk_network::ipam::Block;
pub use whelk_network::ipam::{Pool, SubnetUsage};

pub(crate) use crate::instance::NetworkDefaults;
pub(crate) use crate::model::network as model;
pub use create::CreateNetwork;
pub(crate) use endpoints::split_link;
pub use list::FILTERS as NETWORK_FILTERS;
use model::option;
pub(crate) use model::{Endpoint, EndpointRequest, NetworkDriverKind, NetworkRecord};
pub(crate) use remove::uninstall;
pub use sandbox::{ConnectRequest, OwnedSandbox, PortRequest, Sandbox, SandboxConfig, Sandboxes};
pub(crate) use sandbox::{host_resolver, resolved_servers, uses_resolver};
pub(crate) use settings::{check_endpoint, parse_mac};
use stack::HostStack;

use crate::error::{Error, Result};
use crate::events::Events;
use crate::instance::Instance;
use crate::store::RecordStore;

/// All networks of an engine.
#[derive(Debug)]
pub struct Networks {
    stack: HostStack,
    store: Arc<RecordStore>,
    events: Arc<Events>,
    state: RwLock<BTreeMap<String, Network>>,
    /// Held while a network is created or removed, which takes the kernel some time.
    changing: Mutex<()>,
    pools: Vec<Pool>,
    /// The warnings about routes that hide networks' subnets, to log each once.
    hidden_subnets: Mutex<HashSet<String>>,
    /// Counts DNS answers with several addresses, to rotate them.
    turn: AtomicUsize,
}

/// A network with its run-time state.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) record: NetworkRecord,
    blocks: Vec<Block>,
    /// Running containers, by container id.
    members: BTreeMap<String, Member>,
}

/// A running container in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub endpoint_id: String,
    pub mac: String,
    pub addresses: Vec<IpNet>,
    /// DNS names, in lower case.
    pub names: Vec<String>,
    /// Link aliases that only this container resolves: target container and alias.
    pub links: Vec<(String, String)>,
}

impl From<whelk_network::Error> for Error {
    fn from(error: whelk_network::Error) -> Self {
        use whelk_network::Error as Network;
        let text = error.to_string();
        match error {
            Network::Invalid(_) => Self::Invalid(text),
            Network::Exhausted(_) => Self::Unavailable(text),
            Network::Conflict(_) | Network::Kernel(_) => Self::Internal(text),
            Network::Unsupported(_) => Self::Unsupported(text),
        }
    }
}

impl Networks {
    /// Reads the records and creates missing bridges. The rules are written by
    /// [`Networks::finish_recovery`], when the running containers are known: until then those of an
    /// earlier run stay in force.
    pub fn open(
        instance: &Instance,
        store: Arc<RecordStore>,
        events: Arc<Events>,
    ) -> Result<Arc<Self>> {
        let networks = Self::restore(instance, store, events)?;
        networks.create_predefined()?;
        Ok(networks)
    }

    /// Reads the records and creates missing bridges.
    fn restore(
        instance: &Instance,
        store: Arc<RecordStore>,
        events: Arc<Events>,
    ) -> Result<Arc<Self>> {
        let stack = HostStack::open(instance)?;
        let defaults = &instance.networks;
        let networks = Arc::new(Self {
            stack,
            store: store.clone(),
            events,
            state: RwLock::default(),
            changing: Mutex::default(),
            pools: if defaults.pools.is_empty() {
                whelk_network::ipam::default_pools()
            } else {
                defaults.pools.clone()
            },
            hidden_subnets: Mutex::default(),
            turn: AtomicUsize::default(),
        });
        let records = store.networks()?;
        for record in records {
            if let Err(error) = networks.restore_network(record.clone()) {
                tracing::error!(network = record.name, "restore the network: {error}");
            }
        }
        Ok(networks)
    }

    fn restore_network(&self, record: NetworkRecord) -> Result<()> {
        let blocks = create::blocks(&record)?;
        // Registered even if creating the host's objects fails: those that cannot be created now
        // (because their parent interface does not exist yet) are created when needed, and the
        // network's addresses stay allocated.
        self.register(&record, blocks);
        self.create_host_objects(&record)
    }

    /// Adds a network, without members, to those that the engine knows.
    fn register(&self, record: &NetworkRecord, blocks: Vec<Block>) {
        let network = Network {
            record: record.clone(),
            blocks,
            members: BTreeMap::new(),
        };
        self.state_mut().insert(record.id.clone(), network);
    }

    /// Writes the rules and deletes interfaces that belong to no container. Called after all
    /// running containers were adopted.
    pub fn finish_recovery(&self) {
        self.redirect_ipv6_loopback();
        if let Err(error) = self.stack.firewall.restore() {
            tracing::error!("{error}; containers cannot be connected to networks");
        }
        self.ensure_forward_accept();
        if let Err(error) = self.remove_stale_links() {
            tracing::warn!("delete stale interfaces: {error}");
        }
    }

    /// Lets our bridges' traffic through the host's other firewalls, unless the configuration
    /// forbids it.
    fn ensure_forward_accept(&self) {
        if self.stack.instance.respect_host_firewall {
            return;
        }
        let mut bridges = vec![
            self.stack.bridge_pattern(),
            stack::default_bridge(&self.stack.instance),
        ];
        bridges.extend(
            self.state()
                .values()
                .filter(|network| network.record.name != "bridge")
                .filter_map(|network| {
                    network
                        .record
                        .option(option::BRIDGE_NAME)
                        .map(str::to_owned)
                }),
        );
        if let Err(error) = ForwardAccept::new(&self.stack.instance.name).ensure(&bridges) {
            tracing::warn!("{error}");
        }
    }

    /// Redirects ::1 depending on whether the host filters bridged packets, which can change at any
    /// time.
    fn redirect_ipv6_loopback(&self) {
        if let Err(error) = self.stack.firewall.redirect_ipv6_loopback() {
            tracing::warn!("{error}");
        }
    }

    pub(crate) fn state(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Network>> {
        self.state.read().ignore_poison()
    }

    fn state_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Network>> {
        self.state.write().ignore_poison()
    }

    /// Finds a network by id, name, or unambiguous id prefix.
    ///
    /// # Errors
    /// Returns an error if no network or more than one matches.
    pub fn find(&self, name: &str) -> Result<NetworkRecord> {
        let state = self.state();
        // `default` is what old clients call the default bridge.
        let name = if name == "default" { "bridge" } else { name };
        if let Some(network) = state
            .get(name)
            .or_else(|| state.values().find(|network| network.record.name == name))
        {
            return Ok(network.record.clone());
        }
        let mut matching = state
            .range(name.to_owned()..)
            .take_while(|(id, _)| !name.is_empty() && id.starts_with(name));
        match (matching.next(), matching.next()) {
            (Some((_, network)), None) => Ok(network.record.clone()),
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "network {name} is ambiguous (2 matches found based on ID prefix)"
            ))),
            _ => Err(Error::no_such_network(name)),
        }
    }

    fn remove_stale_links(&self) -> Result<()> {
        let mut known: HashSet<String> = HashSet::new();
        for network in self.state().values() {
            known.insert(self.stack.network_interface(&network.record));
            let members = network.members.values();
            known.extend(members.map(|member| self.stack.endpoint_interface(&member.endpoint_id)));
        }
        self.stack.delete_stale_interfaces(&known)
    }

    fn publish(&self, record: &NetworkRecord, action: &str, container: Option<&str>) {
        let mut attributes: BTreeMap<String, String> = [
            ("name".to_owned(), record.name.clone()),
            ("type".to_owned(), record.driver.to_string()),
        ]
        .into();
        if let Some(container) = container {
            attributes.insert("container".into(), container.to_owned());
        }
        self.events
            .publish("network", action, record.id.clone(), attributes);
    }

    /// Returns the addresses that `host-gateway` is replaced with: the configured ones, or the host's
    /// addresses on the default network.
    pub fn host_gateway(&self) -> Vec<String> {
        let configured = &self.stack.instance.networks.host_gateway;
        if !configured.is_empty() {
            return configured.iter().map(IpAddr::to_string).collect();
        }
        let state = self.state();
        let bridge = state
            .values()
            .find(|network| network.record.name == "bridge");
        let found: Vec<String> = [true, false]
            .into_iter()
            .filter_map(|ipv4| gateway_of(&bridge?.blocks, ipv4))
            .map(|gateway| gateway.to_string())
            .collect();
        if found.is_empty() {
            vec!["127.0.0.1".into()]
        } else {
            found
        }
    }

    /// Returns the running containers in a network, by container id.
    pub fn members(&self, id: &str) -> BTreeMap<String, Member> {
        self.state()
            .get(id)
            .map(|network| network.members.clone())
            .unwrap_or_default()
    }

    /// Returns the number of addresses in use and available in each subnet of a network.
    pub fn subnet_usage(&self, id: &str) -> Vec<SubnetUsage> {
        self.state()
            .get(id)
            .iter()
            .flat_map(|network| &network.blocks)
            .map(Block::usage)
            .collect()
    }
}

/// Returns the first gateway of an address family.
fn gateway_of(blocks: &[Block], ipv4: bool) -> Option<IpAddr> {
    blocks
        .iter()
        .filter_map(|block| block.gateway)
        .find(|gateway| gateway.is_ipv4() == ipv4)
}
