//! Errors of definitions.

use crate::digest::Digest;

/// A definition that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An error of one operation.
    #[error("invalid operation {op}: {cause}")]
    Op { op: Digest, cause: String },
    /// An error of the whole definition.
    #[error("invalid definition: {0}")]
    Definition(String),
}

impl Error {
    pub(crate) fn op(op: Digest, cause: impl Into<String>) -> Self {
        let cause = cause.into();
        Self::Op { op, cause }
    }

    pub(crate) fn definition(cause: impl Into<String>) -> Self {
        Self::Definition(cause.into())
    }
}

pub type Result<T> = std::result::Result<T, Error>;
