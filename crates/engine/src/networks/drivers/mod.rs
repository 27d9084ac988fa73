//! Network drivers: how the containers of a network are connected.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The drivers of networks. Their names are matched here only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkDriverKind {
    /// A bridge on the host, which routes and masquerades what its containers send to the outside.
    #[default]
    Bridge,
    /// Interfaces with hardware addresses of their own on an interface of the host.
    Macvlan,
    /// Interfaces that share the hardware address of an interface of the host.
    Ipvlan,
    /// The host's network namespace. Its only network is `host`.
    Host,
    /// A network namespace with nothing but a loopback interface. Its only network is `none`.
    Null,
}

impl NetworkDriverKind {
    /// All drivers, in the order of their names.
    pub const ALL: [Self; 5] = [
        Self::Bridge,
        Self::Host,
        Self::Ipvlan,
        Self::Macvlan,
        Self::Null,
    ];

    /// Returns the driver's name in the Engine API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
            Self::Host => "host",
            Self::Null => "null",
        }
    }
}

impl fmt::Display for NetworkDriverKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for NetworkDriverKind {
    type Err = Error;

    /// Parses the name in a request. An empty one means `bridge`.
    fn from_str(name: &str) -> Result<Self> {
        if name.is_empty() {
            return Ok(Self::Bridge);
        }
        if name == "overlay" {
            return Err(Error::Unsupported(format!(
                "network driver {name}: not available in this version of whelk"
            )));
        }
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| Error::NotFound(format!("plugin {name:?} not found")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_requests_and_records() {
        for kind in NetworkDriverKind::ALL {
            assert_eq!(kind.to_string().parse::<NetworkDriverKind>().unwrap(), kind);
        }
        let refused = |name: &str| name.parse::<NetworkDriverKind>().unwrap_err().to_string();
        assert_eq!(
            refused("overlay"),
            "network driver overlay: not available in this version of whelk"
        );
        assert_eq!(refused("Bridge"), "plugin \"Bridge\" not found");
        assert_eq!("".parse::<NetworkDriverKind>().unwrap().name(), "bridge");
    }
}
