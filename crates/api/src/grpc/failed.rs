//! What failed steps have left, as images. Clients remove them, but for those that are killed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use whelk_build::Failed;
use whelk_buildkit::details::{failed_image, failed_vertex, remove_failed_images, shell_of_failed};
use whelk_buildkit::grpc::{Result, Status};
use whelk_engine::Error;
use whelk_engine::containers::RemoveRequest;
use whelk_image::Digest;

use super::builds::Build;
use super::{Buildkit, blocking};

/// Number of attempts at the removal. One fails while the container is being created or removed.
const TRIES: u32 = 10;

/// The time between two tries.
const PAUSE: Duration = Duration::from_secs(1);

impl Buildkit {
    /// Records the state of the step with which a build has failed as an image, until the session of the build has ended, and adds
    /// it to the error. One that a program in an image has named is removed from it: the client would run and remove that.
    pub(super) async fn keep_failed(self: &Arc<Self>, build: &Build, mut status: Status) -> Status {
        remove_failed_images(&mut status);
        let op = failed_vertex(&status);
        let failed = op.and_then(|op| build.request.failed.take(&op));
        let Some(failed) = failed.filter(|_| !build.session.is_empty()) else {
            return status;
        };
        let (told, exported) = oneshot::channel();
        let (session, container) = (build.session.clone(), shell_of_failed(&build.id));
        // The image is removed, too, if this call ends before it is recorded.
        tokio::spawn(self.clone().hold_failed(failed, told, session, container));
        match exported.await {
            Ok(Ok(image)) => status.with(failed_image(image.as_str())),
            Ok(Err(error)) => status.context(format_args!("keep the state of the step: {error}")),
            Err(_) => status,
        }
    }

    /// Records a state as an image, and removes that when a session has ended.
    async fn hold_failed(
        self: Arc<Self>,
        failed: Arc<Failed>,
        told: oneshot::Sender<whelk_build::Result<Digest>>,
        session: String,
        container: String,
    ) {
        let exported = self.builder.export_failed(&failed).await;
        drop(failed);
        let image = exported.as_ref().ok().map(Digest::to_string);
        // The call may have ended.
        let _ = told.send(exported);
        let Some(image) = image else { return };
        self.sessions.ended(&session).await;
        for _ in 0..TRIES {
            match self.remove_failed(&container, &image).await {
                Ok(()) => return,
                Err(error) => tracing::debug!("remove the state of a failed step: {error}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        // Another container was created from it.
        tracing::info!("the image {image} of a failed step is not removed: it is in use");
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
