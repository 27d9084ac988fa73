//! Images: references, configurations, and the storage of their layers.
//!
//! All code is blocking. [`ContentStore`] stores blobs and layers; [`archive`] reads and writes the
//! files that `save` and `load` exchange. Which images exist is recorded by the engine.
#![forbid(unsafe_code)]

pub mod archive;
mod bounded;
pub mod changes;
pub mod compression;
pub mod config;
mod copy_up;
pub mod digest;
mod error;
mod export;
mod init_layer;
pub mod layer;
pub mod platform;
pub mod reference;
mod store;

pub use config::ImageConfig;
pub use copy_up::copy_up;
pub use digest::Digest;
pub use error::{Error, Result};
pub use export::{export, export_directory, export_root};
pub use platform::Platform;
pub use reference::Reference;
pub use store::{ContentStore, Layer, MAX_CONFIG_SIZE, Scratch};
