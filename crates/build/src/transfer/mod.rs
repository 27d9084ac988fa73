//! Build caches elsewhere: in directories of clients, in registries, and within images.
//!
//! ```text
//! import   manifest ─► records by key ─► a step whose key is there ─► its layers are fetched ─► a result of the cache
//! export   results of a build ─► layers are packed ─► blobs, records and a manifest at the destination
//! ```
//! An import is lazy: of a cache only the records are read ([`imports`]). Layers are fetched when a step that has matched is
//! needed ([`fetch`]), verified by both of their digests, and recorded in the engine's own cache. If one cannot be
//! had, the step is executed.
//!
//! Layers of base images are no blobs of a cache: the key of a step contains the image's id, so whoever looks it up has them.

mod config;
mod export;
mod fetch;
mod imports;
mod inline;
mod records;
mod source;
mod target;

pub use export::Export;
pub use imports::{Import, Imports};
pub(crate) use imports::{Offer, decode};
pub(crate) use records::{ExportedSteps, Place, Step};
pub use target::OutgoingBlob;
pub(crate) use target::upload;
