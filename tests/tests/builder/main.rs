//! The builder around its steps: the budget of its cache, the confinement of processes, secrets, parameters and settings of
//! builds, and what clients are told.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a panic with its place is all the error handling that a test needs"
)]

mod collection;
mod confinement;
mod parameters;
mod secrets;
mod settings;
mod told;
