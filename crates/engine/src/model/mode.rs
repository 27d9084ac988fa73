//! The modes of a container's namespaces: whether each is the container's own, the host's or
//! another container's. The modes are parsed from, and displayed as, the Engine API's texts.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// The prefix of the name or id of the container whose namespace is shared.
const CONTAINER: &str = "container:";

/// Returns the container that a mode's text names.
fn donor(text: &str) -> Option<&str> {
    text.strip_prefix(CONTAINER)
}

/// The network of a new container: `HostConfig.NetworkMode`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// Validation replaces it by [`Self::Bridge`], or [`Self::None`] if networks are disabled.
    #[default]
    Default,
    None,
    Host,
    /// The default network.
    Bridge,
    /// The name or id of a container; the id in a record.
    Container(String),
    /// The name or id of a network.
    Network(String),
}

impl NetworkMode {
    /// Returns whether the container has a network namespace with endpoints: not `none`, `host` or
    /// `container:…`.
    pub fn has_own_networks(&self) -> bool {
        !matches!(self, Self::None | Self::Host | Self::Container(_))
    }

    /// Returns whether it is a network that a user has created.
    pub fn is_user_defined(&self) -> bool {
        matches!(self, Self::Network(_))
    }

    /// Returns the name or id of the container whose network is shared.
    pub fn container(&self) -> Option<&str> {
        match self {
            Self::Container(donor) => Some(donor),
            _ => None,
        }
    }

    /// Returns the name or id of the network of the container's first endpoint. `None` if the
    /// network of another container is shared.
    pub fn network(&self) -> Option<&str> {
        Some(match self {
            Self::Default | Self::Bridge => "bridge",
            Self::None => "none",
            Self::Host => "host",
            Self::Network(name) => name,
            Self::Container(_) => return None,
        })
    }
}

impl FromStr for NetworkMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(match text {
            "" | "default" => Self::Default,
            "none" => Self::None,
            "host" => Self::Host,
            "bridge" => Self::Bridge,
            "container" | CONTAINER => {
                return Err(Error::invalid(
                    "invalid network mode: invalid container format container:<name|id>",
                ));
            }
            name => match donor(name) {
                None => Self::Network(name.to_owned()),
                Some(donor) => Self::Container(donor.to_owned()),
            },
        })
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::None => formatter.write_str("none"),
            Self::Host => formatter.write_str("host"),
            Self::Bridge => formatter.write_str("bridge"),
            Self::Container(donor) => write!(formatter, "{CONTAINER}{donor}"),
            Self::Network(name) => formatter.write_str(name),
        }
    }
}

/// The PID namespace: `HostConfig.PidMode`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PidMode {
    #[default]
    Private,
    Host,
    /// The name or id of a container; the id in a record.
    Container(String),
}

impl PidMode {
    /// Returns the name or id of the container whose namespace is shared.
    pub fn container(&self) -> Option<&str> {
        match self {
            Self::Container(donor) => Some(donor),
            _ => None,
        }
    }
}

impl FromStr for PidMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match (text, donor(text)) {
            ("", _) => Ok(Self::Private),
            ("host", _) => Ok(Self::Host),
            (_, Some(donor)) if !donor.is_empty() => Ok(Self::Container(donor.to_owned())),
            _ => Err(Error::invalid(format!("invalid PID mode: {text}"))),
        }
    }
}

impl fmt::Display for PidMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private => Ok(()),
            Self::Host => formatter.write_str("host"),
            Self::Container(donor) => write!(formatter, "{CONTAINER}{donor}"),
        }
    }
}

/// The IPC namespace and /dev/shm: `HostConfig.IpcMode`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IpcMode {
    /// Validation replaces it by [`Self::Private`].
    #[default]
    Default,
    /// Private, without /dev/shm.
    None,
    Private,
    /// Private, and other containers may share it.
    Shareable,
    Host,
    /// The name or id of a container; the id in a record.
    Container(String),
}

impl IpcMode {
    /// Returns the name or id of the container whose namespace is shared.
    pub fn container(&self) -> Option<&str> {
        match self {
            Self::Container(donor) => Some(donor),
            _ => None,
        }
    }
}

impl FromStr for IpcMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(match text {
            "" => Self::Default,
            "none" => Self::None,
            "private" => Self::Private,
            "shareable" => Self::Shareable,
            "host" => Self::Host,
            _ => match donor(text).filter(|donor| !donor.is_empty()) {
                Some(donor) => Self::Container(donor.to_owned()),
                None => return Err(Error::invalid(format!("invalid IPC mode: {text}"))),
            },
        })
    }
}

impl fmt::Display for IpcMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Default => "",
            Self::None => "none",
            Self::Private => "private",
            Self::Shareable => "shareable",
            Self::Host => "host",
            Self::Container(donor) => return write!(formatter, "{CONTAINER}{donor}"),
        })
    }
}

/// The namespace of the host name: `HostConfig.UTSMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UtsMode {
    /// Its own, or that of the container whose network it shares.
    #[default]
    Private,
    Host,
}

impl FromStr for UtsMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "" => Ok(Self::Private),
            "host" => Ok(Self::Host),
            _ => Err(Error::invalid(format!("invalid UTS mode: {text}"))),
        }
    }
}

impl fmt::Display for UtsMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Private => "",
            Self::Host => "host",
        })
    }
}

/// The user namespace: `HostConfig.UsernsMode`. Both are the host's, because ids are not remapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsernsMode {
    #[default]
    Default,
    Host,
}

impl FromStr for UsernsMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "" => Ok(Self::Default),
            "host" => Ok(Self::Host),
            _ => Err(Error::unsupported("--userns")),
        }
    }
}

impl fmt::Display for UsernsMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Default => "",
            Self::Host => "host",
        })
    }
}

/// The cgroup namespace: `HostConfig.CgroupnsMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupnsMode {
    /// Validation replaces it by [`Self::Private`] on a host with cgroup v2, else [`Self::Host`].
    #[default]
    Default,
    Private,
    Host,
}

impl FromStr for CgroupnsMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "" => Ok(Self::Default),
            "private" => Ok(Self::Private),
            "host" => Ok(Self::Host),
            _ => Err(Error::invalid(format!(
                "invalid cgroup namespace mode: {text}"
            ))),
        }
    }
}

impl fmt::Display for CgroupnsMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Default => "",
            Self::Private => "private",
            Self::Host => "host",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that texts are displayed as they were parsed, and that others are refused.
    fn check<T: FromStr<Err = Error> + fmt::Display>(valid: &[&str], invalid: &[(&str, &str)]) {
        for text in valid {
            assert_eq!(&text.parse::<T>().unwrap().to_string(), text);
        }
        for (text, expected) in invalid {
            let error = text.parse::<T>().err().unwrap();
            assert_eq!(&error.to_string(), expected);
        }
    }

    #[test]
    fn parses_and_formats_modes() {
        check::<NetworkMode>(
            &["default", "none", "host", "bridge", "app", "container:x"],
            &["container", "container:"].map(|text| {
                let error = "invalid network mode: invalid container format container:<name|id>";
                (text, error)
            }),
        );
        check::<PidMode>(
            &["", "host", "container:x"],
            &[
                ("private", "invalid PID mode: private"),
                ("container:", "invalid PID mode: container:"),
            ],
        );
        check::<IpcMode>(
            &["", "none", "private", "shareable", "host", "container:x"],
            &[
                ("bogus", "invalid IPC mode: bogus"),
                ("container:", "invalid IPC mode: container:"),
            ],
        );
        check::<UtsMode>(
            &["", "host"],
            &[("container:x", "invalid UTS mode: container:x")],
        );
        check::<UsernsMode>(
            &["", "host"],
            &[(
                "private",
                "--userns: not available in this version of whelk",
            )],
        );
        check::<CgroupnsMode>(
            &["", "private", "host"],
            &[("none", "invalid cgroup namespace mode: none")],
        );
    }

    #[test]
    fn only_networks_of_its_own_have_endpoints() {
        let of = |text: &str| {
            let mode: NetworkMode = text.parse().unwrap();
            (
                mode.has_own_networks(),
                mode.is_user_defined(),
                mode.network().map(str::to_owned),
                mode.container().map(str::to_owned),
            )
        };
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(of(""), (true, false, named("bridge"), None));
        assert_eq!(of("bridge"), (true, false, named("bridge"), None));
        assert_eq!(of("app"), (true, true, named("app"), None));
        assert_eq!(of("none"), (false, false, named("none"), None));
        assert_eq!(of("host"), (false, false, named("host"), None));
        assert_eq!(of("container:x"), (false, false, None, named("x")));
    }
}
