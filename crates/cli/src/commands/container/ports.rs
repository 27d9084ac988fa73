//! The ports of a container as `ps` and `port` print them.

use whelk_api_types::PortSummary;

/// Formats the ports of a listed container, joining adjacent ones to ranges:
/// `0.0.0.0:80-81->80-81/tcp, 443/tcp`.
pub(crate) fn column(ports: &[PortSummary]) -> String {
    let mut list: Vec<(u16, String, u16, &str)> = ports
        .iter()
        .map(|port| {
            (
                port.private_port,
                port.ip.map(|ip| ip.to_string()).unwrap_or_default(),
                port.public_port.unwrap_or(0),
                port.kind.as_str(),
            )
        })
        .collect();
    list.sort_unstable();
    let mut ranges: Vec<(&str, &str, u16, u16)> = Vec::new();
    let mut moved = Vec::new();
    for (private, address, public, protocol) in &list {
        let (private, public) = (*private, *public);
        if !address.is_empty() && public != private {
            moved.push(format!(
                "{}->{private}/{protocol}",
                with_port(address, public)
            ));
            continue;
        }
        match ranges.iter_mut().find(|range| {
            (range.0, range.1) == (address.as_str(), *protocol)
                && range.3.checked_add(1) == Some(private)
        }) {
            Some(range) => range.3 = private,
            None => ranges.push((address, protocol, private, private)),
        }
    }
    let shown = ranges.into_iter().map(|(address, protocol, first, last)| {
        let ports = if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        };
        if address.is_empty() {
            format!("{ports}/{protocol}")
        } else {
            format!("{}->{ports}/{protocol}", with_port(address, &ports))
        }
    });
    shown.chain(moved).collect::<Vec<_>>().join(", ")
}

pub(super) fn with_port(address: &str, port: impl std::fmt::Display) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_adjacent_ports_as_ranges() {
        let port = |address: &str, private: u16, public: u16| PortSummary {
            ip: address.parse().ok(),
            private_port: private,
            public_port: Some(public),
            kind: "tcp".into(),
        };
        let exposed = PortSummary {
            private_port: 5,
            kind: "udp".into(),
            ..PortSummary::default()
        };
        let ports = [
            port("0.0.0.0", 80, 80),
            port("0.0.0.0", 81, 81),
            port("::", 90, 91),
            exposed,
        ];
        assert_eq!(
            column(&ports),
            "5/udp, 0.0.0.0:80-81->80-81/tcp, [::]:91->90/tcp"
        );
    }
}
