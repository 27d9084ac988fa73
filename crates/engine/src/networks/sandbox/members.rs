//! Containers as members of networks: what the others of a network know about them.

use std::collections::HashSet;

use crate::model::ContainerRecord;
use crate::networks::{Endpoint, Member, Networks};

impl Networks {
    /// Adds a container to a network's members.
    pub(super) fn add_member(&self, container: &ContainerRecord, endpoint: &Endpoint) {
        if let Some(network) = self.state_mut().get_mut(&endpoint.network_id) {
            network
                .members
                .insert(container.id.clone(), member(container, endpoint));
        }
    }

    /// Updates the container's name and DNS names after a rename.
    pub fn rename(&self, record: &mut ContainerRecord) {
        self.ports.rename(&record.id, &record.name);
        let mut networks = std::mem::take(&mut record.networks);
        for endpoint in networks
            .values_mut()
            .filter(|endpoint| !endpoint.endpoint_id.is_empty())
        {
            endpoint.dns_names = endpoint
                .dns_names
                .is_some()
                .then(|| names_of(record, endpoint));
            if let Some(network) = self.state_mut().get_mut(&endpoint.network_id)
                && network.members.contains_key(&record.id)
            {
                network
                    .members
                    .insert(record.id.clone(), member(record, endpoint));
            }
        }
        record.networks = networks;
    }
}

/// Returns a container's DNS names in a user-defined network.
pub(super) fn names_of(container: &ContainerRecord, endpoint: &Endpoint) -> Vec<String> {
    let short: String = container.id.chars().take(12).collect();
    let mut known = HashSet::new();
    let names = [&container.name]
        .into_iter()
        .chain(endpoint.aliases.iter().flatten())
        .chain([&short, &container.config.hostname]);
    names
        .filter(|name| !name.is_empty() && known.insert(*name))
        .cloned()
        .collect()
}

pub(super) fn member(container: &ContainerRecord, endpoint: &Endpoint) -> Member {
    Member {
        name: container.name.clone(),
        endpoint_id: endpoint.endpoint_id.clone(),
        mac: endpoint.mac_address.clone(),
        addresses: endpoint.nets(),
        names: endpoint
            .dns_names
            .iter()
            .flatten()
            .map(|name| name.to_ascii_lowercase())
            .collect(),
        links: container
            .host
            .links
            .iter()
            .chain(&endpoint.links)
            .flatten()
            .map(|link| split_link(link))
            .map(|(target, alias)| (target, alias.to_ascii_lowercase()))
            .collect(),
    }
}

/// Splits `container[:alias]`.
pub(crate) fn split_link(link: &str) -> (String, String) {
    let (target, alias) = link.split_once(':').unwrap_or((link, link));
    (
        target.trim_start_matches('/').to_owned(),
        alias.rsplit('/').next().unwrap_or(alias).to_owned(),
    )
}
