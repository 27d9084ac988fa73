//! Layers: tar archives of file system changes, each unpacked once into a directory.
//!
//! ```text
//! layers/<diff ID digits>/fs         the files, with whiteouts in overlayfs form
//!                        /split.zst  the rest of the archive (see [`tar_split`])
//! ```
//! From both, the original archive can be reproduced bit for bit, so it is not kept: an image's
//! content is on disk only once.

mod apply;
mod metadata;
mod pax;
pub(crate) mod sparse;
mod tap;
mod tar_split;
mod tree;

pub use apply::{Applied, apply, unpack};
pub(crate) use tap::MAX_HEADERS_SIZE;
pub use tar_split::replay;
