//! Networks: connect containers to each other and to the outside.
//!
//! A network is a record; a bridge network also has a bridge on the host, and its addresses in
//! [`Block`]s. A running container's *endpoint* in it is a veth pair, addresses, elements in the
//! firewall's sets, and DNS names. When the engine starts, all of it is created again from the
//! records, and interfaces of ours that no record explains are deleted.

mod create;
mod defaults;
mod drivers;
mod list;
mod remove;
pub(crate) mod resolv_conf;
mod sandbox;
mod settings;
mod stack;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, Weak};
use std::time::{Duration, Instant};
use whelk_sys::sync::IgnorePoison as _;

use ipnet::IpNet;
use tokio::sync::Notify;
use whelk_network::dns_sockets::DnsSockets;
use whelk_network::ipam::Block;
pub use whelk_network::ipam::{Pool, SubnetUsage};
use whelk_network::namespace::{Interface, Namespace};
use whelk_network::port::Ports;
use whelk_network::{ForwardAccept, Links};

pub(crate) use crate::instance::NetworkDefaults;
pub(crate) use crate::model::network as model;
pub use create::CreateNetwork;
pub use list::FILTERS as NETWORK_FILTERS;
use model::option;
pub(crate) use model::{Endpoint, NetworkDriverKind, NetworkRecord};
pub(crate) use remove::uninstall;
pub use sandbox::{ConnectRequest, PortRequest, Sandbox, SandboxConfig};
pub(crate) use sandbox::{host_resolver, resolved_servers, split_link, uses_resolver};
pub(crate) use settings::{check_endpoint, parse_mac};
use stack::HostStack;

use crate::error::{Error, Result};
use crate::events::Events;
use crate::instance::Instance;
use crate::store::RecordStore;

/// All networks of an engine.
#[derive(Debug)]
pub struct Networks {
    this: Weak<Self>,
    stack: HostStack,
    store: Arc<RecordStore>,
    events: Arc<Events>,
    ports: Ports,
    state: RwLock<BTreeMap<String, Network>>,
    /// Held while a network is created or removed, which takes the kernel some time.
    changing: Mutex<()>,
    pools: Vec<Pool>,
    warm_pool: Mutex<WarmPool>,
    /// The warnings about routes that hide networks' subnets, to log each once.
    hidden_subnets: Mutex<HashSet<String>>,
    /// Counts DNS answers with several addresses, to rotate them.
    turn: AtomicUsize,
    /// The tasks of the containers' DNS servers, by container id.
    resolvers: Mutex<HashMap<String, tokio::task::JoinHandle<()>>>,
}

type WarmPool = Vec<WarmNamespace>;

/// A network namespace created in advance, with a veth pair and the sockets of a DNS server.
#[derive(Debug)]
struct WarmNamespace {
    namespace: Namespace,
    /// The inner end of the pair. The outer end has the name that belongs to `endpoint_id`.
    interface: Interface,
    endpoint_id: String,
    dns: DnsSockets,
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

/// The number of namespaces in the warm pool.
const WARM_NAMESPACES: usize = 3;
/// How often the rules are checked without a notification of changes.
const RULES_INTERVAL: Duration = Duration::from_secs(5);
/// How often the host's routes are compared with the networks' subnets.
const ROUTES_INTERVAL: Duration = Duration::from_secs(60);

/// The periodic duties to perform now.
#[derive(Clone, Copy, Debug)]
struct Due {
    rules: bool,
    routes: bool,
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
        let networks = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            stack,
            store: store.clone(),
            events,
            ports: Ports::default(),
            state: RwLock::default(),
            changing: Mutex::default(),
            pools: if defaults.pools.is_empty() {
                whelk_network::ipam::default_pools()
            } else {
                defaults.pools.clone()
            },
            warm_pool: Mutex::default(),
            hidden_subnets: Mutex::default(),
            turn: AtomicUsize::default(),
            resolvers: Mutex::default(),
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
        self.state_mut().insert(
            record.id.clone(),
            Network {
                record: record.clone(),
                blocks,
                members: BTreeMap::new(),
            },
        );
        self.create_host_objects(&record)
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

    /// Maintains the networks for as long as the engine runs: deletes interfaces of ended
    /// containers, refills the warm pool, restores rules and reports routes that hide subnets.
    pub async fn maintain(self: Arc<Self>) {
        let changes = self.watch_rules();
        // The ruleset's generation when it was last found complete.
        let mut checked = None;
        let mut rules_changed = false;
        let mut last_rules_check = Instant::now();
        let mut last_routes_check = Instant::now();
        loop {
            let due = Due {
                rules: rules_changed || last_rules_check.elapsed() >= RULES_INTERVAL,
                routes: last_routes_check.elapsed() >= ROUTES_INTERVAL,
            };
            if due.rules {
                last_rules_check = Instant::now();
            }
            if due.routes {
                last_routes_check = Instant::now();
            }
            let networks = self.clone();
            let work = tokio::task::spawn_blocking(move || {
                whelk_sys::in_background(|| networks.run_duties(due, checked))
            });
            match work.await {
                Ok(generation) => checked = generation,
                Err(error) => tracing::error!("network maintenance failed: {error}"),
            }
            rules_changed = self.wait_for_duty(&changes, last_rules_check).await;
        }
    }

    /// Starts a thread that watches for changes to the host's rules by other processes, and returns
    /// what it notifies.
    fn watch_rules(&self) -> Arc<Notify> {
        let changes = Arc::new(Notify::new());
        match self.stack.firewall.watch_foreign_changes() {
            Ok(others) => drop(std::thread::spawn({
                let changes = changes.clone();
                move || loop {
                    others.wait();
                    changes.notify_one();
                }
            })),
            Err(error) => tracing::warn!(
                "watch nf_tables rules: {error}; they are checked every {} s only",
                RULES_INTERVAL.as_secs()
            ),
        }
        changes
    }

    /// Performs the duties that are always due, and those in `due`. Returns the generation at which
    /// the rules were last found complete. Blocks.
    fn run_duties(&self, due: Due, checked: Option<u32>) -> Option<u32> {
        self.stack.delete_pending_interfaces();
        self.refill_warm_pool();
        if due.routes {
            self.report_hidden_subnets();
        }
        if due.rules {
            self.redirect_ipv6_loopback();
            self.restore_rules(checked)
        } else {
            checked
        }
    }

    /// Waits until a duty is due. Returns whether the reason is a change to the host's rules.
    async fn wait_for_duty(&self, changes: &Notify, last_rules_check: Instant) -> bool {
        // Other programs may change their rules in many small transactions.
        const MIN_RULES_INTERVAL: Duration = Duration::from_millis(100);
        tokio::select! {
            () = crate::shims::time_to_refill(&self.stack.maintenance, || self.warm_pool().len() < 2) => false,
            () = tokio::time::sleep(RULES_INTERVAL) => false,
            () = changes.notified() => {
                tokio::time::sleep(MIN_RULES_INTERVAL.saturating_sub(last_rules_check.elapsed())).await;
                true
            }
        }
    }

    fn refill_warm_pool(&self) {
        while self.warm_pool().len() < WARM_NAMESPACES {
            match self.create_warm_namespace() {
                Ok(namespace) => self.warm_pool().push(namespace),
                Err(error) => {
                    tracing::warn!("create a network namespace for the warm pool: {error}");
                    break;
                }
            }
        }
    }

    fn create_warm_namespace(&self) -> whelk_network::Result<WarmNamespace> {
        let endpoint_id = crate::random_names::random_id();
        let outer = self.stack.endpoint_interface(&endpoint_id);
        let (namespace, interface) =
            Namespace::create_with_interface(sandbox::FIRST_INTERFACE, &outer)?;
        self.stack
            .links()
            .set_alias(&outer, &stack::alias(&self.stack.instance, "warm pool"))?;
        // Part of the pool because the DNAT rules take the kernel about ten milliseconds.
        let dns = whelk_network::dns_sockets::open(namespace.as_fd())?;
        Ok(WarmNamespace {
            namespace,
            interface,
            endpoint_id,
            dns,
        })
    }

    /// Restores rules and elements that others deleted (`nft flush ruleset`, a firewall's reload).
    /// Checks only if the ruleset's generation differs from `checked`; returns the generation to
    /// compare with the next time.
    fn restore_rules(&self, checked: Option<u32>) -> Option<u32> {
        let generation = self.stack.firewall.generation();
        if generation.is_some() && generation == checked {
            return checked;
        }
        if !self.stack.firewall.is_complete()
            && let Err(error) = self.stack.firewall.restore()
        {
            tracing::error!("restore the nf_tables rules: {error}");
        }
        self.ensure_forward_accept();
        generation
    }

    /// Logs routes that were added after a network was created and take precedence over its bridge,
    /// such as a VPN's. Each is logged once.
    fn report_hidden_subnets(&self) {
        let Ok(routes) = Links::open().and_then(|mut links| links.routes_by_link()) else {
            return;
        };
        let bridges: Vec<(String, Vec<IpNet>, String)> = self
            .state()
            .values()
            .filter(|network| network.record.driver.facts().host_routes)
            .map(|network| {
                (
                    network.record.name.clone(),
                    network.record.subnets(),
                    self.stack.network_interface(&network.record),
                )
            })
            .collect();
        let mut links = self.stack.links();
        let mut index = |name: &str| links.find(name).ok().flatten().map_or(0, |link| link.index);
        let own: Vec<_> = bridges
            .into_iter()
            .map(|(network, subnets, bridge)| (network, subnets, index(&bridge)))
            .collect();
        drop(links);
        let mut known = self.hidden_subnets.lock().ignore_poison();
        let found = hiding_routes(&own, &routes);
        for text in found.difference(&known) {
            tracing::warn!("{text}");
        }
        *known = found;
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

    fn warm_pool(&self) -> MutexGuard<'_, WarmPool> {
        self.warm_pool.lock().ignore_poison()
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

/// Returns warnings about routes that take precedence over a network's bridge. `networks` are name,
/// subnets and the bridge's interface index.
fn hiding_routes(
    networks: &[(String, Vec<IpNet>, u32)],
    routes: &[(IpNet, u32)],
) -> HashSet<String> {
    let mut found = HashSet::new();
    for (name, subnets, bridge) in networks {
        for subnet in subnets {
            // The kernel prefers the longest prefix, so that a shorter one does not hide the
            // subnet.
            let hides = |route: &IpNet| {
                route.prefix_len() >= subnet.prefix_len()
                    && whelk_network::ipam::overlaps(route, subnet)
            };
            for (route, _) in routes
                .iter()
                .filter(|(route, link)| link != bridge && hides(route))
            {
                found.insert(format!(
                    "network {name}: a route to {route} on the host hides addresses of its subnet {subnet}: remove the network and create it again"
                ));
            }
        }
    }
    found
}

/// Returns the first gateway of an address family.
fn gateway_of(blocks: &[Block], ipv4: bool) -> Option<IpAddr> {
    blocks
        .iter()
        .map(|block| block.gateway)
        .find(|gateway| gateway.is_ipv4() == ipv4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_routes_that_hide_a_subnet() {
        let net = |text: &str| text.parse::<IpNet>().unwrap_or_default();
        let networks = [(
            "app".to_owned(),
            vec![net("10.1.2.0/24"), net("fd00:1::/64")],
            7,
        )];
        let found = |routes: &[(&str, u32)]| {
            let routes: Vec<(IpNet, u32)> =
                routes.iter().map(|(to, link)| (net(to), *link)).collect();
            hiding_routes(&networks, &routes)
                .into_iter()
                .collect::<Vec<_>>()
        };
        // The network's own route, a neighbouring subnet's and one with a shorter prefix do not
        // hide it.
        assert!(
            found(&[
                ("10.1.2.0/24", 7),
                ("10.1.3.0/24", 2),
                ("10.0.0.0/8", 2),
                ("fd00:1::/64", 7)
            ])
            .is_empty()
        );
        for route in ["10.1.2.0/24", "10.1.2.128/25", "10.1.2.5/32", "fd00:1::/96"] {
            let said = found(&[(route, 2)]);
            assert!(said.len() == 1 && said[0].contains(route), "{said:?}");
        }
    }
}
