//! Interfaces inside network namespaces.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use whelk_network::Links;
use whelk_network::namespace::{Interface, Ipv6Mode};
use whelk_sys::fs;

use super::{SandboxConfig, Sandboxes};
use crate::error::{Error, Result};
use crate::networks::drivers::Inner;
use crate::networks::model::Assigned;
use crate::networks::settings::{mac_of, sysctls};
use crate::networks::stack::set_sysctl;
use crate::networks::{Endpoint, NetworkRecord};
use crate::random_names::random_id;

/// The name of a container's first interface, unless options set another.
pub(super) const FIRST_INTERFACE: &str = "eth0";

impl Sandboxes {
    /// Creates an endpoint and its interface in a namespace with running processes. `others` are its
    /// other endpoints. Returns an rtnetlink socket in the namespace.
    pub(super) fn attach_endpoint_to_running(
        &self,
        config: &SandboxConfig,
        others: &BTreeMap<String, Endpoint>,
        network: &NetworkRecord,
        endpoint: &mut Endpoint,
        namespace: BorrowedFd<'_>,
    ) -> Result<Links> {
        let inner = (Inner::New(namespace), random_id());
        self.networks
            .attach_endpoint(config, others, network, endpoint, inner)?;
        let assigned = endpoint.assigned()?;
        let name = &assigned.interface;
        let settings: &[(&str, &str)] = if config.has_ipv6(network, &endpoint.requested) {
            &[("disable_ipv6", "0"), ("accept_ra", "0")]
        } else {
            &[("disable_ipv6", "1")]
        };
        let settings = settings
            .iter()
            .map(|(key, value)| (format!("net/ipv6/conf/{name}/{key}"), (*value).to_owned()));
        // The files do not exist if the kernel has no IPv6.
        set_sysctls(settings.collect(), namespace, true)?;
        set_sysctls(sysctls(&endpoint.requested, name)?, namespace, false)?;
        let mut links = Links::open_in(namespace)?;
        configure_interface(assigned, &mut links)?;
        Ok(links)
    }
}

/// Configures the inner end of a warm namespace's veth pair for a network and endpoint.
pub(super) fn configure_pooled(
    mut interface: Interface,
    network: &NetworkRecord,
    endpoint: &Assigned,
    links: &mut Links,
    ipv6: Ipv6Mode,
) -> Result<()> {
    interface.set_ipv6(ipv6)?;
    let name = Some(endpoint.interface.as_str()).filter(|name| *name != FIRST_INTERFACE);
    Ok(links.configure(interface.index, name, mac_of(endpoint)?, network.mtu())?)
}

/// Adds an endpoint's addresses to its interface and brings it up.
pub(super) fn configure_interface(endpoint: &Assigned, links: &mut Links) -> Result<()> {
    let name = endpoint.interface.as_str();
    let link = links.find(name)?.ok_or_else(|| {
        Error::internal(format!(
            "interface {name} is not in the container's namespace"
        ))
    })?;
    for address in endpoint.nets().chain(endpoint.link_local.iter().copied()) {
        links.add_address(link.index, address)?;
    }
    Ok(links.set_up(link.index)?)
}

/// Writes sysctls, as paths below `/proc/sys` and values, inside a namespace.
pub(super) fn set_sysctls(
    settings: Vec<(String, String)>,
    namespace: BorrowedFd<'_>,
    may_be_missing: bool,
) -> Result<()> {
    if settings.is_empty() {
        return Ok(());
    }
    within(namespace, move || {
        settings
            .iter()
            .try_for_each(|(path, value)| set_sysctl(path, value, may_be_missing))
    })
}

/// Calls `work` on a thread in this namespace.
pub(in crate::networks) fn within(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    whelk_sys::net::within(namespace, work).map_err(|error| {
        Error::internal(format!(
            "enter the container's network namespace: {}",
            whelk_sys::errno_text(&error)
        ))
    })?
}

/// Opens the network namespace of a process.
///
/// # Errors
/// Returns an error if it is the engine's own namespace: the process id was reused.
pub(super) fn open_namespace(pid: i32) -> Result<OwnedFd> {
    use std::os::unix::fs::MetadataExt;
    let inode = |file: &std::fs::File| {
        file.metadata()
            .map(|found| found.ino())
            .map_err(fs::at("stat", "a network namespace"))
    };
    let namespace = fs::open(format!("/proc/{pid}/ns/net"))?;
    if inode(&namespace)? == inode(&fs::open("/proc/self/ns/net")?)? {
        return Err(Error::internal(format!(
            "process {pid} is not in a network namespace of its own"
        )));
    }
    Ok(namespace.into())
}
