//! Addresses of collectors.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Tls;

/// Where a collector listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    /// The socket of the host's syslog daemon.
    LocalSyslog,
    Unix(PathBuf),
    UnixDatagram(PathBuf),
    /// `HOST:PORT`
    Tcp(String),
    /// `HOST:PORT`, with TLS.
    Tls(String, Tls),
    /// `HOST:PORT`
    Udp(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalSyslog => f.write_str("/dev/log"),
            Self::Unix(path) | Self::UnixDatagram(path) => path.display().fmt(f),
            Self::Tcp(address) | Self::Tls(address, _) | Self::Udp(address) => f.write_str(address),
        }
    }
}

/// The parts of an URL without user and query.
pub(crate) struct Url<'a> {
    pub scheme: &'a str,
    pub host: &'a str,
    pub path: &'a str,
}

impl<'a> Url<'a> {
    /// Splits an URL. One without a scheme has an empty one.
    pub(crate) fn split(text: &'a str) -> Self {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let at = rest.find('/').unwrap_or(rest.len());
        let (host, path) = rest.split_at(at);
        Self { scheme, host, path }
    }
}

/// Splits `HOST:PORT`, where an IPv6 address is in brackets. The port is `None` if it is missing.
///
/// # Errors
/// Returns the text of Go's `net.SplitHostPort`.
pub(crate) fn split_host_port(text: &str) -> Result<(&str, Option<&str>), String> {
    let invalid = |what: &str| Err(format!("address {text}: {what}"));
    if let Some(rest) = text.strip_prefix('[') {
        let Some((host, rest)) = rest.split_once(']') else {
            return invalid("missing ']' in address");
        };
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => invalid("missing port in address"),
        };
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((_, port)) if port.contains(':') => invalid("too many colons in address"),
        Some((host, port)) => Ok((host, Some(port))),
    }
}

/// Joins a host and a port.
pub(crate) fn join(host: &str, port: &str) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
