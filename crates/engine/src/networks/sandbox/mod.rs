//! Sandboxes: network namespaces with their endpoints and published ports.
//!
//! ```text
//!            attach                              detach
//! described ────────► namespace, endpoints, ports ────► nothing
//!                        ▲ connect, disconnect, adopt (by the next engine)
//! ```
//! A sandbox is not a container: it is described by a [`SandboxConfig`], and its state, a
//! [`Sandbox`], is returned to whoever asked for it. Containers describe theirs by their settings and
//! keep the state in their records, so that the next engine can take it over. The namespace belongs
//! to the processes inside, not to the engine.

mod addresses;
mod adopt;
mod attach;
mod connect;
mod interfaces;
mod members;
mod ports;
mod resolver;
mod routes;

use std::collections::BTreeMap;
use std::net::IpAddr;

use whelk_network::port::{HostPortRequest, Owner, PortMapping};

pub use connect::ConnectRequest;
pub(super) use interfaces::FIRST_INTERFACE;
pub(crate) use members::split_link;
pub(crate) use resolver::{host_resolver, resolved_servers, uses_resolver};

use super::{Endpoint, NetworkRecord};
use crate::model::NetworkMode;

/// Describes a sandbox, except for its endpoints.
#[derive(Clone, Debug, Default)]
pub struct SandboxConfig {
    /// The id of what it is for, such as a container. Other sandboxes never have the same.
    pub id: String,
    /// The name of what it is for: its DNS name in its networks, also used in messages.
    pub name: String,
    pub hostname: String,
    /// Decides whether it has a namespace of its own, and which network has the first interface.
    pub mode: NetworkMode,
    /// Aliases that only its own DNS server resolves, in all of its networks: `CONTAINER[:ALIAS]`.
    pub links: Vec<String>,
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
    fn has_ipv6(&self, network: &NetworkRecord, endpoint: &Endpoint) -> bool {
        network.enable_ipv6 && !self.lacks_ipv6 && !super::settings::disables_ipv6(endpoint)
    }
}

impl Sandbox {
    /// Returns the endpoints that exist on the host, with their networks' names.
    fn active(&self) -> impl Iterator<Item = (&String, &Endpoint)> {
        self.endpoints
            .iter()
            .filter(|(_, endpoint)| !endpoint.endpoint_id.is_empty())
    }

    fn active_mut(&mut self) -> impl Iterator<Item = &mut Endpoint> {
        self.endpoints
            .values_mut()
            .filter(|endpoint| !endpoint.endpoint_id.is_empty())
    }
}
