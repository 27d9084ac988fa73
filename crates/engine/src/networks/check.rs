//! Compares the networks with their interfaces and rules on the host.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use whelk_network::{Link, Links};
use whelk_sys::sync::IgnorePoison as _;

use super::drivers::attach_port;
use super::stack::{alias, is_ours, prefix};
use super::{Member, NetworkRecord, Networks};
use crate::error::Error;
use crate::findings::Findings;

impl Networks {
    /// Looks at the interfaces of all networks and their members, for interfaces that belong to none, and
    /// at the firewall's rules. Blocks.
    pub(crate) fn check(self: &Arc<Self>, findings: &mut Findings) {
        let links = Links::open().and_then(|mut links| links.list());
        match links {
            Ok(links) => self.check_links(&links, findings),
            Err(error) => findings.add_failure("interfaces", Err(error.into())),
        }
        if !self.stack.firewall.is_complete() {
            let networks = self.clone();
            findings.add("the nf_tables rules are not complete".into(), move || {
                networks.stack.firewall.restore()?;
                Ok("written again".into())
            });
        }
    }

    /// Returns the number of networks.
    pub(crate) fn count(&self) -> usize {
        self.state().len()
    }

    fn check_links(self: &Arc<Self>, links: &[Link], findings: &mut Findings) {
        let by_name: HashMap<&str, &Link> = links
            .iter()
            .map(|link| (link.name.as_str(), link))
            .collect();
        let networks: Vec<(NetworkRecord, Vec<Member>)> = {
            let state = self.state();
            let networks = state.values();
            networks
                .map(|network| {
                    let members = network.members.values().cloned().collect();
                    (network.record.clone(), members)
                })
                .collect()
        };
        let mut known: HashSet<String> = self.stack.pending_interfaces();
        for (record, members) in &networks {
            let interface = self.stack.network_interface(record);
            let outer = |member: &Member| self.stack.endpoint_interface(&member.endpoint_id);
            known.extend(members.iter().map(outer));
            // Only these have interfaces on the host for certain.
            if record.driver.facts().warm {
                match by_name.get(interface.as_str()) {
                    None => self.bridge_is_missing(record, &interface, findings),
                    Some(bridge) => {
                        let members = members.iter().map(|member| (member, outer(member)));
                        self.check_ports(record, bridge, members, &by_name, findings);
                    }
                }
            }
            known.insert(interface);
        }
        let (prefix, warm) = (
            prefix(&self.stack.instance),
            alias(&self.stack.instance, "warm pool"),
        );
        for link in links {
            if !is_ours(&prefix, &link.name) || known.contains(&link.name) || link.alias == warm {
                continue;
            }
            let (networks, name) = (self.clone(), link.name.clone());
            let problem = format!("interface {name} belongs to no network and no container");
            findings.add(problem, move || {
                if networks.knows_interface(&name) {
                    return Err(Error::conflict("it is used now"));
                }
                Links::open()?.delete(&name)?;
                Ok("removed".into())
            });
        }
    }

    /// Checks the members' ends of their interfaces.
    fn check_ports<'a>(
        self: &Arc<Self>,
        record: &NetworkRecord,
        bridge: &Link,
        members: impl Iterator<Item = (&'a Member, String)>,
        links: &HashMap<&str, &Link>,
        findings: &mut Findings,
    ) {
        for (member, outer) in members {
            let what = format!("container {} in network {}", member.name, record.name);
            match links.get(outer.as_str()) {
                None => findings.add_unrepairable(format!(
                    "{what} has lost its interface {outer}; disconnect it from the network and connect it again"
                )),
                Some(link) if link.master != bridge.index => {
                    let (networks, record) = (self.clone(), record.clone());
                    let endpoint = member.endpoint_id.clone();
                    let problem = format!("{what}: interface {outer} is not a port of the bridge");
                    findings.add(problem, move || {
                        let _changing = networks.changing.lock().ignore_poison();
                        let members = networks.members(&record.id);
                        let mut members = members.values();
                        if !members.any(|member| member.endpoint_id == endpoint) {
                            return Ok("it was disconnected meanwhile".into());
                        }
                        attach_port(&networks.stack, &record, &outer)?;
                        Ok("added to the bridge".into())
                    });
                }
                Some(_) => {}
            }
        }
    }

    fn bridge_is_missing(
        self: &Arc<Self>,
        record: &NetworkRecord,
        interface: &str,
        findings: &mut Findings,
    ) {
        let (networks, id) = (self.clone(), record.id.clone());
        let problem = format!("network {} has lost its bridge {interface}", record.name);
        findings.add(problem, move || {
            // Otherwise the network may be removed meanwhile, and its bridge would stay.
            let _changing = networks.changing.lock().ignore_poison();
            let record = networks.find(&id)?;
            networks.create_host_objects(&record)?;
            let members = networks.members(&id);
            for member in members.values() {
                let outer = networks.stack.endpoint_interface(&member.endpoint_id);
                let exists = networks.stack.links().find(&outer)?.is_some();
                if exists {
                    attach_port(&networks.stack, &record, &outer)?;
                }
            }
            Ok("created again, with the interfaces of its containers".into())
        });
    }

    /// Returns whether an interface belongs to a network or container now.
    fn knows_interface(&self, name: &str) -> bool {
        let is_known = self.state().values().any(|network| {
            let mut members = network.members.values();
            self.stack.network_interface(&network.record) == name
                || members.any(|member| self.stack.endpoint_interface(&member.endpoint_id) == name)
        });
        is_known || self.stack.pending_interfaces().contains(name)
    }
}
