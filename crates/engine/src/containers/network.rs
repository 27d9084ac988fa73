//! What containers have to do with networks.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Containers;
use crate::error::{Error, Result};
use crate::model::{Config, HostConfig};
use crate::networks::{ConnectRequest, Endpoint, check_endpoint, has_own_networks, parse_mac};

impl Containers {
    /// A new container's places: the network of its mode first of all.
    pub(super) fn place(
        &self,
        config: &Config,
        host: &mut HostConfig,
        wanted: BTreeMap<String, Endpoint>,
    ) -> Result<BTreeMap<String, Endpoint>> {
        self.resolve_links(host)?;
        let mode = host.network_mode.clone();
        let own = has_own_networks(&mode);
        let mut places = BTreeMap::new();
        for (name, endpoint) in wanted {
            let endpoint = endpoint.requested();
            let name = if name == "default" { "bridge".to_owned() } else { name };
            if name != mode && !own {
                return Err(Error::invalid(format!(
                    "conflicting options: cannot attach both user-defined and non-user-defined network-modes ({mode} and {name})"
                )));
            }
            if !endpoint.mac_address.is_empty() {
                parse_mac(&endpoint.mac_address)?;
            }
            // One that is not there yet may be made before the start.
            let name = match self.networks.find(&name) {
                Ok(network) => {
                    if own {
                        check_endpoint(&network, &endpoint)?;
                    } else if endpoint
                        .ipam_config
                        .as_ref()
                        .is_some_and(|asked| !asked.ipv4_address.is_empty() || !asked.ipv6_address.is_empty())
                    {
                        return Err(Error::invalid("user specified IP address is supported on user defined networks only"));
                    }
                    network.name
                }
                Err(_) => name,
            };
            places.insert(name, endpoint);
        }
        if mode.starts_with("container:") {
            return Ok(BTreeMap::new());
        }
        // By name, however it was called: the mode is what `inspect` shows and what links the two.
        let first = match self.networks.find(&mode) {
            Ok(network) => network.name,
            Err(_) => mode,
        };
        let endpoint = places.entry(first).or_default();
        if endpoint.wanted_mac.is_empty() && !config.mac_address.is_empty() {
            parse_mac(&config.mac_address)?;
            endpoint.wanted_mac.clone_from(&config.mac_address);
            endpoint.mac_address.clone_from(&config.mac_address);
        }
        Ok(places)
    }

    /// # Errors
    /// A container that is in the network already, or that has no networks of its own.
    pub async fn connect(self: &Arc<Self>, network: &str, request: ConnectRequest) -> Result<()> {
        let ConnectRequest { container, endpoint } = request;
        self.change_networks(&container, network, move |networks, record, network| networks.connect(record, network, endpoint.requested()))
            .await
    }

    /// # Errors
    /// A container that is not there, or not in the network.
    pub async fn disconnect(self: &Arc<Self>, network: &str, container: &str) -> Result<()> {
        self.change_networks(container, network, |networks, record, network| networks.disconnect(record, network)).await
    }

    /// The names of all networks that containers are in, running or not.
    pub fn networks_in_use(&self) -> std::collections::HashSet<String> {
        self.all().iter().flat_map(|container| container.record().networks.keys().cloned().collect::<Vec<_>>()).collect()
    }

    async fn change_networks(
        self: &Arc<Self>,
        name: &str,
        network: &str,
        change: impl FnOnce(&crate::networks::Networks, &mut crate::model::Record, &str) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let network = self.networks.find(network)?.id;
        let container = self.find(name)?;
        let _operation = container.operation.lock().await;
        let (networks, changed) = (self.networks.clone(), container.clone());
        let outcome = tokio::task::spawn_blocking(move || {
            // A container that ends meanwhile gives its places back behind this.
            let _networking = changed.networking();
            let mut record = changed.record().clone();
            let outcome = change(&networks, &mut record, &network);
            let mut current = changed.record();
            current.networks = record.networks;
            current.ports = record.ports;
            outcome
        })
        .await
        .map_err(|error| Error::internal(error.to_string()))?;
        self.save_or_complain(&container);
        if outcome.is_ok() && container.status().is_running() {
            super::files::write_names(&self.instance.container_dir(&container.id), &container.record().clone(), self)?;
        }
        outcome
    }
}
