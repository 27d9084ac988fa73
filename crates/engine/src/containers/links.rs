//! Links (`--link`), the legacy name resolution of the default network. The linking container gets
//! the linked one's address in its `/etc/hosts` and its exposed ports in its environment; the
//! linked one gets the additional name `LINKER/ALIAS`.
//!
//! A link is stored as `ID:ALIAS`, so that it survives renames. On user-defined networks links are
//! only DNS aliases.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use whelk_network::port::Protocol;

use super::{Container, Containers, files};
use crate::error::{Error, Result};
use crate::model::{Config, ContainerRecord, HostConfig, NetworkMode, RestartPolicy, Status};
use crate::networks::{Endpoint, split_link};

/// The default network.
const DEFAULT: &str = "bridge";

impl Containers {
    /// Replaces the names in a new container's links by ids. Of several links with one alias the
    /// first is kept.
    pub(super) fn resolve_links(&self, host: &mut HostConfig) -> Result<()> {
        let Some(links) = host.links.take().filter(|links| !links.is_empty()) else {
            return Ok(());
        };
        let undefined = |what: &str| {
            Err(Error::invalid(format!(
                "conflicting options: {what} can't be used with links. This would result in undefined behavior"
            )))
        };
        match host.network_mode {
            NetworkMode::Host => return undefined("host type networking"),
            NetworkMode::Container(_) => return undefined("container type network"),
            NetworkMode::Bridge => {}
            // In a network of the user, links are settings of the endpoint; those of the container have
            // no effect, as in Docker.
            _ => return Ok(()),
        }
        if self
            .networks
            .find(DEFAULT)
            .is_ok_and(|network| !network.connects_containers())
        {
            return Err(Error::unsupported(
                "links where containers do not reach each other (icc=false)",
            ));
        }
        let mut resolved: Vec<String> = Vec::new();
        let mut aliases = BTreeSet::new();
        for link in &links {
            if link.is_empty() || link.split(':').count() > 2 {
                let text = if link.is_empty() {
                    "empty string specified for links".into()
                } else {
                    format!("bad format for links: {link}")
                };
                return Err(Error::internal(text));
            }
            let (target, alias) = split_link(link);
            let found = self.owner_of_network(&target).map_err(|error| {
                Error::invalid(format!("could not get container for {target}: {error}"))
            })?;
            let record = found.record();
            match record.host.network_mode {
                NetworkMode::Host => return undefined("host type networking"),
                _ if !record.networks.contains_key(DEFAULT) => {
                    return Err(Error::invalid(format!(
                        "container {} not attached to default bridge network",
                        found.id
                    )));
                }
                _ => {}
            }
            if !alias.is_empty() && aliases.insert(alias.clone()) {
                resolved.push(format!("{}:{alias}", found.id));
            }
        }
        host.links = Some(resolved);
        Ok(())
    }

    /// Returns the containers that a container has linked on the default network, with their
    /// aliases. Removed containers are left out.
    pub(super) fn links_of(&self, record: &ContainerRecord) -> Vec<(Arc<Container>, String)> {
        if record.host.network_mode != NetworkMode::Bridge {
            return Vec::new();
        }
        let links = record
            .host
            .links
            .iter()
            .flatten()
            .map(|link| split_link(link));
        // Records of earlier versions have names instead of ids.
        let target = |name: &str| self.by_id(name).or_else(|| self.find(name).ok());
        links
            .filter_map(|(id, alias)| Some((target(&id)?, alias)))
            .collect()
    }

    /// Waits, for at most 10 s, until the linked containers with a restart policy run.
    pub(super) async fn await_links(&self, container: &Container) {
        const LONGEST: Duration = Duration::from_secs(10);
        let record = container.record().clone();
        let running = self
            .links_of(&record)
            .into_iter()
            .map(|(target, _)| async move {
                let policy = target.record().host.restart_policy;
                if policy != RestartPolicy::No {
                    let mut progress = target.progress.subscribe();
                    drop(progress.wait_for(|progress| progress.running).await);
                }
            });
        drop(tokio::time::timeout(LONGEST, futures_util::future::join_all(running)).await);
    }

    /// Returns a container's links as `inspect` shows them.
    pub(super) fn shown_links(&self, record: &ContainerRecord) -> Option<Vec<String>> {
        let links = self
            .links_of(record)
            .into_iter()
            .map(|(target, alias)| format!("/{}:/{}/{alias}", target.name(), record.name));
        Some(links.collect::<Vec<_>>()).filter(|links| !links.is_empty())
    }

    /// Returns the names that links give to containers, by the linked container's id.
    pub(super) fn link_names<'a>(
        &self,
        records: impl Iterator<Item = &'a ContainerRecord>,
    ) -> BTreeMap<String, Vec<String>> {
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for record in records.filter(|record| record.host.links.is_some()) {
            for (target, alias) in self.links_of(record) {
                names
                    .entry(target.id.clone())
                    .or_default()
                    .push(format!("/{}/{alias}", record.name));
            }
        }
        names
    }

    /// Returns the container that `linker` has linked as `alias`.
    pub(super) fn linked(&self, linker: &Container, alias: &str) -> Option<Arc<Container>> {
        let record = linker.record().clone();
        self.links_of(&record)
            .into_iter()
            .find(|(_, known)| known == alias)
            .map(|(target, _)| target)
    }

    /// Returns the environment variables for a container's links.
    ///
    /// # Errors
    /// Returns an error if a linked container does not run.
    pub(super) fn link_environment(&self, record: &ContainerRecord) -> Result<Vec<String>> {
        let mut environment = Vec::new();
        if !record.networks.contains_key(DEFAULT) {
            return Ok(environment);
        }
        for (target, alias) in self.links_of(record) {
            let target = target.record();
            let name = format!("/{}/{alias}", record.name);
            if !target.state.status.is_running() {
                let text = format!(
                    "Cannot link to a non running container: /{} AS {name}",
                    target.name
                );
                // At the engine's start both are restarted concurrently, so that a retry can
                // succeed.
                return Err(if target.state.status == Status::Restarting {
                    Error::Unavailable(text)
                } else {
                    Error::internal(text)
                });
            }
            let address = target
                .networks
                .get(DEFAULT)
                .map(Endpoint::addresses)
                .unwrap_or_default()
                .into_iter()
                .find(IpAddr::is_ipv4);
            environment.extend(variables(
                &alias,
                &name,
                address,
                &target.config,
                &target.host,
            ));
        }
        Ok(environment)
    }

    /// Updates the hosts files of the running containers that have linked a container, after its
    /// start.
    pub(super) fn update_linkers(self: &Arc<Self>, id: &str) {
        let is_linker = |record: &ContainerRecord| {
            record.state.status.is_running()
                && record.host.network_mode == NetworkMode::Bridge
                && record
                    .host
                    .links
                    .iter()
                    .flatten()
                    .any(|link| link.starts_with(id))
        };
        let linkers: Vec<Arc<Container>> = self
            .all()
            .into_iter()
            .filter(|container| is_linker(&container.record()))
            .collect();
        if linkers.is_empty() {
            return;
        }
        let containers = self.clone();
        tokio::task::spawn_blocking(move || {
            for container in linkers {
                // Its endpoints may be changing concurrently.
                let _networking = container.networking();
                let record = container.record().clone();
                let linked = files::links(&record, &containers);
                let updated = files::update(&container, &record, &linked, &containers);
                // The files of one that has ended meanwhile may be gone.
                if let Err(error) = updated
                    && container.status().is_running()
                {
                    tracing::warn!(
                        container = record.id,
                        "update the hosts file after a linked container's start: {error}"
                    );
                }
            }
        });
    }

    /// Removes a link, given as `LINKER/ALIAS`.
    ///
    /// # Errors
    /// Returns an error if there is no such link.
    pub async fn remove_link(self: &Arc<Self>, name: &str) -> Result<()> {
        let Some((linker, alias)) = name.trim_start_matches('/').split_once('/') else {
            self.find(name)?;
            return Err(Error::internal(
                "Conflict, cannot remove the default link name of the container",
            ));
        };
        let missing = || Error::no_such_container(&format!("{linker}/{alias}"));
        let container = self.find(linker).map_err(|_| missing())?;
        let _operation = container.lock_operation(name).await?;
        let target = self.linked(&container, alias).ok_or_else(missing)?;
        let before = container.record().clone();
        let linked = files::links(&before, self);
        if let Some(links) = &mut container.record().host.links {
            links.retain(|link| split_link(link) != (target.id.clone(), alias.to_owned()));
        }
        self.save_with_copy(&container)?;
        if !before.state.status.is_running() {
            return Ok(());
        }
        let (containers, changed) = (self.clone(), container.clone());
        tokio::task::spawn_blocking(move || files::update(&changed, &before, &linked, &containers))
            .await
            .map_err(|error| Error::internal(error.to_string()))?
    }
}

/// Returns the variables of one link, as Docker defines them: for each exposed port and each range
/// of ports, the name, and the linked container's own variables.
fn variables(
    alias: &str,
    name: &str,
    address: Option<IpAddr>,
    config: &Config,
    host: &HostConfig,
) -> Vec<String> {
    let prefix = alias.replace('-', "_").to_uppercase();
    let address = address
        .map(|address| address.to_string())
        .unwrap_or_default();
    let known = config
        .exposed_ports
        .iter()
        .chain(host.bound_ports().map(|(port, _)| port));
    let ports: BTreeSet<(bool, u16, String)> = known
        .map(|port| {
            let is_not_tcp = port.protocol != Protocol::Tcp;
            (is_not_tcp, port.number, port.protocol.to_string())
        })
        .collect();
    let ports: Vec<(u16, String)> = ports
        .into_iter()
        .map(|(_, number, protocol)| (number, protocol))
        .collect();
    let mut environment = Vec::new();
    let mut put = |key: &str, value: String| environment.push(format!("{prefix}_{key}={value}"));
    if let Some((number, protocol)) = ports.first() {
        put("PORT", format!("{protocol}://{address}:{number}"));
    }
    let mut start = 0;
    for (index, (number, protocol)) in ports.iter().enumerate() {
        let key = format!("PORT_{number}_{}", protocol.to_uppercase());
        put(&key, format!("{protocol}://{address}:{number}"));
        put(&format!("{key}_ADDR"), address.clone());
        put(&format!("{key}_PORT"), number.to_string());
        put(&format!("{key}_PROTO"), protocol.clone());
        let in_range = index > 0 && ports[index - 1] == (number - 1, protocol.clone());
        if in_range && index + 1 < ports.len() {
            continue;
        }
        let end = if in_range {
            index
        } else {
            index.saturating_sub(1)
        };
        if end > start {
            let ((begin, protocol), (end, _)) = (&ports[start], &ports[end]);
            let key = format!("PORT_{begin}_{}", protocol.to_uppercase());
            put(
                &format!("{key}_START"),
                format!("{protocol}://{address}:{begin}"),
            );
            put(&format!("{key}_PORT_START"), begin.to_string());
            put(
                &format!("{key}_END"),
                format!("{protocol}://{address}:{end}"),
            );
            put(&format!("{key}_PORT_END"), end.to_string());
        }
        start = index;
    }
    put("NAME", name.to_owned());
    for entry in config.env.iter().flatten() {
        if let Some((key, value)) = entry.split_once('=')
            && !matches!(key, "PATH" | "HOME")
        {
            put(&format!("ENV_{key}"), value.to_owned());
        }
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ports: &[&str], env: &[&str]) -> String {
        let config = Config {
            exposed_ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
            env: Some(env.iter().map(|&entry| entry.to_owned()).collect()),
            ..Config::default()
        };
        variables(
            "my-db",
            "/web/my-db",
            "10.0.0.2".parse().ok(),
            &config,
            &HostConfig::default(),
        )
        .join(" ")
    }

    #[test]
    fn a_link_sets_dockers_variables() {
        assert_eq!(
            of(&[], &["PATH=/bin", "A=1", "EMPTY=", "BARE"]),
            "MY_DB_NAME=/web/my-db MY_DB_ENV_A=1 MY_DB_ENV_EMPTY="
        );
        assert_eq!(
            of(&["53/udp", "80/tcp"], &[]),
            "MY_DB_PORT=tcp://10.0.0.2:80 \
             MY_DB_PORT_80_TCP=tcp://10.0.0.2:80 MY_DB_PORT_80_TCP_ADDR=10.0.0.2 MY_DB_PORT_80_TCP_PORT=80 MY_DB_PORT_80_TCP_PROTO=tcp \
             MY_DB_PORT_53_UDP=udp://10.0.0.2:53 MY_DB_PORT_53_UDP_ADDR=10.0.0.2 MY_DB_PORT_53_UDP_PORT=53 MY_DB_PORT_53_UDP_PROTO=udp \
             MY_DB_NAME=/web/my-db"
        );
    }

    #[test]
    fn range_variables_follow_the_last_port_of_the_range() {
        let keys = |text: String| {
            text.split(' ')
                .filter_map(|entry| entry.split('=').next())
                .filter(|key| {
                    key.ends_with("_ADDR")
                        || key.ends_with("_START") && !key.ends_with("_PORT_START")
                })
                .map(|key| key.trim_start_matches("MY_DB_PORT_").to_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            keys(of(&["70/tcp", "71/tcp", "72/tcp"], &[])),
            "70_TCP_ADDR 71_TCP_ADDR 72_TCP_ADDR 70_TCP_START"
        );
        assert_eq!(
            keys(of(&["70/tcp", "71/tcp", "53/udp"], &[])),
            "70_TCP_ADDR 71_TCP_ADDR 53_UDP_ADDR 70_TCP_START"
        );
        assert_eq!(
            keys(of(&["70/tcp", "71/udp"], &[])),
            "70_TCP_ADDR 71_UDP_ADDR"
        );
    }
}
