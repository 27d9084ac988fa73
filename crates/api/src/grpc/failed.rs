//! The end of what is left of failed steps: clients remove it themselves, but for those that are killed.

use std::sync::Arc;
use std::time::Duration;

use whelk_buildkit::details::{image_of_failed, remove_failed_images, shell_of_failed};
use whelk_buildkit::grpc::{Result, Status};
use whelk_engine::Error;
use whelk_engine::containers::RemoveRequest;

use super::builds::Build;
use super::{Buildkit, blocking};

/// Number of attempts at the removal. One fails while the container is being created or removed.
const TRIES: u32 = 10;

/// The time between two tries.
const PAUSE: Duration = Duration::from_secs(1);

impl Buildkit {
    /// Keeps the image that an error of a build names until the session of the build has ended. A name that is none of a failed
    /// step is removed from the error: it may be from a program in an image, and the client would run and remove it.
    pub(super) fn keep_failed(self: &Arc<Self>, build: &Build, status: &mut Status) {
        let Some(image) = image_of_failed(status) else {
            return;
        };
        if !self.builder.is_image_of_failed(&image) {
            remove_failed_images(status);
            return;
        }
        if build.session.is_empty() {
            return;
        }
        let (buildkit, session) = (self.clone(), build.session.clone());
        let container = shell_of_failed(&build.id);
        tokio::spawn(async move {
            buildkit.sessions.ended(&session).await;
            for _ in 0..TRIES {
                match buildkit.remove_failed(&container, &image).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!("remove the state of a failed step: {error}"),
                }
                tokio::time::sleep(PAUSE).await;
            }
            // Another container was created from it.
            tracing::info!("the image {image} of a failed step is not removed: it is in use");
        });
    }

    /// Removes the image, and a container of it with a name. What is not there is no error.
    async fn remove_failed(&self, container: &str, image: &str) -> Result<()> {
        let containers = &self.engine.containers;
        let found = containers.find(container).ok();
        // Anybody may give a container this name.
        if let Some(found) = found.filter(|found| found.record().image == image) {
            let request = RemoveRequest {
                force: true,
                volumes: true,
            };
            gone(containers.remove(&found.id, request).await)?;
        }
        let (usage, image) = (self.engine.usage.clone(), image.to_owned());
        blocking(move || gone(usage.remove_image(&image, false, &[]))).await
    }
}

/// Takes what was not there for removed.
fn gone<T>(removed: whelk_engine::Result<T>) -> Result<()> {
    match removed {
        Ok(_) | Err(Error::NotFound(_)) => Ok(()),
        Err(error) => Err(Status::unknown(error.to_string())),
    }
}
