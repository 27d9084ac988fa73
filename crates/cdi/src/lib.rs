//! Container Device Interface (CDI): files of vendors that define devices, and what a container that
//! asks for one by its qualified name gets: device nodes, mounts, environment variables and hooks.
//!
//! [`Registry::read`] reads the files, and [`Registry::inject`] changes an OCI configuration. Names,
//! priorities and conflicts are those of the reference library, whose error texts are used where
//! users know them.
#![forbid(unsafe_code)]

mod inject;
mod registry;
mod spec;

pub use inject::Injected;
pub use registry::{FileError, Registry};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No specification defines these devices.
    #[error("unresolvable CDI devices {}", .0.join(", "))]
    Unresolvable(Vec<String>),
    /// A device is defined, but cannot be given to a container.
    #[error("failed to inject devices: {0}")]
    Device(String),
}
