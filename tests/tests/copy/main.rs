//! Copying files to and from containers, and listing what containers have changed.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

mod api;
mod cases;
mod diff;
mod ends;
mod hostile;
mod mounts;
