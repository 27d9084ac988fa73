//! System call filtering: profiles, and their compilation to the kernel's filter programs.
//!
//! ```text
//! profile (JSON or built in) + capabilities ──profile──► spec::Seccomp ──compile──► Filter ──sys──► kernel
//! ```
//! A filter depends only on the profile and the capabilities, so the engine compiles each
//! combination once.

mod compile;
mod default;
mod profile;
mod syscalls;
mod widths;

pub use compile::{Filter, compile};
pub use profile::{default_profile, from_json};
