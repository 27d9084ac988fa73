//! The sets and maps of the tables, and the elements for bridges, containers and published ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::nft::{ETHER, Element, IFNAME, IPV4, IPV6, PROTOCOL, SERVICE, Set, Value};
use crate::port::PortMapping;

/// A set or map of our tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetId {
    Bridges,
    SameBridge,
    Internal,
    UnprotectedV4,
    UnprotectedV6,
    RoutedV4,
    RoutedV6,
    PublishedV4,
    PublishedV6,
    MasqueradeV4,
    MasqueradeV6,
    SnatV4,
    SnatV6,
    SourcesV4,
    SourcesV6,
    DnatV4,
    DnatV4ByAddress,
    DnatV6,
    DnatV6ByAddress,
    /// Contains ::1 while the host's own connections to it can be redirected to containers.
    LoopbackV6,
    /// In the bridge table: the containers' bridge ports, and the source addresses each may use.
    Interfaces,
    Senders,
    SendersV4,
    SendersV6,
}

impl SetId {
    pub(super) const ALL: [Self; 24] = [
        Self::Bridges,
        Self::SameBridge,
        Self::Internal,
        Self::UnprotectedV4,
        Self::UnprotectedV6,
        Self::RoutedV4,
        Self::RoutedV6,
        Self::PublishedV4,
        Self::PublishedV6,
        Self::MasqueradeV4,
        Self::MasqueradeV6,
        Self::SnatV4,
        Self::SnatV6,
        Self::SourcesV4,
        Self::SourcesV6,
        Self::DnatV4,
        Self::DnatV4ByAddress,
        Self::DnatV6,
        Self::DnatV6ByAddress,
        Self::LoopbackV6,
        Self::Interfaces,
        Self::Senders,
        Self::SendersV4,
        Self::SendersV6,
    ];

    pub(super) fn is_bridge_family(self) -> bool {
        matches!(
            self,
            Self::Interfaces | Self::Senders | Self::SendersV4 | Self::SendersV6
        )
    }

    pub(super) fn set(self) -> Set<'static> {
        let (name, key, data, interval): (_, &[_], &[_], _) = match self {
            Self::Bridges => ("bridges", &[IFNAME], &[], false),
            Self::SameBridge => ("same_bridge", &[IFNAME, IFNAME], &[], false),
            Self::Internal => ("internal", &[IFNAME], &[], false),
            Self::UnprotectedV4 => ("unprotected_v4", &[IFNAME], &[], false),
            Self::UnprotectedV6 => ("unprotected_v6", &[IFNAME], &[], false),
            Self::RoutedV4 => ("routed_v4", &[IFNAME], &[], false),
            Self::RoutedV6 => ("routed_v6", &[IFNAME], &[], false),
            Self::PublishedV4 => ("published_v4", &[IPV4, PROTOCOL, SERVICE], &[], false),
            Self::PublishedV6 => ("published_v6", &[IPV6, PROTOCOL, SERVICE], &[], false),
            Self::MasqueradeV4 => ("masquerade_v4", &[IFNAME], &[], false),
            Self::MasqueradeV6 => ("masquerade_v6", &[IFNAME], &[], false),
            Self::SnatV4 => ("snat_v4", &[IFNAME], &[IPV4], false),
            Self::SnatV6 => ("snat_v6", &[IFNAME], &[IPV6], false),
            Self::SourcesV4 => ("sources_v4", &[IFNAME, IPV4], &[], true),
            Self::SourcesV6 => ("sources_v6", &[IFNAME, IPV6], &[], true),
            Self::DnatV4 => ("dnat_v4", &[PROTOCOL, SERVICE], &[IPV4, SERVICE], false),
            Self::DnatV4ByAddress => (
                "dnat_v4_by_address",
                &[IPV4, PROTOCOL, SERVICE],
                &[IPV4, SERVICE],
                false,
            ),
            Self::DnatV6 => ("dnat_v6", &[PROTOCOL, SERVICE], &[IPV6, SERVICE], false),
            Self::DnatV6ByAddress => (
                "dnat_v6_by_address",
                &[IPV6, PROTOCOL, SERVICE],
                &[IPV6, SERVICE],
                false,
            ),
            Self::LoopbackV6 => ("loopback_v6", &[IPV6], &[], false),
            Self::Interfaces => ("interfaces", &[IFNAME], &[], false),
            Self::Senders => ("senders", &[IFNAME, ETHER], &[], false),
            Self::SendersV4 => ("senders_v4", &[IFNAME, ETHER, IPV4], &[], false),
            Self::SendersV6 => ("senders_v6", &[IFNAME, IPV6], &[], false),
        };
        Set {
            name,
            key,
            data,
            interval,
        }
    }
}

pub(super) type Entry = (SetId, Element);

/// The settings of a bridge that the rules depend on.
#[derive(Clone, Debug)]
pub struct BridgeRules {
    pub name: String,
    pub subnets: Vec<IpNet>,
    /// No traffic leaves or enters the network.
    pub internal: bool,
    pub masquerade_v4: bool,
    pub masquerade_v6: bool,
    /// The source address of masqueraded packets, instead of the outgoing interface's.
    pub host_v4: Option<Ipv4Addr>,
    pub host_v6: Option<Ipv6Addr>,
    /// Whether containers of the network can reach each other.
    pub icc: bool,
    /// Containers are reachable from outside on all ports (gateway mode `nat-unprotected`).
    pub unprotected_v4: bool,
    pub unprotected_v6: bool,
    /// Containers are reachable from outside by their own addresses, on published ports only
    /// (gateway mode `routed`).
    pub routed_v4: bool,
    pub routed_v6: bool,
}

impl BridgeRules {
    pub(super) fn entries(&self) -> Vec<Entry> {
        let name = || Value::new().name(&self.name);
        let mut entries = vec![(SetId::Bridges, Element::key(name()))];
        if self.icc {
            // Without `icc` the host must not route packets from one container to another either.
            entries.push((SetId::SameBridge, Element::key(name().name(&self.name))));
        }
        let (masquerades_v4, masquerades_v6) = (
            self.masquerade_v4 && !self.internal,
            self.masquerade_v6 && !self.internal,
        );
        for (wanted, set_id) in [
            (self.internal, SetId::Internal),
            (self.unprotected_v4 && !self.internal, SetId::UnprotectedV4),
            (self.unprotected_v6 && !self.internal, SetId::UnprotectedV6),
            (self.routed_v4 && !self.internal, SetId::RoutedV4),
            (self.routed_v6 && !self.internal, SetId::RoutedV6),
            (
                masquerades_v4 && self.host_v4.is_none(),
                SetId::MasqueradeV4,
            ),
            (
                masquerades_v6 && self.host_v6.is_none(),
                SetId::MasqueradeV6,
            ),
        ] {
            if wanted {
                entries.push((set_id, Element::key(name())));
            }
        }
        let sources = [
            (masquerades_v4, self.host_v4.map(IpAddr::V4), SetId::SnatV4),
            (masquerades_v6, self.host_v6.map(IpAddr::V6), SetId::SnatV6),
        ];
        for (masquerades, address, set_id) in sources {
            if let Some(address) = address.filter(|_| masquerades) {
                let element = Element {
                    key: name(),
                    end: None,
                    data: Some(Value::new().ip(address)),
                };
                entries.push((set_id, element));
            }
        }
        let mut ranges: Vec<(IpAddr, IpAddr)> = self
            .subnets
            .iter()
            .map(|net| (net.network(), net.broadcast()))
            .collect();
        if self.subnets.iter().any(|net| matches!(net, IpNet::V6(_))) {
            // Neighbour discovery uses link-local source addresses, and the unspecified address
            // during duplicate address detection.
            ranges.push((
                Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(),
                Ipv6Addr::new(0xfebf, !0, !0, !0, !0, !0, !0, !0).into(),
            ));
            ranges.push((Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()));
        }
        if self.subnets.iter().any(|net| matches!(net, IpNet::V4(_))) {
            // Addresses that containers were given beside those of the network. The bridge table knows
            // which are whose; where bridged traffic is filtered (br_netfilter), it passes here, too.
            ranges.push((
                Ipv4Addr::new(169, 254, 0, 0).into(),
                Ipv4Addr::new(169, 254, 255, 255).into(),
            ));
        }
        // The kernel rejects overlapping ranges, such as a link-local subnet and all of fe80::/10.
        for (first, last) in merge_ranges(ranges) {
            let set_id = if first.is_ipv4() {
                SetId::SourcesV4
            } else {
                SetId::SourcesV6
            };
            entries.push((
                set_id,
                Element {
                    key: name().ip(first),
                    end: Some(name().ip(last)),
                    data: None,
                },
            ));
        }
        entries
    }
}

/// Merges overlapping address ranges.
fn merge_ranges(mut ranges: Vec<(IpAddr, IpAddr)>) -> Vec<(IpAddr, IpAddr)> {
    ranges.sort_unstable();
    let mut apart: Vec<(IpAddr, IpAddr)> = Vec::new();
    for (first, last) in ranges {
        match apart.last_mut() {
            Some(before) if before.1.is_ipv4() == first.is_ipv4() && first <= before.1 => {
                before.1 = before.1.max(last)
            }
            _ => apart.push((first, last)),
        }
    }
    apart
}

/// The source addresses that a container's bridge port may use.
#[derive(Clone, Debug)]
pub struct SenderRules {
    pub interface: String,
    pub mac: [u8; 6],
    pub addresses: Vec<IpAddr>,
}

impl SenderRules {
    pub(super) fn entries(&self) -> Vec<Entry> {
        let name = || Value::new().name(&self.interface);
        let mut entries = vec![
            (SetId::Interfaces, Element::key(name())),
            (SetId::Senders, Element::key(name().mac(self.mac))),
        ];
        for address in &self.addresses {
            entries.push(match address {
                IpAddr::V4(_) => (
                    SetId::SendersV4,
                    Element::key(name().mac(self.mac).ip(*address)),
                ),
                IpAddr::V6(_) => (SetId::SendersV6, Element::key(name().ip(*address))),
            });
        }
        entries
    }
}

pub(super) fn mapping_entry(mapping: &PortMapping) -> Entry {
    let PortMapping { protocol, host, to } = mapping;
    if mapping.is_direct() {
        let set_id = if to.is_ipv4() {
            SetId::PublishedV4
        } else {
            SetId::PublishedV6
        };
        return (
            set_id,
            Element::key(
                Value::new()
                    .ip(to.ip())
                    .protocol(protocol.number())
                    .port(to.port()),
            ),
        );
    }
    let at = !host.ip().is_unspecified();
    let set_id = match (host, at) {
        (SocketAddr::V4(_), false) => SetId::DnatV4,
        (SocketAddr::V4(_), true) => SetId::DnatV4ByAddress,
        (SocketAddr::V6(_), false) => SetId::DnatV6,
        (SocketAddr::V6(_), true) => SetId::DnatV6ByAddress,
    };
    let key = if at {
        Value::new().ip(host.ip())
    } else {
        Value::new()
    };
    let element = Element {
        key: key.protocol(protocol.number()).port(host.port()),
        end: None,
        data: Some(Value::new().ip(to.ip()).port(to.port())),
    };
    (set_id, element)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ranges_are_merged() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let ranges = [
            ("fe80::", "febf::"),
            ("10.0.0.0", "10.0.0.255"),
            ("fe80::", "fe80::ff"),
            ("::", "::"),
            ("febf::", "fec0::"),
        ];
        let merged = merge_ranges(ranges.map(|(first, last)| (ip(first), ip(last))).to_vec());
        let expected = [
            ("10.0.0.0", "10.0.0.255"),
            ("::", "::"),
            ("fe80::", "fec0::"),
        ];
        assert_eq!(merged, expected.map(|(first, last)| (ip(first), ip(last))));
    }
}
