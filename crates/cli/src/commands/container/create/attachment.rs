//! A network that a container is attached to: one value of `--network`.

use std::collections::BTreeMap;

use whelk_api_types::{EndpointIpamConfig, EndpointSettings};

use crate::Outcome;
use crate::commands::arguments::given;
use crate::commands::container::create::invalid;

/// A network to attach to, with the endpoint's settings.
#[derive(Debug, Default)]
pub(super) struct Attachment {
    pub network: String,
    pub aliases: Vec<String>,
    pub links: Vec<String>,
    pub ipv4: String,
    pub ipv6: String,
    pub link_local: Vec<String>,
    pub mac: String,
    pub driver_options: BTreeMap<String, String>,
    pub priority: i64,
}

impl Attachment {
    /// Returns the endpoint settings as the API has them.
    pub fn endpoint(self) -> EndpointSettings {
        let ipam = EndpointIpamConfig {
            ipv4_address: self.ipv4,
            ipv6_address: self.ipv6,
            link_local_ips: given(self.link_local),
        };
        EndpointSettings {
            ipam_config: Some(ipam).filter(|ipam| *ipam != EndpointIpamConfig::default()),
            links: given(self.links),
            aliases: given(self.aliases),
            mac_address: self.mac,
            driver_opts: Some(self.driver_options).filter(|options| !options.is_empty()),
            gw_priority: self.priority,
            ..EndpointSettings::default()
        }
    }
}

/// Parses `NAME`, or `key=value` fields.
pub(super) fn attachment(text: &str) -> Outcome<Attachment> {
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
                    .insert(key.trim().to_lowercase(), value.trim().to_owned());
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

pub(super) fn is_users(network: &str) -> bool {
    !matches!(network, "default" | "bridge" | "host" | "none") && !network.starts_with("container:")
}

pub(super) fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    parts.len() == 6
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
