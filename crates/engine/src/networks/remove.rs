//! Removing networks.

use whelk_network::{Firewall, ForwardAccept, Links};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use super::drivers::delete_bridge;
use super::model::option;
use super::stack::{default_bridge, is_of_instance, is_ours, prefix};
use super::{NetworkRecord, Networks};
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::rollback::Errors;
use crate::store::RecordStore;

/// Deletes the bridges, interfaces and rules of an instance from the host. If the instance is kept,
/// its next start creates them again.
pub(crate) fn uninstall(instance: &Instance) -> Result<()> {
    let mut errors = Errors::default();
    errors.keep(remove_links(instance));
    errors.keep(ForwardAccept::new(&instance.name).remove());
    errors.keep(Firewall::new(&instance.name).and_then(|firewall| firewall.remove()));
    errors.into_result()
}

fn remove_links(instance: &Instance) -> Result<()> {
    let mut links = Links::open()?;
    let mut errors = Errors::default();
    if fs::exists(instance.database()) {
        // Bridges with names chosen by users are found by their records; everything else is found
        // by name, even without a database.
        match RecordStore::open(&instance.root).and_then(|store| store.networks()) {
            Ok(records) => {
                for record in records {
                    if let Some(name) = record.option(option::BRIDGE_NAME) {
                        errors.keep(delete_bridge(&mut links, name, &record));
                    }
                }
            }
            Err(error) => errors.keep(Err::<(), _>(error)),
        }
    }
    let (prefix, default) = (prefix(instance), default_bridge(instance));
    for link in links.list()? {
        if is_ours(&prefix, &link.name) || link.name == default && is_of_instance(instance, &link) {
            errors.keep(links.delete(&link.name));
        }
    }
    errors.into_result()
}

impl Networks {
    /// Removes a network.
    ///
    /// # Errors
    /// Returns an error if the network is predefined or has active endpoints.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _changing = self.changing.lock().ignore_poison();
        let record = self.find(name)?;
        if record.is_predefined() {
            return Err(Error::Denied(format!(
                "{} is a pre-defined network and cannot be removed",
                record.name
            )));
        }
        let mut state = self.state_mut();
        let Some(network) = state.get(&record.id) else {
            return Err(Error::no_such_network(name));
        };
        if !network.members.is_empty() {
            let names: Vec<String> = network
                .members
                .values()
                .map(|member| format!("name:{:?} id:{:?}", member.name, &member.endpoint_id[..12]))
                .collect();
            return Err(Error::Denied(format!(
                "error while removing network: network {} has active endpoints ({})",
                record.name,
                names.join(", ")
            )));
        }
        state.remove(&record.id);
        drop(state);
        // The record is deleted last: if the engine ends before, the network exists at the next
        // start and can be removed again.
        self.delete_host_objects(&record);
        self.store.delete_network(&record.id)?;
        self.publish(&record, "destroy", None);
        Ok(())
    }

    /// Removes the networks that match and that no running container uses. Returns their names.
    pub(crate) fn prune(&self, matches: impl Fn(&NetworkRecord) -> bool) -> Vec<String> {
        let candidates: Vec<NetworkRecord> = self
            .state()
            .values()
            .filter(|network| network.members.is_empty() && !network.record.is_predefined())
            .map(|network| network.record.clone())
            .filter(|record| matches(record))
            .collect();
        let removed = candidates
            .into_iter()
            .filter(|record| self.remove(&record.id).is_ok())
            .map(|record| record.name)
            .collect();
        let attributes = [("reclaimed".to_owned(), "0".to_owned())].into();
        self.events
            .publish("network", "prune", String::new(), attributes);
        removed
    }
}
