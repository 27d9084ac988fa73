//! Sends lines of containers' logs to collectors: syslog, GELF, fluentd and journald.
//!
//! [`Destination::parse`] reads the options of `--log-opt` with the error texts of Docker's drivers, without
//! network or disk; [`Sink`] connects and sends. Everything is synchronous: a
//! process of its own calls it for each container.
//!
//! ```text
//! Record ──syslog │ gelf │ fluentd │ journald──► message ──stream │ datagram──► collector
//! ```
#![forbid(unsafe_code)]

mod address;
mod datagram;
mod fluentd;
mod gelf;
mod journald;
mod options;
mod sink;
mod stream;
mod syslog;
mod tls;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use address::Address;
pub use fluentd::Fluentd;
pub use gelf::{Compression, Gelf};
pub use sink::Sink;
pub use syslog::{Format, Syslog};
pub use tls::Tls;

/// Where the lines of a log go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Destination {
    Syslog(Syslog),
    Gelf(Gelf),
    Fluentd(Fluentd),
    Journald,
}

/// What messages say about the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub id: String,
    pub name: String,
    pub image_id: String,
    pub image_name: String,
    pub command: String,
    /// RFC 3339.
    pub created: String,
    pub tag: String,
    pub hostname: String,
    /// Distinguishes the runs of a container.
    #[serde(default)]
    pub epoch: String,
    /// Labels and environment variables.
    pub attributes: BTreeMap<String, String>,
}

/// A line of output, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Nanoseconds since the Unix epoch.
    pub time: i64,
    pub is_error: bool,
    /// Without the newline.
    pub line: Vec<u8>,
    /// Which line of the container's this is; the first is 1.
    pub ordinal: u64,
    pub part: Option<Part>,
}

/// Which part of a long line a record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The same for all parts of a line.
    pub id: String,
    /// Begins with 1.
    pub ordinal: u32,
    pub last: bool,
}

/// How often a failed transfer is tried again, and how long to wait before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Number of further attempts; then the lines are lost.
    pub limit: u32,
    pub delay: std::time::Duration,
    /// Whether each delay is half as long again as the one before, at most a minute.
    pub grows: bool,
}

impl Destination {
    /// Returns the driver's name.
    pub fn driver(&self) -> &'static str {
        match self {
            Self::Syslog(_) => "syslog",
            Self::Gelf(_) => "gelf",
            Self::Fluentd(_) => "fluentd",
            Self::Journald => "journald",
        }
    }

    /// Returns how often a transfer is tried again.
    pub fn retries(&self) -> Retries {
        use std::time::Duration;
        let (limit, delay, grows) = match self {
            Self::Syslog(_) | Self::Journald => (3, Duration::from_secs(1), false),
            Self::Gelf(gelf) => (
                gelf.reconnects,
                Duration::from_secs(gelf.reconnect_delay),
                false,
            ),
            Self::Fluentd(fluentd) => (
                fluentd.retries,
                Duration::from_millis(fluentd.retry_wait),
                true,
            ),
        };
        Retries {
            limit,
            delay,
            grows,
        }
    }

    /// Checks that the socket exists that the lines are sent to, where Docker does so.
    ///
    /// # Errors
    /// Returns Docker's text if it does not.
    pub fn check_socket(&self) -> Result<(), String> {
        let Self::Syslog(Syslog {
            address: Address::Unix(path) | Address::UnixDatagram(path),
            ..
        }) = self
        else {
            return Ok(());
        };
        let found = whelk_sys::fs::metadata(path);
        found.map(drop).map_err(|error| {
            let cause = whelk_sys::errno_text(&error.source);
            format!("stat {}: {cause}", path.display())
        })
    }

    /// Whether a container starts also if the first connection fails.
    pub fn connects_later(&self) -> bool {
        matches!(self, Self::Fluentd(fluentd) if fluentd.is_async)
    }
}
