//! Images: references, configurations, and the storage of their layers.
//!
//! All code is blocking. A [`Store`] keeps blobs ([`content`]) and unpacked layers ([`snapshots`]);
//! [`leases`] protect new objects from garbage collection; [`archive`] reads and writes the archives of
//! `save` and `load`. The engine records which images exist.
#![forbid(unsafe_code)]

mod ahead;
pub mod archive;
pub mod bounded;
pub mod changes;
pub mod compression;
pub mod config;
pub mod content;
mod copy;
pub mod descriptor;
pub mod digest;
mod error;
pub mod gzip;
pub mod leases;
pub mod platform;
pub mod progress;
pub mod reference;
pub mod snapshots;
mod staging;
mod store;
mod writeback;

pub use config::ImageConfig;
pub use digest::{Algorithm, Digest};
pub use error::{Error, Result};
pub use leases::{Lease, Leases};
pub use platform::Platform;
pub use progress::Progress;
pub use reference::Reference;
pub use staging::{Removal, Staging, Stray};
pub use store::{SetAside, Store, Used};
