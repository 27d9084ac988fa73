//! What containers have to do with networks.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Containers, files};
use crate::error::{Error, Result};
use crate::model::{Config, HostConfig, Record};
use crate::networks::{
    ConnectRequest, Endpoint, Networks, check_endpoint, has_own_networks, parse_mac,
};

impl Containers {
    /// A new container's places in networks: those that it asks for, or else the one that its mode
    /// names.
    pub(super) fn place(
        &self,
        config: &Config,
        host: &mut HostConfig,
        wanted: BTreeMap<String, Endpoint>,
    ) -> Result<BTreeMap<String, Endpoint>> {
        let asked = host.network_mode.clone();
        self.resolve_donors(host)?;
        self.resolve_links(host)?;
        let mode = host.network_mode.clone();
        let own = has_own_networks(&mode);
        let mut places = BTreeMap::new();
        for (name, endpoint) in wanted {
            let endpoint = endpoint.requested();
            let name = if name == "default" {
                "bridge".to_owned()
            } else {
                name
            };
            // One that is not there yet may be made before the start.
            let network = self.networks.find(&name).ok();
            let name = network
                .as_ref()
                .map_or(name, |network| network.name.clone());
            check_endpoint(&name, network.as_ref(), &endpoint)
                .map_err(|error| error.prefixed(&format!("invalid config for network {name}")))?;
            if name != asked && name != mode && !own {
                return Err(Error::invalid(format!(
                    "conflicting options: cannot attach both user-defined and non-user-defined network-modes ({asked} and {name})"
                )));
            }
            places.insert(name, endpoint);
        }
        if mode.starts_with("container:") {
            let has_mac = |endpoint: &Endpoint| !endpoint.mac_address.is_empty();
            if !config.mac_address.is_empty() || places.values().any(has_mac) {
                return Err(Error::invalid(
                    "conflicting options: mac-address and the network mode",
                ));
            }
            return Ok(BTreeMap::new());
        }
        // By name, however it was called: the mode is what `inspect` shows and what links the two.
        let first = self
            .networks
            .find(&mode)
            .map_or(mode, |network| network.name);
        if places.is_empty() {
            places.insert(first.clone(), Endpoint::default());
        }
        if let Some(endpoint) = places.get_mut(&first)
            && endpoint.wanted_mac.is_empty()
            && !config.mac_address.is_empty()
        {
            parse_mac(&config.mac_address)?;
            endpoint.wanted_mac.clone_from(&config.mac_address);
            endpoint.mac_address.clone_from(&config.mac_address);
        }
        Ok(places)
    }

    /// # Errors
    /// A container that is in the network already, or that has no networks of its own.
    pub async fn connect(self: &Arc<Self>, network: &str, request: ConnectRequest) -> Result<()> {
        let network = self.networks.find(network)?.id;
        let ConnectRequest {
            container,
            endpoint,
        } = request;
        self.change_networks(&container, move |networks, record| {
            networks.connect(record, &network, endpoint.requested())
        })
        .await
    }

    /// With `force`, an error says that the container has no place in the network even where there
    /// is no such network.
    ///
    /// # Errors
    /// A container that is not there, or not in the network.
    pub async fn disconnect(
        self: &Arc<Self>,
        network: &str,
        container: &str,
        force: bool,
    ) -> Result<()> {
        match self.networks.find(network) {
            Ok(network) => {
                self.change_networks(container, move |networks, record| {
                    networks.disconnect(record, &network.id)
                })
                .await
            }
            Err(error) => {
                // The network was removed while the container was stopped: only the record's
                // endpoint is left to remove.
                let network = network.to_owned();
                self.change_networks(container, move |_, record| {
                    let place = record
                        .networks
                        .iter()
                        .find(|(name, place)| **name == network || place.network_id == network);
                    match place.map(|(name, place)| (name.clone(), place.endpoint_id.is_empty())) {
                        Some((name, true)) => {
                            record.networks.remove(&name);
                            Ok(())
                        }
                        _ if force => Err(Error::internal(format!(
                            "container {} is not connected to the network {network}",
                            record.id
                        ))),
                        _ => Err(error),
                    }
                })
                .await
            }
        }
    }

    /// The names of all networks that containers are in, running or not.
    pub fn networks_in_use(&self) -> std::collections::HashSet<String> {
        self.all()
            .iter()
            .flat_map(|container| {
                container
                    .record()
                    .networks
                    .keys()
                    .cloned()
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    async fn change_networks(
        self: &Arc<Self>,
        name: &str,
        change: impl FnOnce(&Networks, &mut Record) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let container = self.find(name)?;
        let _operation = container.turn(name).await?;
        let (containers, changed) = (self.clone(), container.clone());
        let outcome = tokio::task::spawn_blocking(move || {
            // A container that ends meanwhile gives its places back behind this.
            let _networking = changed.networking();
            let before = changed.record().clone();
            let linked = files::links(&before, &containers);
            let mut record = before.clone();
            let outcome = change(&containers.networks, &mut record);
            let is_running = {
                let mut current = changed.record();
                current.networks = record.networks;
                current.ports = record.ports;
                current.state.status.is_running()
            };
            if is_running {
                outcome.and_then(|()| files::update(&changed, &before, &linked, &containers))
            } else {
                outcome
            }
        })
        .await
        .map_err(|error| Error::internal(error.to_string()))?;
        self.save_with_copy(&container)?;
        outcome
    }
}
