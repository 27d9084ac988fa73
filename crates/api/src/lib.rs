//! The Engine API over HTTP.
//!
//! `routes` decode requests (`extract`, `json`), call the engine, and encode responses with `wire`.
//! `version` removes version prefixes first, and has all differences between API versions;
//! `error` maps the kinds of engine errors to status codes.
#![forbid(unsafe_code)]

mod certificate;
mod error;
mod exchange;
mod extract;
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
mod handshakes;
mod hijack;
mod json;
mod listener;
mod peer;
mod protocol;
mod routes;
mod server;
mod stream;
mod target;
mod tls;
mod version;
mod websocket;
mod wire;

pub use listener::{Inherited, Listener};
pub use server::Api;
pub use tls::{Tls, TlsFiles};

/// The newest and the oldest supported API version.
pub const NEWEST: (u32, u32) = (1, 55);
pub const OLDEST: (u32, u32) = (1, 24);
