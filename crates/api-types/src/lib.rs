//! The objects of the Engine API, named as in the API definition.
//!
//! Responses have the fields of the newest API version. Fields that only older versions have are
//! `Option`s that are `None` in the newest form, or groups of fields that are flattened into their
//! object. The server fills them in for older clients.
//! Clients read objects with [`read()`], which tolerates absent fields and `null`.
//!
//! `None` is `null`, unless the field is omitted when it is empty. A field of type
//! `Option<Option<T>>` is omitted, `null` or a value.
#![forbid(unsafe_code)]

mod archive;
mod container;
mod event;
mod exec;
mod host_config;
mod image;
mod message;
mod network;
mod read;
mod registry;
mod set;
mod stats;
mod system;
mod volume;

pub use archive::*;
pub use container::*;
pub use event::*;
pub use exec::*;
pub use host_config::*;
pub use image::*;
pub use message::*;
pub use network::*;
pub use read::read;
pub use registry::*;
pub use set::{Empty, Set};
pub use stats::*;
pub use system::*;
pub use volume::*;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_empty_list<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}
