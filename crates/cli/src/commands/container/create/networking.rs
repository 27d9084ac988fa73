//! The network flags of `create` and `run`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::ports;
use clap::Args;
use whelk_api_types::{EndpointSettings, PortMap, Set};
use whelk_text::extra_host;

use crate::Outcome;
use crate::commands::container::create::attachment::{Attachment, attachment, is_mac, is_users};
use crate::commands::container::create::invalid;

#[derive(Debug, Default, Args)]
pub(crate) struct NetworkArgs {
    /// Connect a container to a network: NAME, or
    /// name=NAME,alias=…,ip=…,ip6=…,mac-address=…,gw-priority=…,driver-opt=…
    #[arg(long, alias = "net")]
    pub network: Vec<String>,
    /// Add network-scoped alias for the container
    #[arg(long, alias = "net-alias")]
    pub network_alias: Vec<String>,
    /// IPv4 address (e.g., 172.30.100.104)
    #[arg(long)]
    pub ip: Option<String>,
    /// IPv6 address (e.g., 2001:db8::33)
    #[arg(long)]
    pub ip6: Option<String>,
    /// Container IPv4/IPv6 link-local addresses
    #[arg(long)]
    pub link_local_ip: Vec<String>,
    /// Container MAC address (e.g., 92:d0:c6:0a:29:33)
    #[arg(long)]
    pub mac_address: Option<String>,
    /// Add link to another container
    #[arg(long)]
    pub link: Vec<String>,
    /// Publish a container's port(s) to the host
    #[arg(short, long)]
    pub publish: Vec<String>,
    /// Publish all exposed ports to random ports
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Expose a port or a range of ports
    #[arg(long)]
    pub expose: Vec<String>,
    /// Set custom DNS servers
    #[arg(long)]
    pub dns: Vec<String>,
    /// Set DNS options
    #[arg(long, alias = "dns-opt")]
    pub dns_option: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long)]
    pub dns_search: Vec<String>,
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long)]
    pub add_host: Vec<String>,
}

/// The parts of the create request that the network flags determine.
pub(crate) struct Networking {
    pub mode: String,
    pub exposed: Set,
    pub bindings: PortMap,
    pub endpoints: BTreeMap<String, EndpointSettings>,
}

impl NetworkArgs {
    pub(crate) fn parse(&self) -> Outcome<Networking> {
        self.check()?;
        let (exposed, bindings) = ports::parse(&self.publish, &self.expose)?;
        let mut attachments = self
            .network
            .iter()
            .map(|text| attachment(text))
            .collect::<Outcome<Vec<_>>>()?;
        if attachments.is_empty() {
            attachments.push(Attachment {
                network: "default".into(),
                ..Attachment::default()
            });
        }
        if let Some(first) = attachments.first_mut() {
            self.add_own(first)?;
        }
        let mut endpoints = BTreeMap::new();
        let several = attachments.len() > 1;
        let mode = attachments[0].network.clone();
        let of_users = attachments
            .iter()
            .filter(|attachment| is_users(&attachment.network))
            .count();
        let mixed = of_users > 0 && of_users < attachments.len();
        for attachment in attachments {
            let network = attachment.network.clone();
            if network.is_empty() {
                return Err(invalid("no name set for network"));
            }
            if !is_users(&network) && !attachment.aliases.is_empty() {
                return Err(invalid(
                    "network-scoped aliases are only supported for user-defined networks",
                ));
            }
            if endpoints.contains_key(&network) {
                return Err(invalid(format!(
                    "network {network:?} is specified multiple times"
                )));
            }
            let endpoint = attachment.endpoint();
            if several || endpoint != EndpointSettings::default() {
                endpoints.insert(network, endpoint);
            }
        }
        if mixed {
            return Err(invalid(
                "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
            ));
        }
        Ok(Networking {
            mode,
            exposed,
            bindings,
            endpoints,
        })
    }

    fn check(&self) -> Outcome<()> {
        let wrong = |value: &str, flag: &str, text: String| {
            Err(invalid(format!(
                "invalid argument {value:?} for \"--{flag}\" flag: {text}"
            )))
        };
        for server in &self.dns {
            if server.parse::<IpAddr>().is_err() {
                return wrong(
                    server,
                    "dns",
                    format!("IP address is not correctly formatted: {server}"),
                );
            }
        }
        for domain in &self.dns_search {
            let valid = |label: &str| {
                !label.is_empty()
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            };
            if domain != "." && !domain.trim_end_matches('.').split('.').all(valid) {
                return wrong(
                    domain,
                    "dns-search",
                    format!("{domain} is not a valid domain"),
                );
            }
        }
        for host in &self.add_host {
            let entry = extra_host::split(host);
            let Some((_, address)) = entry.filter(|(name, _)| !name.is_empty()) else {
                return wrong(
                    host,
                    "add-host",
                    format!("bad format for add-host: {host:?}"),
                );
            };
            if address != extra_host::HOST_GATEWAY && address.parse::<IpAddr>().is_err() {
                return wrong(
                    host,
                    "add-host",
                    format!("invalid IP address in add-host: {address:?}"),
                );
            }
        }
        for link in &self.link {
            if link.is_empty() || link.split(':').count() > 2 {
                return wrong(link, "link", format!("bad format for links: {link}"));
            }
        }
        if let Some(mac) = self
            .mac_address
            .as_deref()
            .filter(|mac| !mac.is_empty() && !is_mac(mac))
        {
            return Err(invalid(format!("{mac} is not a valid mac address")));
        }
        Ok(())
    }

    /// Applies the flags that configure the first network's endpoint.
    fn add_own(&self, first: &mut Attachment) -> Outcome<()> {
        let both = |flag: &str, what: &str| {
            Err(invalid(format!(
                "conflicting options: cannot specify both {flag} and per-network {what}"
            )))
        };
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        if !first.aliases.is_empty() && !self.network_alias.is_empty() {
            return both("--network-alias", "alias");
        }
        if !first.ipv4.is_empty() && self.ip.is_some() {
            return both("--ip", "IPv4 address");
        }
        if !first.ipv6.is_empty() && self.ip6.is_some() {
            return both("--ip6", "IPv6 address");
        }
        if !first.mac.is_empty() && self.mac_address.is_some() {
            return both("--mac-address", "MAC address");
        }
        if !first.link_local.is_empty() && !self.link_local_ip.is_empty() {
            return both("--link-local-ip", "link-local IP addresses");
        }
        first.aliases.extend_from_slice(&self.network_alias);
        first.link_local.extend_from_slice(&self.link_local_ip);
        // On the default network, links are in the container's HostConfig instead of the endpoint.
        if is_users(&first.network) {
            first.links.extend_from_slice(&self.link);
        }
        for (field, value) in [
            (&mut first.ipv4, &self.ip),
            (&mut first.ipv6, &self.ip6),
            (&mut first.mac, &self.mac_address),
        ] {
            if value.is_some() {
                *field = text(value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use whelk_api_types::EndpointIpamConfig;

    use super::*;

    #[test]
    fn flags_are_converted_to_endpoints() {
        let own = |values: &[&str]| {
            values
                .iter()
                .map(|value| (*value).to_owned())
                .collect::<Vec<_>>()
        };
        let args = NetworkArgs {
            network: own(&["a", "name=b,alias=x,alias=y,gw-priority=5"]),
            ip: Some("10.0.0.5".into()),
            ..NetworkArgs::default()
        };
        let networking = args.parse().unwrap();
        assert_eq!(networking.mode, "a");
        let a = EndpointSettings {
            ipam_config: Some(EndpointIpamConfig {
                ipv4_address: "10.0.0.5".into(),
                ..EndpointIpamConfig::default()
            }),
            ..EndpointSettings::default()
        };
        let b = EndpointSettings {
            aliases: Some(own(&["x", "y"])),
            gw_priority: 5,
            ..EndpointSettings::default()
        };
        let expected = BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)]);
        assert_eq!(networking.endpoints, expected);
        assert!(NetworkArgs::default().parse().unwrap().endpoints.is_empty());
        let text = |args: NetworkArgs| args.parse().err().unwrap().text;
        assert!(
            text(NetworkArgs {
                network: own(&["a", "a"]),
                ..NetworkArgs::default()
            })
            .contains("specified multiple times")
        );
        assert!(
            text(NetworkArgs {
                network: own(&["host", "a"]),
                ..NetworkArgs::default()
            })
            .contains("cannot attach both")
        );
        assert!(
            text(NetworkArgs {
                network_alias: own(&["x"]),
                ..NetworkArgs::default()
            })
            .contains("only supported for user-defined")
        );
        assert!(
            text(NetworkArgs {
                mac_address: Some("zz".into()),
                ..NetworkArgs::default()
            })
            .contains("not a valid mac")
        );
    }
}
