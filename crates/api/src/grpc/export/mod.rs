//! Outputs of builds.

mod archive;
mod attributes;
mod files;
mod image;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use whelk_build::{Error, EventKind, Finished, Solved, Work};
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::pb::control::SolveResponse;
use whelk_buildkit::pb::gateway::{self, result};
use whelk_dockerfile::convert::Image;
use whelk_image::Reference;
use whelk_image::archive::{Compression, Form};

use super::Door;
use super::builds::Build;
use attributes::Annotations;

pub(super) use attributes::parse;

/// An output of a build.
#[derive(Clone, Debug)]
pub(super) struct Export {
    /// The position in the request, by which the client knows it.
    id: usize,
    /// The time of what is made, in seconds since 1970, instead of the one that the Dockerfile's `SOURCE_DATE_EPOCH` says.
    epoch: Option<i64>,
    output: Output,
}

#[derive(Clone, Debug)]
enum Output {
    /// An image of the engine.
    Image(ImageOutput),
    Archive(Archive),
    /// A directory of the client.
    Directory {
        /// Each platform has a directory of its own.
        is_split: bool,
    },
    /// A tar archive of the files.
    Tar,
}

#[derive(Clone, Debug)]
struct ImageOutput {
    names: Vec<Reference>,
    is_pushed: bool,
    must_rewrite_times: bool,
}

/// An archive of an image.
#[derive(Clone, Debug)]
struct Archive {
    form: Form,
    names: Vec<Reference>,
    /// Not an archive, but the blobs alone.
    is_layout: bool,
    compression: Compression,
    has_docker_types: bool,
    annotations: Annotations,
    must_rewrite_times: bool,
}

impl Export {
    /// Returns the name of the step that clients show while the output is made.
    fn label(&self) -> &'static str {
        match &self.output {
            Output::Image(_) => "exporting to image",
            Output::Archive(archive) if archive.form == Form::Docker => {
                "exporting to docker image format"
            }
            Output::Archive(_) => "exporting to oci image format",
            Output::Directory { .. } => "exporting to client directory",
            Output::Tar => "exporting to client tarball",
        }
    }
}

impl Door {
    /// Solves the result of a build, and makes images of it.
    pub(super) async fn export(
        self: &Arc<Self>,
        build: &Build,
        returned: &gateway::Result,
        exports: &[Export],
    ) -> Result<SolveResponse> {
        let mut answer = BTreeMap::new();
        for (name, value) in &returned.metadata {
            // Results of subrequests, which the client shows.
            if name.starts_with("frontend.") || name.starts_with("result.") {
                let text = String::from_utf8_lossy(value).into_owned();
                answer.insert(name.clone(), text);
            }
        }
        let id = match &returned.kind {
            None => None,
            Some(result::Kind::Ref(reference)) => Some(&reference.id),
            Some(result::Kind::RefName(id)) => Some(id),
            Some(result::Kind::Refs(_) | result::Kind::RefNames(_)) => {
                return Err(Status::unimplemented(
                    "results for several platforms: not available in this version of whelk",
                ));
            }
        };
        let Some(id) = id.filter(|id| !id.is_empty()) else {
            if exports.is_empty() || !returned.metadata.is_empty() {
                return Ok(SolveResponse {
                    exporter_response: answer,
                });
            }
            return Err(Status::invalid("the build has no result to export"));
        };
        let reference = build.reference(id)?;
        let solved = reference.solve(&self.builder).await?;
        let own = reference.image.clone();
        let config = returned.metadata.get("containerimage.config");
        let (image, epoch) = match (config, own) {
            (None, Some(own)) => own,
            (None, None) => (super::frontend::empty_image(), None),
            (Some(config), own) => {
                let image: Image = serde_json::from_slice(config).map_err(|error| {
                    Status::invalid(format!("configuration of the image: {error}"))
                })?;
                (image, own.and_then(|(_, epoch)| epoch))
            }
        };
        let result = Exported {
            solved,
            image,
            epoch,
        };
        for export in exports {
            let work = build.request.progress.begin(export.label());
            match self.export_one(build, &result, export, &work).await {
                Ok(told) => {
                    let _ = work.end(Ok(()));
                    answer.extend(told);
                }
                Err(status) => {
                    let _ = work.end(Err::<(), _>(Error::invalid(status.message.clone())));
                    return Err(status);
                }
            }
        }
        Ok(SolveResponse {
            exporter_response: answer,
        })
    }

    /// Makes one output. Returns what the client is told of it.
    async fn export_one(
        self: &Arc<Self>,
        build: &Build,
        result: &Exported,
        export: &Export,
        work: &Work,
    ) -> Result<BTreeMap<String, String>> {
        let Exported { solved, image, .. } = result;
        let epoch = export.epoch.or(result.epoch);
        if let Output::Image(output) = &export.output {
            let part = "exporting layers".to_owned();
            work.add(EventKind::Part {
                name: part,
                is_done: false,
            });
            let rewrite = output.must_rewrite_times;
            let finished = self.finish(result, epoch, rewrite, work).await?;
            return self
                .keep_image(build, export.id, &finished, output, work)
                .await;
        }
        let session = self.sessions.get(&build.session).await?;
        match &export.output {
            Output::Archive(archive) => {
                let rewrite = archive.must_rewrite_times;
                let finished = self.finish(result, epoch, rewrite, work).await?;
                self.send_archive(build, &session, export.id, &finished, archive, work)
                    .await
            }
            Output::Directory { is_split } => {
                let below = is_split.then(|| platform_id(image).replace('/', "_"));
                self.send_files(&session, export.id, solved, epoch, below, work)
                    .await?;
                Ok(BTreeMap::new())
            }
            Output::Tar => {
                self.send_tar(&session, export.id, solved, epoch, work)
                    .await?;
                Ok(BTreeMap::new())
            }
            Output::Image(_) => Ok(BTreeMap::new()),
        }
    }

    async fn finish(
        self: &Arc<Self>,
        result: &Exported,
        epoch: Option<i64>,
        must_rewrite_times: bool,
        work: &Work,
    ) -> Result<Finished> {
        if must_rewrite_times && epoch.is_none() {
            let name = "rewrite-timestamp has no effect without SOURCE_DATE_EPOCH".to_owned();
            work.add(EventKind::Part {
                name,
                is_done: true,
            });
        }
        let (solved, image) = (&result.solved, result.image.clone());
        let finished = self
            .builder
            .finish(solved, image, epoch, must_rewrite_times)
            .await;
        finished.map_err(|error| failed(&error))
    }
}

/// A result to export.
struct Exported {
    solved: Arc<Solved>,
    image: Image,
    epoch: Option<i64>,
}

/// Returns the status of an output that has failed.
fn failed(error: &Error) -> Status {
    super::result::status(error, None)
}

/// `linux/amd64`
fn platform_id(image: &Image) -> String {
    let parts = [&image.os, &image.architecture, &image.variant];
    let parts: Vec<&str> = parts.into_iter().map(String::as_str).collect();
    parts.join("/").trim_end_matches('/').to_owned()
}

/// Tells from time to time how much was sent.
struct Copying<'a> {
    work: &'a Work,
    label: String,
    bytes: u64,
    last: Instant,
}

impl<'a> Copying<'a> {
    fn new(work: &'a Work, label: String) -> Self {
        let mut copying = Self {
            work,
            label,
            bytes: 0,
            last: Instant::now(),
        };
        copying.tell(false);
        copying
    }

    fn at(&mut self, bytes: u64) {
        const INTERVAL: Duration = Duration::from_millis(100);
        self.bytes = bytes;
        if self.last.elapsed() >= INTERVAL {
            self.last = Instant::now();
            self.tell(false);
        }
    }

    fn end(mut self) {
        self.tell(true);
    }

    fn tell(&mut self, is_done: bool) {
        self.work.add(EventKind::Transfer {
            name: self.label.clone(),
            bytes: self.bytes,
            is_done,
        });
    }
}
