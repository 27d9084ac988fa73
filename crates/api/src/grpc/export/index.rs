//! Outputs that are images for several platforms, or images with attestations.

use std::collections::BTreeMap;
use std::sync::Arc;

use whelk_build::{EventKind, IndexSettings, Member, StoredIndex, Work};
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::session::Session;
use whelk_image::archive::{Form, Packing};

use super::super::Buildkit;
use super::super::builds::Build;
use super::archive::told;
use super::attestations::tell;
use super::{Archive, Export, ImageOutput, Push, Results, failed};

/// Provenance is noted for every build.
const PROVENANCE: &str = "https://slsa.dev/provenance/";

impl Buildkit {
    /// Completes the images of an index.
    pub(super) async fn members(
        self: &Arc<Self>,
        results: &Results,
        export: &Export,
        must_rewrite_times: bool,
        packing: impl Fn(&str) -> Packing,
        work: &Work,
    ) -> Result<Vec<Member>> {
        let mut members = Vec::with_capacity(results.list.len());
        for result in &results.list {
            let finished = self.finish(result, export, must_rewrite_times, work);
            members.push(Member {
                platform: result.platform.clone(),
                finished: finished.await?,
                statements: result.statements.clone(),
                packing: packing(&result.id),
            });
        }
        Ok(members)
    }

    /// Records images with their index, and pushes it. Returns what the client is told of it.
    pub(super) async fn keep_index(
        self: &Arc<Self>,
        build: &Build,
        results: &Results,
        export: &Export,
        output: &ImageOutput,
        work: &Work,
    ) -> Result<BTreeMap<String, String>> {
        let packing = |id: &str| output.annotations.packing(id);
        let rewrite = output.must_rewrite_times;
        let members = self
            .members(results, export, rewrite, packing, work)
            .await?;
        let settings = IndexSettings {
            names: output.names.clone(),
            is_artifact: output.attestations.is_artifact,
            annotations: output.annotations.index(),
            ..IndexSettings::default()
        };
        let stored = self.builder.store_index(members, settings).await;
        let stored = stored.map_err(|error| failed(&error))?;
        self.note(build, results, export.id, &stored);
        let digest = &stored.descriptor.digest;
        tell(work, &stored.manifests, &stored.attested, digest);
        self.recorded(&output.names, work).await?;
        let mut answer = told(&stored.descriptor, &output.names)?;
        if let [id] = stored.ids.as_slice() {
            answer.insert("containerimage.config.digest".into(), id.to_string());
        }
        if output.push != Push::Not {
            for name in &output.names {
                let digest = self.push(build, name, None, work).await?;
                answer.insert("containerimage.digest".into(), digest);
            }
        }
        Ok(answer)
    }

    /// Packs images with their index, and sends it to the client. Returns what the client is told of it.
    pub(super) async fn send_index(
        self: &Arc<Self>,
        build: &Build,
        session: &Session,
        results: &Results,
        export: &Export,
        archive: &Archive,
        work: &Work,
    ) -> Result<BTreeMap<String, String>> {
        if archive.form == Form::Docker {
            let text = "docker exporter does not currently support exporting manifest lists";
            return Err(Status::invalid(text));
        }
        let has_docker_types = archive.has_docker_types && !results.has_statements();
        let archive = &Archive {
            has_docker_types,
            ..archive.clone()
        };
        work.add(EventKind::Part {
            name: "exporting layers".into(),
            is_done: false,
        });
        let packing = |id: &str| {
            let (manifest, entry) = archive.annotations.of(id);
            archive.packing(manifest, entry)
        };
        let rewrite = archive.must_rewrite_times;
        let members = self
            .members(results, export, rewrite, packing, work)
            .await?;
        let settings = IndexSettings {
            names: archive.names.clone(),
            is_artifact: archive.attestations.is_artifact,
            has_docker_types,
            annotations: archive.annotations.index(),
        };
        let packed = self.builder.pack_index(members, settings).await;
        let (packed, made) = packed.map_err(|error| failed(&error))?;
        self.note(build, results, export.id, &made);
        tell(
            work,
            &made.manifests,
            &made.attested,
            &made.descriptor.digest,
        );
        let answer = told(&made.descriptor, &archive.names)?;
        self.give(session, (export.id, &answer), packed, archive, work)
            .await?;
        Ok(answer)
    }

    /// Keeps for the history what was made.
    pub(super) fn note(&self, build: &Build, results: &Results, output: usize, made: &StoredIndex) {
        let media_type = &made.descriptor.media_type;
        build.note_manifest(output, media_type, made.bytes.clone());
        for (place, statement) in &made.statements {
            if statement.kind.starts_with(PROVENANCE) {
                continue;
            }
            let platform = results.list.get(*place).filter(|_| results.is_map);
            let platform = platform.map(|result| result.id.clone());
            build.note_statement(platform, &statement.kind, statement.bytes.clone());
        }
    }
}
