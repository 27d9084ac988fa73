//! Files that a container of a frontend can show: those of a result.

use std::sync::Arc;

use whelk_image::Lease;

use crate::layers::Stack;
use crate::request::Solved;

/// Layers, which stay as long as this exists.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) stack: Stack,
    pub(crate) lease: Arc<Lease>,
}

impl Solved {
    /// Returns the files.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            stack: self.stack.clone(),
            lease: self.lease.clone(),
        }
    }
}
