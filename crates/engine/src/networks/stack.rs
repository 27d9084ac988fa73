//! The host's side of an instance's networks: its sockets to the kernel, its firewall tables, and
//! the names of its interfaces.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;
use whelk_image::Digest;
use whelk_network::{Firewall, Link, Links, MAX_INTERFACE_NAME, SenderRules};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use super::model::{NetworkRecord, option};
use crate::error::Result;
use crate::instance::Instance;

/// What the drivers of an instance's networks share.
#[derive(Debug)]
pub(super) struct HostStack {
    pub(super) instance: Instance,
    pub(super) firewall: Firewall,
    links: Mutex<Links>,
    /// Interfaces of ended containers that are yet to be deleted, with their firewall elements.
    pending_removal: Mutex<Vec<SenderRules>>,
    /// Wakes maintenance early: a warm namespace was taken, or an interface is to be deleted.
    pub(super) maintenance: Notify,
}

impl HostStack {
    /// Opens the sockets in the calling thread's network namespace.
    pub(super) fn open(instance: &Instance) -> Result<Self> {
        Ok(Self {
            instance: instance.clone(),
            firewall: Firewall::new(&instance.name)?,
            links: Mutex::new(Links::open()?),
            pending_removal: Mutex::default(),
            maintenance: Notify::new(),
        })
    }

    pub(super) fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().ignore_poison()
    }

    /// Returns an interface name: the instance's prefix, a mark for the kind, and leading digits of
    /// the object's id.
    fn interface(&self, mark: char, id: &str) -> String {
        let prefix = prefix(&self.instance);
        format!(
            "{prefix}{mark}{}",
            id.chars()
                .take(MAX_INTERFACE_NAME - prefix.len() - 1)
                .collect::<String>()
        )
    }

    /// Returns the name of a network's own interface on the host.
    pub(super) fn network_interface(&self, network: &NetworkRecord) -> String {
        match network.option(option::BRIDGE_NAME) {
            Some(name) => name.to_owned(),
            None => self.interface(BRIDGE, &network.id),
        }
    }

    /// Returns the name of the outer end of an endpoint's veth pair.
    pub(super) fn endpoint_interface(&self, endpoint_id: &str) -> String {
        self.interface(VETH, endpoint_id)
    }

    /// Leaves the deletion of an endpoint's interface and its firewall elements to maintenance,
    /// because it takes the kernel tens of milliseconds.
    pub(super) fn delete_later(&self, sender: SenderRules) {
        self.pending_removal().push(sender);
        self.maintenance.notify_one();
    }

    /// Deletes the interfaces that [`HostStack::delete_later`] was called for.
    pub(super) fn delete_pending_interfaces(&self) {
        let pending = std::mem::take(&mut *self.pending_removal());
        if pending.is_empty() {
            return;
        }
        // A separate socket, because others must not wait for `links`.
        let mut links = match Links::open() {
            Ok(links) => links,
            Err(error) => {
                tracing::warn!("{error}");
                return self.pending_removal().extend(pending);
            }
        };
        for sender in pending {
            // The interface before its rules: without them it could send spoofed packets.
            if let Err(error) = links
                .delete(&sender.interface)
                .and_then(|()| self.firewall.remove_sender(&sender))
            {
                tracing::warn!("{error}");
                self.pending_removal().push(sender);
            }
        }
    }

    /// Returns the names of these interfaces.
    pub(super) fn pending_interfaces(&self) -> HashSet<String> {
        let pending = self.pending_removal();
        pending
            .iter()
            .map(|sender| sender.interface.clone())
            .collect()
    }

    fn pending_removal(&self) -> MutexGuard<'_, Vec<SenderRules>> {
        self.pending_removal.lock().ignore_poison()
    }

    /// Deletes the interfaces with names that this instance gives, except `known` ones.
    pub(super) fn delete_stale_interfaces(&self, known: &HashSet<String>) -> Result<()> {
        let prefix = prefix(&self.instance);
        let mut links = self.links();
        for link in links.list()? {
            if is_ours(&prefix, &link.name) && !known.contains(&link.name) {
                links.delete(&link.name)?;
            }
        }
        Ok(())
    }

    /// Returns the pattern of the names of this instance's bridges.
    pub(super) fn bridge_pattern(&self) -> String {
        format!("{}{BRIDGE}*", prefix(&self.instance))
    }
}

/// The mark of interfaces that belong to networks.
const BRIDGE: char = '-';
/// The mark of interfaces that belong to endpoints.
const VETH: char = 'v';

/// Returns the prefix of an instance's interface names: the instance's name if it is short and
/// alphanumeric, else its beginning and a hash.
pub(super) fn prefix(instance: &Instance) -> String {
    const LONGEST: usize = 8;
    let name = &instance.name;
    if name.len() <= LONGEST && name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return name.clone();
    }
    let begin: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(LONGEST / 2)
        .collect();
    format!(
        "{begin}{}",
        &Digest::of(name.as_bytes()).hex()[..LONGEST / 2]
    )
}

/// Returns the name of the default network's bridge.
pub(super) fn default_bridge(instance: &Instance) -> String {
    format!("{}0", prefix(instance))
}

/// Returns whether an instance with this prefix could have given an interface this name.
pub(super) fn is_ours(prefix: &str, name: &str) -> bool {
    let digits = name
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix([BRIDGE, VETH]));
    name.len() == MAX_INTERFACE_NAME
        && digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Returns the alias of an interface, which names its owner: the instance, and the network's id (or
/// the purpose of a warm interface).
pub(super) fn alias(instance: &Instance, id: &str) -> String {
    format!("whelk {} {id}", instance.name)
}

/// Returns whether an interface is a bridge that this instance created, for any network.
pub(super) fn is_of_instance(instance: &Instance, link: &Link) -> bool {
    link.kind == "bridge" && link.alias.starts_with(&alias(instance, ""))
}

/// Writes a sysctl of the calling thread's network namespace. `key` is a path below `/proc/sys`.
pub(super) fn set_sysctl(key: &str, value: &str, may_be_missing: bool) -> Result<()> {
    set_sysctl_at(&Path::new("/proc/sys").join(key), value, may_be_missing)
}

pub(super) fn set_sysctl_at(path: &Path, value: &str, may_be_missing: bool) -> Result<()> {
    match fs::write(path, value) {
        Err(error) if may_be_missing && error.is_not_found() => Ok(()),
        result => Ok(result?),
    }
}
