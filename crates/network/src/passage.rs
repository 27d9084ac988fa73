//! A way through the host's other firewalls for what our own rules allow.
//!
//! In nf_tables a packet passes when every table lets it pass. Docker and ufw close iptables'
//! `FORWARD` chain, firewalld its own, for everything they do not know: containers would reach
//! nothing, not even each other where bridged traffic is filtered. At the head of these chains go
//! two rules that accept what comes from our bridges or goes there. Our own table decides about it
//! all the same.

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::error::{Error, Result};
use crate::netlink::{Attributes, Message, Reply, Socket};
use crate::nft::{self, Rule, Table, transaction};

/// Where hosts' firewalls decide about forwarded packets: family, table, chain.
const CHAINS: &[(u8, &str, &str)] = &[
    (nft::IP, "filter", "FORWARD"),
    (nft::IP6, "filter", "FORWARD"),
    (nft::INET, "firewalld", "filter_FORWARD"),
];

/// The rules of one instance in chains that are not its own.
#[derive(Clone, Debug)]
pub struct Passage {
    instance: String,
}

impl Passage {
    pub fn new(instance: &str) -> Self {
        Self {
            instance: instance.to_owned(),
        }
    }

    /// Puts the rules where they are missing. `bridges` are names, or beginnings of names that end
    /// in `*`.
    pub fn ensure(&self, bridges: &[String]) -> Result<()> {
        let mut socket = Socket::open(Some(NETFILTER), 0)?;
        for (table, chain) in chains() {
            let wanted: Vec<(String, &String, bool)> = bridges
                .iter()
                .flat_map(|bridge| {
                    [true, false].map(|incoming| (self.mark(bridge, incoming), bridge, incoming))
                })
                .collect();
            let found = rules(&mut socket, &table, chain)?;
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
            // Those of bridges that are gone.
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

    /// Takes the rules away.
    pub fn remove(&self) -> Result<()> {
        let mut socket = Socket::open(Some(NETFILTER), 0)?;
        for (table, chain) in chains() {
            let found = rules(&mut socket, &table, chain)?;
            let ours = found
                .iter()
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

    /// What tells a rule of ours: the instance, the bridge and the direction.
    fn mark(&self, bridge: &str, incoming: bool) -> String {
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

/// The rules of a chain; none where there is no such chain.
fn rules(socket: &mut Socket, table: &Table, chain: &str) -> Result<Vec<Reply>> {
    // Asked for the table first: a dump of one that is not there is an error on some kernels, and
    // empty on others.
    match socket
        .get(table.get())
        .and_then(|_| socket.get(table.get_chain(chain)))
        .and_then(|_| socket.dump(table.get_rules(chain)))
    {
        Err(Errno::NOENT) => Ok(Vec::new()),
        result => result.map_err(|error| Error::kernel("read the host's firewall rules", error)),
    }
}

fn change(socket: &mut Socket, messages: Vec<Message>) -> Result<()> {
    match socket.batch(transaction(messages)) {
        // The chain is not there.
        Err(Errno::NOENT) => Ok(()),
        result => result.map_err(|error| Error::kernel("change the host's firewall rules", error)),
    }
}

fn attributes(rule: &Reply) -> Option<Attributes<'_>> {
    rule.split(nft::HEADER).map(|(_, attributes)| attributes)
}

/// The comment in a rule's user data: kind, length, text with a zero.
fn comment(rule: &Reply) -> Option<String> {
    let data = attributes(rule)?.find(nft::RULE_USERDATA)?;
    let (&[kind, length], text) = data.split_first_chunk::<2>()?;
    let text = text.get(..usize::from(length).checked_sub(1)?)?;
    (kind == nft::COMMENT).then(|| String::from_utf8_lossy(text).into_owned())
}

fn handle(rule: &Reply) -> Option<u64> {
    attributes(rule)?
        .find(nft::RULE_HANDLE)?
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
    fn rules_go_to_the_head_of_the_hosts_chains_once() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let host = crate::namespace::Namespace::create().unwrap();
        whelk_sys::net::within(host.as_fd(), || {
            let mut socket = Socket::open(Some(NETFILTER), 0).unwrap();
            let passage = Passage::new("test");
            let bridges = ["whelk*".to_owned(), "mine".to_owned()];
            // Nothing to do on a host without firewalls.
            passage.ensure(&bridges).unwrap();
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
                passage.ensure(&bridges).unwrap();
                let found = rules(&mut socket, &table, chain).unwrap();
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
            Passage::new("tes").remove().unwrap();
            assert_eq!(rules(&mut socket, &table, chain).unwrap().len(), 5);
            passage.remove().unwrap();
            assert_eq!(rules(&mut socket, &table, chain).unwrap().len(), 1);
        })
        .unwrap();
    }
}
