//! The DNS names of endpoints.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use whelk_network::dns::{Known, Question};

use crate::networks::Networks;

impl Networks {
    /// Looks up a question in the networks that a container is connected to.
    pub fn look_up(&self, container: &str, question: &Question) -> Known {
        let state = self.state();
        let own = || {
            state
                .values()
                .filter(|network| network.record.name != "bridge")
                .filter_map(|network| Some((network, network.members.get(container)?)))
        };
        match question {
            Question::Address(name) => {
                let mut found: Vec<IpAddr> = Vec::new();
                let mut known = false;
                for (network, me) in own() {
                    // `CONTAINER.NETWORK` names a container in one network.
                    let suffix = format!(".{}", network.record.name.to_ascii_lowercase());
                    let plain = name.strip_suffix(&suffix).unwrap_or(name);
                    let linked = me
                        .links
                        .iter()
                        .find(|(_, alias)| alias == plain)
                        .map(|(target, _)| target.as_str());
                    for (id, member) in &network.members {
                        let matches = match linked {
                            Some(target) => member.name == target || id.starts_with(target),
                            None => member.names.iter().any(|other| other == plain),
                        };
                        if matches {
                            known = true;
                            found.extend(member.addresses.iter().map(ipnet::IpNet::addr));
                        }
                    }
                }
                // The addresses are rotated for each answer: clients that use the first one spread
                // the load.
                if found.len() > 1 {
                    // A multiplicative hash, because clients that query both families would
                    // otherwise always get the same rotation for a family.
                    const GOLDEN: usize = 0x9E37_79B9;
                    let turn = self
                        .turn
                        .fetch_add(1, Ordering::Relaxed)
                        .wrapping_mul(GOLDEN)
                        >> 16;
                    found.sort_by_key(IpAddr::is_ipv6);
                    let ipv4 = found.partition_point(IpAddr::is_ipv4);
                    let (four, six) = found.split_at_mut(ipv4);
                    for family in [four, six].into_iter().filter(|family| !family.is_empty()) {
                        family.rotate_left(turn % family.len());
                    }
                }
                if known {
                    Known::Addresses(found)
                } else {
                    Known::Nothing
                }
            }
            Question::Name(address) => own()
                .find_map(|(network, _)| {
                    let member = network.members.values().find(|member| {
                        member
                            .addresses
                            .iter()
                            .any(|known| known.addr() == *address)
                    })?;
                    Some(Known::Name(format!(
                        "{}.{}",
                        member.name, network.record.name
                    )))
                })
                .unwrap_or(Known::Nothing),
        }
    }

    /// Returns whether a container's queries may be forwarded: not if it is in internal networks
    /// only (CVE-2024-29018).
    pub(in crate::networks) fn may_forward(&self, container: &str) -> bool {
        self.state()
            .values()
            .any(|network| !network.record.internal && network.members.contains_key(container))
    }
}
