//! The Engine API over HTTP.
//!
//! `routes` decode requests (`extract`, `json`), call the engine, and encode responses with `wire`.
//! Version prefixes are removed first (`version`); all differences between API versions are in
//! `compat`; `error` maps the kinds of engine errors to status codes.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]

mod compat;
mod error;
mod extract;
mod hijack;
mod json;
mod peer;
mod routes;
mod server;
mod stream;
mod version;
mod wire;

pub use server::{Listener, serve};

/// The newest and the oldest supported API version.
pub const NEWEST: (u32, u32) = (1, 51);
pub const OLDEST: (u32, u32) = (1, 24);
