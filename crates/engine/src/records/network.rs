//! Networks and endpoints on disk, with the field names of the Engine API.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::stored::{Stored, forms};
use super::{stored, text};
use crate::model::network::{self, AssignedAddress, NetworkDriverKind};

forms! {
    NetworkRecord => network::NetworkRecord,
    Ipam => network::Ipam,
    IpamConfig => network::IpamConfig,
    EndpointIpam => network::EndpointIpam,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "network::NetworkRecord"
)]
struct NetworkRecord {
    name: String,
    id: String,
    created_at: i64,
    #[serde(with = "text")]
    driver: NetworkDriverKind,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(with = "stored")]
    ipam: network::Ipam,
    internal: bool,
    attachable: bool,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    made_parent: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "network::Ipam"
)]
struct Ipam {
    driver: String,
    options: Option<BTreeMap<String, String>>,
    #[serde(with = "stored")]
    config: Vec<network::IpamConfig>,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "network::IpamConfig"
)]
struct IpamConfig {
    subnet: String,
    #[serde(rename = "IPRange", skip_serializing_if = "String::is_empty")]
    ip_range: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    gateway: String,
    #[serde(
        rename = "AuxiliaryAddresses",
        alias = "AuxAddress",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    auxiliary_addresses: BTreeMap<String, String>,
}

/// An endpoint: what was requested and what is assigned, beside each other.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Endpoint {
    #[serde(rename = "IPAMConfig", with = "stored")]
    ipam_config: Option<network::EndpointIpam>,
    links: Option<Vec<String>>,
    aliases: Option<Vec<String>>,
    /// The assigned one or, while the endpoint is not attached, the requested one.
    mac_address: String,
    driver_opts: Option<BTreeMap<String, String>>,
    gw_priority: i64,
    #[serde(rename = "NetworkID")]
    network_id: String,
    /// Empty while the endpoint is not attached; then nothing is assigned.
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    gateway: String,
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    global_ipv6_prefix_len: u8,
    #[serde(rename = "DNSNames")]
    dns_names: Option<Vec<String>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    interface: String,
    /// The requested hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    wanted_mac: String,
}

impl Stored for network::Endpoint {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Endpoint::from(self).serialize(serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = Endpoint::deserialize(deserializer)?;
        stored.try_into().map_err(serde::de::Error::custom)
    }
}

impl From<&network::Endpoint> for Endpoint {
    fn from(endpoint: &network::Endpoint) -> Self {
        let network::Endpoint {
            requested,
            network_id,
            dns_names,
            assigned,
        } = endpoint.clone();
        let network::EndpointRequest {
            ipam_config,
            links,
            aliases,
            mac_address: wanted_mac,
            driver_opts,
            gw_priority,
        } = requested;
        let is_attached = assigned.is_some();
        let network::Assigned {
            endpoint_id,
            interface,
            mac_address,
            ipv4,
            ipv6,
            // Part of the request.
            link_local: _,
        } = assigned.unwrap_or_default();
        let address = |of: Option<AssignedAddress>| {
            of.map_or_else(Default::default, |of| {
                let gateway = of.gateway.map_or_else(String::new, |to| to.to_string());
                (of.net.addr().to_string(), of.net.prefix_len(), gateway)
            })
        };
        let (ip_address, ip_prefix_len, gateway) = address(ipv4);
        let (global_ipv6_address, global_ipv6_prefix_len, ipv6_gateway) = address(ipv6);
        Self {
            ipam_config,
            links,
            aliases,
            mac_address: if is_attached {
                mac_address
            } else {
                wanted_mac.clone()
            },
            driver_opts,
            gw_priority,
            network_id,
            endpoint_id,
            gateway,
            ip_address,
            ip_prefix_len,
            ipv6_gateway,
            global_ipv6_address,
            global_ipv6_prefix_len,
            dns_names,
            interface,
            wanted_mac,
        }
    }
}

impl TryFrom<Endpoint> for network::Endpoint {
    type Error = String;

    fn try_from(stored: Endpoint) -> Result<Self, String> {
        let Endpoint {
            ipam_config,
            links,
            aliases,
            mac_address,
            driver_opts,
            gw_priority,
            network_id,
            endpoint_id,
            gateway,
            ip_address,
            ip_prefix_len,
            ipv6_gateway,
            global_ipv6_address,
            global_ipv6_prefix_len,
            dns_names,
            interface,
            wanted_mac,
        } = stored;
        let asked = ipam_config.iter();
        let link_local = asked.flat_map(network::EndpointIpam::link_local).flatten();
        let assigned = network::Assigned {
            link_local: link_local.collect(),
            ipv4: address(&ip_address, ip_prefix_len, &gateway)?,
            ipv6: address(&global_ipv6_address, global_ipv6_prefix_len, &ipv6_gateway)?,
            endpoint_id,
            interface,
            mac_address,
        };
        Ok(Self {
            requested: network::EndpointRequest {
                ipam_config,
                links,
                aliases,
                mac_address: wanted_mac,
                driver_opts,
                gw_priority,
            },
            network_id,
            dns_names,
            assigned: Some(assigned).filter(|assigned| !assigned.endpoint_id.is_empty()),
        })
    }
}

/// Reads an assigned address; an empty one is none.
fn address(address: &str, bits: u8, gateway: &str) -> Result<Option<AssignedAddress>, String> {
    if address.is_empty() {
        return Ok(None);
    }
    let parse = |text: &str| {
        text.parse::<IpAddr>()
            .map_err(|error| format!("address {text:?} of an endpoint: {error}"))
    };
    let net = IpNet::new(parse(address)?, bits)
        .map_err(|error| format!("address {address}/{bits} of an endpoint: {error}"))?;
    let gateway = if gateway.is_empty() {
        None
    } else {
        Some(parse(gateway)?)
    };
    Ok(Some(AssignedAddress { net, gateway }))
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "network::EndpointIpam"
)]
struct EndpointIpam {
    #[serde(rename = "IPv4Address", skip_serializing_if = "String::is_empty")]
    ipv4_address: String,
    #[serde(rename = "IPv6Address", skip_serializing_if = "String::is_empty")]
    ipv6_address: String,
    #[serde(rename = "LinkLocalIPs", skip_serializing_if = "Option::is_none")]
    link_local_ips: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::model::network::Endpoint;
    use crate::records::{decode, encode};

    /// Returns an endpoint as on disk, with these fields set.
    fn stored(set: &Value) -> Value {
        let mut stored = json!({
            "IPAMConfig": null, "Links": null, "Aliases": null, "MacAddress": "", "DriverOpts": null,
            "GwPriority": 0, "NetworkID": "", "EndpointID": "", "Gateway": "", "IPAddress": "",
            "IPPrefixLen": 0, "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
            "DNSNames": null,
        });
        for (key, value) in set.as_object().unwrap() {
            stored[key] = value.clone();
        }
        stored
    }

    fn read(stored: &Value) -> serde_json::Result<Endpoint> {
        decode(stored.to_string().as_bytes())
    }

    #[test]
    fn an_endpoint_has_the_same_form_when_it_was_read() {
        let check = |set: Value| {
            let stored = stored(&set);
            let endpoint = read(&stored).unwrap();
            let written: Value = serde_json::from_str(&encode(&endpoint).unwrap()).unwrap();
            assert_eq!(written, stored);
            endpoint
        };
        assert_eq!(check(json!({})), Endpoint::default());
        let requested = check(json!({
            "IPAMConfig": {"IPv4Address": "10.0.0.9"}, "Links": ["db"], "Aliases": ["web"],
            "MacAddress": "02:00:00:00:00:01", "WantedMac": "02:00:00:00:00:01",
            "DriverOpts": {"a": "b"}, "GwPriority": 7, "NetworkID": "n", "DNSNames": ["web"],
        }));
        assert_eq!(requested.assigned, None);
        assert_eq!(requested.requested.mac_address, "02:00:00:00:00:01");
        let attached = check(json!({
            "MacAddress": "02:42:0a:00:00:02", "NetworkID": "n", "EndpointID": "e",
            "Gateway": "10.0.0.1", "IPAddress": "10.0.0.2", "IPPrefixLen": 24,
            "GlobalIPv6Address": "fd00::2", "GlobalIPv6PrefixLen": 64, "Interface": "eth0",
            "IPAMConfig": {"LinkLocalIPs": ["169.254.7.7", "fe80::7", "10.0.0.7"]},
        }));
        assert_eq!(attached.requested.mac_address, "");
        let assigned = attached.assigned.unwrap();
        assert_eq!(assigned.ipv6.unwrap().gateway, None);
        let link_local = assigned.link_local.iter().map(ToString::to_string);
        assert_eq!(
            link_local.collect::<Vec<_>>(),
            ["169.254.7.7/16", "fe80::7/64"]
        );
        // Its interface has the hardware address of its parent.
        check(json!({"EndpointID": "e", "WantedMac": "02:00:00:00:00:01"}));
    }

    #[test]
    fn an_endpoint_with_an_address_that_is_none_is_refused() {
        for (address, bits, said) in [
            (
                "10.0.0",
                24,
                "address \"10.0.0\" of an endpoint: invalid IP address syntax",
            ),
            (
                "10.0.0.2",
                33,
                "address 10.0.0.2/33 of an endpoint: invalid IP prefix length",
            ),
        ] {
            let stored = stored(&json!({"IPAddress": address, "IPPrefixLen": bits}));
            assert_eq!(read(&stored).unwrap_err().to_string(), said);
        }
    }
}
