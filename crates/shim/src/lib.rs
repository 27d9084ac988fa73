//! The shim: one process per container, which is the parent of its processes, owns their streams
//! and writes the log.
//!
//! It outlives the engine. [`boot::run`] is its main function, [`protocol`] its interface, [`logs`]
//! the format of what it writes. It is single-threaded with one epoll loop and no async runtime.
#![forbid(unsafe_code)]

pub mod boot;
mod bound;
mod bundle;
mod call;
mod calls;
mod client;
mod console;
mod container;
mod ending;
mod external;
pub mod filter;
mod forward;
pub mod logs;
mod losses;
mod pause;
mod poll;
mod process;
pub mod protocol;

pub use external::delete_left;

/// Writes to standard error, which is inherited from the engine. A shim has no other place to log
/// to.
fn log_error(text: &str) {
    use std::io::Write;
    // It may have been closed together with the engine.
    let _ = writeln!(std::io::stderr(), "whelk shim: {text}");
}
