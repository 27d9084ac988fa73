//! Checks of the subnets, ranges and addresses that the request for a network gives. All faults are
//! reported at once, with Docker's texts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use whelk_network::ipam;

use super::model::{IpamConfig, NetworkRecord};
use crate::error::{Error, Result};

/// Checks the subnets of a new network, and removes those of address families that it does not have:
/// Docker ignores them, and its older clients disable IPv6 in each request.
///
/// # Errors
/// Returns an error that lists all faults.
pub(super) fn check(record: &mut NetworkRecord) -> Result<()> {
    let (ipv4, ipv6) = (record.enable_ipv4, record.enable_ipv6);
    let wrong: Vec<String> = record
        .ipam
        .config
        .iter()
        .flat_map(|config| match config.subnet.parse::<IpNet>() {
            Err(_) => vec![format!(
                "invalid subnet {}: invalid CIDR block notation",
                config.subnet
            )],
            Ok(IpNet::V6(_)) if !ipv6 => Vec::new(),
            Ok(subnet) => faults(config, subnet),
        })
        .collect();
    record
        .ipam
        .config
        .retain(|config| if config.is_ipv6() { ipv6 } else { ipv4 });
    let text = match wrong.as_slice() {
        [] => return Ok(()),
        [single] => single.clone(),
        several => format!("* {}", several.join("\n* ")),
    };
    Err(Error::invalid(format!("invalid network config:\n{text}")))
}

fn faults(config: &IpamConfig, subnet: IpNet) -> Vec<String> {
    let mut wrong = Vec::new();
    let loopback = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let link_local = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64);
    if ipam::overlaps(&subnet, &link_local.into()) && subnet.prefix_len() < link_local.prefix_len()
    {
        wrong.push(format!(
            "'{subnet}' clashes with the Link-Local prefix '{link_local}'"
        ));
    }
    if loopback.iter().any(|address| subnet.contains(address))
        || subnet.network().is_loopback()
        || subnet.network().is_multicast()
    {
        wrong.push(format!(
            "invalid subnet {subnet}: it contains loopback or multicast addresses"
        ));
    }
    if subnet.addr() != subnet.network() {
        wrong.push(format!(
            "invalid subnet {subnet}: it should be {}",
            subnet.trunc()
        ));
    }
    if !config.ip_range.is_empty() {
        wrong.extend(range_faults(&config.ip_range, subnet));
    }
    let auxiliary = config.auxiliary_addresses.iter();
    // An auxiliary address is shown by its name.
    let addresses = std::iter::once(("gateway", &config.gateway, &config.gateway))
        .filter(|(_, _, address)| !address.is_empty())
        .chain(auxiliary.map(|(name, address)| ("auxiliary address", name, address)));
    for (what, shown, address) in addresses {
        if let Some(cause) = address_fault(address, subnet) {
            wrong.push(format!("invalid {what} {shown}: {cause}"));
        }
    }
    wrong
}

fn range_faults(text: &str, subnet: IpNet) -> Vec<String> {
    let Ok(range) = text.parse::<IpNet>() else {
        return vec![format!(
            "invalid ip-range {text}: invalid CIDR block notation"
        )];
    };
    if range.addr().is_ipv4() != subnet.addr().is_ipv4() {
        return vec![format!(
            "invalid ip-range {text}: parent subnet is an {} block",
            family(subnet)
        )];
    }
    let mut wrong = Vec::new();
    if range.prefix_len() < subnet.prefix_len() {
        wrong.push(format!(
            "invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}"
        ));
    }
    if range.addr() != range.network() {
        wrong.push(format!(
            "invalid ip-range {range}: it should be {}",
            range.trunc()
        ));
    }
    if !ipam::overlaps(&range, &subnet) {
        wrong.push(format!(
            "invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range"
        ));
    }
    wrong
}

fn address_fault(text: &str, subnet: IpNet) -> Option<String> {
    match text.parse::<IpAddr>() {
        Err(_) => Some("invalid address".to_owned()),
        Ok(address) if address.is_ipv4() != subnet.addr().is_ipv4() => {
            Some(format!("parent subnet is an {} block", family(subnet)))
        }
        Ok(address) if !subnet.contains(&address) => Some(format!(
            "parent subnet {subnet} doesn't contain this address"
        )),
        Ok(_) => None,
    }
}

fn family(subnet: IpNet) -> &'static str {
    match subnet {
        IpNet::V4(_) => "IPv4",
        IpNet::V6(_) => "IPv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the faults of a network with IPv4 alone, or else its remaining subnets.
    fn checked(configs: &[(&str, &str, &str, &str)]) -> String {
        let config = |&(subnet, range, gateway, spare): &(&str, &str, &str, &str)| IpamConfig {
            subnet: subnet.into(),
            ip_range: range.into(),
            gateway: gateway.into(),
            auxiliary_addresses: [("spare".to_owned(), spare.to_owned())]
                .into_iter()
                .filter(|(_, address)| !address.is_empty())
                .collect(),
        };
        let mut record = NetworkRecord {
            enable_ipv4: true,
            ..NetworkRecord::default()
        };
        record.ipam.config = configs.iter().map(config).collect();
        match check(&mut record) {
            Ok(()) => format!("{:?}", record.subnets()),
            Err(error) => error
                .to_string()
                .strip_prefix("invalid network config:\n")
                .unwrap()
                .to_owned(),
        }
    }

    #[test]
    fn all_faults_are_listed() {
        for (config, expected) in [
            (
                ("x", "", "", ""),
                "invalid subnet x: invalid CIDR block notation",
            ),
            (
                ("10.0.0.1/24", "", "", ""),
                "invalid subnet 10.0.0.1/24: it should be 10.0.0.0/24",
            ),
            (
                ("10.0.0.0/24", "10.0.0.0", "", ""),
                "invalid ip-range 10.0.0.0: invalid CIDR block notation",
            ),
            (
                ("10.0.0.0/24", "fd00::/64", "fd00::1", ""),
                "* invalid ip-range fd00::/64: parent subnet is an IPv4 block\n\
                 * invalid gateway fd00::1: parent subnet is an IPv4 block",
            ),
            (
                ("10.0.9.0/24", "10.0.9.0/16", "", ""),
                "* invalid ip-range 10.0.9.0/16: CIDR block is bigger than its parent subnet 10.0.9.0/24\n\
                 * invalid ip-range 10.0.9.0/16: it should be 10.0.0.0/16",
            ),
            (
                ("10.0.9.0/24", "10.0.9.5/28", "x", "10.1.9.3"),
                "* invalid ip-range 10.0.9.5/28: it should be 10.0.9.0/28\n\
                 * invalid gateway x: invalid address\n\
                 * invalid auxiliary address spare: parent subnet 10.0.9.0/24 doesn't contain this address",
            ),
            (
                ("10.0.9.0/24", "10.0.8.0/28", "", ""),
                "invalid ip-range 10.0.8.0/28: parent subnet 10.0.9.0/24 doesn't contain ip-range",
            ),
            (
                ("127.0.5.0/24", "", "", ""),
                "invalid subnet 127.0.5.0/24: it contains loopback or multicast addresses",
            ),
        ] {
            assert_eq!(checked(&[config]), expected);
        }
    }

    #[test]
    fn subnets_of_a_disabled_family_are_ignored() {
        assert_eq!(
            checked(&[("fd00::1/64", "", "x", ""), ("10.0.9.0/24", "", "", "")]),
            "[10.0.9.0/24]"
        );
    }
}
