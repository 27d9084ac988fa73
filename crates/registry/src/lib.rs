//! Client side of the OCI distribution protocol 1.1 and Docker's registry protocol v2.
//!
//! A [`Client`] has the settings, the connections and the access tokens of an engine. A
//! [`Repository`] of it transfers manifests and blobs: it tries the registry's mirrors in their
//! order, authenticates when challenged, retries after temporary failures, and resumes a blob where
//! a connection broke. Manifests are verified against their digests here, blobs by the caller that
//! stores them.
//!
//! Everything that a registry sends is untrusted: documents have a maximum size, redirects and
//! attempts a maximum number, and each phase of a request a time limit.
#![forbid(unsafe_code)]

mod attempts;
mod auth;
mod blob;
mod challenge;
mod connector;
mod endpoints;
mod error;
mod exchange;
mod listing;
mod login;
mod manifest;
mod pace;
mod referrers;
mod response;
mod search;
mod session;
mod settings;
mod tags;
mod target;
mod token;
mod transport;
mod upload;
mod web;

pub use attempts::Wait;
pub use auth::{AuthConfig, Credentials};
pub use blob::Blob;
pub use error::{Error, Kind, Obstacle, Reported, Result};
pub use exchange::Repository;
pub use listing::Listing;
pub use manifest::{Document, Version};
pub use pace::{Pace, TooSlow};
pub use search::Found;
pub use settings::{Insecure, Proxies, Settings};
pub use transport::Client;
pub use upload::Source;
pub use web::{WebRequest, WebResponse};

/// Decoders of untrusted input, for fuzz targets.
#[doc(hidden)]
pub mod fuzzing {
    /// Parses the value of a `WWW-Authenticate` header.
    pub fn challenges(value: &str) -> usize {
        crate::challenge::parse(value).len()
    }

    /// Checks a manifest, and returns whether it is one.
    pub fn manifest(bytes: &[u8]) -> bool {
        crate::manifest::checked("", bytes).is_ok()
    }
}
