//! The network flags of `create` and `run`.

use std::net::IpAddr;

use clap::Args;
use serde_json::{Map, Value, json};

use super::ports;
use crate::{Failure, Outcome};

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
    pub exposed: Map<String, Value>,
    pub bindings: Map<String, Value>,
    pub endpoints: Map<String, Value>,
}

/// A network to attach to, with the endpoint's settings.
#[derive(Debug, Default)]
struct Attachment {
    network: String,
    aliases: Vec<String>,
    links: Vec<String>,
    ipv4: String,
    ipv6: String,
    link_local: Vec<String>,
    mac: String,
    driver_options: Map<String, Value>,
    priority: i64,
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
        let mut endpoints = Map::new();
        let several = attachments.len() > 1;
        let mode = attachments[0].network.clone();
        let of_users = attachments
            .iter()
            .filter(|attachment| is_users(&attachment.network))
            .count();
        let mixed = of_users > 0 && of_users < attachments.len();
        for attachment in attachments {
            let Attachment { network, .. } = &attachment;
            if network.is_empty() {
                return Err(invalid("no name set for network"));
            }
            if !is_users(network) && !attachment.aliases.is_empty() {
                return Err(invalid(
                    "network-scoped aliases are only supported for user-defined networks",
                ));
            }
            if endpoints.contains_key(network) {
                return Err(invalid(format!(
                    "network {network:?} is specified multiple times"
                )));
            }
            let endpoint = attachment.endpoint();
            if several || !endpoint.is_empty() {
                endpoints.insert(network.clone(), Value::Object(endpoint));
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
            let Some((_, address)) = host
                .split_once([':', '='])
                .filter(|(name, _)| !name.is_empty())
            else {
                return wrong(
                    host,
                    "add-host",
                    format!("bad format for add-host: {host:?}"),
                );
            };
            let plain = address
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
                .unwrap_or(address);
            if plain != "host-gateway" && plain.parse::<IpAddr>().is_err() {
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

impl Attachment {
    /// Returns the endpoint settings as the API has them, omitting empty values.
    fn endpoint(&self) -> Map<String, Value> {
        let mut ipam = Map::new();
        let mut endpoint = Map::new();
        let put = |map: &mut Map<String, Value>, key: &str, value: Value| {
            let empty = value.as_str() == Some("")
                || value.as_array().is_some_and(Vec::is_empty)
                || value == json!({})
                || value == json!(0);
            if !empty {
                map.insert(key.to_owned(), value);
            }
        };
        put(&mut ipam, "IPv4Address", json!(self.ipv4));
        put(&mut ipam, "IPv6Address", json!(self.ipv6));
        put(&mut ipam, "LinkLocalIPs", json!(self.link_local));
        put(&mut endpoint, "IPAMConfig", Value::Object(ipam));
        put(&mut endpoint, "Aliases", json!(self.aliases));
        put(&mut endpoint, "Links", json!(self.links));
        put(&mut endpoint, "MacAddress", json!(self.mac));
        put(
            &mut endpoint,
            "DriverOpts",
            Value::Object(self.driver_options.clone()),
        );
        put(&mut endpoint, "GwPriority", json!(self.priority));
        endpoint
    }
}

fn invalid(text: impl Into<String>) -> Failure {
    Failure::with_code(125, text)
}

fn is_users(network: &str) -> bool {
    !matches!(network, "default" | "bridge" | "host" | "none") && !network.starts_with("container:")
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    parts.len() == 6
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Parses `NAME`, or `key=value` fields.
fn attachment(text: &str) -> Outcome<Attachment> {
    if !text.contains('=') && !text.contains(',') {
        return Ok(Attachment {
            network: text.to_owned(),
            ..Attachment::default()
        });
    }
    let fail = |reason: String| {
        invalid(format!(
            "invalid argument {text:?} for \"--network\" flag: {reason}"
        ))
    };
    let mut result = Attachment::default();
    for field in &super::mounts::fields(text).map_err(fail)? {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| fail(format!("invalid field {field}")))?;
        let value = value.trim().to_owned();
        match key.trim().to_lowercase().as_str() {
            "name" => result.network = value,
            "alias" => result.aliases.push(value),
            "ip" => result.ipv4 = value,
            "ip6" => result.ipv6 = value,
            "mac-address" if !is_mac(&value) => {
                return Err(fail(format!("{value} is not a valid mac address")));
            }
            "mac-address" => result.mac = value,
            "link-local-ip" => result.link_local.push(value),
            "driver-opt" => {
                let (key, value) = value.split_once('=').ok_or_else(|| {
                    fail("invalid key value pair format in driver options".into())
                })?;
                result
                    .driver_options
                    .insert(key.trim().to_lowercase(), json!(value.trim()));
            }
            "gw-priority" => {
                result.priority = value
                    .parse()
                    .map_err(|_| fail(format!("invalid gw-priority ({value}): invalid syntax")))?
            }
            _ => return Err(fail(format!("invalid field key {key}"))),
        }
    }
    if result.network.is_empty() {
        return Err(fail("network name/id is not specified".into()));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
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
        assert_eq!(
            Value::Object(networking.endpoints),
            json!({"a": {"IPAMConfig": {"IPv4Address": "10.0.0.5"}}, "b": {"Aliases": ["x", "y"], "GwPriority": 5}})
        );
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
