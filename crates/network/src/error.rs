//! Errors of this crate, one variant per kind of outcome for the caller.

use rustix::io::Errno;

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The request conflicts with existing objects: an address or port in use, overlapping subnets.
    #[error("{0}")]
    Conflict(String),
    /// No free address or subnet is left, or a kernel resource is exhausted.
    #[error("{0}")]
    Exhausted(String),
    /// Not supported by this kernel or version.
    #[error("{0}")]
    Unsupported(String),
    /// A system call or netlink request failed.
    #[error("{0}")]
    Kernel(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    pub(crate) fn kernel(operation: &str, error: Errno) -> Self {
        Self::io(operation, &error.into())
    }

    pub(crate) fn io(operation: &str, error: &std::io::Error) -> Self {
        let text = format!("{operation}: {}", whelk_sys::errno_text(error));
        if whelk_sys::is_exhausted(error) {
            Self::Exhausted(text)
        } else {
            Self::Kernel(text)
        }
    }
}
