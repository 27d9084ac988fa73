//! Containers' endpoints: connect, disconnect, and the endpoints of a new container.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Container, Containers, files};
use crate::error::{Error, Result};
use crate::model::{Config, ContainerRecord, HostConfig};
use crate::networks::{ConnectRequest, Endpoint, Networks, check_endpoint, parse_mac};

impl Containers {
    /// Returns a new container's endpoints: those requested, or else one in the network that its
    /// mode names.
    pub(super) fn resolve_endpoints(
        &self,
        config: &Config,
        host: &mut HostConfig,
        wanted: BTreeMap<String, Endpoint>,
    ) -> Result<BTreeMap<String, Endpoint>> {
        let asked = host.network_mode.to_string();
        self.resolve_donors(host)?;
        self.resolve_links(host)?;
        let mode = host.network_mode.to_string();
        let own = host.network_mode.has_own_networks();
        let mut endpoints = BTreeMap::new();
        for (name, endpoint) in wanted {
            let endpoint = endpoint.requested();
            let name = if name == "default" {
                "bridge".to_owned()
            } else {
                name
            };
            // A network that does not exist yet may be created before the start.
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
            endpoints.insert(name, endpoint);
        }
        let Some(first) = host.network_mode.network() else {
            let has_mac = |endpoint: &Endpoint| !endpoint.mac_address.is_empty();
            if !config.mac_address.is_empty() || endpoints.values().any(has_mac) {
                return Err(Error::invalid(
                    "conflicting options: mac-address and the network mode",
                ));
            }
            return Ok(BTreeMap::new());
        };
        // The endpoint is stored under the network's name even if the mode gives its id: `inspect`
        // matches the two by name.
        let first = self
            .networks
            .find(first)
            .map_or_else(|_| first.to_owned(), |network| network.name);
        if endpoints.is_empty() {
            endpoints.insert(first.clone(), Endpoint::default());
        }
        if let Some(endpoint) = endpoints.get_mut(&first)
            && endpoint.wanted_mac.is_empty()
            && !config.mac_address.is_empty()
        {
            parse_mac(&config.mac_address)?;
            endpoint.wanted_mac.clone_from(&config.mac_address);
            endpoint.mac_address.clone_from(&config.mac_address);
        }
        Ok(endpoints)
    }

    /// Connects a container to a network.
    ///
    /// # Errors
    /// Returns an error if the container is connected already, or if its mode allows no networks.
    pub async fn connect(self: &Arc<Self>, network: &str, request: ConnectRequest) -> Result<()> {
        let network = self.networks.find(network)?.id;
        let ConnectRequest {
            container,
            endpoint,
        } = request;
        let connected = network.clone();
        self.change_networks(
            &container,
            move |networks, record| networks.connect(record, &network, endpoint.requested()),
            move |networks, record| networks.disconnect(record, &connected),
        )
        .await
    }

    /// Disconnects a container from a network. With `force` and a network that does not exist the
    /// error says that the container is not connected.
    ///
    /// # Errors
    /// Returns an error if there is no such container or network, or if they are not connected.
    pub async fn disconnect(
        self: &Arc<Self>,
        network: &str,
        container: &str,
        force: bool,
    ) -> Result<()> {
        match self.networks.find(network) {
            Ok(network) => {
                self.change_networks(
                    container,
                    move |networks, record| networks.disconnect(record, &network.id),
                    stay_disconnected,
                )
                .await
            }
            Err(error) => {
                // The network was removed while the container was stopped: only the record's
                // endpoint is left to remove.
                let network = network.to_owned();
                let forget = move |_: &Networks, record: &mut ContainerRecord| {
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
                };
                self.change_networks(container, forget, stay_disconnected)
                    .await
            }
        }
    }

    /// Applies `change` to a copy of a container's record, copies endpoints and ports back, updates
    /// the files of a running container, and saves. If the files or the store fail, `undo` is
    /// applied in the same way.
    async fn change_networks(
        self: &Arc<Self>,
        name: &str,
        change: impl FnOnce(&Networks, &mut ContainerRecord) -> Result<()> + Send + 'static,
        undo: impl FnOnce(&Networks, &mut ContainerRecord) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let locked = self.find(name)?;
        let _operation = locked.lock_operation(name).await?;
        let (containers, container) = (self.clone(), locked.clone());
        tokio::task::spawn_blocking(move || {
            // If the container ends meanwhile its endpoints are released after this.
            let _networking = container.networking();
            let before = container.record().clone();
            let linked = files::links(&before, &containers);
            let mut record = before.clone();
            let changed = change(&containers.networks, &mut record);
            let kept = containers.keep_networks(&container, &record, &before, &linked);
            if changed.is_ok() && kept.is_err() {
                let undone = undo(&containers.networks, &mut record)
                    .and_then(|()| containers.keep_networks(&container, &record, &before, &linked));
                if let Err(error) = undone {
                    tracing::warn!("undo the change of networks of {}: {error}", before.id);
                }
            }
            changed.and(kept)
        })
        .await
        .map_err(|error| Error::internal(error.to_string()))?
    }

    /// Copies the endpoints and ports of `record` to the container's record, updates the files if it
    /// runs, and saves.
    fn keep_networks(
        &self,
        container: &Arc<Container>,
        record: &ContainerRecord,
        before: &ContainerRecord,
        linked: &[files::Link],
    ) -> Result<()> {
        let is_running = {
            let mut current = container.record();
            current.networks = record.networks.clone();
            current.ports = record.ports.clone();
            current.state.status.is_running()
        };
        let updated = if is_running {
            files::update(container, before, linked, self)
        } else {
            Ok(())
        };
        self.save_with_copy(container).and(updated)
    }
}

/// There is no way back from a disconnect: the address may be another container's already.
fn stay_disconnected(_: &Networks, _: &mut ContainerRecord) -> Result<()> {
    Ok(())
}
