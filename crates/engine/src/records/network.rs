//! Networks and endpoints on disk, with the field names of the Engine API.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::stored::forms;
use super::{stored, text};
use crate::model::network::{self, NetworkDriverKind};

forms! {
    NetworkRecord => network::NetworkRecord,
    Ipam => network::Ipam,
    IpamConfig => network::IpamConfig,
    Endpoint => network::Endpoint,
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

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "network::Endpoint"
)]
struct Endpoint {
    #[serde(rename = "IPAMConfig", with = "stored")]
    ipam_config: Option<network::EndpointIpam>,
    links: Option<Vec<String>>,
    aliases: Option<Vec<String>>,
    mac_address: String,
    driver_opts: Option<BTreeMap<String, String>>,
    gw_priority: i64,
    #[serde(rename = "NetworkID")]
    network_id: String,
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
    #[serde(skip_serializing_if = "String::is_empty")]
    wanted_mac: String,
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
