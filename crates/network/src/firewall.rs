//! The nf_tables rules of one instance: a fixed ruleset whose sets and maps hold the state.
//!
//! ```text
//! table inet NAME
//!   prerouting_raw   prerouting raw      packets from our bridges go through `from_bridges`, which drops spoofed sources
//!   prerouting_nat   prerouting dstnat   DNAT to containers by the maps `dnat_*`, for packets to one of the host's own
//!                                        addresses, except packets to 127.0.0.0/8 or ::1 from outside
//!   output_nat       output dstnat       the same for the host's own connections, also to 127.0.0.1, and to ::1 while
//!                                        it is in `loopback_v6`
//!   postrouting_nat  postrouting srcnat  masquerading: to the outside, hairpin to the same bridge, from 127.0.0.1 and ::1
//!   forward          forward filter      jumps to `user` first, then decides what passes between networks: connections
//!                                        that were translated, and what the `published_*` sets allow to containers on
//!                                        `routed_*` bridges
//!   user             (empty)             the administrator's own rules; never flushed
//! table bridge NAME
//!   prerouting       prerouting raw      frames from containers' ports go through `from_containers`, which drops those
//!                                        with a source address that is not the container's own
//! ```
//! Publishing a port or creating a network changes set elements, never rules. The rules decide
//! about this instance's traffic only, and cannot override a drop in another table: in nf_tables a
//! packet passes only if every base chain on its hook accepts it.

mod chains;
mod sets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::sync::Mutex;
use whelk_sys::sync::IgnorePoison as _;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use self::chains::{
    BRIDGE_CHAINS, Chain, INET_CHAINS, OBSOLETE_BRIDGE_CHAINS, OBSOLETE_BRIDGE_SETS,
    OBSOLETE_INET_CHAINS, OBSOLETE_INET_SETS, USER, bridge_rules, inet_rules,
};
pub use self::sets::{BridgeRules, SenderRules};
use self::sets::{Entry, SetId, mapping_entry};
use crate::error::{Error, Result};
use crate::netlink::{Attributes, Message, Socket};
use crate::nft::{self, Element, Table, Value, transaction};
use crate::port::{PortMapping, Protocol};

/// The nf_tables rules of one instance.
#[derive(Debug)]
pub struct Firewall {
    inet: Table,
    bridge: Table,
    state: Mutex<FirewallState>,
    /// A second socket for reading, so that checks do not wait for changes.
    watcher: Mutex<Socket>,
}

#[derive(Debug)]
struct FirewallState {
    socket: Socket,
    /// Whether this engine has written the tables.
    active: bool,
    /// All elements that should exist, to restore them when somebody flushes the table.
    elements: BTreeSet<(SetId, Value, Option<Value>, Option<Value>)>,
}

/// Notifications about changes to the host's nf_tables rules by other processes.
#[derive(Debug)]
pub struct RulesetChanges(Socket);

impl RulesetChanges {
    /// Blocks until the next change.
    pub fn wait(&self) {
        // Lost messages are reported as an error (`ENOBUFS`), and are changes as well.
        let _ = self.0.receive(&mut [0; 4096]);
    }
}

impl Firewall {
    /// Opens the netlink sockets. Nothing is written before [`Firewall::restore`]: until then the
    /// tables of an earlier run stay in force, and changes are only recorded.
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
            state: Mutex::new(FirewallState {
                socket: Socket::open(Some(NETFILTER), 0)?,
                active: false,
                elements: BTreeSet::new(),
            }),
            watcher: Mutex::new(Socket::open(Some(NETFILTER), 0)?),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, FirewallState> {
        self.state.lock().ignore_poison()
    }

    fn table(&self, set_id: SetId) -> &Table {
        if set_id.is_bridge_family() {
            &self.bridge
        } else {
            &self.inet
        }
    }

    /// Writes all rules and elements in one transaction, and deletes those of earlier versions. The
    /// rules in the administrator's chain `user` are kept; where tables have to be deleted because
    /// their objects cannot be changed, they are read before and written again.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses the rules. Also if the rules in chain `user` cannot
    /// be written again: what the administrator has blocked must not open silently.
    pub fn restore(&self) -> Result<()> {
        let mut state = self.state();
        let mut messages = self
            .obsolete_objects(&mut state.socket)
            .map_err(|error| Error::kernel("look for rules of an earlier version", error))?;
        messages.extend(self.messages(&state, false));
        let mut written = state.socket.batch(transaction(messages));
        if matches!(
            written,
            Err(Errno::EXIST | Errno::BUSY | Errno::INVAL | Errno::OPNOTSUPP)
        ) {
            // The existing objects cannot be changed in place: a chain with another hook, a set
            // with another key.
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

    /// Returns the messages that delete the chains and sets of earlier versions, if there are any:
    /// their rules would stay in force beside ours.
    fn obsolete_objects(&self, socket: &mut Socket) -> std::result::Result<Vec<Message>, Errno> {
        let mut exists = |object: Message| match socket.get(object) {
            Err(Errno::NOENT) => Ok(false),
            found => found.map(|_| true),
        };
        let mut messages = Vec::new();
        for (table, chains, sets) in [
            (&self.inet, OBSOLETE_INET_CHAINS, OBSOLETE_INET_SETS),
            (&self.bridge, OBSOLETE_BRIDGE_CHAINS, OBSOLETE_BRIDGE_SETS),
        ] {
            let mut found = Vec::new();
            for chain in chains {
                if exists(table.get_chain(chain))? {
                    found.push(*chain);
                }
            }
            if found.is_empty() {
                continue;
            }
            // Rules refer to chains and sets, so they are deleted first.
            messages.extend(found.iter().map(|chain| table.flush_chain(chain)));
            messages.extend(found.iter().map(|chain| table.delete_chain(chain)));
            for set in sets {
                if exists(table.get_set(set))? {
                    messages.push(table.delete_set(set));
                }
            }
        }
        Ok(messages)
    }

    /// Reads the rules in chain `user` and returns the messages that create them again.
    fn user_rules(&self, socket: &mut Socket) -> std::result::Result<Vec<Message>, Errno> {
        let rules = match socket.get(self.inet.get_chain(USER)) {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            chain => chain.and_then(|_| socket.dump(self.inet.get_rules(USER)))?,
        };
        let again = rules.iter().filter_map(|rule| {
            let (_, attributes) = rule.split(nft::HEADER)?;
            Some(self.inet.same_rule(
                USER,
                attributes.find(nft::NFTA_RULE_EXPRESSIONS)?,
                attributes.find(nft::NFTA_RULE_USERDATA),
            ))
        });
        Ok(again.collect())
    }

    fn messages(&self, state: &FirewallState, recreate: bool) -> Vec<Message> {
        let mut messages = Vec::new();
        for table in [&self.inet, &self.bridge] {
            messages.push(table.add());
            if recreate {
                messages.extend([table.delete(), table.add()]);
            }
        }
        for (table, chain) in self.chains() {
            messages.push(chain.add(table));
        }
        for (table, chain) in self.chains().filter(|(_, chain)| chain.name != USER) {
            messages.push(table.flush_chain(chain.name));
        }
        for (id, set_id) in (1..).zip(SetId::ALL) {
            let (table, set) = (self.table(set_id), set_id.set());
            messages.extend([table.set(set, id), table.flush_set(set.name)]);
        }
        messages.extend(inet_rules(&self.inet));
        messages.extend(bridge_rules(&self.bridge));
        let entries: Vec<Entry> = state
            .elements
            .iter()
            .map(|(set_id, key, end, data)| {
                (
                    *set_id,
                    Element {
                        key: key.clone(),
                        end: end.clone(),
                        data: data.clone(),
                    },
                )
            })
            .collect();
        // The length of a netlink attribute has 16 bits: large sets are written in chunks.
        const CHUNK: usize = 400;
        for set_id in SetId::ALL {
            let elements: Vec<Element> = entries
                .iter()
                .filter(|(at, _)| *at == set_id)
                .map(|(_, element)| element.clone())
                .collect();
            for chunk in elements.chunks(CHUNK) {
                messages.push(self.table(set_id).add_elements(set_id.set().name, chunk));
            }
        }
        messages
    }

    fn chains(&self) -> impl Iterator<Item = (&Table, Chain)> {
        let inet = INET_CHAINS.iter().map(|chain| (&self.inet, *chain));
        inet.chain(BRIDGE_CHAINS.iter().map(|chain| (&self.bridge, *chain)))
    }

    /// Writes the rules if this engine has not done so yet.
    ///
    /// # Errors
    /// Returns an error if the rules cannot be written. No container may be connected then.
    pub fn require(&self) -> Result<()> {
        let active = self.state().active;
        if active { Ok(()) } else { self.restore() }
    }

    /// Returns the ruleset's generation number, which every change to any table increments.
    pub fn generation(&self) -> Option<u32> {
        let reply = self
            .watcher
            .lock()
            .ignore_poison()
            .get(nft::get_generation())
            .ok()??;
        let (_, attributes) = reply.split(nft::HEADER)?;
        attributes
            .find(nft::NFTA_GEN_ID)?
            .try_into()
            .ok()
            .map(u32::from_be_bytes)
    }

    /// Subscribes to changes to the host's rules that do not come from our own socket.
    pub fn watch_foreign_changes(&self) -> Result<RulesetChanges> {
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
        Ok(RulesetChanges(socket))
    }

    /// Returns whether all rules and elements exist; `nft flush ruleset` deletes them. Takes some
    /// milliseconds and blocks no changes. Also returns `true` if the ruleset changed during the
    /// check, which then says nothing.
    pub fn is_complete(&self) -> bool {
        let generation = self.generation();
        let mut wanted: BTreeMap<SetId, usize> = BTreeMap::new();
        for (set_id, ..) in &self.state().elements {
            *wanted.entry(*set_id).or_default() += 1;
        }
        let mut socket = self.watcher.lock().ignore_poison();
        let mut rules_in = |table: &Table, chains: &[Chain]| -> Option<usize> {
            let chains = chains.iter().filter(|chain| chain.name != USER);
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
            && SetId::ALL.into_iter().all(|set_id| {
                let Ok(replies) = socket.dump(self.table(set_id).get_elements(set_id.set().name))
                else {
                    return false;
                };
                let lists = replies
                    .iter()
                    .filter_map(|reply| reply.split(nft::HEADER))
                    .filter_map(|(_, attributes)| {
                        attributes.find(nft::NFTA_SET_ELEM_LIST_ELEMENTS)
                    });
                lists.map(|list| Attributes(list).count()).sum::<usize>()
                    == wanted.get(&set_id).copied().unwrap_or(0)
            });
        drop(socket);
        whole || self.generation() != generation
    }

    /// Deletes the tables, when the instance is uninstalled.
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

    /// Adds the elements of a bridge.
    pub fn add_bridge(&self, bridge: &BridgeRules) -> Result<()> {
        self.change(bridge.entries(), true)
    }

    /// Removes the elements of a bridge.
    pub fn remove_bridge(&self, bridge: &BridgeRules) -> Result<()> {
        self.change(bridge.entries(), false)
    }

    /// Adds the elements of a container's bridge port.
    pub fn add_sender(&self, sender: &SenderRules) -> Result<()> {
        self.change(sender.entries(), true)
    }

    /// Removes the elements of a container's bridge port.
    pub fn remove_sender(&self, sender: &SenderRules) -> Result<()> {
        self.change(sender.entries(), false)
    }

    /// Enables the redirection of the host's own connections to ::1 to containers if it works, and
    /// returns whether it does. It needs [`crate::Links::add_ipv6_loopback_route`], and a host that
    /// does not pass bridged packets through its IP rules (`net.bridge.bridge-nf-call-ip6tables` is
    /// 0): otherwise br_netfilter translates a reply back to ::1 before the kernel routes it, and
    /// the kernel drops packets to ::1 that arrive from outside.
    pub fn redirect_ipv6_loopback(&self) -> Result<bool> {
        let filtered =
            whelk_sys::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
                .is_ok_and(|value| value.trim() != "0");
        self.change(
            vec![(
                SetId::LoopbackV6,
                Element::key(Value::new().ip(Ipv6Addr::LOCALHOST.into())),
            )],
            !filtered,
        )?;
        Ok(!filtered)
    }

    /// Adds the elements of published ports and deletes conntrack entries from before.
    pub fn publish(&self, mappings: &[PortMapping]) -> Result<()> {
        self.change(mappings.iter().map(mapping_entry).collect(), true)?;
        crate::conntrack::forget(&mut self.state().socket, mappings)
    }

    /// Removes the elements of published ports and deletes the conntrack entries that use them.
    pub fn withdraw(&self, mappings: &[PortMapping]) -> Result<()> {
        self.change(mappings.iter().map(mapping_entry).collect(), false)?;
        crate::conntrack::forget(&mut self.state().socket, mappings)
    }

    /// Adds or removes elements in one transaction. Removing missing elements is not an error.
    fn change(&self, entries: Vec<Entry>, add: bool) -> Result<()> {
        let mut state = self.state();
        let known = |state: &FirewallState, (set_id, element): &Entry| {
            state.elements.contains(&(
                *set_id,
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
            .map(|(set_id, element)| {
                let (table, set, one) = (
                    self.table(*set_id),
                    set_id.set().name,
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
        // ENOENT: another process deleted the table or an element; the recorded elements are
        // written again.
        if let Err(error) = result
            && error != Errno::NOENT
        {
            return Err(Error::kernel("change the nf_tables rules", error));
        }
        for (set_id, element) in entries {
            let entry = (set_id, element.key, element.end, element.data);
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
    use super::chains::FILTER;
    use super::*;
    use crate::nft::{Hook, IFNAME, Rule, Set};

    #[test]
    fn user_rules_survive_when_tables_are_recreated() {
        let elsewhere = Hook {
            kind: "filter",
            number: nft::POSTROUTING,
            priority: FILTER,
        };
        // A chain of ours with another hook, as another version may have created it.
        check_recreation(|table| vec![table.chain("forward", Some(elsewhere))]);
    }

    #[test]
    fn tables_of_an_earlier_version_are_replaced() {
        let hook = Hook {
            kind: "filter",
            number: nft::FORWARD,
            priority: FILTER,
        };
        let set = |name| Set {
            name,
            key: &[IFNAME],
            data: &[],
            interval: false,
        };
        check_recreation(|table| {
            vec![
                table.set(set("pairs"), 1),
                table.chain("guard", Some(hook)),
                table.chain("entering", None),
                table.rule("guard", Rule::new().input_name().not_among("pairs").drop()),
                table.rule("guard", Rule::new().jump("entering")),
                // Sets are not copied: the administrator's rules must stay where they are.
                table.set(set("closed"), 2),
                table.rule(USER, Rule::new().input_name().among("closed").drop()),
            ]
        });
    }

    /// Checks that `restore` turns a table with the objects `old` into a complete one without them,
    /// and keeps the rules in chain `user`.
    fn check_recreation(old: impl FnOnce(&Table) -> Vec<Message> + Send) {
        let host = crate::namespace::Namespace::create().unwrap();
        whelk_sys::net::within(host.as_fd(), || {
            let mut socket = Socket::open(Some(NETFILTER), 0).unwrap();
            let table = Table {
                family: nft::INET,
                name: "test".into(),
            };
            let mut messages = vec![table.add(), table.chain(USER, None)];
            messages.extend(old(&table));
            messages.extend([
                table.rule(USER, Rule::new().input_is("closed0").drop()),
                table.first_rule(USER, Rule::new().protocol_is(17).drop(), "by hand"),
            ]);
            socket.batch(transaction(messages)).unwrap();
            let firewall = Firewall::new("test").unwrap();
            let rules = |socket: &mut Socket| {
                let replies = socket.dump(table.get_rules(USER)).unwrap();
                let parts = |rule: &crate::netlink::Reply| {
                    let (_, attributes) = rule.split(nft::HEADER).unwrap();
                    [nft::NFTA_RULE_EXPRESSIONS, nft::NFTA_RULE_USERDATA]
                        .map(|kind| attributes.find(kind).map(<[u8]>::to_vec))
                };
                replies.iter().map(parts).collect::<Vec<_>>()
            };
            let before = rules(&mut socket);
            assert!(before.len() >= 2);
            firewall.restore().unwrap();
            assert!(firewall.is_complete());
            assert_eq!(rules(&mut socket), before);
            for gone in [
                socket.get(table.get_set("pairs")),
                socket.get(table.get_chain("guard")),
                socket.get(table.get_chain("entering")),
            ] {
                assert_eq!(gone.map(drop), Err(Errno::NOENT));
            }
        })
        .unwrap();
    }
}
