//! Outputs that are files: a directory of the client, and a tar archive.

use std::sync::Arc;

use whelk_build::{Solved, Work};
use whelk_buildkit::files::{self, Outgoing};
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::output;
use whelk_buildkit::session::Session;

use super::super::Door;
use super::{Copying, failed};

impl Door {
    /// Sends the files of a result to a directory of the client. Existing files there are replaced, others stay.
    pub(super) async fn send_files(
        self: &Arc<Self>,
        session: &Session,
        id: usize,
        solved: &Arc<Solved>,
        epoch: Option<i64>,
        below: Option<String>,
        work: &Work,
    ) -> Result<()> {
        const SECOND: i64 = 1_000_000_000;
        let (builder, result) = (self.builder.clone(), solved.clone());
        let mount = move || result.mount(&builder).map_err(|error| failed(&error));
        let view = blocking(mount).await?;
        let label = match &below {
            Some(directory) => format!("copying files {}", directory.replace('_', "/")),
            None => "copying files".to_owned(),
        };
        let root = view.root.try_clone();
        let outgoing = Outgoing {
            root: root.map_err(|error| Status::unknown(format!("the result's files: {error}")))?,
            below,
            mtime: epoch.map(|seconds| seconds.saturating_mul(SECOND)),
        };
        let mut copying = Copying::new(work, label);
        let stream = session.export(id)?;
        let holder = (view, solved.clone());
        let sent = files::send(stream, outgoing, holder, |bytes| copying.at(bytes)).await;
        sent.map_err(|error| Status::unknown(error.to_string()))?;
        copying.end();
        Ok(())
    }

    /// Sends the files of a result as a tar archive.
    pub(super) async fn send_tar(
        self: &Arc<Self>,
        session: &Session,
        id: usize,
        solved: &Arc<Solved>,
        epoch: Option<i64>,
        work: &Work,
    ) -> Result<()> {
        let (builder, solved) = (self.builder.clone(), solved.clone());
        let mut copying = Copying::new(work, "sending tarball".into());
        let produce = move |output: &mut output::Output| {
            let view = solved.mount(&builder)?;
            whelk_image::snapshots::export_root_at(&view.root, epoch, output)?;
            Ok::<_, whelk_build::Error>(())
        };
        output::write(session.export(id)?, produce, |bytes| copying.at(bytes)).await?;
        copying.end();
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Status::unknown(error.to_string())))
}
