//! BuildKit's low-level builds (LLB): operations that refer to each other by the digests of their bytes.
//!
//! [`Graph`] is a definition that was checked, [`Builder`] makes one, and [`key`](mod@key) has what a cache knows a step by.
//! Pure functions of bytes.
#![forbid(unsafe_code)]

mod builder;
mod check;
mod digest;
mod error;
mod graph;
pub mod key;
pub mod pb;
pub mod platform;

pub use builder::{Builder, Output, Vertex};
pub use digest::Digest;
pub use error::{Error, Result};
pub use graph::{Edge, Graph, Node};

/// Limit of the number of operations in a definition.
pub const MAX_OPS: usize = 100_000;

/// Limit of the bytes of all operations in a definition.
pub const MAX_BYTES: usize = 16 << 20;

/// The entry of an operation's description with the name that clients show.
pub const CUSTOM_NAME: &str = "llb.customname";
