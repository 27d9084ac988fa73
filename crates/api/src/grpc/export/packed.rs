//! Outputs that are images whose layers and manifests are made at once, and pushed as they are: in another form than that of the
//! engine's pushes, without an image of the engine, or with an index that has no tag.

use std::collections::BTreeMap;
use std::sync::Arc;

use whelk_build::{EventKind, IndexSettings, Member, PackedImage, Work};
use whelk_buildkit::grpc::{Result, Status};
use whelk_image::archive::{Packed, Packing};
use whelk_image::{Digest, Reference};

use super::super::Buildkit;
use super::super::builds::Build;
use super::archive::told;
use super::attestations::tell;
use super::image::CONFIG_DIGEST;
use super::{Export, ImageOutput, Push, Results, failed};

impl Buildkit {
    /// Packs an image, or several with their index, records it, and pushes it. Returns what the client is told of it.
    pub(super) async fn keep_packed(
        self: &Arc<Self>,
        build: &Build,
        results: &Results,
        export: &Export,
        output: &ImageOutput,
        work: &Work,
    ) -> Result<BTreeMap<String, String>> {
        let has_index = results.has_index(output.attestations);
        let has_statements = has_index && results.has_statements();
        let has_docker_types = output.form.has_docker_types && !has_statements;
        let packing = |id: &str| Packing {
            compression: output.form.compression,
            has_docker_types,
            ..output.annotations.packing(id)
        };
        let rewrite = output.must_rewrite_times;
        let members = self
            .members(results, export, rewrite, packing, work)
            .await?;
        let (packed, ids, config) = match members.as_slice() {
            [member] if !has_index => {
                let (packed, ids) = self
                    .pack_one(build, export.id, member, output, work)
                    .await?;
                let config = packed.config.digest.clone();
                (packed, ids, Some(config))
            }
            _ => {
                let settings = IndexSettings {
                    names: output.names.clone(),
                    is_artifact: output.attestations.is_artifact,
                    has_docker_types,
                    annotations: output.annotations.index(),
                };
                let packing = self.builder.pack_index(members.clone(), settings).await;
                let (packed, made) = packing.map_err(|error| failed(&error))?;
                self.note(build, results, export.id, &made);
                let digest = &made.descriptor.digest;
                tell(work, &made.manifests, &made.attested, digest);
                let mut ids = Vec::new();
                if output.is_stored {
                    let stored =
                        self.builder
                            .store_packed_index(&members, &packed, &made, output.tags());
                    ids = stored.await.map_err(|error| failed(&error))?;
                }
                let config = (members.len() == 1).then(|| packed.config.digest.clone());
                (packed, ids, config)
            }
        };
        if output.is_stored {
            self.recorded(&output.tags(), work).await?;
        }
        let image = PackedImage::new(packed);
        if output.push != Push::Not {
            for name in &output.names {
                self.push_packed(build, &image, name, &ids, work).await?;
            }
        }
        let mut answer = told(&image.descriptor, &output.names)?;
        answer.extend(config.map(|config| (CONFIG_DIGEST.to_owned(), config.to_string())));
        Ok(answer)
    }

    /// Packs the only image of an output, and records it. Returns its id, if it is recorded.
    async fn pack_one(
        self: &Arc<Self>,
        build: &Build,
        id: usize,
        member: &Member,
        output: &ImageOutput,
        work: &Work,
    ) -> Result<(Packed, Vec<Digest>)> {
        let part = |name: String| {
            work.add(EventKind::Part {
                name,
                is_done: true,
            });
        };
        let packing = member.packing.clone();
        let packed = self.builder.pack(&member.finished, packing, |_| {}).await;
        let packed = packed.map_err(|error| failed(&error))?;
        part("exporting layers".into());
        part(format!("exporting manifest {}", packed.manifest.digest));
        part(format!("exporting config {}", packed.config.digest));
        if let Some(content) = packed.manifest_content() {
            build.note_manifest(id, &packed.manifest.media_type, content.to_vec());
        }
        let mut ids = Vec::new();
        if output.is_stored {
            let stored = self.builder.store_packed(member, &packed, output.tags());
            ids.push(stored.await.map_err(|error| failed(&error))?);
        }
        Ok((packed, ids))
    }

    async fn push_packed(
        self: &Arc<Self>,
        build: &Build,
        image: &PackedImage,
        name: &Reference,
        ids: &[Digest],
        work: &Work,
    ) -> Result<()> {
        let part = |name: String, is_done| work.add(EventKind::Part { name, is_done });
        let layers = format!("pushing layers of {}", name.familiar());
        part(layers.clone(), false);
        let client = build.request.client.as_ref();
        let pushed = self.builder.push_packed(client, image, name, ids.to_vec());
        pushed.await.map_err(|error| {
            Status::unknown(format!("failed to push {}: {error}", name.familiar()))
        })?;
        part(layers, true);
        let digest = &image.descriptor.digest;
        part(format!("pushing manifest for {name}@{digest}"), true);
        Ok(())
    }
}
