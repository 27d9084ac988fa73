//! Client side of ssh, without the program `ssh`: commands on a server, with the keys of an agent (`client`), and the keys that
//! servers are known by (`known_hosts`). The protocol itself is `russh`'s.

#![forbid(unsafe_code)]

mod client;
mod known_hosts;

pub use client::{Address, Command, Connection, HostKey};
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
}

impl From<russh::Error> for Error {
    fn from(error: russh::Error) -> Self {
        Self::Connection(error.to_string())
    }
}
