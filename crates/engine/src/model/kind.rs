//! Settings that are one of a few names. They are parsed from, and displayed as, the Engine API's
//! texts.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// What a mount shows.
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
            "cluster" | "npipe" => Err(Error::Unsupported(format!(
                "mount type {text}: not available in this version of whelk"
            ))),
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
}

impl LogDriver {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::JsonFile => "json-file",
            Self::None => "none",
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

/// How a container's health is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HealthTest {
    /// As the image says.
    #[default]
    Inherit,
    /// Not at all, even if the image has a check.
    Disabled,
    /// By a program with its arguments.
    Command(Vec<String>),
    /// By the container's shell, with these arguments after its own.
    Shell(Vec<String>),
}

impl HealthTest {
    /// Parses a test: a word that says its kind, and arguments.
    ///
    /// # Errors
    /// Returns an error if there is no such kind.
    pub fn parse(mut words: Vec<String>) -> Result<Self> {
        if words.is_empty() {
            return Ok(Self::Inherit);
        }
        let arguments = words.split_off(1);
        match words[0].as_str() {
            "NONE" => Ok(Self::Disabled),
            "CMD" => Ok(Self::Command(arguments)),
            "CMD-SHELL" => Ok(Self::Shell(arguments)),
            other => Err(Error::invalid(format!(
                "unknown healthcheck type '{other}': expected 'NONE', 'CMD' or 'CMD-SHELL'"
            ))),
        }
    }

    /// Returns the words that [`Self::parse`] parses.
    pub fn words(&self) -> Vec<String> {
        let (kind, arguments) = match self {
            Self::Inherit => return Vec::new(),
            Self::Disabled => ("NONE", &[][..]),
            Self::Command(arguments) => ("CMD", arguments.as_slice()),
            Self::Shell(arguments) => ("CMD-SHELL", arguments.as_slice()),
        };
        let kind = std::iter::once(kind.to_owned());
        kind.chain(arguments.iter().cloned()).collect()
    }
}

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
            &["local", "json-file", "none"],
            "bogus",
            "error looking up logging plugin bogus: plugin \"bogus\" not found",
        );
        check::<Isolation>(
            &["", "default"],
            "hyperv",
            "invalid isolation (hyperv): linux only supports 'default'",
        );
    }

    #[test]
    fn health_tests_keep_their_words() {
        for words in [
            &[][..],
            &["NONE"],
            &["CMD", "a", "b"],
            &["CMD-SHELL", "a b"],
        ] {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            assert_eq!(HealthTest::parse(words.clone()).unwrap().words(), words);
        }
        assert_eq!(
            HealthTest::parse(vec!["sh".into()])
                .unwrap_err()
                .to_string(),
            "unknown healthcheck type 'sh': expected 'NONE', 'CMD' or 'CMD-SHELL'"
        );
    }
}
