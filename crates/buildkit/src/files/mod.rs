//! Transfers of files from and to clients (fsutil's protocol).
//!
//! ```text
//! sender    STAT 0  STAT 1 …  STAT (end)      DATA 1 …  DATA 1 (end)        FIN
//! receiver           REQ 1 …                                           FIN
//! ```
//! The sender tells of its files in order. The receiver asks for the contents that it does not have, by the position of
//! the file among all.

mod attributes;
mod client;
mod directory;
mod entry;
mod incoming;
mod order;
mod receive;
mod send;
mod walk;

pub use client::{Files, answer};
pub use directory::{Contents, Directory};
pub use entry::{Entry, Kind};
pub use incoming::{Event, Incoming};
pub use receive::{Chosen, Received, receive};
pub use send::{Outgoing, send};

pub type Result<T> = std::result::Result<T, Error>;

/// Why a transfer has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sender does not keep to the protocol, or has sent what is not accepted.
    #[error("file {path:?} of the client: {reason}")]
    Refused { path: String, reason: String },
    /// The sender has given up.
    #[error("error from sender: {0}")]
    Sender(String),
    /// The receiver has given up.
    #[error("error from receiver: {0}")]
    Receiver(String),
    /// Strings of the protocol are UTF-8.
    #[error("file {0:?} cannot be sent: its name is not UTF-8")]
    Unsendable(String),
    #[error("the client has ended the transfer before its end")]
    Ended,
    #[error(transparent)]
    Call(#[from] crate::grpc::Status),
    #[error("{operation} {path:?} of a client's files: {cause}")]
    Io {
        operation: &'static str,
        path: String,
        cause: std::io::Error,
    },
}

impl Error {
    fn refused(path: &str, reason: impl Into<String>) -> Self {
        Self::Refused {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    /// Returns a function that makes the error of a system call.
    fn io<E: Into<std::io::Error>>(operation: &'static str, path: &str) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |cause| Self::Io {
            operation,
            path,
            cause: cause.into(),
        }
    }
}
