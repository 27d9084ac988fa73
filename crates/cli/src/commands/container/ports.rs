//! The ports of a container as `ps` and `port` print them.

use serde_json::Value;

/// Formats the ports of a listed container, joining adjacent ones to ranges:
/// `0.0.0.0:80-81->80-81/tcp, 443/tcp`.
pub(crate) fn column(ports: &Value) -> String {
    let mut list: Vec<(u64, &str, u64, &str)> = ports
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let number = |key: &str| port[key].as_u64().unwrap_or(0);
            let text = |key: &str| port[key].as_str().unwrap_or_default();
            (
                number("PrivatePort"),
                text("IP"),
                number("PublicPort"),
                text("Type"),
            )
        })
        .collect();
    list.sort_unstable();
    let mut ranges: Vec<(&str, &str, u64, u64)> = Vec::new();
    let mut moved = Vec::new();
    for (private, address, public, protocol) in list {
        if !address.is_empty() && public != private {
            moved.push(format!(
                "{}->{private}/{protocol}",
                with_port(address, public)
            ));
            continue;
        }
        match ranges
            .iter_mut()
            .find(|range| (range.0, range.1) == (address, protocol) && range.3 + 1 == private)
        {
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
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_adjacent_ports_as_ranges() {
        let port = |address: &str, private: u16, public: u16| json!({"IP": address, "PrivatePort": private, "PublicPort": public, "Type": "tcp"});
        let ports = json!([port("0.0.0.0", 80, 80), port("0.0.0.0", 81, 81), port("::", 90, 91), {"PrivatePort": 5, "Type": "udp"}]);
        assert_eq!(
            column(&ports),
            "5/udp, 0.0.0.0:80-81->80-81/tcp, [::]:91->90/tcp"
        );
    }
}
