//! The parent interfaces of macvlan and ipvlan networks.
//!
//! The option `parent` names an interface of the host; one such as `eth0.10` that does not exist is
//! created as a VLAN of `eth0`, and deleted with the last network that uses it. A network without
//! the option has a dummy interface as its parent, so that it connects only its own containers.

use crate::error::{Error, Result};
use crate::networks::model::{NetworkRecord, option};
use crate::networks::stack::HostStack;

/// Returns whether the engine creates the parent interface of a new network, or has created it for
/// one of the `others`.
pub(super) fn is_made(
    stack: &HostStack,
    network: &NetworkRecord,
    others: &[NetworkRecord],
) -> Result<bool> {
    let Some(parent) = network.option(option::PARENT) else {
        return Ok(false);
    };
    let made_before = others
        .iter()
        .any(|other| other.made_parent && other.option(option::PARENT) == Some(parent));
    Ok(made_before || stack.links().find(parent)?.is_none())
}

/// Returns the index of a network's parent interface, which is created if it is missing.
pub(super) fn ensure(stack: &HostStack, network: &NetworkRecord) -> Result<u32> {
    let mut links = stack.links();
    let Some(parent) = network.option(option::PARENT) else {
        let name = stack.network_interface(network);
        return Ok(match links.find(&name)? {
            Some(link) => link.index,
            None => links.create_dummy(&name)?,
        });
    };
    if let Some(link) = links.find(parent)? {
        return Ok(link.index);
    }
    let missing = || {
        Error::invalid(format!(
            "invalid subinterface vlan name {parent}, example formatting is eth0.10"
        ))
    };
    let (base, vlan) = parent.rsplit_once('.').ok_or_else(missing)?;
    let vlan: u16 = vlan
        .parse()
        .ok()
        .filter(|vlan| (1..4095).contains(vlan))
        .ok_or_else(missing)?;
    let base = links.find(base)?.ok_or_else(|| {
        Error::NotFound(format!(
            "the parent interface {base} was not found on the host"
        ))
    })?;
    Ok(links.create_vlan(parent, base.index, vlan)?)
}

/// Deletes a network's parent interface if the engine has created it and none of the `others` uses
/// it.
pub(super) fn delete(
    stack: &HostStack,
    network: &NetworkRecord,
    others: &[NetworkRecord],
) -> Result<()> {
    let Some(parent) = network.option(option::PARENT) else {
        let name = stack.network_interface(network);
        return Ok(stack.links().delete(&name)?);
    };
    let in_use = others
        .iter()
        .any(|other| other.option(option::PARENT) == Some(parent));
    if network.made_parent && !in_use {
        stack.links().delete(parent)?;
    }
    Ok(())
}
