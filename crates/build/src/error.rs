//! The builder's errors, by what they mean for the caller. They can be cloned: several builds may wait for a step.

use std::sync::Arc;

use whelk_llb::Digest;

use crate::failed::{Failed, FailedPart, Remains};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The Dockerfile is wrong.
    #[error(transparent)]
    Dockerfile(#[from] whelk_dockerfile::Error),
    /// What a Dockerfile names outside of itself, such as a base image, cannot be had.
    #[error("{place}")]
    Unavailable {
        /// The frontend's error, with the lines that name it.
        place: whelk_dockerfile::Error,
        cause: Box<Error>,
    },
    /// The request, the definition or the context is wrong.
    #[error("{0}")]
    Invalid(String),
    /// What an instruction copies is not there. The text is that of classic builds.
    #[error(
        "{}file not found in build context or excluded by .dockerignore: stat {path}: file does not exist",
        instruction.map(|name| format!("{name} failed: ")).unwrap_or_default()
    )]
    Missing {
        instruction: Option<&'static str>,
        /// Without a slash at its beginning.
        path: String,
    },
    /// This version of whelk does not support it.
    #[error("{0}: not available in this version of whelk")]
    Unsupported(String),
    /// The process of a step has failed.
    #[error("process {command:?} did not complete successfully: exit code: {code}")]
    Process {
        command: String,
        code: i32,
        /// What it has left, if that is kept.
        state: Option<Arc<Failed>>,
    },
    /// A part of an operation has failed.
    #[error("{cause}")]
    Part {
        part: FailedPart,
        /// What is left of the operation, if that is kept.
        remains: Option<Arc<Remains>>,
        cause: Box<Error>,
    },
    /// An operation has failed.
    #[error("{cause}")]
    Step { op: Digest, cause: Box<Error> },
    #[error(transparent)]
    Engine(Arc<whelk_engine::Error>),
}

impl Error {
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    pub fn internal(text: impl Into<String>) -> Self {
        whelk_engine::Error::internal(text).into()
    }

    /// Returns the error of a system call during an operation.
    pub fn os(operation: impl std::fmt::Display, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let text = format!("{operation}: {}", whelk_sys::errno_text(&error));
        whelk_engine::Error::kernel(text, &error).into()
    }

    /// Returns the size in bytes of what it refers to, without the state of a failed process.
    pub(crate) fn held(&self) -> usize {
        let boxed = |cause: &Self| size_of::<Self>() + cause.held();
        let placed = |error: &whelk_dockerfile::Error| {
            error.to_string().len() + size_of_val(error.lines.as_slice())
        };
        match self {
            Self::Dockerfile(error) => placed(error),
            Self::Unavailable { place, cause } => placed(place) + boxed(cause),
            Self::Step { cause, .. } | Self::Part { cause, .. } => boxed(cause),
            Self::Invalid(text) | Self::Unsupported(text) => text.len(),
            Self::Missing { path, .. } => path.len(),
            Self::Process { command, .. } => command.len(),
            Self::Engine(error) => size_of_val(&**error) + error.to_string().len(),
        }
    }

    /// Returns it without the state of a failed operation, for what is kept when the build has ended.
    #[must_use]
    pub fn without_state(&self) -> Self {
        let mut error = self.clone();
        error.drop_state();
        error
    }

    fn drop_state(&mut self) {
        match self {
            Self::Process { state, .. } => *state = None,
            Self::Part { remains, cause, .. } => {
                *remains = None;
                cause.drop_state();
            }
            Self::Step { cause, .. } | Self::Unavailable { cause, .. } => cause.drop_state(),
            _ => {}
        }
    }

    /// Returns what is left of the operation that has failed.
    pub fn remains(&self) -> Option<&Arc<Remains>> {
        match self {
            Self::Process { state, .. } => state.as_ref().map(|state| &state.remains),
            Self::Part { remains, .. } => remains.as_ref(),
            Self::Step { cause, .. } | Self::Unavailable { cause, .. } => cause.remains(),
            _ => None,
        }
    }

    /// Returns the part of the operation that has failed.
    pub fn part(&self) -> Option<FailedPart> {
        match self {
            Self::Part { part, .. } => Some(*part),
            Self::Step { cause, .. } | Self::Unavailable { cause, .. } => cause.part(),
            _ => None,
        }
    }

    /// Returns the cause, without the place where it has happened.
    pub fn root(&self) -> &Self {
        match self {
            Self::Step { cause, .. }
            | Self::Unavailable { cause, .. }
            | Self::Part { cause, .. } => cause.root(),
            other => other,
        }
    }
}

impl From<whelk_engine::Error> for Error {
    fn from(error: whelk_engine::Error) -> Self {
        Self::Engine(Arc::new(error))
    }
}

impl From<Error> for whelk_engine::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Engine(error) => Self::clone(&error),
            Error::Unsupported(_) => Self::Unsupported(error.to_string()),
            Error::Dockerfile(_)
            | Error::Invalid(_)
            | Error::Missing { .. }
            | Error::Process { .. } => Self::Invalid(error.to_string()),
            Error::Step { cause, .. }
            | Error::Unavailable { cause, .. }
            | Error::Part { cause, .. } => (*cause).into(),
        }
    }
}

impl From<whelk_image::Error> for Error {
    fn from(error: whelk_image::Error) -> Self {
        whelk_engine::Error::from(error).into()
    }
}

impl From<whelk_sys::fs::PathError> for Error {
    fn from(error: whelk_sys::fs::PathError) -> Self {
        whelk_engine::Error::from(error).into()
    }
}

impl From<whelk_llb::Error> for Error {
    fn from(error: whelk_llb::Error) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// Returns a function that makes the error of a system call.
pub fn os<E: Into<std::io::Error>>(operation: impl std::fmt::Display) -> impl FnOnce(E) -> Error {
    move |error| Error::os(operation, error)
}
