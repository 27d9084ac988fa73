//! How a container's health is checked, and what the checks have found.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};

/// A container's health check. Durations are in nanoseconds; 0 means the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Healthcheck {
    pub test: HealthTest,
    pub interval: i64,
    pub timeout: i64,
    pub start_period: i64,
    pub start_interval: i64,
    pub retries: i64,
    /// Not in Docker: what to do with a container that is unhealthy.
    pub on_failure: HealthAction,
}

impl Healthcheck {
    /// The least duration that is not the default, in nanoseconds.
    pub const LEAST: i64 = 1_000_000;

    /// Returns an image's health check with numbers that are allowed. Not all builders check them, and
    /// Docker runs the image.
    #[must_use]
    pub fn corrected(mut self) -> Self {
        for duration in [
            &mut self.interval,
            &mut self.timeout,
            &mut self.start_period,
            &mut self.start_interval,
        ] {
            if *duration != 0 {
                *duration = (*duration).max(Self::LEAST);
            }
        }
        self.retries = self.retries.max(0);
        self
    }

    /// Takes what is not set from an image's health check.
    pub fn inherit(&mut self, image: Self) {
        if self.test == HealthTest::Inherit {
            self.test = image.test;
        }
        for (own, inherited) in [
            (&mut self.interval, image.interval),
            (&mut self.timeout, image.timeout),
            (&mut self.start_period, image.start_period),
            (&mut self.start_interval, image.start_interval),
            (&mut self.retries, image.retries),
        ] {
            if *own == 0 {
                *own = inherited;
            }
        }
    }
}

/// How a container's health is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HealthTest {
    /// The image's check.
    #[default]
    Inherit,
    /// No check, even if the image has one.
    Disabled,
    /// A program with its arguments.
    Command(Vec<String>),
    /// The container's shell, with these arguments after its own.
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

/// What happens to a container that is unhealthy. Named as in Podman.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthAction {
    #[default]
    None,
    /// SIGKILL. The restart policy applies to the exit.
    Kill,
    /// As a user's `restart` does.
    Restart,
    /// As a user's `stop` does: no restart policy starts it again.
    Stop,
}

impl HealthAction {
    fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Kill => "kill",
            Self::Restart => "restart",
            Self::Stop => "stop",
        }
    }
}

impl fmt::Display for HealthAction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for HealthAction {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "" | "none" => Ok(Self::None),
            "kill" => Ok(Self::Kill),
            "restart" => Ok(Self::Restart),
            "stop" => Ok(Self::Stop),
            other => Err(Error::invalid(format!(
                "unknown action for an unhealthy container '{other}': expected 'none', 'kill', 'restart' or 'stop'"
            ))),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthStatus {
    /// No check has succeeded since the start, and not enough have failed.
    #[default]
    Starting,
    Healthy,
    /// Also of a container that does not run or is paused, as in Docker.
    Unhealthy,
}

impl HealthStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// The health of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub status: HealthStatus,
    /// Number of consecutive failures.
    pub failing_streak: u32,
    /// The last results, the oldest first. Shared by copies of the record.
    pub log: Vec<Arc<HealthResult>>,
}

/// The result of one check. Times are nanoseconds since the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthResult {
    pub start: i64,
    pub end: i64,
    /// -1 if the check could not be run, or took too long.
    pub exit_code: i32,
    /// The beginning of the output, or the reason why there is no exit code.
    pub output: String,
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn what_is_not_set_comes_from_the_image() {
        let image = Healthcheck {
            test: HealthTest::Shell(vec!["x".into()]),
            interval: 1,
            retries: 2,
            ..Healthcheck::default()
        };
        let mut own = Healthcheck {
            interval: 3,
            timeout: 4,
            on_failure: HealthAction::Kill,
            ..Healthcheck::default()
        };
        own.inherit(image.clone());
        let expected = Healthcheck {
            test: image.test.clone(),
            interval: 3,
            timeout: 4,
            retries: 2,
            on_failure: HealthAction::Kill,
            ..Healthcheck::default()
        };
        assert_eq!(own, expected);
        let mut none = Healthcheck {
            test: HealthTest::Disabled,
            ..Healthcheck::default()
        };
        none.inherit(image);
        assert_eq!(none.test, HealthTest::Disabled);
    }

    #[test]
    fn actions_have_names() {
        for name in ["none", "kill", "restart", "stop"] {
            let action: HealthAction = name.parse().unwrap();
            assert_eq!(action.to_string(), name);
        }
        assert_eq!(
            "die".parse::<HealthAction>().unwrap_err().to_string(),
            "unknown action for an unhealthy container 'die': expected 'none', 'kill', 'restart' or 'stop'"
        );
    }
}
