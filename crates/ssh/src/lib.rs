//! Client side of ssh, without the program `ssh`: commands on a server, with the keys of an agent (`client`), the keys that
//! servers are known by (`known_hosts`), and an agent of keys in files (`keys`). The protocol itself is `russh`'s.

#![forbid(unsafe_code)]

mod client;
mod keys;
mod known_hosts;

pub use client::{Address, Command, Connection, HostKey};
pub use keys::Keys;
pub use known_hosts::KnownHosts;

pub type Result<T> = std::result::Result<T, Error>;

/// What has failed, as the end of a sentence about the server or the key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server cannot be reached, or has broken the protocol or the connection.
    #[error("{0}")]
    Connection(String),
    /// The server does not have the key that it is known by.
    #[error("{0}")]
    HostKey(String),
    /// The server accepts no key of the agent.
    #[error("{0}")]
    Denied(String),
    /// A key in a file cannot be used.
    #[error("{0}")]
    Key(String),
    /// A key in a file cannot be used without its passphrase, or with this one.
    #[error("{0}")]
    Encrypted(String),
}

impl From<russh::Error> for Error {
    fn from(error: russh::Error) -> Self {
        Self::Connection(error.to_string())
    }
}
