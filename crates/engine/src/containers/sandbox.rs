//! The sandbox of a container: described by its settings, with its state in the record.

use std::collections::BTreeSet;
use std::sync::Arc;

use whelk_network::port::HostPortRequest;

use super::{Container, Containers};
use crate::model::{Config, ContainerPort, ContainerRecord, HostConfig, PortBinding};
use crate::networks::{NetworkRecord, PortRequest, Sandbox, SandboxConfig};

impl SandboxConfig {
    /// Describes the sandbox of a container.
    pub(super) fn of(record: &ContainerRecord) -> Self {
        let ContainerRecord {
            id,
            name,
            config,
            host,
            ..
        } = record;
        let servers = host.dns.iter().flatten();
        Self {
            id: id.clone(),
            name: name.clone(),
            hostname: config.hostname.clone(),
            mode: host.network_mode.clone(),
            dns: servers.filter_map(|server| server.parse().ok()).collect(),
            lacks_ipv6: lacks_ipv6(host),
            ports: port_requests(config, host),
        }
    }
}

impl Sandbox {
    /// Returns the state that a container's record has.
    pub(super) fn of(record: &ContainerRecord) -> Self {
        Self {
            endpoints: record.networks.clone(),
            ports: record.ports.clone(),
        }
    }

    /// Replaces the state in a container's record.
    pub(super) fn keep_in(self, record: &mut ContainerRecord) {
        record.networks = self.endpoints;
        record.ports = self.ports;
    }
}

impl Container {
    /// Returns the description and the state of the container's sandbox. To change the state, hold
    /// [`Container::networking`].
    pub(super) fn sandbox(&self) -> (SandboxConfig, Sandbox) {
        let record = self.record();
        (SandboxConfig::of(&record), Sandbox::of(&record))
    }

    pub(super) fn keep_sandbox(&self, sandbox: Sandbox) {
        sandbox.keep_in(&mut self.record());
    }
}

impl Containers {
    /// Releases the endpoints and mounts of a container that does not run. Returns the networks
    /// that it was connected to.
    pub(super) async fn release_resources(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Vec<NetworkRecord> {
        let (containers, target) = (self.clone(), container.clone());
        let released = tokio::task::spawn_blocking(move || {
            let left = containers.release_endpoints(&target);
            containers.release_mounts(&target);
            left
        });
        released.await.unwrap_or_default()
    }

    /// Releases the endpoints of a container that does not run. Returns the networks that it was
    /// connected to.
    pub(super) fn release_endpoints(&self, container: &Container) -> Vec<NetworkRecord> {
        let _networking = container.networking();
        let mut sandbox = Sandbox::of(&container.record());
        let left = self.sandboxes.detach(&container.id, &mut sandbox);
        container.keep_sandbox(sandbox);
        left
    }
}

/// Returns all ports that a container's settings publish.
fn port_requests(config: &Config, host: &HostConfig) -> Vec<PortRequest> {
    const ANY: &[PortBinding] = &[PortBinding {
        address: None,
        ports: None,
    }];
    let request = |port: ContainerPort, binding: &PortBinding| PortRequest {
        container_port: port.number,
        host: HostPortRequest {
            protocol: port.protocol,
            address: binding.address,
            ports: binding
                .ports
                .map_or((0, 0), |range| (range.first, range.last)),
        },
    };
    let mut requests = Vec::new();
    for (&port, bindings) in host.bound_ports() {
        let given = bindings.as_deref().filter(|list| !list.is_empty());
        let bindings = given.unwrap_or(ANY).iter();
        requests.extend(bindings.map(|binding| request(port, binding)));
    }
    if host.publish_all_ports {
        let bound: BTreeSet<ContainerPort> = host.bound_ports().map(|(&port, _)| port).collect();
        let exposed = config.exposed_ports.difference(&bound);
        requests.extend(exposed.map(|&port| request(port, &ANY[0])));
    }
    requests
}

/// Returns whether a container's sysctls disable IPv6 for all interfaces, or for the loopback
/// interface, which has the same effect here.
pub(super) fn lacks_ipv6(host: &HostConfig) -> bool {
    host.sysctls.iter().any(|(key, value)| {
        let key = key.replace('/', ".");
        matches!(
            key.as_str(),
            "net.ipv6.conf.all.disable_ipv6" | "net.ipv6.conf.lo.disable_ipv6"
        ) && value.trim() != "0"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> ContainerPort {
        text.parse().unwrap()
    }

    /// Returns the requests for these bindings of ports, which are exposed besides `exposed`.
    fn requests(bindings: &[(&str, &[(&str, &str)])], exposed: &[&str]) -> String {
        let parse = |&(address, ports): &(&str, &str)| PortBinding::parse(address, ports).unwrap();
        let bindings = bindings
            .iter()
            .map(|(name, list)| (port(name), Some(list.iter().map(parse).collect())));
        let host = HostConfig {
            port_bindings: Some(bindings.collect()),
            publish_all_ports: !exposed.is_empty(),
            ..HostConfig::default()
        };
        let config = Config {
            exposed_ports: exposed.iter().map(|text| port(text)).collect(),
            ..Config::default()
        };
        let one = |request: &PortRequest| {
            let HostPortRequest {
                protocol,
                address,
                ports,
            } = request.host;
            format!(
                "{}/{protocol} at {address:?} {ports:?}",
                request.container_port
            )
        };
        let requests = port_requests(&config, &host);
        requests.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn bound_ports_are_published_at_each_binding() {
        assert_eq!(requests(&[], &[]), "");
        assert_eq!(requests(&[("80/tcp", &[])], &[]), "80/tcp at None (0, 0)");
        assert_eq!(
            requests(&[("53/udp", &[("127.0.0.1", "5300-5310")])], &[]),
            "53/udp at Some(127.0.0.1) (5300, 5310)"
        );
        assert_eq!(
            requests(&[("80", &[("[2001:db8::1]", "1"), ("", "2")])], &[]),
            "80/tcp at Some(2001:db8::1) (1, 1); 80/tcp at None (2, 2)"
        );
    }

    #[test]
    fn exposed_ports_without_bindings_are_published_at_any_port() {
        assert_eq!(
            requests(&[("80", &[("", "8080")])], &["80/tcp", "80/udp", "443"]),
            "80/tcp at None (8080, 8080); 80/udp at None (0, 0); 443/tcp at None (0, 0)"
        );
    }

    #[test]
    fn a_sandbox_is_described_by_the_settings_and_kept_in_the_record() {
        let record = serde_json::json!({
            "id": "one", "name": "web", "created_at": 0, "image": "",
            "config": {"Hostname": "host"},
            "host": {
                "NetworkMode": "app",
                "Dns": ["9.9.9.9", "2620:fe::9"],
                "Sysctls": {"net.ipv6.conf.all.disable_ipv6": "1"},
                "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]},
            },
            "state": {},
        });
        let mut record = crate::records::decode(record.to_string().as_bytes()).unwrap();
        let config = SandboxConfig::of(&record);
        assert_eq!(
            [
                &config.id,
                &config.name,
                &config.hostname,
                &config.mode.to_string()
            ],
            ["one", "web", "host", "app"]
        );
        let servers: Vec<String> = config.dns.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["9.9.9.9", "2620:fe::9"]);
        assert!(config.lacks_ipv6);
        assert_eq!(config.ports, port_requests(&record.config, &record.host));
        assert_eq!(config.ports.len(), 1);

        let endpoint = crate::networks::Endpoint {
            network_id: "n".into(),
            ..Default::default()
        };
        let sandbox = Sandbox {
            endpoints: [("app".to_owned(), endpoint)].into(),
            ports: vec![whelk_network::port::PortMapping {
                protocol: whelk_network::port::Protocol::Tcp,
                host: ([0, 0, 0, 0], 8080).into(),
                to: ([10, 0, 0, 2], 80).into(),
            }],
        };
        sandbox.clone().keep_in(&mut record);
        assert_eq!(Sandbox::of(&record), sandbox);
    }

    #[test]
    fn detects_sysctls_that_disable_ipv6() {
        let off = |key: &str, value: &str| {
            lacks_ipv6(&HostConfig {
                sysctls: [(key.to_owned(), value.to_owned())].into(),
                ..HostConfig::default()
            })
        };
        assert!(
            off("net.ipv6.conf.all.disable_ipv6", "1") && off("net/ipv6/conf/lo/disable_ipv6", "1")
        );
        assert!(
            !off("net.ipv6.conf.all.disable_ipv6", "0")
                && !off("net.ipv6.conf.default.disable_ipv6", "1")
        );
    }
}
