//! Settings that are one of a few names. They are parsed from, and displayed as, the Engine API's
//! texts.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The kind of a mount's source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountKind {
    #[default]
    Bind,
    Volume,
    Tmpfs,
    Image,
}

impl MountKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Volume => "volume",
            Self::Tmpfs => "tmpfs",
            Self::Image => "image",
        }
    }
}

impl FromStr for MountKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "bind" => Ok(Self::Bind),
            "volume" => Ok(Self::Volume),
            "tmpfs" => Ok(Self::Tmpfs),
            "image" => Ok(Self::Image),
            "cluster" | "npipe" => Err(Error::unsupported(format_args!("mount type {text}"))),
            _ => Err(Error::invalid(format!(
                "invalid mount config for type {text:?}: mount type unknown"
            ))),
        }
    }
}

/// Where a container's output is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogDriver {
    Local,
    JsonFile,
    None,
    Syslog,
    Gelf,
    Fluentd,
    Journald,
}

impl LogDriver {
    /// All drivers, sorted by name.
    pub const ALL: [Self; 7] = [
        Self::Fluentd,
        Self::Gelf,
        Self::Journald,
        Self::JsonFile,
        Self::Local,
        Self::None,
        Self::Syslog,
    ];

    /// Whether the log is sent to a collector.
    pub fn is_remote(self) -> bool {
        matches!(
            self,
            Self::Syslog | Self::Gelf | Self::Fluentd | Self::Journald
        )
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::JsonFile => "json-file",
            Self::None => "none",
            Self::Syslog => "syslog",
            Self::Gelf => "gelf",
            Self::Fluentd => "fluentd",
            Self::Journald => "journald",
        }
    }
}

impl FromStr for LogDriver {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "local" => Ok(Self::Local),
            "json-file" => Ok(Self::JsonFile),
            "none" => Ok(Self::None),
            "syslog" => Ok(Self::Syslog),
            "gelf" => Ok(Self::Gelf),
            "fluentd" => Ok(Self::Fluentd),
            "journald" => Ok(Self::Journald),
            other => Err(Error::invalid(format!(
                "error looking up logging plugin {other}: plugin {other:?} not found"
            ))),
        }
    }
}

/// The technology that isolates a container. There is one on Linux.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    #[default]
    Unset,
    Default,
}

impl FromStr for Isolation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "" => Ok(Self::Unset),
            "default" => Ok(Self::Default),
            other => Err(Error::invalid(format!(
                "invalid isolation ({other}): linux only supports 'default'"
            ))),
        }
    }
}

impl Isolation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unset => "",
            Self::Default => "default",
        }
    }
}

macro_rules! displayed {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.as_str())
            }
        }
    )*};
}

displayed!(MountKind, LogDriver, Isolation);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_formats_names() {
        fn check<T: FromStr<Err = Error> + ToString>(names: &[&str], wrong: &str, expected: &str) {
            for name in names {
                assert_eq!(name.parse::<T>().unwrap().to_string(), *name);
            }
            let error = wrong.parse::<T>().map(|_| ()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        check::<MountKind>(
            &["bind", "volume", "tmpfs", "image"],
            "x",
            "invalid mount config for type \"x\": mount type unknown",
        );
        check::<MountKind>(
            &[],
            "npipe",
            "mount type npipe: not available in this version of whelk",
        );
        check::<LogDriver>(
            &[
                "local",
                "json-file",
                "none",
                "syslog",
                "gelf",
                "fluentd",
                "journald",
            ],
            "bogus",
            "error looking up logging plugin bogus: plugin \"bogus\" not found",
        );
        check::<Isolation>(
            &["", "default"],
            "hyperv",
            "invalid isolation (hyperv): linux only supports 'default'",
        );
    }
}
