//! The engine's errors, by what they mean for the caller. `api` maps each kind to an HTTP status
//! code.

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    NotFound(String),
    /// The object exists already, or is in a state that forbids the operation.
    #[error("{0}")]
    Conflict(String),
    /// A conflict that ends by itself: another container is being restarted.
    #[error("{0}")]
    Restarting(String),
    /// The request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The operation is never allowed, whoever asks for it.
    #[error("{0}")]
    Denied(String),
    /// A registry does not accept the credentials in the request.
    #[error("{0}")]
    Unauthorized(String),
    /// A registry limits the rate of requests.
    #[error("{0}")]
    TooManyRequests(String),
    /// The object is already in the requested state.
    #[error("{0}")]
    NotModified(String),
    /// This version of whelk does not support the request.
    #[error("{0}")]
    Unsupported(String),
    /// The engine or the host failed.
    #[error("{0}")]
    Internal(String),
    /// The operation may succeed later: file descriptors, memory, processes, addresses or disk
    /// space are exhausted, or a plugin does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// A container's shim does not answer, though the engine could connect to it or its queue of
    /// connections is full.
    #[error("{0}")]
    ShimSilent(String),
}

impl Error {
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    pub fn conflict(text: impl Into<String>) -> Self {
        Self::Conflict(text.into())
    }

    pub fn internal(text: impl Into<String>) -> Self {
        Self::Internal(text.into())
    }

    /// Returns the error of a request for what this version of whelk does not have.
    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::Unsupported(format!("{what}: not available in this version of whelk"))
    }

    /// Returns the error of a failed system call: [`Error::Unavailable`] if a resource is
    /// exhausted, else [`Error::Internal`].
    pub fn kernel(text: impl Into<String>, error: &std::io::Error) -> Self {
        if whelk_sys::is_exhausted(error) {
            Self::Unavailable(text.into())
        } else {
            Self::Internal(text.into())
        }
    }

    /// Returns the same kind of error with `what`, the operation that failed, in front of its text.
    #[must_use]
    pub fn prefixed(self, what: &str) -> Self {
        self.reworded(|text| format!("{what}: {text}"))
    }

    /// Returns the same kind of error with the text of a later one behind its own.
    #[must_use]
    pub(crate) fn followed(self, later: &Self) -> Self {
        self.reworded(|text| format!("{text}; {later}"))
    }

    fn reworded(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::NotFound(text) => Self::NotFound(change(text)),
            Self::Conflict(text) => Self::Conflict(change(text)),
            Self::Restarting(text) => Self::Restarting(change(text)),
            Self::Invalid(text) => Self::Invalid(change(text)),
            Self::Denied(text) => Self::Denied(change(text)),
            Self::Unauthorized(text) => Self::Unauthorized(change(text)),
            Self::TooManyRequests(text) => Self::TooManyRequests(change(text)),
            Self::NotModified(text) => Self::NotModified(change(text)),
            Self::Unsupported(text) => Self::Unsupported(change(text)),
            Self::Internal(text) => Self::Internal(change(text)),
            Self::Unavailable(text) => Self::Unavailable(change(text)),
            Self::ShimSilent(text) => Self::ShimSilent(change(text)),
        }
    }

    pub fn no_such_container(name: &str) -> Self {
        Self::NotFound(format!("No such container: {name}"))
    }

    pub fn no_such_network(name: &str) -> Self {
        Self::NotFound(format!("network {name} not found"))
    }

    pub fn no_such_image(name: &str) -> Self {
        Self::NotFound(format!("No such image: {name}"))
    }
}

impl From<whelk_runtime::Error> for Error {
    fn from(error: whelk_runtime::Error) -> Self {
        match error {
            whelk_runtime::Error::Exhausted(text) => Self::Unavailable(text),
            other => Self::Internal(other.to_string()),
        }
    }
}

impl From<whelk_sys::fs::PathError> for Error {
    fn from(error: whelk_sys::fs::PathError) -> Self {
        Self::kernel(error.to_string(), &error.source)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        let text = format!("the engine's store: {error}");
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::OutOfMemory) => Self::Unavailable(text),
            _ => Self::Internal(text),
        }
    }
}

impl From<whelk_text::Error> for Error {
    fn from(error: whelk_text::Error) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<whelk_image::Error> for Error {
    fn from(error: whelk_image::Error) -> Self {
        match error {
            whelk_image::Error::Invalid(text) | whelk_image::Error::TooLarge(text) => {
                Self::Invalid(text)
            }
            whelk_image::Error::NotFound(text) => Self::NotFound(text),
            whelk_image::Error::Path(error) => error.into(),
            whelk_image::Error::Io { ref source, .. } => Self::kernel(error.to_string(), source),
        }
    }
}
