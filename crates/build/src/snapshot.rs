//! Files that a container of a frontend can show: those of a result, or of a failed step.

use std::sync::Arc;

use whelk_image::Lease;

use crate::layers::Stack;
use crate::request::Solved;

/// Layers, which stay as long as this exists.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) stack: Stack,
    pub(crate) lease: Arc<Lease>,
    /// The lease of the job that it comes from, which holds layers of images.
    _job: Option<Arc<Lease>>,
}

impl Snapshot {
    pub(crate) fn new(stack: Stack, lease: &Arc<Lease>) -> Self {
        Self {
            stack,
            lease: lease.clone(),
            _job: None,
        }
    }

    /// Returns it with what else holds layers of it.
    #[must_use]
    pub fn held_by(&self, job: &Arc<Lease>) -> Self {
        Self {
            _job: Some(job.clone()),
            ..self.clone()
        }
    }
}

impl Solved {
    /// Returns the files.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.stack.clone(), &self.lease)
    }
}
