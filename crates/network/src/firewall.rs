//! The instance's own rules: one nf_tables table, made once, whose sets and maps say what there is.
//!
//! ```text
//! table inet NAME
//!   spoof    prerouting raw      what comes from our bridges goes through `entering`: what claims to come from where it
//!                                cannot is dropped
//!   publish  prerouting dstnat   to one of the host's addresses, but not from outside to 127.0.0.0/8: led to a container
//!                                by the maps `ports*`
//!   loop     output dstnat       the same for the host itself, 127.0.0.1 included, and ::1 where it can be (`loopback6`)
//!   leave    postrouting srcnat  masquerading: to the outside, back to the same bridge, from 127.0.0.1 and ::1
//!   guard    forward filter      `user` first, then what may pass from where to where: what `publish` has led there, and
//!                                by the `doors*` what goes to the own addresses of containers on `routed*` bridges
//!   user     (empty)             the administrator's own rules; never touched
//! table bridge NAME
//!   ports    prerouting filter   a container sends from its own addresses only
//! ```
//! Publishing a port or making a network changes elements, not rules. The table decides on this
//! instance's traffic only, and never overrides a drop of another table: in nf_tables every table
//! has its say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::error::{Error, Result};
use crate::netlink::{Attributes, Message, Socket};
use crate::nft::{
    self, ETHER, Element, Hook, IFNAME, IPV4, IPV6, PROTOCOL, Rule, SERVICE, Set, Table, Value,
    transaction,
};
use crate::port::{Protocol, Publication};

const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

/// The rules of one instance.
#[derive(Debug)]
pub struct Firewall {
    inet: Table,
    bridge: Table,
    state: Mutex<State>,
    /// Looks, while others change.
    watcher: Mutex<Socket>,
}

#[derive(Debug)]
struct State {
    socket: Socket,
    /// Whether the tables were written by this engine.
    active: bool,
    /// All elements that should be there: what is put back when somebody flushes the table.
    elements: BTreeSet<(Place, Value, Option<Value>, Option<Value>)>,
}

/// Tells that others have changed rules of the machine.
#[derive(Debug)]
pub struct Changes(Socket);

impl Changes {
    /// Waits for the next. Blocks.
    pub fn wait(&self) {
        // Lost messages are told as an error, and are changes as well.
        let _ = self.0.receive(&mut [0; 4096]);
    }
}

/// A set or map of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Bridges,
    Pairs,
    Internal,
    Open4,
    Open6,
    Routed4,
    Routed6,
    Doors4,
    Doors6,
    Masquerade4,
    Masquerade6,
    Sources4,
    Sources6,
    Ports4,
    Ports4At,
    Ports6,
    Ports6At,
    /// ::1, where the host's own connections to it can be led to containers.
    Loopback6,
    /// In the bridge table: the containers' interfaces, and what each may send from.
    Interfaces,
    Senders,
    Senders4,
    Senders6,
}

impl Place {
    const ALL: [Self; 22] = [
        Self::Bridges,
        Self::Pairs,
        Self::Internal,
        Self::Open4,
        Self::Open6,
        Self::Routed4,
        Self::Routed6,
        Self::Doors4,
        Self::Doors6,
        Self::Masquerade4,
        Self::Masquerade6,
        Self::Sources4,
        Self::Sources6,
        Self::Ports4,
        Self::Ports4At,
        Self::Ports6,
        Self::Ports6At,
        Self::Loopback6,
        Self::Interfaces,
        Self::Senders,
        Self::Senders4,
        Self::Senders6,
    ];

    fn is_bridge_family(self) -> bool {
        matches!(
            self,
            Self::Interfaces | Self::Senders | Self::Senders4 | Self::Senders6
        )
    }

    fn set(self) -> Set<'static> {
        let (name, key, data, interval): (_, &[_], &[_], _) = match self {
            Self::Bridges => ("bridges", &[IFNAME], &[], false),
            Self::Pairs => ("pairs", &[IFNAME, IFNAME], &[], false),
            Self::Internal => ("internal", &[IFNAME], &[], false),
            Self::Open4 => ("open4", &[IFNAME], &[], false),
            Self::Open6 => ("open6", &[IFNAME], &[], false),
            Self::Routed4 => ("routed4", &[IFNAME], &[], false),
            Self::Routed6 => ("routed6", &[IFNAME], &[], false),
            Self::Doors4 => ("doors4", &[IPV4, PROTOCOL, SERVICE], &[], false),
            Self::Doors6 => ("doors6", &[IPV6, PROTOCOL, SERVICE], &[], false),
            Self::Masquerade4 => ("masquerade4", &[IFNAME], &[], false),
            Self::Masquerade6 => ("masquerade6", &[IFNAME], &[], false),
            Self::Sources4 => ("sources4", &[IFNAME, IPV4], &[], true),
            Self::Sources6 => ("sources6", &[IFNAME, IPV6], &[], true),
            Self::Ports4 => ("ports4", &[PROTOCOL, SERVICE], &[IPV4, SERVICE], false),
            Self::Ports4At => (
                "ports4_at",
                &[IPV4, PROTOCOL, SERVICE],
                &[IPV4, SERVICE],
                false,
            ),
            Self::Ports6 => ("ports6", &[PROTOCOL, SERVICE], &[IPV6, SERVICE], false),
            Self::Ports6At => (
                "ports6_at",
                &[IPV6, PROTOCOL, SERVICE],
                &[IPV6, SERVICE],
                false,
            ),
            Self::Loopback6 => ("loopback6", &[IPV6], &[], false),
            Self::Interfaces => ("interfaces", &[IFNAME], &[], false),
            Self::Senders => ("senders", &[IFNAME, ETHER], &[], false),
            Self::Senders4 => ("senders4", &[IFNAME, ETHER, IPV4], &[], false),
            Self::Senders6 => ("senders6", &[IFNAME, IPV6], &[], false),
        };
        Set {
            name,
            key,
            data,
            interval,
        }
    }
}

type Entry = (Place, Element);

/// What the rules need to know of a bridge.
#[derive(Clone, Debug)]
pub struct BridgeRules {
    pub name: String,
    pub subnets: Vec<IpNet>,
    /// Nothing leaves, nothing comes in.
    pub internal: bool,
    pub masquerade4: bool,
    pub masquerade6: bool,
    /// Whether its containers reach each other.
    pub icc: bool,
    /// Reachable from outside without published ports (gateway mode `nat-unprotected`).
    pub open4: bool,
    pub open6: bool,
    /// Its containers' own addresses lead to their published ports, from everywhere (gateway mode
    /// `routed`).
    pub routed4: bool,
    pub routed6: bool,
}

impl BridgeRules {
    fn entries(&self) -> Vec<Entry> {
        let name = || Value::new().name(&self.name);
        let mut entries = vec![(Place::Bridges, Element::key(name()))];
        if self.icc {
            // Without it, the host does not send from one to the other either what it is given to
            // route.
            entries.push((Place::Pairs, Element::key(name().name(&self.name))));
        }
        for (wanted, place) in [
            (self.internal, Place::Internal),
            (self.open4 && !self.internal, Place::Open4),
            (self.open6 && !self.internal, Place::Open6),
            (self.routed4 && !self.internal, Place::Routed4),
            (self.routed6 && !self.internal, Place::Routed6),
            (self.masquerade4 && !self.internal, Place::Masquerade4),
            (self.masquerade6 && !self.internal, Place::Masquerade6),
        ] {
            if wanted {
                entries.push((place, Element::key(name())));
            }
        }
        let mut ranges: Vec<(IpAddr, IpAddr)> = self
            .subnets
            .iter()
            .map(|net| (net.network(), net.broadcast()))
            .collect();
        if self.subnets.iter().any(|net| matches!(net, IpNet::V6(_))) {
            // Neighbour discovery: link-local addresses, and none at all before the first.
            ranges.push((
                Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(),
                Ipv6Addr::new(0xfebf, !0, !0, !0, !0, !0, !0, !0).into(),
            ));
            ranges.push((Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()));
        }
        // The kernel takes no ranges that overlap, such as a link-local subnet's and all link-local
        // addresses.
        for (first, last) in merged(ranges) {
            let place = if first.is_ipv4() {
                Place::Sources4
            } else {
                Place::Sources6
            };
            entries.push((
                place,
                Element {
                    key: name().ip(first),
                    end: Some(name().ip(last)),
                    data: None,
                },
            ));
        }
        entries
    }
}

/// Ranges of addresses with those that overlap made one.
fn merged(mut ranges: Vec<(IpAddr, IpAddr)>) -> Vec<(IpAddr, IpAddr)> {
    ranges.sort_unstable();
    let mut apart: Vec<(IpAddr, IpAddr)> = Vec::new();
    for (first, last) in ranges {
        match apart.last_mut() {
            Some(before) if before.1.is_ipv4() == first.is_ipv4() && first <= before.1 => {
                before.1 = before.1.max(last)
            }
            _ => apart.push((first, last)),
        }
    }
    apart
}

/// What a container's port on a bridge may send from.
#[derive(Clone, Debug)]
pub struct SenderRules {
    pub interface: String,
    pub mac: [u8; 6],
    pub addresses: Vec<IpAddr>,
}

impl SenderRules {
    fn entries(&self) -> Vec<Entry> {
        let name = || Value::new().name(&self.interface);
        let mut entries = vec![
            (Place::Interfaces, Element::key(name())),
            (Place::Senders, Element::key(name().mac(self.mac))),
        ];
        for address in &self.addresses {
            entries.push(match address {
                IpAddr::V4(_) => (
                    Place::Senders4,
                    Element::key(name().mac(self.mac).ip(*address)),
                ),
                IpAddr::V6(_) => (Place::Senders6, Element::key(name().ip(*address))),
            });
        }
        entries
    }
}

fn publication_entry(publication: &Publication) -> Entry {
    let Publication { protocol, host, to } = publication;
    if publication.is_direct() {
        let place = if to.is_ipv4() {
            Place::Doors4
        } else {
            Place::Doors6
        };
        return (
            place,
            Element::key(
                Value::new()
                    .ip(to.ip())
                    .protocol(protocol.number())
                    .port(to.port()),
            ),
        );
    }
    let at = !host.ip().is_unspecified();
    let place = match (host, at) {
        (SocketAddr::V4(_), false) => Place::Ports4,
        (SocketAddr::V4(_), true) => Place::Ports4At,
        (SocketAddr::V6(_), false) => Place::Ports6,
        (SocketAddr::V6(_), true) => Place::Ports6At,
    };
    let key = if at {
        Value::new().ip(host.ip())
    } else {
        Value::new()
    };
    let element = Element {
        key: key.protocol(protocol.number()).port(host.port()),
        end: None,
        data: Some(Value::new().ip(to.ip()).port(to.port())),
    };
    (place, element)
}

impl Firewall {
    /// Nothing is written before [`Firewall::restore`]: until then the tables of an earlier run
    /// stay in force, and changes are only remembered.
    pub fn new(name: &str) -> Result<Self> {
        Ok(Self {
            inet: Table {
                family: nft::INET,
                name: name.into(),
            },
            bridge: Table {
                family: nft::BRIDGE,
                name: name.into(),
            },
            state: Mutex::new(State {
                socket: Socket::open(Some(NETFILTER), 0)?,
                active: false,
                elements: BTreeSet::new(),
            }),
            watcher: Mutex::new(Socket::open(Some(NETFILTER), 0)?),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self, place: Place) -> &Table {
        if place.is_bridge_family() {
            &self.bridge
        } else {
            &self.inet
        }
    }

    /// Writes all rules and all elements that should be there, as one transaction. The
    /// administrator's chain `user` is left as it is; where tables of another version's making have
    /// to give way, its rules are written again.
    ///
    /// # Errors
    /// Also when those rules cannot be: what the administrator has closed must not open by itself.
    pub fn restore(&self) -> Result<()> {
        let mut state = self.state();
        let messages = self.messages(&state, false);
        let mut written = state.socket.batch(transaction(messages));
        if matches!(
            written,
            Err(Errno::EXIST | Errno::BUSY | Errno::INVAL | Errno::OPNOTSUPP)
        ) {
            // What is there cannot become what it should be.
            let kept = self
                .user_rules(&mut state.socket)
                .map_err(|error| Error::kernel("read the rules in chain user", error))?;
            let mut messages = self.messages(&state, true);
            messages.extend(kept);
            written = state.socket.batch(transaction(messages));
        }
        written.map_err(|error| Error::kernel("write the nf_tables rules", error))?;
        state.active = true;
        Ok(())
    }

    /// What makes the rules in the administrator's chain once more.
    fn user_rules(&self, socket: &mut Socket) -> std::result::Result<Vec<Message>, Errno> {
        let rules = match socket.get(self.inet.get_chain(USER)) {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            chain => chain.and_then(|_| socket.dump(self.inet.get_rules(USER)))?,
        };
        let again = rules.iter().filter_map(|rule| {
            let (_, attributes) = rule.split(nft::HEADER)?;
            Some(self.inet.same_rule(
                USER,
                attributes.find(nft::RULE_EXPRESSIONS)?,
                attributes.find(nft::RULE_USERDATA),
            ))
        });
        Ok(again.collect())
    }

    fn messages(&self, state: &State, anew: bool) -> Vec<Message> {
        let mut messages = Vec::new();
        for table in [&self.inet, &self.bridge] {
            messages.push(table.add());
            if anew {
                messages.extend([table.delete(), table.add()]);
            }
        }
        for (table, chain) in self.chains() {
            messages.push(chain.add(table));
        }
        for (table, chain) in self.chains().filter(|(_, chain)| chain.name != USER) {
            messages.push(table.flush_chain(chain.name));
        }
        for (id, place) in (1..).zip(Place::ALL) {
            let (table, set) = (self.table(place), place.set());
            messages.extend([table.set(set, id), table.flush_set(set.name)]);
        }
        messages.extend(inet_rules(&self.inet));
        messages.extend(bridge_rules(&self.bridge));
        let entries: Vec<Entry> = state
            .elements
            .iter()
            .map(|(place, key, end, data)| {
                (
                    *place,
                    Element {
                        key: key.clone(),
                        end: end.clone(),
                        data: data.clone(),
                    },
                )
            })
            .collect();
        // An attribute's length has sixteen bits: large sets go in pieces.
        const AT_ONCE: usize = 400;
        for place in Place::ALL {
            let elements: Vec<Element> = entries
                .iter()
                .filter(|(at, _)| *at == place)
                .map(|(_, element)| element.clone())
                .collect();
            for chunk in elements.chunks(AT_ONCE) {
                messages.push(self.table(place).add_elements(place.set().name, chunk));
            }
        }
        messages
    }

    fn chains(&self) -> impl Iterator<Item = (&Table, Chain)> {
        let inet = INET_CHAINS.iter().map(|chain| (&self.inet, *chain));
        inet.chain(BRIDGE_CHAINS.iter().map(|chain| (&self.bridge, *chain)))
    }

    /// Has the rules written if they are not.
    ///
    /// # Errors
    /// They cannot be: nothing may be connected then.
    pub fn require(&self) -> Result<()> {
        let active = self.state().active;
        if active { Ok(()) } else { self.restore() }
    }

    /// A number that every change of any rules makes larger.
    pub fn generation(&self) -> Option<u32> {
        let reply = self
            .watcher
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(nft::get_generation())
            .ok()??;
        let (_, attributes) = reply.split(4)?;
        attributes.find(1)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// What tells when somebody else has changed any rules.
    pub fn changes_of_others(&self) -> Result<Changes> {
        let socket = Socket::open(Some(NETFILTER), 1 << (nft::GROUP - 1))?;
        let own = self
            .state()
            .socket
            .port()
            .map_err(|error| Error::kernel("name a netlink socket", error))?;
        let failed = |error: std::io::Error| {
            Error::kernel(
                "filter a netlink socket",
                Errno::from_io_error(&error).unwrap_or(Errno::IO),
            )
        };
        whelk_sys::net::filter_notifications(socket.as_fd(), nft::new_generation(), own)
            .map_err(failed)?;
        Ok(Changes(socket))
    }

    /// Whether all that should be there is. Somebody's `nft flush ruleset` takes it away. Takes
    /// some milliseconds, and keeps nobody waiting.
    pub fn is_whole(&self) -> bool {
        let generation = self.generation();
        let mut wanted: BTreeMap<Place, usize> = BTreeMap::new();
        for (place, ..) in &self.state().elements {
            *wanted.entry(*place).or_default() += 1;
        }
        let mut socket = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rules_in = |table: &Table, chains: &[Chain]| -> Option<usize> {
            let chains = chains.iter().filter(|chain| chain.name != "user");
            chains
                .map(|chain| {
                    socket
                        .dump(table.get_rules(chain.name))
                        .ok()
                        .map(|rules| rules.len())
                })
                .sum()
        };
        let rules = rules_in(&self.inet, INET_CHAINS) == Some(inet_rules(&self.inet).len())
            && rules_in(&self.bridge, BRIDGE_CHAINS) == Some(bridge_rules(&self.bridge).len());
        let whole = rules
            && Place::ALL.into_iter().all(|place| {
                let Ok(replies) = socket.dump(self.table(place).get_elements(place.set().name))
                else {
                    return false;
                };
                let lists = replies
                    .iter()
                    .filter_map(|reply| reply.split(4))
                    .filter_map(|(_, attributes)| attributes.find(3));
                lists.map(|list| Attributes(list).count()).sum::<usize>()
                    == wanted.get(&place).copied().unwrap_or(0)
            });
        drop(socket);
        // What was changed meanwhile says nothing.
        whole || self.generation() != generation
    }

    /// Removes the tables: when the instance is given up.
    pub fn remove(&self) -> Result<()> {
        let messages = [&self.inet, &self.bridge]
            .into_iter()
            .flat_map(|table| [table.add(), table.delete()])
            .collect();
        self.state()
            .socket
            .batch(transaction(messages))
            .map_err(|error| Error::kernel("remove the nf_tables rules", error))
    }

    pub fn add_bridge(&self, bridge: &BridgeRules) -> Result<()> {
        self.change(bridge.entries(), true)
    }

    pub fn remove_bridge(&self, bridge: &BridgeRules) -> Result<()> {
        self.change(bridge.entries(), false)
    }

    pub fn add_sender(&self, sender: &SenderRules) -> Result<()> {
        self.change(sender.entries(), true)
    }

    pub fn remove_sender(&self, sender: &SenderRules) -> Result<()> {
        self.change(sender.entries(), false)
    }

    /// Has the host's own connections to ::1 led to containers where that works, and tells whether
    /// it does. They need [`crate::Links::deliver_loopback6`], and a host that does not put bridged
    /// packets through its rules (`net.bridge.bridge-nf-call-ip6tables`): there, answers are for
    /// ::1 again before the kernel looks at them, and it drops what comes for ::1 from outside.
    pub fn lead_loopback6(&self) -> Result<bool> {
        let filtered =
            whelk_sys::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
                .is_ok_and(|value| value.trim() != "0");
        self.change(
            vec![(
                Place::Loopback6,
                Element::key(Value::new().ip(Ipv6Addr::LOCALHOST.into())),
            )],
            !filtered,
        )?;
        Ok(!filtered)
    }

    pub fn publish(&self, publications: &[Publication]) -> Result<()> {
        self.change(publications.iter().map(publication_entry).collect(), true)?;
        crate::conntrack::forget(&mut self.state().socket, publications)
    }

    pub fn withdraw(&self, publications: &[Publication]) -> Result<()> {
        self.change(publications.iter().map(publication_entry).collect(), false)?;
        crate::conntrack::forget(&mut self.state().socket, publications)
    }

    /// Adds or removes elements, all or none. Removing what is not there is fine.
    fn change(&self, entries: Vec<Entry>, add: bool) -> Result<()> {
        let mut state = self.state();
        let known = |state: &State, (place, element): &Entry| {
            state.elements.contains(&(
                *place,
                element.key.clone(),
                element.end.clone(),
                element.data.clone(),
            ))
        };
        let entries: Vec<Entry> = entries
            .into_iter()
            .filter(|entry| known(&state, entry) != add)
            .collect();
        if entries.is_empty() {
            return Ok(());
        }
        let messages: Vec<Message> = entries
            .iter()
            .map(|(place, element)| {
                let (table, set, one) = (
                    self.table(*place),
                    place.set().name,
                    std::slice::from_ref(element),
                );
                if add {
                    table.add_new_elements(set, one)
                } else {
                    table.delete_elements(set, one)
                }
            })
            .collect();
        let result = if state.active {
            state.socket.batch(transaction(messages))
        } else {
            Ok(())
        };
        // NOENT: the table (or just this element) was taken away behind our back; what should be
        // there is known.
        if let Err(error) = result
            && error != Errno::NOENT
        {
            return Err(Error::kernel("change the nf_tables rules", error));
        }
        for (place, element) in entries {
            let entry = (place, element.key, element.end, element.data);
            if add {
                state.elements.insert(entry);
            } else {
                state.elements.remove(&entry);
            }
        }
        drop(state);
        if result.is_err() {
            self.restore()
        } else {
            Ok(())
        }
    }
}

/// A chain of ours, and where the kernel calls it.
#[derive(Clone, Copy, Debug)]
struct Chain {
    name: &'static str,
    hook: Option<Hook>,
}

impl Chain {
    const fn base(name: &'static str, kind: &'static str, number: u32, priority: i32) -> Self {
        Self {
            name,
            hook: Some(Hook {
                kind,
                number,
                priority,
            }),
        }
    }

    const fn plain(name: &'static str) -> Self {
        Self { name, hook: None }
    }

    fn add(self, table: &Table) -> Message {
        table.chain(self.name, self.hook)
    }
}

/// The administrator's own chain, asked before all others about what is forwarded.
const USER: &str = "user";

const INET_CHAINS: &[Chain] = &[
    Chain::plain(USER),
    Chain::plain("entering"),
    Chain::base("spoof", "filter", nft::PREROUTING, RAW),
    Chain::base("publish", "nat", nft::PREROUTING, DSTNAT),
    Chain::base("loop", "nat", nft::OUTPUT, DSTNAT),
    Chain::base("leave", "nat", nft::POSTROUTING, SRCNAT),
    Chain::base("guard", "filter", nft::FORWARD, FILTER),
];
const BRIDGE_CHAINS: &[Chain] = &[
    Chain::base("ports", "filter", nft::PREROUTING, RAW),
    Chain::plain("checked"),
];

#[expect(
    clippy::too_many_lines,
    reason = "one table: the rules of every chain, in order"
)]
fn inet_rules(table: &Table) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut rule = |chain: &str, rule: Rule| messages.push(table.rule(chain, rule));
    let new = Rule::new;
    rule(
        "spoof",
        new().input_name().among("bridges").jump("entering"),
    );
    // 127.0.0.0/8 and ::1 are routed behind our bridges (for the host's own loopback connections);
    // containers must not use that.
    rule(
        "entering",
        new()
            .ipv4()
            .destination4()
            .in_network(Ipv4Addr::LOCALHOST.into(), 8)
            .drop(),
    );
    rule(
        "entering",
        new()
            .ipv6()
            .destination6()
            .in_network(Ipv6Addr::LOCALHOST.into(), 128)
            .drop(),
    );
    rule(
        "entering",
        new()
            .ipv4()
            .input_name()
            .source4()
            .not_among("sources4")
            .drop(),
    );
    rule(
        "entering",
        new()
            .ipv6()
            .input_name()
            .source6()
            .not_among("sources6")
            .drop(),
    );
    // A port on 127.0.0.1 is the host's own: from outside nobody is led there (CVE-2025-54388).
    rule(
        "publish",
        new()
            .ipv4()
            .destination4()
            .in_network(Ipv4Addr::LOCALHOST.into(), 8)
            .accept(),
    );
    rule(
        "publish",
        new()
            .ipv6()
            .destination6()
            .in_network(Ipv6Addr::LOCALHOST.into(), 128)
            .accept(),
    );
    rule(
        "loop",
        new()
            .ipv6()
            .destination6()
            .in_network(Ipv6Addr::LOCALHOST.into(), 128)
            .destination6()
            .not_among("loopback6")
            .accept(),
    );
    for chain in ["publish", "loop"] {
        let to_host = || new().for_this_host();
        rule(
            chain,
            to_host()
                .ipv4()
                .destination4()
                .protocol()
                .destination_port()
                .destination_from("ports4_at", IPV4),
        );
        rule(
            chain,
            to_host()
                .ipv4()
                .protocol()
                .destination_port()
                .destination_from("ports4", IPV4),
        );
        rule(
            chain,
            to_host()
                .ipv6()
                .destination6()
                .protocol()
                .destination_port()
                .destination_from("ports6_at", IPV6),
        );
        rule(
            chain,
            to_host()
                .ipv6()
                .protocol()
                .destination_port()
                .destination_from("ports6", IPV6),
        );
    }
    // By address, not by the interface it came from: where bridged traffic is filtered
    // (br_netfilter) none is known here.
    rule(
        "leave",
        new()
            .ipv4()
            .output_name()
            .source4()
            .among("sources4")
            .translated()
            .masquerade(),
    );
    rule(
        "leave",
        new()
            .ipv6()
            .output_name()
            .source6()
            .among("sources6")
            .translated()
            .masquerade(),
    );
    rule(
        "leave",
        new()
            .output_name()
            .among("bridges")
            .ipv4()
            .source4()
            .in_network(Ipv4Addr::LOCALHOST.into(), 8)
            .masquerade(),
    );
    rule(
        "leave",
        new()
            .output_name()
            .among("bridges")
            .ipv6()
            .source6()
            .in_network(Ipv6Addr::LOCALHOST.into(), 128)
            .masquerade(),
    );
    rule(
        "leave",
        new()
            .input_name()
            .among("masquerade4")
            .output_name()
            .not_among("bridges")
            .ipv4()
            .masquerade(),
    );
    rule(
        "leave",
        new()
            .input_name()
            .among("masquerade6")
            .output_name()
            .not_among("bridges")
            .ipv6()
            .masquerade(),
    );
    rule("guard", new().jump(USER));
    rule("guard", new().established().accept());
    rule(
        "guard",
        new().input_name().output_name().among("pairs").accept(),
    );
    rule("guard", new().input_name().among("internal").drop());
    rule("guard", new().output_name().among("internal").drop());
    rule(
        "guard",
        new().output_name().among("bridges").translated().accept(),
    );
    // Where addresses lead to containers as they are, others of our bridges come in by the same
    // doors.
    const ICMP: u8 = 1;
    const ICMPV6: u8 = 58;
    let routed4 = || new().ipv4().output_name().among("routed4");
    rule(
        "guard",
        routed4()
            .destination4()
            .protocol()
            .destination_port()
            .among("doors4")
            .accept(),
    );
    rule("guard", routed4().protocol_is(ICMP).accept());
    let routed6 = || new().ipv6().output_name().among("routed6");
    rule(
        "guard",
        routed6()
            .destination6()
            .protocol()
            .destination_port()
            .among("doors6")
            .accept(),
    );
    rule("guard", routed6().protocol_is(ICMPV6).accept());
    rule(
        "guard",
        new()
            .input_name()
            .among("bridges")
            .output_name()
            .among("bridges")
            .drop(),
    );
    rule("guard", new().ipv4().output_name().among("open4").accept());
    rule("guard", new().ipv6().output_name().among("open6").accept());
    rule("guard", new().output_name().among("bridges").drop());
    messages
}

/// What the interfaces of containers may send: frames from their own hardware address, ARP and IP
/// from their own addresses, and nothing else. Other interfaces (the bridge itself, ports that
/// others plugged in) pass.
fn bridge_rules(table: &Table) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut rule = |chain: &str, rule: Rule| messages.push(table.rule(chain, rule));
    const ARP: u16 = 0x0806;
    const IP: u16 = 0x0800;
    const IP6: u16 = 0x86dd;
    let new = Rule::new;
    // What is most frequent takes a single look.
    rule(
        "ports",
        new()
            .ether_type(IP)
            .input_name()
            .source_mac()
            .source4()
            .among("senders4")
            .accept(),
    );
    rule(
        "ports",
        new().input_name().among("interfaces").jump("checked"),
    );
    rule("checked", new().ether_type(IP).drop());
    rule(
        "checked",
        new().input_name().source_mac().not_among("senders").drop(),
    );
    rule(
        "checked",
        new()
            .ether_type(ARP)
            .input_name()
            .source_mac()
            .arp_source()
            .not_among("senders4")
            .drop(),
    );
    rule("checked", new().ether_type(ARP).accept());
    // Receivers take off priority tags (802.1Q, 802.1ad) in front of a packet, as many as there
    // are; these rules do not see behind a second one.
    rule("checked", new().ether_type_is_not(IP6).drop());
    // Neighbours say which address is theirs; routers are not among them.
    const ICMPV6: u8 = 58;
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const REDIRECT: u8 = 137;
    let icmp = |kind: u8| new().protocol_is(ICMPV6).icmp_type_is(kind);
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
    rule("checked", icmp(ROUTER_ADVERTISEMENT).drop());
    rule("checked", icmp(REDIRECT).drop());
    rule(
        "checked",
        icmp(NEIGHBOUR_ADVERTISEMENT)
            .neighbour_target()
            .in_network(link_local.into(), 10)
            .accept(),
    );
    rule(
        "checked",
        icmp(NEIGHBOUR_ADVERTISEMENT)
            .input_name()
            .neighbour_target()
            .not_among("senders6")
            .drop(),
    );
    rule(
        "checked",
        new().source6().in_network(link_local.into(), 10).accept(),
    );
    rule(
        "checked",
        new()
            .source6()
            .in_network(Ipv6Addr::UNSPECIFIED.into(), 128)
            .accept(),
    );
    rule(
        "checked",
        new().input_name().source6().not_among("senders6").drop(),
    );
    messages
}

impl Protocol {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_overlap() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let ranges = [
            ("fe80::", "febf::"),
            ("10.0.0.0", "10.0.0.255"),
            ("fe80::", "fe80::ff"),
            ("::", "::"),
            ("febf::", "fec0::"),
        ];
        let merged = merged(ranges.map(|(first, last)| (ip(first), ip(last))).to_vec());
        let expected = [
            ("10.0.0.0", "10.0.0.255"),
            ("::", "::"),
            ("fe80::", "fec0::"),
        ];
        assert_eq!(merged, expected.map(|(first, last)| (ip(first), ip(last))));
    }

    #[test]
    fn what_an_administrator_has_closed_stays_closed_when_tables_give_way() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let host = crate::namespace::Namespace::create().unwrap();
        whelk_sys::net::within(host.as_fd(), || {
            let mut socket = Socket::open(Some(NETFILTER), 0).unwrap();
            let table = Table {
                family: nft::INET,
                name: "test".into(),
            };
            // As another version may have made it: a chain of ours that the kernel calls from
            // elsewhere.
            let elsewhere = Hook {
                kind: "filter",
                number: nft::POSTROUTING,
                priority: FILTER,
            };
            let messages = vec![
                table.add(),
                table.chain(USER, None),
                table.chain("guard", Some(elsewhere)),
                table.rule(USER, Rule::new().input_is("closed0").drop()),
                table.first_rule(USER, Rule::new().protocol_is(17).drop(), "by hand"),
            ];
            socket.batch(transaction(messages)).unwrap();
            let firewall = Firewall::new("test").unwrap();
            let rules = |socket: &mut Socket| {
                let replies = socket.dump(table.get_rules(USER)).unwrap();
                let parts = |rule: &crate::netlink::Reply| {
                    let (_, attributes) = rule.split(nft::HEADER).unwrap();
                    [nft::RULE_EXPRESSIONS, nft::RULE_USERDATA]
                        .map(|kind| attributes.find(kind).map(<[u8]>::to_vec))
                };
                replies.iter().map(parts).collect::<Vec<_>>()
            };
            let before = rules(&mut socket);
            assert_eq!(before.len(), 2);
            firewall.restore().unwrap();
            assert!(firewall.is_whole());
            assert_eq!(rules(&mut socket), before);
        })
        .unwrap();
    }
}
