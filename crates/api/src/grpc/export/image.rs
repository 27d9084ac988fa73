//! Outputs that are images of the engine, which are also pushed if the client wants it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use whelk_build::{EventKind, Finished, Work};
use whelk_buildkit::grpc::{Result, Status};
use whelk_engine::images::PushRequest;
use whelk_image::{Digest, Progress, Reference};
use whelk_sys::sync::IgnorePoison as _;

use super::super::Buildkit;
use super::super::builds::Build;
use super::archive::told;
use super::{ImageOutput, Push, failed};

/// The media type of an image's configuration, by which the history refers to an image of the engine.
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";

pub(super) const CONFIG_DIGEST: &str = "containerimage.config.digest";

impl Buildkit {
    /// Records an image for a platform, and pushes it. Returns what the client is told of it.
    pub(super) async fn keep_image(
        self: &Arc<Self>,
        build: &Build,
        place: (usize, &str),
        finished: &Finished,
        output: &ImageOutput,
        work: &Work,
    ) -> Result<BTreeMap<String, String>> {
        let (image, mut answer) = match output.annotations.is_empty() {
            true => {
                self.keep_plain(build, place.0, finished, output, work)
                    .await?
            }
            false => {
                self.keep_annotated(build, place, finished, output, work)
                    .await?
            }
        };
        self.recorded(&output.tags(), work).await?;
        if output.push != Push::Not {
            let untagged = (output.push == Push::Digest).then_some(&image);
            for name in &output.names {
                let digest = self.push(build, name, untagged, work).await?;
                answer.insert("containerimage.digest".into(), digest);
            }
        }
        Ok(answer)
    }

    /// Records an image by its configuration: a manifest is made when it is pushed. Returns its id, and what the client is told.
    async fn keep_plain(
        self: &Arc<Self>,
        build: &Build,
        id: usize,
        finished: &Finished,
        output: &ImageOutput,
        work: &Work,
    ) -> Result<(Digest, BTreeMap<String, String>)> {
        let part = |name: String, is_done| work.add(EventKind::Part { name, is_done });
        build.note_manifest(id, CONFIG, finished.config.clone());
        let stored = self.builder.store_image(finished, output.tags());
        let id = stored.await.map_err(|error| failed(&error))?;
        part("exporting layers".into(), true);
        part(format!("writing image {id}"), true);
        let mut answer = BTreeMap::new();
        for name in ["containerimage.digest", CONFIG_DIGEST] {
            answer.insert(name.to_owned(), id.to_string());
        }
        if !output.names.is_empty() {
            let names: Vec<String> = output.names.iter().map(Reference::to_string).collect();
            answer.insert("image.name".into(), names.join(","));
        }
        Ok((id, answer))
    }

    /// Records an image with its manifest, which has the annotations. Returns its id, and what the client is told.
    async fn keep_annotated(
        self: &Arc<Self>,
        build: &Build,
        (id, platform): (usize, &str),
        finished: &Finished,
        output: &ImageOutput,
        work: &Work,
    ) -> Result<(Digest, BTreeMap<String, String>)> {
        let part = |name: String| {
            work.add(EventKind::Part {
                name,
                is_done: true,
            });
        };
        let packing = output.annotations.packing(platform);
        let stored = self
            .builder
            .store_annotated(finished, packing, output.names.clone())
            .await;
        let stored = stored.map_err(|error| failed(&error))?;
        let manifest = stored.descriptor;
        build.note_manifest(id, &manifest.media_type, stored.bytes);
        part("exporting layers".into());
        part(format!("exporting manifest {}", manifest.digest));
        part(format!("exporting config {}", stored.id));
        let mut answer = told(&manifest, &output.names)?;
        answer.insert(CONFIG_DIGEST.into(), stored.id.to_string());
        Ok((stored.id, answer))
    }

    /// Pushes what a tag stands for, or the image `untagged`, with the client's credentials. Returns the digest of the manifest or
    /// index.
    pub(super) async fn push(
        self: &Arc<Self>,
        build: &Build,
        name: &Reference,
        untagged: Option<&Digest>,
        work: &Work,
    ) -> Result<String> {
        let part = |name: String, is_done| work.add(EventKind::Part { name, is_done });
        let credentials = build.request.client.credentials(&name.domain).await;
        let request = PushRequest {
            reference: name.clone(),
            platform: None,
            credentials: credentials.map_err(|error| failed(&error))?,
            is_whole: true,
            untagged: untagged.cloned(),
        };
        let layers = format!("pushing layers of {}", name.familiar());
        part(layers.clone(), false);
        let digest = Arc::<Mutex<String>>::default();
        let found = digest.clone();
        let note = move |pushed: &whelk_engine::images::Pushed| {
            *found.lock().ignore_poison() = pushed.digest.to_string();
        };
        let images = &self.engine.images;
        let pushed = images.push(&request, &Progress::none(), note).await;
        pushed.map_err(|error| {
            Status::unknown(format!("failed to push {}: {error}", name.familiar()))
        })?;
        part(layers, true);
        let digest = digest.lock().ignore_poison().clone();
        part(format!("pushing manifest for {name}@{digest}"), true);
        Ok(digest)
    }
}
