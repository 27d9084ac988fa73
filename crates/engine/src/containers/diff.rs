//! Listing what a container has changed in its image.

use std::sync::Arc;

pub use whelk_image::snapshots::{Change, ChangeKind};

use super::Containers;
use super::readers::FileReader;
use crate::error::Result;
use crate::workload::blocking;

impl Containers {
    /// Lists the changes in a container's root file system; mounts are not part of it.
    ///
    /// # Errors
    /// Returns an error if there is no such container, or if its files cannot be read.
    pub async fn changes(self: &Arc<Self>, name: &str) -> Result<Vec<Change>> {
        let container = self.find(name)?;
        let (containers, id) = (self.clone(), container.id.clone());
        let image = container.record().image.clone();
        let reader = FileReader::new(&container.layer_readers);
        let layers = self.hold_layers(&container);
        let changes = blocking(move || {
            let (_reader, _layers) = (reader, layers);
            let directory = containers.instance.container_dir(&id);
            let lower = containers.root_layers(&image, &directory)?;
            let upper = directory.join("upper");
            Ok(whelk_image::snapshots::diff(&upper, &lower)?)
        });
        changes.await.map_err(|error| container.explain(error))
    }
}
