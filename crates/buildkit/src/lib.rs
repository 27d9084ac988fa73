//! BuildKit's protocol, both sides.
//!
//! ```text
//! client ── POST /grpc, h2c ──────► Control, LLBBridge, …      grpc::serve, pb
//! client ◄─ POST /session, h2c ──── its files, secrets, …      session, files, output, content
//! ```
//! A connection that was upgraded is one of HTTP/2. On the one of a session the engine is the caller, and the client has the
//! services. Messages are encoded and calls are made here; what they mean is up to the caller.
#![forbid(unsafe_code)]

pub mod content;
pub mod cut;
pub mod details;
pub mod files;
pub mod grpc;
pub mod history;
pub mod output;
pub mod pb;
mod pieces;
pub mod session;
pub mod ssh;
pub mod turns;
