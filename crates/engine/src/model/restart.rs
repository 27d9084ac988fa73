//! Restart policies: when a container is started again after its exit.

use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    #[default]
    No,
    /// Also at the engine's start, even if a user has stopped it.
    Always,
    /// Until a user stops it.
    UnlessStopped,
    /// After an exit code other than 0.
    OnFailure {
        /// How many times in a row; 0 for no limit.
        most: i64,
    },
}

impl RestartPolicy {
    /// Returns the policy of this name; an empty one means [`Self::No`].
    ///
    /// # Errors
    /// Returns an error if there is no such policy, or if the retry count is negative or not allowed
    /// for it.
    pub fn parse(name: &str, maximum_retry_count: i64) -> Result<Self> {
        let fail = |text: &str| Err(Error::invalid(format!("invalid restart policy: {text}")));
        let policy = match name {
            "" | "no" => Self::No,
            "always" => Self::Always,
            "unless-stopped" => Self::UnlessStopped,
            "on-failure" => Self::OnFailure {
                most: maximum_retry_count,
            },
            other => {
                return fail(&format!(
                    "unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
                ));
            }
        };
        if maximum_retry_count < 0 {
            return fail("maximum retry count cannot be negative");
        }
        if maximum_retry_count != policy.maximum_retry_count() {
            return fail("maximum retry count can only be used with 'on-failure'");
        }
        Ok(policy)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
            Self::OnFailure { .. } => "on-failure",
        }
    }

    /// Returns how many times in a row the container is started again; 0 for no limit.
    pub fn maximum_retry_count(self) -> i64 {
        match self {
            Self::OnFailure { most } => most,
            Self::No | Self::Always | Self::UnlessStopped => 0,
        }
    }

    /// Returns whether a container that was started again `restarts` times in a row is started
    /// again after an exit with `code`.
    pub fn applies(self, code: i32, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure { .. } => code != 0 && !self.is_last(restarts),
        }
    }

    /// Returns whether the restart with this number was the last that is allowed.
    pub fn is_last(self, restarts: u32) -> bool {
        let most = self.maximum_retry_count();
        most > 0 && i64::from(restarts) >= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_keep_their_names_and_counts() {
        for (name, count) in [
            ("no", 0),
            ("always", 0),
            ("unless-stopped", 0),
            ("on-failure", 0),
            ("on-failure", 3),
        ] {
            let policy = RestartPolicy::parse(name, count).unwrap();
            assert_eq!((policy.name(), policy.maximum_retry_count()), (name, count));
        }
        assert_eq!(RestartPolicy::parse("", 0).unwrap(), RestartPolicy::No);
        for (name, count, expected) in [
            (
                "bogus",
                0,
                "unknown policy 'bogus'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
            ),
            ("on-failure", -1, "maximum retry count cannot be negative"),
            ("no", -1, "maximum retry count cannot be negative"),
            (
                "always",
                1,
                "maximum retry count can only be used with 'on-failure'",
            ),
        ] {
            assert_eq!(
                RestartPolicy::parse(name, count).unwrap_err().to_string(),
                format!("invalid restart policy: {expected}")
            );
        }
    }

    #[test]
    fn on_failure_is_limited_by_the_number_of_failures() {
        let limited = RestartPolicy::OnFailure { most: 2 };
        let applies =
            |policy: RestartPolicy, code| [0, 1, 2].map(|number| policy.applies(code, number));
        assert_eq!(applies(limited, 1), [true, true, false]);
        assert_eq!(applies(limited, 0), [false; 3]);
        assert_eq!(applies(RestartPolicy::OnFailure { most: 0 }, 1), [true; 3]);
        assert_eq!(applies(RestartPolicy::Always, 0), [true; 3]);
        assert_eq!(applies(RestartPolicy::No, 1), [false; 3]);
    }
}
