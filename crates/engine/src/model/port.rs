//! The ports that a container exposes, and where on the host they are to be published.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use whelk_network::port::Protocol;

use crate::error::{Error, Result};

/// A port of a container. Its text is `NUMBER/PROTOCOL`; a text without a protocol means TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerPort {
    /// At least 1.
    pub number: u16,
    pub protocol: Protocol,
}

impl ContainerPort {
    /// The number of ports that there are, of three protocols.
    pub const COUNT: usize = 3 * 65535;

    /// Returns the ports that an entry in the configuration of an image means. Some builders write ranges
    /// (`100-102/udp`). What is no port means none: Docker runs such images.
    pub fn exposed_by(entry: &str) -> impl Iterator<Item = Self> + use<> {
        let (numbers, protocol) = entry.split_once('/').unwrap_or((entry, "tcp"));
        let range = numbers.parse::<PortRange>().ok();
        let ports = range.zip(Protocol::parse(protocol)).into_iter();
        ports.flat_map(|(range, protocol)| {
            (range.first.max(1)..=range.last).map(move |number| Self { number, protocol })
        })
    }
}

impl FromStr for ContainerPort {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let number = number
            .parse()
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| Error::invalid(format!("invalid port specification: {text:?}")))?;
        let protocol = Protocol::parse(protocol)
            .ok_or_else(|| Error::invalid(format!("invalid proto: {protocol}")))?;
        Ok(Self { number, protocol })
    }
}

impl fmt::Display for ContainerPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.number, self.protocol)
    }
}

/// The host address and port to publish a container's port at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortBinding {
    /// `None` for the network's default, which is every address.
    pub address: Option<IpAddr>,
    /// `None` for a port that the kernel chooses.
    pub ports: Option<PortRange>,
}

impl PortBinding {
    /// Parses the texts of an address, which may be in brackets, and of a [`PortRange`]. An empty
    /// text means `None`.
    ///
    /// # Errors
    /// Returns an error if one of them is invalid.
    pub fn parse(address: &str, ports: &str) -> Result<Self> {
        let parse = |text: &str| {
            text.trim_matches(['[', ']'])
                .parse()
                .map_err(|_| Error::invalid(format!("invalid IP address: {text}")))
        };
        let given = |text: &str| !text.is_empty();
        Ok(Self {
            address: given(address).then(|| parse(address)).transpose()?,
            ports: given(ports).then(|| ports.parse()).transpose()?,
        })
    }

    /// Returns the texts that [`Self::parse`] parses.
    pub fn texts(&self) -> (String, String) {
        let text = |address: IpAddr| address.to_string();
        let range = |ports: PortRange| ports.to_string();
        (
            self.address.map(text).unwrap_or_default(),
            self.ports.map(range).unwrap_or_default(),
        )
    }
}

/// A range of ports, `FIRST[-LAST]`. 0 stands for a port that the kernel chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    /// Not below `first`.
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Some(Self { first, last }),
            _ => None,
        };
        range.ok_or_else(|| Error::invalid(format!("invalid port specification: {text:?}")))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(formatter, "{}", self.first)
        } else {
            write!(formatter, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_a_number_and_a_protocol() {
        for (text, expected) in [
            ("80", "80/tcp"),
            ("80/tcp", "80/tcp"),
            ("53/UDP", "53/udp"),
            ("0/tcp", "invalid port specification: \"0/tcp\""),
            ("65536", "invalid port specification: \"65536\""),
            ("80/x", "invalid proto: x"),
            ("80/", "invalid proto: "),
            ("", "invalid port specification: \"\""),
            ("80-81/tcp", "invalid port specification: \"80-81/tcp\""),
        ] {
            let found = text.parse::<ContainerPort>();
            let found = found.map_or_else(|error| error.to_string(), |port| port.to_string());
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn images_expose_ports_and_ranges() {
        for (entry, expected) in [
            ("80", "80/tcp"),
            ("53/udp", "53/udp"),
            ("100-102/udp", "100/udp 101/udp 102/udp"),
            ("65534-65535", "65534/tcp 65535/tcp"),
            ("0-1/tcp", "1/tcp"),
            ("0/tcp", ""),
            ("2-1/tcp", ""),
            ("80/x", ""),
            ("http", ""),
            ("", ""),
        ] {
            let ports = ContainerPort::exposed_by(entry).map(|port| port.to_string());
            assert_eq!(ports.collect::<Vec<_>>().join(" "), expected, "{entry}");
        }
    }

    #[test]
    fn bindings_have_an_address_and_a_range() {
        for (address, ports, expected) in [
            ("", "", "None None"),
            ("127.0.0.1", "80", "Some(127.0.0.1) Some(\"80\")"),
            ("[2001:db8::1]", "1-2", "Some(2001:db8::1) Some(\"1-2\")"),
            ("::", "0", "Some(::) Some(\"0\")"),
            ("", "9-8", "invalid port specification: \"9-8\""),
            ("", "x", "invalid port specification: \"x\""),
            ("x", "", "invalid IP address: x"),
        ] {
            let found = PortBinding::parse(address, ports).map_or_else(
                |error| error.to_string(),
                |one| {
                    format!(
                        "{:?} {:?}",
                        one.address,
                        one.ports.map(|ports| ports.to_string())
                    )
                },
            );
            assert_eq!(found, expected);
        }
    }
}
