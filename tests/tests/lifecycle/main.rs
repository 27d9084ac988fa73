//! A container's life: its states, its exit status, its names, and what each command says on the
//! way.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

mod restart;
mod start;
mod states;
mod stop;

/// A program that ends by itself only when it is told to, and says when it can be told.
const TRAPS: &str =
    "trap 'exit 5' USR1; trap 'exit 6' TERM; echo ready; while :; do sleep 0.02; done";
