//! Ports of EXPOSE.

use std::net::IpAddr;

use crate::error::{Error, Result};

/// What is unusual in a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Oddities {
    pub upper_case: bool,
    pub host_part: bool,
}

/// Expands `[[IP:]HOST:]PORT[-PORT][/PROTOCOL]` to `PORT/PROTOCOL` for each port.
pub(super) fn ports(written: &str) -> Result<(Vec<String>, Oddities)> {
    let (host, container) = written.rsplit_once(':').unwrap_or(("", written));
    let (address, host) = host.rsplit_once(':').unwrap_or(("", host));
    let invalid = |cause: &str| Error::new(format!("invalid port: {written:?}: {cause}"));
    let (ports, protocol) = container.split_once('/').unwrap_or((container, ""));
    if ports.is_empty() {
        return Err(invalid("no port specified"));
    }
    let lower = match protocol.to_lowercase().as_str() {
        "" => "tcp".to_owned(),
        known @ ("tcp" | "udp" | "sctp") => known.to_owned(),
        _ => return Err(invalid(&format!("invalid proto: {protocol}"))),
    };
    let bare = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(address);
    if !address.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(Error::new(format!("invalid IP address: {bare}")));
    }
    let (first, last) =
        range(ports).ok_or_else(|| Error::new(format!("invalid containerPort: {ports}")))?;
    if !host.is_empty() {
        let (host_first, host_last) =
            range(host).ok_or_else(|| Error::new(format!("invalid hostPort: {host}")))?;
        if last != first && last - first != host_last - host_first {
            return Err(Error::new(format!(
                "invalid ranges specified for container and host Ports: {ports} and {host}"
            )));
        }
    }
    let oddities = Oddities {
        upper_case: protocol != protocol.to_lowercase(),
        host_part: !address.is_empty() || !host.is_empty(),
    };
    let expanded = (first..=last).map(|port| format!("{port}/{lower}"));
    Ok((expanded.collect(), oddities))
}

fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| {
        let digits = text.strip_prefix('+').unwrap_or(text);
        digits.parse::<u16>().ok()
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_ports() {
        for (written, expected) in [
            ("80", &["80/tcp"][..]),
            ("80-82/UDP", &["80/udp", "81/udp", "82/udp"]),
            ("1234:80/tcp", &["80/tcp"]),
            ("0.0.0.0:1234-1235:3333-3334/tcp", &["3333/tcp", "3334/tcp"]),
            ("[::1]:80:80", &["80/tcp"]),
            ("::1:80:80", &["80/tcp"]),
            ("[2001:4860:0:2001::68]::333", &["333/tcp"]),
            ("2001:4860:0:2001::68::333", &["333/tcp"]),
            ("::::80", &["80/tcp"]),
        ] {
            let found = ports(written).unwrap_or_else(|error| panic!("{written}: {error}"));
            assert_eq!(found.0, expected, "{written}");
        }
        for (written, expected) in [
            ("", "invalid port: \"\": no port specified"),
            ("80/x", "invalid port: \"80/x\": invalid proto: x"),
            ("70000", "invalid containerPort: 70000"),
            ("a:80", "invalid hostPort: a"),
            ("localhost:1:80", "invalid IP address: localhost"),
            (
                "1-3:80-81",
                "invalid ranges specified for container and host Ports: 80-81 and 1-3",
            ),
        ] {
            assert_eq!(
                ports(written).unwrap_err().to_string(),
                expected,
                "{written}"
            );
        }
    }
}
