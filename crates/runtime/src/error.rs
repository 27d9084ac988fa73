//! What can go wrong in the runtime, by what the caller does about it.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use whelk_sys::errno_text;
use whelk_sys::fs::PathError;

pub type Result<T> = std::result::Result<T, Error>;

/// An error of the runtime. It crosses the pipe from the half-made container to its parent, hence
/// plain strings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// The configuration itself is wrong, or asks for what this host or version cannot do.
    #[error("{0}")]
    Invalid(String),
    /// The configuration asks for what would have effects outside the container. Nothing was made.
    #[error("{0}")]
    Refused(String),
    /// The program to run does not exist in the container.
    #[error("{0}")]
    CommandNotFound(String),
    /// The program to run is there but cannot be executed.
    #[error("{0}")]
    NotExecutable(String),
    /// A user or group that the container's files do not know, or a number out of range.
    #[error("{0}")]
    NoSuchUser(String),
    /// The container is not in a state that allows the operation, or does not exist.
    #[error("{0}")]
    State(String),
    /// The kernel refused a step: operation, object and cause.
    #[error("{0}")]
    Os(String),
    /// The same, because something is used up that others may give back
    /// ([`whelk_sys::is_exhausted`]).
    #[error("{0}")]
    Exhausted(String),
}

impl Error {
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// The kernel's refusal, in the words of `text`.
    pub(crate) fn kernel(text: String, error: &io::Error) -> Self {
        if whelk_sys::is_exhausted(error) {
            Self::Exhausted(text)
        } else {
            Self::Os(text)
        }
    }

    /// Puts the step in front of the cause, whatever kind it is.
    pub fn during(self, step: &str) -> Self {
        let with = |text: String| format!("{step}: {text}");
        match self {
            Self::Invalid(text) => Self::Invalid(with(text)),
            Self::Refused(text) => Self::Refused(with(text)),
            Self::CommandNotFound(text) => Self::CommandNotFound(with(text)),
            Self::NotExecutable(text) => Self::NotExecutable(with(text)),
            Self::NoSuchUser(text) => Self::NoSuchUser(with(text)),
            Self::State(text) => Self::State(with(text)),
            Self::Os(text) => Self::Os(with(text)),
            Self::Exhausted(text) => Self::Exhausted(with(text)),
        }
    }
}

impl From<PathError> for Error {
    fn from(error: PathError) -> Self {
        Self::kernel(error.to_string(), &error.source)
    }
}

/// For `map_err`: what was being done when the kernel refused.
pub(crate) fn os<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |error| {
        let error = error.into();
        Error::kernel(format!("{step}: {}", errno_text(&error)), &error)
    }
}

/// For `map_err`: what was being done, and on what.
pub(crate) fn os_at<E: Into<io::Error>>(
    step: &'static str,
    object: impl AsRef<Path>,
) -> impl FnOnce(E) -> Error {
    move |error| {
        let error = error.into();
        Error::kernel(
            format!(
                "{step} {}: {}",
                object.as_ref().display(),
                errno_text(&error)
            ),
            &error,
        )
    }
}
