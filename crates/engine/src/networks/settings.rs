//! What networks and containers' places in them may be told: read, and checked before anything is made.

use std::net::IpAddr;

use super::create::check_interface_name;
use super::model::{Endpoint, NetworkRecord, option};
use crate::error::{Error, Result};

pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let invalid = || Error::invalid(format!("invalid MAC address: {text}"));
    let bytes: Vec<u8> = text.split([':', '-']).map(|part| u8::from_str_radix(part, 16).map_err(|_| invalid())).collect::<Result<_>>()?;
    <[u8; 6]>::try_from(bytes).ok().filter(|bytes| bytes[0] & 1 == 0).ok_or_else(invalid)
}

/// As in `linux/if_link.h`.
pub(super) fn macvlan_mode(mode: &str) -> Result<u32> {
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

pub(super) fn ipvlan_mode(mode: &str) -> Result<u16> {
    match mode {
        "l2" => Ok(0),
        "l3" => Ok(1),
        "l3s" => Ok(2),
        other => Err(Error::invalid(format!("requested ipvlan mode '{other}' is not valid, 'l2' mode is the ipvlan driver default"))),
    }
}

pub(super) fn ipvlan_flag(flag: &str) -> Result<u16> {
    match flag {
        "bridge" => Ok(0),
        "private" => Ok(1),
        "vepa" => Ok(2),
        other => Err(Error::invalid(format!("requested ipvlan flag '{other}' is not valid, 'bridge' is the ipvlan driver default"))),
    }
}

/// The kernel's settings for this interface alone, as paths below `/proc/sys` and values.
pub(super) fn sysctls(endpoint: &Endpoint) -> Result<Vec<(String, String)>> {
    let text = endpoint.driver_opts.iter().flatten().find(|(key, _)| *key == option::SYSCTLS).map(|(_, text)| text.as_str());
    text.unwrap_or_default()
        .split(',')
        .filter(|setting| !setting.is_empty())
        .map(|setting| {
            let wrong = || Error::invalid(format!("invalid endpoint settings:\nunrecognised network interface sysctl '{setting}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V'"));
            let (key, value) = setting.split_once('=').ok_or_else(wrong)?;
            let mut parts: Vec<&str> = key.split('.').collect();
            // Docker's command line makes all of it lower case.
            let known = matches!(parts[..], ["net", "ipv4" | "ipv6" | "mpls", "conf" | "neigh", interface, name]
                if interface.eq_ignore_ascii_case("IFNAME") && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'));
            if !known {
                return Err(wrong());
            }
            parts[3] = &endpoint.interface;
            Ok((parts.join("/"), value.trim().to_owned()))
        })
        .collect()
}

/// What can be known to be wrong before anything is made.
pub(crate) fn check_endpoint(network: &NetworkRecord, endpoint: &Endpoint) -> Result<()> {
    let wrong = |text: String| Err(Error::invalid(format!("invalid endpoint settings:\n{text}")));
    if !endpoint.mac_address.is_empty() {
        parse_mac(&endpoint.mac_address)?;
        if network.driver == "ipvlan" {
            return wrong("interfaces of ipvlan networks have their parent's MAC address".into());
        }
    }
    for (key, value) in endpoint.driver_opts.iter().flatten() {
        match key.as_str() {
            option::INTERFACE_NAME => check_interface_name(value)?,
            option::SYSCTLS => drop(sysctls(endpoint)?),
            key if key.starts_with("com.docker.network.") => {
                return Err(Error::Unsupported(format!("endpoint option {key}: not available in this version of whelk")));
            }
            // Somebody else's note: kept and shown.
            _ => {}
        }
    }
    let Some(config) = &endpoint.ipam_config else { return Ok(()) };
    for (text, ipv4) in [(&config.ipv4_address, true), (&config.ipv6_address, false)] {
        if text.is_empty() {
            continue;
        }
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        match text.parse::<IpAddr>() {
            Ok(address) if address.is_ipv4() == ipv4 => {
                if network.name == "bridge" {
                    return Err(Error::invalid("user specified IP address is supported on user defined networks only"));
                }
                if !network.subnets().iter().any(|subnet| subnet.contains(&address)) {
                    return wrong(format!("no configured subnet or ip-range contain the IP address {address}"));
                }
            }
            _ => return wrong(format!("invalid {family} address: {text}")),
        }
    }
    for text in config.link_local_ips.iter().flatten() {
        if text.parse::<IpAddr>().is_err() {
            return wrong(format!("invalid link-local IP address: {text}"));
        }
    }
    Ok(())
}
