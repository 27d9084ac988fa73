//! Layers: archives of differences, unpacked once each into a directory.
//!
//! ```text
//! layers/<diff-id digits>/fs         the files, whiteouts in overlay form
//!                        /split.zst  what of the archive is not file content (see [`split`])
//! ```
//! With both, the original archive can be written again bit for bit, so it is not kept: an image
//! lies on disk once.

mod apply;
mod metadata;
mod pax;
pub(crate) mod sparse;
mod split;
mod tap;
mod tree;

pub use apply::{Applied, apply, unpack};
pub use split::replay;
pub(crate) use tap::LARGEST_HEADERS;
