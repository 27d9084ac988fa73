//! What can go wrong with networks, by what the caller can do about it.

use rustix::io::Errno;

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It contradicts what is there: an address or port in use, subnets that overlap.
    #[error("{0}")]
    Conflict(String),
    /// Nothing is left to give out.
    #[error("{0}")]
    Exhausted(String),
    /// What this kernel or version cannot do.
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Kernel(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    pub(crate) fn kernel(what: &str, error: Errno) -> Self {
        Self::Kernel(format!("{what}: {}", whelk_sys::errno_text(&error.into())))
    }

    pub(crate) fn io(what: &str, error: &std::io::Error) -> Self {
        Self::Kernel(format!("{what}: {}", whelk_sys::errno_text(error)))
    }
}
