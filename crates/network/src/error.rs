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
    /// Nothing is left to give out, or the kernel has used up what it needs.
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
        Self::io(what, &error.into())
    }

    pub(crate) fn io(what: &str, error: &std::io::Error) -> Self {
        let text = format!("{what}: {}", whelk_sys::errno_text(error));
        if whelk_sys::is_exhausted(error) {
            Self::Exhausted(text)
        } else {
            Self::Kernel(text)
        }
    }
}
