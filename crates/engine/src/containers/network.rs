//! Containers' endpoints: connect, disconnect, and the endpoints of a new container.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Container, Containers, files};
use crate::error::{Error, Result};
use crate::model::{Config, ContainerRecord, HostConfig};
use crate::networks::{
    ConnectRequest, Endpoint, EndpointRequest, Sandbox, SandboxConfig, check_endpoint, parse_mac,
};
use crate::rollback::Errors;

impl Containers {
    /// Returns a new container's endpoints: those requested, or else one in the network that its
    /// mode names.
    pub(super) fn resolve_endpoints(
        &self,
        config: &Config,
        host: &mut HostConfig,
        wanted: BTreeMap<String, EndpointRequest>,
    ) -> Result<BTreeMap<String, Endpoint>> {
        let asked = host.network_mode.to_string();
        // A mode that has no links is refused before the container that it names is looked for.
        self.resolve_links(host)?;
        self.resolve_donors(host)?;
        let mode = host.network_mode.to_string();
        let own = host.network_mode.has_own_networks();
        let mut endpoints = BTreeMap::new();
        for (name, endpoint) in wanted {
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
            let has_mac = |endpoint: &EndpointRequest| !endpoint.mac_address.is_empty();
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
            endpoints.insert(first.clone(), EndpointRequest::default());
        }
        if let Some(endpoint) = endpoints.get_mut(&first)
            && endpoint.mac_address.is_empty()
            && !config.mac_address.is_empty()
        {
            parse_mac(&config.mac_address)?;
            endpoint.mac_address.clone_from(&config.mac_address);
        }
        let endpoints = endpoints.into_iter();
        Ok(endpoints
            .map(|(name, requested)| (name, requested.into()))
            .collect())
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
        let (sandboxes, undoing) = (self.sandboxes.clone(), self.sandboxes.clone());
        let connected = network.clone();
        let connect = move |of: &Owner, sandbox: &mut Sandbox| {
            sandboxes.connect(&of.config, of.process, sandbox, &network, endpoint)
        };
        let disconnect = move |of: &Owner, sandbox: &mut Sandbox| {
            undoing.disconnect(&of.config, of.process, sandbox, &connected)
        };
        self.change_networks(&container, connect, Some(disconnect))
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
                let sandboxes = self.sandboxes.clone();
                let disconnect = move |of: &Owner, sandbox: &mut Sandbox| {
                    sandboxes.disconnect(&of.config, of.process, sandbox, &network.id)
                };
                self.change_networks(container, disconnect, NO_UNDO).await
            }
            Err(error) => {
                // The network was removed while the container was stopped: only the record's
                // endpoint is left to remove.
                let network = network.to_owned();
                let forget = move |of: &Owner, sandbox: &mut Sandbox| {
                    let place = sandbox
                        .endpoints
                        .iter()
                        .find(|(name, place)| **name == network || place.network_id == network);
                    match place.map(|(name, place)| (name.clone(), place.assigned.is_none())) {
                        Some((name, true)) => {
                            sandbox.endpoints.remove(&name);
                            Ok(())
                        }
                        _ if force => Err(Error::internal(format!(
                            "container {} is not connected to the network {network}",
                            of.config.id
                        ))),
                        _ => Err(error),
                    }
                };
                self.change_networks(container, forget, NO_UNDO).await
            }
        }
    }

    /// Changes a container's networks, and carries that on to its end even if this future is
    /// dropped.
    async fn change_networks(
        self: &Arc<Self>,
        name: &str,
        change: impl FnOnce(&Owner, &mut Sandbox) -> Result<()> + Send + 'static,
        undo: Option<impl FnOnce(&Owner, &mut Sandbox) -> Result<()> + Send + 'static>,
    ) -> Result<()> {
        let container = self.find(name)?;
        let operation = container.lock_operation(name).await?;
        let containers = self.clone();
        tokio::task::spawn_blocking(move || {
            let _operation = operation;
            // If the container ends meanwhile its endpoints are released after this.
            let _networking = container.networking();
            let record = container.record().clone();
            let owner = Owner {
                config: SandboxConfig::of(&record),
                process: record.state.status.is_running().then_some(record.state.pid),
            };
            let linked = files::links(&record, &containers);
            let sandbox = Sandbox::of(&record);
            let mut target = OnHost {
                containers: &containers,
                container: &container,
                written: record,
                linked,
            };
            let change = |sandbox: &mut Sandbox| change(&owner, sandbox);
            let undo = undo.map(|undo| |sandbox: &mut Sandbox| undo(&owner, sandbox));
            apply(&container.id, &mut target, sandbox, change, undo)
        })
        .await
        .map_err(|error| Error::internal(error.to_string()))?
    }
}

/// The container whose sandbox is changed.
struct Owner {
    config: SandboxConfig,
    /// The container's process, if it runs.
    process: Option<i32>,
}

/// The undo of a disconnect, which has none: the address may belong to another container already.
const NO_UNDO: Option<fn(&Owner, &mut Sandbox) -> Result<()>> = None;

/// Where the state of a container's sandbox is kept.
trait Kept {
    /// Copies the state to the container's record, and saves that.
    fn save(&mut self, sandbox: &Sandbox) -> Result<()>;

    /// Updates the files of the container, if it runs, after [`Kept::save`].
    fn update_files(&mut self) -> Result<()>;
}

/// Applies `change` to the sandbox of a container and saves the resulting state, also after a
/// change that failed halfway. If the state cannot be saved, the change is undone, and the state
/// saved again.
///
/// # Errors
/// Returns the errors of the change and of saving the state; those of the undo are logged. If the
/// change has no undo and only the container's files cannot be updated, that is logged, too.
fn apply(
    container: &str,
    kept: &mut impl Kept,
    mut sandbox: Sandbox,
    change: impl FnOnce(&mut Sandbox) -> Result<()>,
    undo: Option<impl FnOnce(&mut Sandbox) -> Result<()>>,
) -> Result<()> {
    let changed = change(&mut sandbox);
    let is_changed = changed.is_ok();
    let mut errors = Errors::default();
    errors.keep(changed);
    errors.keep(kept.save(&sandbox));
    match kept.update_files() {
        Err(error) if is_changed && undo.is_none() => {
            tracing::warn!(container, "update its files: {error}");
        }
        updated => errors.keep(updated),
    }
    let outcome = errors.into_result();
    if let Some(undo) = undo.filter(|_| is_changed && outcome.is_err()) {
        let mut errors = Errors::default();
        errors.keep(undo(&mut sandbox));
        errors.keep(kept.save(&sandbox));
        errors.keep(kept.update_files());
        if let Err(error) = errors.into_result() {
            tracing::warn!(container, "undo the change of its networks: {error}");
        }
    }
    outcome
}

/// The record of a container, and its files.
struct OnHost<'a> {
    containers: &'a Containers,
    container: &'a Container,
    /// The record and the links for which the files were last updated.
    written: ContainerRecord,
    linked: Vec<files::Link>,
}

impl Kept for OnHost<'_> {
    fn save(&mut self, sandbox: &Sandbox) -> Result<()> {
        self.container.keep_sandbox(sandbox.clone());
        self.containers.save_with_copy(self.container)
    }

    fn update_files(&mut self) -> Result<()> {
        let record = self.container.record().clone();
        if !record.state.status.is_running() {
            return Ok(());
        }
        let linked = files::links(&record, self.containers);
        let updated = files::update(self.container, &self.written, &self.linked, self.containers);
        // Even if it has failed: the lines of this record may be in the files.
        (self.written, self.linked) = (record, linked);
        updated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records what is done, and fails at some of it.
    struct Log {
        done: Vec<String>,
        failing: &'static [&'static str],
    }

    impl Log {
        fn step(&mut self, what: &str) -> Result<()> {
            self.done.push(what.to_owned());
            let nth = self.done.iter().filter(|done| *done == what).count();
            let fails = self.failing.contains(&format!("{what}{nth}").as_str());
            if fails {
                return Err(Error::conflict(format!("no {what}")));
            }
            Ok(())
        }
    }

    impl Kept for Log {
        fn save(&mut self, sandbox: &Sandbox) -> Result<()> {
            let names: Vec<&str> = sandbox.endpoints.keys().map(String::as_str).collect();
            self.step(&format!("save:{}", names.join(",")))
        }

        fn update_files(&mut self) -> Result<()> {
            self.step("files")
        }
    }

    /// Moves a sandbox from the network `old` to `new`.
    fn check(can_undo: bool, failing: &'static [&'static str], done: &str, error: &str) {
        let in_network = |name: &str| [(name.to_owned(), Endpoint::default())].into();
        let sandbox = Sandbox {
            endpoints: in_network("old"),
            ports: Vec::new(),
        };
        let to = |name: &'static str, step: &'static str| {
            move |sandbox: &mut Sandbox| {
                if failing.contains(&step) {
                    return Err(Error::conflict(format!("no {step}")));
                }
                sandbox.endpoints = in_network(name);
                Ok(())
            }
        };
        let mut log = Log {
            done: Vec::new(),
            failing,
        };
        let undo = can_undo.then(|| to("old", "undo"));
        let outcome = apply("one", &mut log, sandbox, to("new", "change"), undo);
        let said = outcome.map_or_else(|error| error.to_string(), |()| String::new());
        assert_eq!((log.done.join(" ").as_str(), said.as_str()), (done, error));
    }

    #[test]
    fn a_change_is_kept_or_undone_as_a_whole() {
        check(true, &[], "save:new files", "");
        check(
            true,
            &["change", "save:old1", "files1"],
            "save:old files",
            "no change; no save:old; no files",
        );
        for failing in [&["save:new1"][..], &["files1"]] {
            let error = if failing == ["files1"] {
                "no files"
            } else {
                "no save:new"
            };
            check(true, failing, "save:new files save:old files", error);
        }
        // The state after an undo that failed is saved too.
        check(
            true,
            &["files1", "undo"],
            "save:new files save:new files",
            "no files",
        );
    }

    #[test]
    fn a_disconnect_is_done_without_its_files_but_not_without_its_record() {
        check(false, &["files1"], "save:new files", "");
        check(false, &["save:new1"], "save:new files", "no save:new");
        check(
            false,
            &["change", "files1"],
            "save:old files",
            "no change; no files",
        );
    }
}
