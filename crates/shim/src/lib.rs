//! One small process per container: parent of its processes, owner of its streams, writer of its
//! log.
//!
//! It outlives the engine. [`boot::run`] is its whole life; [`protocol`] is how anyone talks to it;
//! [`logs`] is what it leaves on disk. Single-threaded, one epoll loop, no async runtime.
#![forbid(unsafe_code)]

pub mod boot;
mod client;
mod container;
mod ending;
pub mod filter;
pub mod logs;
mod pause;
mod poll;
mod process;
pub mod protocol;

/// Tells whoever keeps the engine's standard error. A shim has nobody else to complain to.
fn complain(text: &str) {
    use std::io::Write;
    // Which may have gone with the engine.
    let _ = writeln!(std::io::stderr(), "whelk shim: {text}");
}
