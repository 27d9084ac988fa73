//! Parses and validates settings of networks and endpoints before anything is created.

use std::net::IpAddr;

use ipnet::IpNet;

use super::create::check_interface_name;
use super::model::{Assigned, EndpointIpam, EndpointRequest, NetworkRecord, option};
use crate::error::{Error, Result};
use crate::model::NetworkMode;

/// Parses a unicast hardware address.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let invalid = || Error::invalid(format!("invalid MAC address: {text}"));
    let bytes: Vec<u8> = text
        .split([':', '-'])
        .map(|part| u8::from_str_radix(part, 16).map_err(|_| invalid()))
        .collect::<Result<_>>()?;
    <[u8; 6]>::try_from(bytes)
        .ok()
        .filter(|bytes| bytes[0] & 1 == 0)
        .ok_or_else(invalid)
}

/// Returns the hardware address of an endpoint.
pub(super) fn mac_of(endpoint: &Assigned) -> Result<[u8; 6]> {
    parse_mac(&endpoint.mac_address)
}

/// Returns an endpoint's sysctls, as paths below `/proc/sys` and values, for its interface.
pub(super) fn sysctls(endpoint: &EndpointRequest, name: &str) -> Result<Vec<(String, String)>> {
    let text = endpoint
        .driver_opts
        .iter()
        .flatten()
        .find(|(key, _)| *key == option::SYSCTLS)
        .map(|(_, text)| text.as_str());
    text.unwrap_or_default()
        .split(',')
        .filter(|setting| !setting.is_empty())
        .map(|setting| {
            let wrong = || Error::invalid(format!("invalid endpoint settings:\nunrecognised network interface sysctl '{setting}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V'"));
            let (key, value) = setting.split_once('=').ok_or_else(wrong)?;
            let mut parts: Vec<&str> = key.split('.').collect();
            // Docker's CLI converts the option to lower case.
            let known = matches!(parts[..], ["net", "ipv4" | "ipv6" | "mpls", "conf" | "neigh", interface, key]
                if interface.eq_ignore_ascii_case("IFNAME") && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'));
            if !known {
                return Err(wrong());
            }
            parts[3] = name;
            Ok((parts.join("/"), value.trim().to_owned()))
        })
        .collect()
}

/// Validates an endpoint's settings and reports all faults at once, as Docker does. `network` is
/// `None` if the network does not exist yet.
pub(crate) fn check_endpoint(
    name: &str,
    network: Option<&NetworkRecord>,
    endpoint: &EndpointRequest,
) -> Result<()> {
    if !endpoint.mac_address.is_empty() {
        parse_mac(&endpoint.mac_address)?;
    }
    for (key, value) in endpoint.driver_opts.iter().flatten() {
        match key.as_str() {
            option::INTERFACE_NAME => check_interface_name(value)?,
            option::SYSCTLS => drop(sysctls(endpoint, "")?),
            key if key.starts_with("com.docker.network.") => {
                return Err(Error::unsupported(format_args!("endpoint option {key}")));
            }
            // Unknown options are stored and returned.
            _ => {}
        }
    }
    let wrong = faults(name, network, endpoint);
    match wrong.as_slice() {
        [] => Ok(()),
        [single] => Err(Error::invalid(format!(
            "invalid endpoint settings:\n{single}"
        ))),
        several => Err(Error::invalid(format!(
            "invalid endpoint settings:\n* {}",
            several.join("\n* ")
        ))),
    }
}

fn faults(name: &str, network: Option<&NetworkRecord>, endpoint: &EndpointRequest) -> Vec<String> {
    let mut wrong = Vec::new();
    let asked = endpoint.ipam_config.clone().unwrap_or_default();
    let has_address = !asked.ipv4_address.is_empty() || !asked.ipv6_address.is_empty();
    // Clients may also send an endpoint for the mode `container:NAME`.
    if !name
        .parse()
        .is_ok_and(|mode: NetworkMode| mode.is_user_defined())
    {
        if has_address {
            wrong.push(
                "user specified IP address is supported on user defined networks only".to_owned(),
            );
        }
        if endpoint
            .aliases
            .as_ref()
            .is_some_and(|aliases| !aliases.is_empty())
        {
            wrong.push(
                "network-scoped alias is supported only for containers in user defined networks"
                    .to_owned(),
            );
        }
    }
    if let Some(network) = network
        && network.driver.facts().parents_mac
        && !endpoint.mac_address.is_empty()
    {
        wrong.push(format!(
            "interfaces of {} networks have their parent's MAC address",
            network.driver
        ));
    }
    let mut addresses = Vec::new();
    for (text, ipv4) in [(&asked.ipv4_address, true), (&asked.ipv6_address, false)] {
        // An IPv4-mapped IPv6 address is refused.
        let fits = |address: &IpAddr| match address {
            IpAddr::V4(_) => ipv4,
            IpAddr::V6(address) => !ipv4 && address.to_ipv4_mapped().is_none(),
        };
        match text.parse::<IpAddr>() {
            _ if text.is_empty() => {}
            Ok(address) if fits(&address) => addresses.push(address),
            _ => wrong.push(format!(
                "invalid {} address: {text}",
                if ipv4 { "IPv4" } else { "IPv6" }
            )),
        }
    }
    for text in asked
        .link_local_ips
        .iter()
        .flatten()
        .filter(|text| text.parse::<IpAddr>().is_err())
    {
        wrong.push(format!("invalid link-local IP address: {text}"));
    }
    let Some(network) = network else { return wrong };
    if network.is_predefined() && has_address {
        wrong.push("user specified IP address is supported only when connecting to networks with user configured subnets".to_owned());
    } else {
        let outside = addresses.iter().filter(|address| {
            !network
                .subnets()
                .iter()
                .any(|subnet| subnet.contains(*address))
        });
        wrong.extend(outside.map(|address| {
            format!("no configured subnet or ip-range contain the IP address {address}")
        }));
    }
    wrong
}

/// Returns the additional link-local addresses that an endpoint requests.
///
/// # Errors
/// Returns an error if an address is not link-local.
pub(super) fn link_local_addresses(endpoint: &EndpointRequest) -> Result<Vec<IpNet>> {
    let asked = endpoint
        .ipam_config
        .iter()
        .flat_map(EndpointIpam::link_local);
    asked
        .map(|net| {
            net.map_err(|text| Error::invalid(format!("invalid link local IP address: {text}")))
        })
        .collect()
}

/// Returns whether an endpoint's sysctls disable IPv6 on its interface.
pub(super) fn disables_ipv6(endpoint: &EndpointRequest) -> bool {
    let is_off = |(path, value): &(String, String)| {
        path.starts_with("net/ipv6/conf/") && path.ends_with("/disable_ipv6") && value != "0"
    };
    sysctls(endpoint, "").is_ok_and(|settings| settings.iter().any(is_off))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::NetworkDriverKind;
    use crate::networks::model::IpamConfig;

    fn check(name: &str, endpoint: EndpointRequest, expected: &str) {
        let network = |driver, subnets: &[&str]| NetworkRecord {
            name: name.into(),
            driver,
            ipam: crate::networks::model::Ipam {
                config: subnets
                    .iter()
                    .map(|&subnet| IpamConfig {
                        subnet: subnet.into(),
                        ..IpamConfig::default()
                    })
                    .collect(),
                ..Default::default()
            },
            ..NetworkRecord::default()
        };
        let network = match name {
            "bridge" => Some(network(NetworkDriverKind::Bridge, &["172.17.0.0/16"])),
            "host" => Some(network(NetworkDriverKind::Host, &[])),
            "none" => Some(network(NetworkDriverKind::Null, &[])),
            "app" => Some(network(
                NetworkDriverKind::Bridge,
                &["10.4.0.0/24", "fd00:4::/64"],
            )),
            _ => None,
        };
        let found = check_endpoint(name, network.as_ref(), &endpoint)
            .map_or_else(|error| error.to_string(), |()| String::new());
        assert_eq!(
            found
                .strip_prefix("invalid endpoint settings:\n")
                .unwrap_or(&found),
            expected,
            "{name} {endpoint:?}"
        );
    }

    fn at(ipv4: &str, ipv6: &str) -> EndpointRequest {
        let config = EndpointIpam {
            ipv4_address: ipv4.into(),
            ipv6_address: ipv6.into(),
            link_local_ips: None,
        };
        EndpointRequest {
            ipam_config: Some(config),
            ..EndpointRequest::default()
        }
    }

    #[test]
    fn rejects_invalid_endpoints_with_dockers_texts() {
        let alias = || EndpointRequest {
            aliases: Some(vec!["x".into()]),
            ..EndpointRequest::default()
        };
        const ALIAS: &str =
            "network-scoped alias is supported only for containers in user defined networks";
        const ADDRESS: &str =
            "user specified IP address is supported on user defined networks only";
        const SUBNETS: &str = "user specified IP address is supported only when connecting to networks with user configured subnets";
        for name in ["bridge", "host", "none", "container:x"] {
            check(name, alias(), ALIAS);
            check(
                name,
                EndpointRequest {
                    aliases: Some(Vec::new()),
                    ..EndpointRequest::default()
                },
                "",
            );
        }
        check("app", alias(), "");
        check(
            "bridge",
            at("172.17.0.9", ""),
            &format!("* {ADDRESS}\n* {SUBNETS}"),
        );
        check(
            "host",
            at("172.17.0.9", ""),
            &format!("* {ADDRESS}\n* {SUBNETS}"),
        );
        check("container:x", at("172.17.0.9", ""), ADDRESS);
        check(
            "bridge",
            EndpointRequest {
                aliases: alias().aliases,
                ..at("172.17.0.9", "")
            },
            &format!("* {ADDRESS}\n* {ALIAS}\n* {SUBNETS}"),
        );
        check("app", at("10.4.0.5", "fd00:4::5"), "");
        check(
            "app",
            at("", "::ffff:10.4.0.5"),
            "invalid IPv6 address: ::ffff:10.4.0.5",
        );
        check(
            "app",
            at("fd00:4::5", "10.4.0.5"),
            "* invalid IPv4 address: fd00:4::5\n* invalid IPv6 address: 10.4.0.5",
        );
        check(
            "app",
            at("10.5.0.5", ""),
            "no configured subnet or ip-range contain the IP address 10.5.0.5",
        );
        check("later", at("bogus", ""), "invalid IPv4 address: bogus");
    }

    #[test]
    fn rejects_addresses_that_are_not_link_local() {
        let of = |text: &str| {
            let config = EndpointIpam {
                link_local_ips: Some(vec![text.into()]),
                ..EndpointIpam::default()
            };
            let endpoint = EndpointRequest {
                ipam_config: Some(config),
                ..EndpointRequest::default()
            };
            link_local_addresses(&endpoint)
                .map_or_else(|error| error.to_string(), |nets| nets[0].to_string())
        };
        assert_eq!(of("169.254.3.4"), "169.254.3.4/16");
        assert_eq!(of("fe80::9"), "fe80::9/64");
        for other in ["10.9.9.9", "fd00::9", "bogus"] {
            assert_eq!(of(other), format!("invalid link local IP address: {other}"));
        }
    }
}
