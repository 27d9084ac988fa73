//! The `macvlan` driver: interfaces with hardware addresses of their own on a parent interface.

use whelk_network::Peer;

use super::{Facts, Inner, Joining, NetworkDriver, parent};
use crate::error::{Error, Result};
use crate::networks::create::check_interface_name;
use crate::networks::model::{Assigned, NetworkRecord, option};
use crate::networks::settings::mac_of;
use crate::networks::stack::HostStack;

#[derive(Debug)]
pub(super) struct Macvlan;

impl NetworkDriver for Macvlan {
    fn facts(&self) -> Facts {
        Facts {
            joining: Joining::Interface,
            only: None,
            host_routes: false,
            parents_mac: false,
            warm: false,
        }
    }

    fn check_option(&self, key: &str, value: &str) -> Result<bool> {
        match key {
            option::PARENT => check_interface_name(value)?,
            option::MACVLAN_MODE => drop(mode(value)?),
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
        let mode = mode(network.option(option::MACVLAN_MODE).unwrap_or("bridge"))?;
        let peer = Peer {
            name: &endpoint.interface,
            mac: mac_of(endpoint)?,
            namespace: inner.namespace()?,
        };
        let parent = parent::ensure(stack, network)?;
        Ok(stack
            .links()
            .create_macvlan(parent, mode, network.mtu(), peer)?)
    }
}

/// Returns the `MACVLAN_MODE_*` value (`linux/if_link.h`) of a mode.
fn mode(mode: &str) -> Result<u32> {
    Ok(match mode {
        "private" => 1,
        "vepa" => 2,
        "bridge" => 4,
        "passthru" => 8,
        other => {
            return Err(Error::invalid(format!(
                "requested macvlan mode '{other}' is not valid, 'bridge' mode is the macvlan driver default"
            )));
        }
    })
}
