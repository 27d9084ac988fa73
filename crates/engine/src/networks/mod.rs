//! Networks: what connects containers to each other and to the outside.
//!
//! A network is a record; a bridge network is a bridge on the host as well, and its addresses in
//! [`Block`]s. A running container's place in it (an *endpoint*) is a veth pair, addresses, an
//! entry in the rules, and names. All of it is made anew from the records when the engine starts;
//! interfaces of ours that no record explains are removed.

mod create;
mod defaults;
mod endpoints;
mod list;
pub mod model;
mod names;
mod publish;
mod remove;
pub(crate) mod resolv_conf;
mod settings;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use whelk_image::Digest;
use whelk_network::ipam::Block;
pub use whelk_network::ipam::Pool;
use whelk_network::names::NameSockets;
use whelk_network::namespace::{Interface, Namespace};
use whelk_network::port::Ports;
use whelk_network::{BridgeRules, Firewall, LONGEST_NAME, Links, Passage, SenderRules};

pub use create::CreateNetwork;
pub use defaults::NetworkDefaults;
pub use endpoints::ConnectRequest;
pub(crate) use endpoints::{has_own_networks, split_link};
pub use list::FILTERS as NETWORK_FILTERS;
use model::option;
pub use model::{Endpoint, EndpointIpam, NetworkRecord};
pub(crate) use names::{host_resolver, resolved_servers, uses_resolver};
pub(crate) use publish::{check as check_ports, check_exposed, parse_port};
pub(crate) use remove::uninstall;
pub(crate) use settings::{check_endpoint, lacks_ipv6, parse_mac};

use crate::error::{Error, Result};
use crate::events::Events;
use crate::instance::Instance;
use crate::store::RecordStore;

/// All networks of an engine.
#[derive(Debug)]
pub struct Networks {
    this: Weak<Self>,
    instance: Instance,
    store: Arc<RecordStore>,
    events: Arc<Events>,
    firewall: Firewall,
    ports: Ports,
    links: Mutex<Links>,
    state: RwLock<BTreeMap<String, Network>>,
    /// Held while a network is made or removed, which takes the kernel its time.
    changing: Mutex<()>,
    pools: Vec<Pool>,
    spare: Mutex<Vec<Spare>>,
    /// Interfaces to be removed when there is time, with the rules about them.
    doomed: Mutex<Vec<SenderRules>>,
    refill: tokio::sync::Notify,
    /// What was told of routes in networks' way.
    overlaps: Mutex<HashSet<String>>,
    /// Counts answers with several addresses.
    turn: AtomicUsize,
    /// What answers names for each container.
    resolvers: Mutex<HashMap<String, tokio::task::JoinHandle<()>>>,
}

/// A namespace made ahead, for a container to come, with an interface and the sockets at which
/// names are asked for.
#[derive(Debug)]
struct Spare {
    namespace: Namespace,
    /// Its outer end is called what that of the endpoint with this id is to be called.
    interface: Interface,
    endpoint_id: String,
    names: NameSockets,
}

/// One network, with what is known only while the engine runs.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) record: NetworkRecord,
    blocks: Vec<Block>,
    /// By container.
    members: BTreeMap<String, Member>,
}

/// A running container in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub endpoint_id: String,
    pub mac: String,
    pub addresses: Vec<IpNet>,
    /// Lower case: the names it is found under.
    pub names: Vec<String>,
    /// Names that only this container uses, for others.
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

/// How many namespaces are kept ready.
const SPARE: usize = 3;

impl Networks {
    /// Reads the networks and puts bridges in place. The rules are written by [`Networks::settle`],
    /// when the running containers are known: until then those of an earlier run stay in force.
    pub fn open(
        instance: &Instance,
        store: Arc<RecordStore>,
        events: Arc<Events>,
    ) -> Result<Arc<Self>> {
        let firewall = Firewall::new(&instance.name)?;
        let links = Mutex::new(Links::open()?);
        let defaults = &instance.networks;
        let networks = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            firewall,
            links,
            instance: instance.clone(),
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
            spare: Mutex::default(),
            doomed: Mutex::default(),
            refill: tokio::sync::Notify::new(),
            overlaps: Mutex::default(),
            turn: AtomicUsize::default(),
            resolvers: Mutex::default(),
        });
        let records = store.networks()?;
        for record in records {
            if let Err(error) = networks.bring_back(record.clone()) {
                tracing::error!(network = record.name, "bring back the network: {error}");
            }
        }
        networks.create_predefined()?;
        Ok(networks)
    }

    fn bring_back(&self, record: NetworkRecord) -> Result<()> {
        let blocks = create::blocks(&record)?;
        // Known first: what cannot be made now (its parent is not there yet) is made when it is
        // needed, and its addresses stay its own.
        self.state_mut().insert(
            record.id.clone(),
            Network {
                record: record.clone(),
                blocks,
                members: BTreeMap::new(),
            },
        );
        self.materialize(&record)
    }

    /// Writes the rules and removes what no container explains, after all running ones were
    /// adopted.
    pub fn settle(&self) {
        self.lead_loopback6();
        if let Err(error) = self.firewall.restore() {
            tracing::error!("{error}; networks will not work");
        }
        self.ensure_passage();
        if let Err(error) = self.remove_stale_links() {
            tracing::warn!("look for interfaces left over: {error}");
        }
    }

    /// Keeps namespaces ready and the rules in place for as long as the engine runs.
    pub async fn keep(self: Arc<Self>) {
        const CHECK: Duration = Duration::from_secs(5);
        const ROUTES: Duration = Duration::from_secs(60);
        // Others may change their rules piece by piece.
        const AT_MOST_EVERY: Duration = Duration::from_millis(100);
        let changes = Arc::new(tokio::sync::Notify::new());
        match self.firewall.changes_of_others() {
            Ok(others) => drop(std::thread::spawn({
                let changes = changes.clone();
                move || loop {
                    others.wait();
                    changes.notify_one();
                }
            })),
            Err(error) => tracing::warn!("changes of rules are noticed late: {error}"),
        }
        // The ruleset's number when everything was last seen to be in its place.
        let mut checked = None;
        let mut last = Instant::now();
        let mut changed = false;
        let mut routes_seen = Instant::now();
        loop {
            let check = changed || last.elapsed() >= CHECK;
            if check {
                last = Instant::now();
            }
            let look_at_routes = routes_seen.elapsed() >= ROUTES;
            if look_at_routes {
                routes_seen = Instant::now();
            }
            let networks = self.clone();
            let work = tokio::task::spawn_blocking(move || {
                networks.remove_doomed();
                while networks.spare().len() < SPARE {
                    match networks.make_spare() {
                        Ok(spare) => networks.spare().push(spare),
                        Err(error) => {
                            tracing::warn!("no network namespace could be made ahead: {error}");
                            break;
                        }
                    }
                }
                if look_at_routes {
                    networks.check_routes();
                }
                if check {
                    networks.lead_loopback6();
                    networks.check_rules(checked)
                } else {
                    checked
                }
            });
            match work.await {
                Ok(generation) => checked = generation,
                Err(error) => tracing::error!("look after the networks: {error}"),
            }
            changed = tokio::select! {
                () = crate::shims::time_to_refill(&self.refill, || self.spare().len() < 2) => false,
                () = tokio::time::sleep(CHECK) => false,
                () = changes.notified() => {
                    tokio::time::sleep(AT_MOST_EVERY.saturating_sub(last.elapsed())).await;
                    true
                }
            };
        }
    }

    fn make_spare(&self) -> whelk_network::Result<Spare> {
        let endpoint_id = crate::random_names::random_id();
        let outer = self.interface(VETH, &endpoint_id);
        let (namespace, interface) =
            Namespace::create_with_interface(endpoints::FIRST_INTERFACE, &outer)?;
        self.links()
            .describe(&outer, &create::alias(&self.instance, "made ahead"))?;
        // The kernel takes its time to lead questions there.
        let names = whelk_network::names::open(namespace.as_fd())?;
        Ok(Spare {
            namespace,
            interface,
            endpoint_id,
            names,
        })
    }

    /// Puts back what somebody took away (`nft flush ruleset`, a firewall's reload). Looks only
    /// when any rules have changed since `checked`; returns what to compare with next time.
    fn check_rules(&self, checked: Option<u32>) -> Option<u32> {
        let generation = self.firewall.generation();
        if generation.is_some() && generation == checked {
            return checked;
        }
        if !self.firewall.is_whole()
            && let Err(error) = self.firewall.restore()
        {
            tracing::error!("put the rules back: {error}");
        }
        self.ensure_passage();
        generation
    }

    /// Tells, once, of routes that have appeared since a network was made and lead its addresses
    /// elsewhere: a VPN's, mostly.
    fn check_routes(&self) {
        let Ok(routes) = Links::open().and_then(|mut links| links.routes_by_link()) else {
            return;
        };
        let bridges: Vec<(String, Vec<IpNet>, String)> = self
            .state()
            .values()
            .filter(|network| network.record.driver == "bridge")
            .map(|network| {
                (
                    network.record.name.clone(),
                    network.record.subnets(),
                    self.bridge_name(&network.record),
                )
            })
            .collect();
        let mut links = self.links();
        let mut index = |name: &str| links.find(name).ok().flatten().map_or(0, |link| link.index);
        let own: Vec<_> = bridges
            .into_iter()
            .map(|(network, subnets, bridge)| (network, subnets, index(&bridge)))
            .collect();
        drop(links);
        let mut known = self.overlaps.lock().unwrap_or_else(PoisonError::into_inner);
        let found = foreign_routes(&own, &routes);
        for text in found.difference(&known) {
            tracing::warn!("{text}");
        }
        *known = found;
    }

    /// Has the host's other firewalls let our traffic through to our own rules, unless the
    /// administrator forbids it.
    fn ensure_passage(&self) {
        if self.instance.respect_host_firewall {
            return;
        }
        let mut bridges = vec![
            format!("{}{BRIDGE}*", prefix(&self.instance)),
            default_bridge(&self.instance),
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
        if let Err(error) = Passage::new(&self.instance.name).ensure(&bridges) {
            tracing::warn!("{error}");
        }
    }

    /// Follows the host, which may begin to filter bridged packets at any time.
    fn lead_loopback6(&self) {
        if let Err(error) = self.firewall.lead_loopback6() {
            tracing::warn!("{error}");
        }
    }

    fn remove_doomed(&self) {
        let doomed = std::mem::take(&mut *self.doomed());
        if doomed.is_empty() {
            return;
        }
        // A connection of its own: the kernel takes its time, and nobody else shall wait.
        let mut links = match Links::open() {
            Ok(links) => links,
            Err(error) => {
                tracing::warn!("{error}");
                return self.doomed().extend(doomed);
            }
        };
        for sender in doomed {
            // The interface first: without rules it could send anything.
            if let Err(error) = links
                .delete(&sender.interface)
                .and_then(|()| self.firewall.remove_sender(&sender))
            {
                tracing::warn!("{error}");
                self.doomed().push(sender);
            }
        }
    }

    fn doomed(&self) -> MutexGuard<'_, Vec<SenderRules>> {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Network>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Network>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a network by id, name, or a beginning of the id that no other has.
    ///
    /// # Errors
    /// None, or several.
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

    /// The name of an interface of ours: the instance's prefix, a mark for the kind, and digits of
    /// the object's id.
    fn interface(&self, mark: char, id: &str) -> String {
        let prefix = prefix(&self.instance);
        format!(
            "{prefix}{mark}{}",
            id.chars()
                .take(LONGEST_NAME - prefix.len() - 1)
                .collect::<String>()
        )
    }

    fn bridge_name(&self, record: &NetworkRecord) -> String {
        match record.option(option::BRIDGE_NAME) {
            Some(name) => name.to_owned(),
            None => self.interface(BRIDGE, &record.id),
        }
    }

    fn host_interface(&self, endpoint: &Endpoint) -> String {
        self.interface(VETH, &endpoint.endpoint_id)
    }

    fn remove_stale_links(&self) -> Result<()> {
        let prefix = prefix(&self.instance);
        let mut known: HashSet<String> = HashSet::new();
        for network in self.state().values() {
            known.insert(self.bridge_name(&network.record));
            known.extend(
                network
                    .members
                    .values()
                    .map(|member| self.interface(VETH, &member.endpoint_id)),
            );
        }
        let mut links = self.links();
        for link in links.list()? {
            if is_ours(&prefix, &link.name) && !known.contains(&link.name) {
                links.delete(&link.name)?;
            }
        }
        Ok(())
    }

    fn rules(&self, record: &NetworkRecord) -> BridgeRules {
        let masquerade = record.switch(option::MASQUERADE, true);
        let mode = |key: &str| record.option(key).unwrap_or("nat");
        BridgeRules {
            name: self.bridge_name(record),
            subnets: record.subnets(),
            internal: record.internal,
            masquerade4: masquerade && mode(option::GATEWAY_MODE_4).starts_with("nat"),
            masquerade6: masquerade && mode(option::GATEWAY_MODE_6).starts_with("nat"),
            icc: record.connects_containers(),
            open4: mode(option::GATEWAY_MODE_4) == "nat-unprotected",
            open6: mode(option::GATEWAY_MODE_6) == "nat-unprotected",
            routed4: record.is_routed(true),
            routed6: record.is_routed(false),
        }
    }

    fn publish(&self, record: &NetworkRecord, action: &str, container: Option<&str>) {
        let mut attributes: BTreeMap<String, String> = [
            ("name".to_owned(), record.name.clone()),
            ("type".to_owned(), record.driver.clone()),
        ]
        .into();
        if let Some(container) = container {
            attributes.insert("container".into(), container.to_owned());
        }
        self.events
            .publish("network", action, record.id.clone(), attributes);
    }

    /// The containers in a network, by their id.
    pub fn members(&self, id: &str) -> BTreeMap<String, Member> {
        self.state()
            .get(id)
            .map(|network| network.members.clone())
            .unwrap_or_default()
    }
}

/// What there is to say of routes that lead into a network's subnets by another way than its
/// bridge. `networks`: name, subnets and the bridge's index.
fn foreign_routes(
    networks: &[(String, Vec<IpNet>, u32)],
    routes: &[(IpNet, u32)],
) -> HashSet<String> {
    let mut found = HashSet::new();
    for (name, subnets, bridge) in networks {
        for subnet in subnets {
            // A wider route is the way to everything else; the kernel takes the narrower one.
            let hides = |route: &IpNet| {
                route.prefix_len() >= subnet.prefix_len()
                    && whelk_network::ipam::overlap(route, subnet)
            };
            for (route, _) in routes
                .iter()
                .filter(|(route, link)| link != bridge && hides(route))
            {
                found.insert(format!(
                    "network {name}: a route to {route} on the host leads addresses of its subnet {subnet} elsewhere: remove the network and make it anew"
                ));
            }
        }
    }
    found
}

/// What the names of an instance's interfaces begin with.
fn prefix(instance: &Instance) -> String {
    const LONGEST: usize = 8;
    let name = &instance.name;
    if name.len() <= LONGEST && name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return name.clone();
    }
    let begin: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(LONGEST / 2)
        .collect();
    format!(
        "{begin}{}",
        &Digest::of(name.as_bytes()).hex()[..LONGEST / 2]
    )
}

/// The bridge of the default network.
fn default_bridge(instance: &Instance) -> String {
    format!("{}0", prefix(instance))
}

/// Whether an interface is one that [`Networks::interface`] named.
fn is_ours(prefix: &str, name: &str) -> bool {
    let digits = name
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix([BRIDGE, VETH]));
    name.len() == LONGEST_NAME
        && digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

const BRIDGE: char = '-';
const VETH: char = 'v';

/// Which of a network's gateways are for which family.
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
    fn routes_in_a_networks_way() {
        let net = |text: &str| text.parse::<IpNet>().unwrap_or_default();
        let networks = [(
            "app".to_owned(),
            vec![net("10.1.2.0/24"), net("fd00:1::/64")],
            7,
        )];
        let found = |routes: &[(&str, u32)]| {
            let routes: Vec<(IpNet, u32)> =
                routes.iter().map(|(to, link)| (net(to), *link)).collect();
            foreign_routes(&networks, &routes)
                .into_iter()
                .collect::<Vec<_>>()
        };
        // Its own, one beside it, and a wider one are in nobody's way.
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
