//! Validates the modes of namespaces, and settings that contradict them.

use crate::error::{Error, Result};
use crate::host::HostInfo;
use crate::instance::ContainerDefaults;
use crate::model::{CgroupnsMode, Config, HostConfig, IpcMode, NetworkMode, UtsMode};

pub(super) fn check_modes(
    config: &Config,
    host: &mut HostConfig,
    host_info: &HostInfo,
    defaults: &ContainerDefaults,
) -> Result<()> {
    if host.network_mode == NetworkMode::Default {
        host.network_mode = if config.network_disabled {
            NetworkMode::None
        } else {
            NetworkMode::Bridge
        };
    }
    // Networks are looked up at the start, as Docker does: one may be created until then.
    check_ports(host)?;
    if host.ipc_mode == IpcMode::Default {
        host.ipc_mode = defaults.ipc_mode.clone();
    }
    if host.uts_mode == UtsMode::Host && !config.hostname.is_empty() {
        return Err(Error::invalid(
            "conflicting options: hostname and the UTS mode",
        ));
    }
    if host.cgroupns_mode == CgroupnsMode::Default && host.privileged && !host_info.cgroup_v2 {
        // As with Docker, whatever the engine's default is.
        host.cgroupns_mode = CgroupnsMode::Host;
    }
    if host.cgroupns_mode == CgroupnsMode::Default {
        host.cgroupns_mode = defaults.cgroupns_mode;
    }
    if host.cgroupns_mode == CgroupnsMode::Default {
        host.cgroupns_mode = if host_info.cgroup_v2 {
            CgroupnsMode::Private
        } else {
            CgroupnsMode::Host
        };
    }
    if host.network_mode.container().is_some() {
        check_shared_network(config, host)?;
    }
    Ok(())
}

/// Rejects settings of host names and DNS for a container that shares another's network: it uses
/// the other's files.
fn check_shared_network(config: &Config, host: &HostConfig) -> Result<()> {
    let is_given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let conflicts = [
        (!config.hostname.is_empty(), "hostname"),
        (is_given(&host.dns), "dns"),
        (is_given(&host.extra_hosts), "custom host-to-IP mapping"),
    ];
    match conflicts.iter().find(|(given, _)| *given) {
        Some((_, what)) => Err(Error::invalid(format!(
            "conflicting options: {what} and the network mode"
        ))),
        None => Ok(()),
    }
}

/// Checks that only a container with a network of its own publishes ports.
fn check_ports(host: &HostConfig) -> Result<()> {
    if host.network_mode.container().is_some() && host.publishes() {
        return Err(Error::invalid(
            "conflicting options: port publishing and the container type network mode",
        ));
    }
    Ok(())
}

/// Checks the ports that a client exposes, before those of the image are added.
pub(crate) fn check_exposed(config: &Config, host: &HostConfig) -> Result<()> {
    if host.network_mode.container().is_some()
        && !config.exposed_ports.is_empty()
        && !host.publishes()
    {
        return Err(Error::invalid(
            "conflicting options: port exposing and the container type network mode",
        ));
    }
    Ok(())
}
