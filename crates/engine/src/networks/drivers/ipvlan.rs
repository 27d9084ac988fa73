//! The `ipvlan` driver: interfaces that share the hardware address of a parent interface.

use whelk_network::Peer;

use super::{Facts, Gateway, Inner, Joining, NetworkDriver, parent};
use crate::error::{Error, Result};
use crate::networks::create::check_interface_name;
use crate::networks::model::{Assigned, NetworkRecord, option};
use crate::networks::settings::mac_of;
use crate::networks::stack::HostStack;

#[derive(Debug)]
pub(super) struct Ipvlan;

impl NetworkDriver for Ipvlan {
    fn facts(&self) -> Facts {
        Facts {
            joining: Joining::Interface,
            only: None,
            host_routes: false,
            parents_mac: true,
            warm: false,
        }
    }

    fn check_option(&self, key: &str, value: &str) -> Result<bool> {
        match key {
            option::PARENT => check_interface_name(value)?,
            option::IPVLAN_MODE => drop(mode(value)?),
            option::IPVLAN_FLAG => drop(flag(value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn plan(
        &self,
        stack: &HostStack,
        network: &mut NetworkRecord,
        others: &[NetworkRecord],
    ) -> Result<()> {
        network.made_parent = parent::is_made(stack, network, others)?;
        Ok(())
    }

    fn gateway(&self, network: &NetworkRecord, _ipv4: bool) -> Gateway {
        let is_l3 = network
            .option(option::IPVLAN_MODE)
            .is_some_and(|mode| mode.starts_with("l3"));
        match (network.internal, is_l3) {
            (true, _) => Gateway::None,
            (false, true) => Gateway::Interface,
            (false, false) => Gateway::Address,
        }
    }

    fn create(&self, stack: &HostStack, network: &NetworkRecord) -> Result<()> {
        parent::ensure(stack, network).map(drop)
    }

    fn remove(
        &self,
        stack: &HostStack,
        network: &NetworkRecord,
        others: &[NetworkRecord],
    ) -> Result<()> {
        parent::delete(stack, network, others)
    }

    fn attach(
        &self,
        stack: &HostStack,
        network: &NetworkRecord,
        endpoint: &mut Assigned,
        inner: Inner<'_>,
    ) -> Result<()> {
        let mode = mode(network.option(option::IPVLAN_MODE).unwrap_or("l2"))?;
        let flag = flag(network.option(option::IPVLAN_FLAG).unwrap_or("bridge"))?;
        let peer = Peer {
            name: &endpoint.interface,
            mac: mac_of(endpoint)?,
            namespace: inner.namespace()?,
        };
        let parent = parent::ensure(stack, network)?;
        stack
            .links()
            .create_ipvlan(parent, (mode, flag), network.mtu(), peer)?;
        // The interface has its parent's hardware address.
        endpoint.mac_address.clear();
        Ok(())
    }
}

/// Returns the `IPVLAN_MODE_*` value (`linux/if_link.h`) of a mode.
fn mode(mode: &str) -> Result<u16> {
    match mode {
        "l2" => Ok(0),
        "l3" => Ok(1),
        "l3s" => Ok(2),
        other => Err(Error::invalid(format!(
            "requested ipvlan mode '{other}' is not valid, 'l2' mode is the ipvlan driver default"
        ))),
    }
}

/// Returns the `IPVLAN_F_*` value of a flag.
fn flag(flag: &str) -> Result<u16> {
    match flag {
        "bridge" => Ok(0),
        "private" => Ok(1),
        "vepa" => Ok(2),
        other => Err(Error::invalid(format!(
            "requested ipvlan flag '{other}' is not valid, 'bridge' is the ipvlan driver default"
        ))),
    }
}
