//! Removes layers and blobs that no image uses.

use std::sync::Arc;
use std::time::Duration;

use whelk_image::content::MAX_PARTIAL_AGE;

use super::Images;

impl Images {
    /// Removes from time to time what unfinished pulls have left and no pull has resumed with: perhaps nothing
    /// else happens that collects.
    pub(crate) async fn collect_regularly(self: Arc<Self>) {
        const INTERVAL: Duration = Duration::from_secs(6 * 60 * 60);
        loop {
            tokio::time::sleep(INTERVAL).await;
            let images = self.clone();
            let collected = tokio::task::spawn_blocking(move || images.collect_garbage()).await;
            if let Err(error) = collected {
                tracing::error!("collect unused layers: {error}");
            }
        }
    }

    /// Removes layers and configurations that no image uses, except for those that a pull may resume
    /// with. They are moved to the trash before this returns, and deleted in the background.
    pub(super) fn collect_garbage(&self) {
        self.collect_older(MAX_PARTIAL_AGE);
    }

    /// Removes what nothing uses any more, after something else than an image has released layers. Blocking.
    pub fn collect_unused(&self) {
        self.collect_garbage();
    }

    /// Like [`Images::collect_garbage`], but keeps content that a pull may resume with only if it is
    /// younger than `age`.
    pub(super) fn collect_older(&self, age: Duration) {
        self.files
            .staging
            .dispose_and_make_room(self.trash_unused(age));
    }

    /// Moves layers and configurations that no image uses to the trash, except for those leased by a
    /// running load, import or pull, and those that an interrupted one left less than `age` ago.
    /// Returns their paths there. Does nothing if an image could not be read.
    pub(super) fn trash_unused(&self, age: Duration) -> Vec<std::path::PathBuf> {
        if !self.read().unreadable.is_empty() {
            return Vec::new();
        }
        self.files.gc(age, || self.used()).unwrap_or_else(|error| {
            tracing::warn!("collect unused layers: {error}");
            Vec::new()
        })
    }
}
