//! The life cycle of containers: states, exit statuses, restarts, and the output of the commands.
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

/// A script that ends on SIGUSR1 or SIGTERM, and prints a line when its handlers are set.
const TRAPS: &str =
    "trap 'exit 5' USR1; trap 'exit 6' TERM; echo ready; while :; do sleep 0.02; done";
