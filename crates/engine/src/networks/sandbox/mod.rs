//! Sandboxes: network namespaces with their endpoints and published ports.
//!
//! ```text
//!            attach                              detach
//! described ────────► namespace, endpoints, ports ────► nothing
//!                        ▲ connect, disconnect, adopt (by the next engine)
//! ```
//! A sandbox is not a container: it is described by a [`SandboxConfig`], and its state, a
//! [`Sandbox`], is returned to whoever asked for it. Containers describe theirs by their settings and
//! keep the state in their records, so that the next engine can take it over; an [`OwnedSandbox`] has
//! no record. A namespace exists as long as it has processes, or until the engine that
//! holds it detaches its sandbox or ends: the next engine finds it by a process.

mod adopt;
mod attach;
mod connect;
mod interfaces;
mod owned;
mod ports;
mod resolver;
mod routes;
mod warm;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use whelk_network::port::{HostPortRequest, Owner, PortMapping, Ports};
use whelk_sys::sync::IgnorePoison as _;

pub use connect::ConnectRequest;
use interfaces::open_namespace;
pub(super) use interfaces::within;
pub use owned::OwnedSandbox;
use resolver::ResolverTask;
pub(crate) use resolver::{host_resolver, resolved_servers, uses_resolver};
use warm::WarmNamespaces;

use super::model::{Assigned, EndpointRequest};
use super::{Endpoint, NetworkRecord, Networks};
use crate::error::{Error, Result};
use crate::model::NetworkMode;

/// All sandboxes of an engine: their namespaces, published ports and DNS servers. Their endpoints
/// are members of the [`Networks`].
#[derive(Debug)]
pub struct Sandboxes {
    networks: Arc<Networks>,
    ports: Ports,
    warm: WarmNamespaces,
    /// Those with a namespace of their own, by their id.
    held: Mutex<HashMap<String, Held>>,
}

/// What the engine holds of a sandbox with a namespace of its own.
#[derive(Debug)]
struct Held {
    /// Held besides the processes inside: a process id could be that of another process by the time
    /// it is looked up.
    namespace: Arc<OwnedFd>,
    resolver: Option<ResolverTask>,
}

impl Sandboxes {
    pub fn new(networks: Arc<Networks>) -> Arc<Self> {
        Arc::new(Self {
            networks,
            ports: Ports::default(),
            warm: WarmNamespaces::default(),
            held: Mutex::default(),
        })
    }

    /// Holds the namespace of a sandbox until the sandbox is detached.
    fn hold(&self, id: &str, namespace: BorrowedFd<'_>) -> Result<Arc<OwnedFd>> {
        let cloned = namespace.try_clone_to_owned().map_err(|error| {
            let text = whelk_sys::errno_text(&error);
            Error::kernel(
                format!("hold the network namespace of {id}: {text}"),
                &error,
            )
        })?;
        Ok(self.hold_owned(id, cloned))
    }

    fn hold_owned(&self, id: &str, namespace: OwnedFd) -> Arc<OwnedFd> {
        let held = Held {
            namespace: Arc::new(namespace),
            resolver: None,
        };
        let namespace = held.namespace.clone();
        self.held.lock().ignore_poison().insert(id.to_owned(), held);
        namespace
    }

    /// Returns the namespace of a sandbox with processes. One that this engine has not created is
    /// found by `process`, which is one of these, and held from then on.
    ///
    /// # Errors
    /// Returns an error if the process has ended.
    fn namespace(&self, id: &str, process: i32) -> Result<Arc<OwnedFd>> {
        if let Some(held) = self.held.lock().ignore_poison().get(id) {
            return Ok(held.namespace.clone());
        }
        Ok(self.hold_owned(id, open_namespace(process)?))
    }

    /// Updates the name of a sandbox and its DNS names. `config` has the new name.
    pub fn rename(&self, config: &SandboxConfig, sandbox: &mut Sandbox) {
        self.ports.rename(&config.id, &config.name);
        for endpoint in sandbox.active_mut() {
            self.networks.rename_endpoint(config, endpoint);
        }
    }

    pub(super) fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Creates warm namespaces until there are enough.
    pub(super) fn refill(&self) {
        self.warm.refill(&self.networks.stack);
    }

    /// Returns whether [`Sandboxes::refill`] should be called at once.
    pub(super) fn is_low(&self) -> bool {
        self.warm.is_low()
    }
}

/// Describes a sandbox, except for its endpoints.
#[derive(Clone, Debug, Default)]
pub struct SandboxConfig {
    /// The id of its owner, such as a container's; unique among sandboxes.
    pub id: String,
    /// The name of its owner: its DNS name in its networks, also used in messages.
    pub name: String,
    pub hostname: String,
    /// Decides whether it has a namespace of its own, and which network has the first interface.
    pub mode: NetworkMode,
    /// The servers that its DNS server forwards to; if empty, the configuration's or the host's.
    pub dns: Vec<IpAddr>,
    /// Whether IPv6 is disabled in its namespace.
    pub lacks_ipv6: bool,
    pub ports: Vec<PortRequest>,
}

/// A request to publish one port of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRequest {
    pub container_port: u16,
    pub host: HostPortRequest,
}

/// The state of a sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    /// Its endpoints, by the network's name.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Its published ports.
    pub ports: Vec<PortMapping>,
}

impl SandboxConfig {
    fn owner(&self) -> Owner {
        Owner {
            id: self.id.clone(),
            name: self.name.clone(),
        }
    }

    /// Returns whether its endpoint in a network has IPv6.
    pub(super) fn has_ipv6(&self, network: &NetworkRecord, endpoint: &EndpointRequest) -> bool {
        network.enable_ipv6 && !self.lacks_ipv6 && !super::settings::disables_ipv6(endpoint)
    }
}

impl Sandbox {
    /// Returns the endpoints that are attached, with their networks' names.
    fn active(&self) -> impl Iterator<Item = (&String, &Endpoint, &Assigned)> {
        self.endpoints
            .iter()
            .filter_map(|(name, endpoint)| Some((name, endpoint, endpoint.assigned.as_ref()?)))
    }

    fn active_mut(&mut self) -> impl Iterator<Item = &mut Endpoint> {
        self.endpoints
            .values_mut()
            .filter(|endpoint| endpoint.assigned.is_some())
    }
}
