//! Networks: published ports, several networks, isolation, settings, and recovery.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

mod drivers;
mod endpoints;
mod isolation;
mod ports;
mod recovery;
mod settings;
mod shared;
