//! Rules in the host's other firewalls that accept what our own rules decide about.
//!
//! In nf_tables a packet passes only if every table accepts it. Docker and ufw set the policy of
//! iptables' `FORWARD` chain to drop, and firewalld rejects in its own chain whatever it does not
//! know. Containers could then reach nothing, not even each other where bridged traffic is filtered
//! (br_netfilter). Two rules per bridge at the head of these chains accept packets from and to our
//! bridges; our own table still decides about them.

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::error::{Error, Result};
use crate::netlink::{Attributes, Message, Reply, Socket};
use crate::nft::{self, Rule, Table, transaction};

/// The chains in which other firewalls decide about forwarded packets: family, table, chain.
const CHAINS: &[(u8, &str, &str)] = &[
    (nft::IP, "filter", "FORWARD"),
    (nft::IP6, "filter", "FORWARD"),
    (nft::INET, "firewalld", "filter_FORWARD"),
];

/// The accept rules of one instance in chains of other firewalls.
#[derive(Clone, Debug)]
pub struct ForwardAccept {
    instance: String,
}

impl ForwardAccept {
    pub fn new(instance: &str) -> Self {
        Self {
            instance: instance.to_owned(),
        }
    }

    /// Adds missing rules and deletes those of bridges that no longer exist. `bridges` are
    /// interface names, or prefixes that end in `*`.
    pub fn ensure(&self, bridges: &[String]) -> Result<()> {
        let mut socket = Socket::open(Some(NETFILTER), 0)?;
        for (table, chain) in chains() {
            let wanted: Vec<(String, &String, bool)> = bridges
                .iter()
                .flat_map(|bridge| {
                    [true, false]
                        .map(|incoming| (self.comment_for(bridge, incoming), bridge, incoming))
                })
                .collect();
            let Some(found) = rules(&mut socket, &table, chain)? else {
                continue;
            };
            let present: Vec<String> = found.iter().filter_map(comment).collect();
            let mut messages = Vec::new();
            for (mark, bridge, incoming) in &wanted {
                if !present.contains(mark) {
                    let rule = if *incoming {
                        Rule::new().input_is(bridge)
                    } else {
                        Rule::new().output_is(bridge)
                    };
                    messages.push(table.first_rule(chain, rule.accept(), mark));
                }
            }
            // Rules of bridges that no longer exist.
            for rule in found.iter().filter(|rule| {
                comment(rule).is_some_and(|mark| {
                    self.is_own(&mark) && !wanted.iter().any(|(one, ..)| *one == mark)
                })
            }) {
                messages.extend(handle(rule).map(|handle| table.delete_rule(chain, handle)));
            }
            if !messages.is_empty() {
                change(&mut socket, messages)?;
            }
        }
        Ok(())
    }

    /// Deletes all rules of this instance.
    pub fn remove(&self) -> Result<()> {
        let mut socket = Socket::open(Some(NETFILTER), 0)?;
        for (table, chain) in chains() {
            let found = rules(&mut socket, &table, chain)?;
            let ours = found
                .iter()
                .flatten()
                .filter(|rule| comment(rule).is_some_and(|mark| self.is_own(&mark)));
            let messages: Vec<Message> = ours
                .filter_map(handle)
                .map(|handle| table.delete_rule(chain, handle))
                .collect();
            if !messages.is_empty() {
                change(&mut socket, messages)?;
            }
        }
        Ok(())
    }

    fn is_own(&self, mark: &str) -> bool {
        mark.strip_prefix(&self.instance)
            .is_some_and(|rest| rest.starts_with(' '))
    }

    /// The comment that identifies a rule of ours: instance, bridge and direction.
    fn comment_for(&self, bridge: &str, incoming: bool) -> String {
        format!(
            "{} {bridge} {}",
            self.instance,
            if incoming { "in" } else { "out" }
        )
    }
}

fn chains() -> impl Iterator<Item = (Table, &'static str)> {
    CHAINS.iter().map(|&(family, name, chain)| {
        (
            Table {
                family,
                name: name.into(),
            },
            chain,
        )
    })
}

/// Returns the rules of a chain, or `None` if it does not exist.
fn rules(socket: &mut Socket, table: &Table, chain: &str) -> Result<Option<Vec<Reply>>> {
    // Look up the table and chain first: a dump of a missing one is an error on some kernels and
    // empty on others.
    match socket
        .get(table.get())
        .and_then(|_| socket.get(table.get_chain(chain)))
        .and_then(|_| socket.dump(table.get_rules(chain)))
    {
        Err(Errno::NOENT) => Ok(None),
        result => result
            .map(Some)
            .map_err(|error| Error::kernel("read the host's firewall rules", error)),
    }
}

fn change(socket: &mut Socket, messages: Vec<Message>) -> Result<()> {
    match socket.batch(transaction(messages)) {
        // The chain does not exist (any more).
        Err(Errno::NOENT) => Ok(()),
        result => result.map_err(|error| Error::kernel("change the host's firewall rules", error)),
    }
}

fn attributes(rule: &Reply) -> Option<Attributes<'_>> {
    rule.split(nft::HEADER).map(|(_, attributes)| attributes)
}

/// Returns the comment in a rule's user data: type, length, NUL-terminated text.
pub(crate) fn comment(rule: &Reply) -> Option<String> {
    let data = attributes(rule)?.find(nft::NFTA_RULE_USERDATA)?;
    let (&[kind, length], text) = data.split_first_chunk::<2>()?;
    let text = text.get(..usize::from(length).checked_sub(1)?)?;
    (kind == nft::COMMENT).then(|| String::from_utf8_lossy(text).into_owned())
}

pub(crate) fn handle(rule: &Reply) -> Option<u64> {
    attributes(rule)?
        .find(nft::NFTA_RULE_HANDLE)?
        .try_into()
        .ok()
        .map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::nft::Hook;

    #[test]
    fn rules_are_added_once_at_the_head_of_the_hosts_chains() {
        let host = crate::namespace::Namespace::create().unwrap();
        whelk_sys::net::within(host.as_fd(), || {
            let mut socket = Socket::open(Some(NETFILTER), 0).unwrap();
            let accept = ForwardAccept::new("test");
            let bridges = ["whelk*".to_owned(), "mine".to_owned()];
            // A no-op on a host without other firewalls.
            accept.ensure(&bridges).unwrap();
            let (table, chain) = chains().next().unwrap();
            let hook = Hook {
                kind: "filter",
                number: nft::FORWARD,
                priority: 0,
            };
            let messages = vec![
                table.add(),
                table.chain(chain, Some(hook)),
                table.rule(chain, Rule::new().drop()),
            ];
            socket.batch(transaction(messages)).unwrap();
            for _ in 0..2 {
                accept.ensure(&bridges).unwrap();
                let found = rules(&mut socket, &table, chain).unwrap().unwrap();
                let mut comments: Vec<_> = found.iter().map(comment).collect();
                assert_eq!(
                    comments.pop(),
                    Some(None),
                    "the host's own rule is the last"
                );
                comments.sort();
                assert_eq!(
                    comments.into_iter().flatten().collect::<Vec<_>>(),
                    [
                        "test mine in",
                        "test mine out",
                        "test whelk* in",
                        "test whelk* out"
                    ]
                );
            }
            ForwardAccept::new("tes").remove().unwrap();
            let count = |socket: &mut _| {
                let found = rules(socket, &table, chain).unwrap();
                found.map(|rules| rules.len())
            };
            assert_eq!(count(&mut socket), Some(5));
            accept.remove().unwrap();
            assert_eq!(count(&mut socket), Some(1));
            let (table, chain) = chains().last().unwrap();
            assert!(rules(&mut socket, &table, chain).unwrap().is_none());
        })
        .unwrap();
    }
}
