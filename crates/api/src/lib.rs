//! The Engine API: HTTP in, calls of the engine out.
//!
//! `routes` decode requests (`extract`, `json`), call the engine, and encode answers by `wire`.
//! Version prefixes are taken off before anything else (`version`); what differs between versions
//! is in `compat` alone; the kinds of the engine's errors become status codes in one place
//! (`error`).
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

/// The newest version of the API that is served, and the oldest.
pub const NEWEST: (u32, u32) = (1, 51);
pub const OLDEST: (u32, u32) = (1, 24);
