//! Outputs of builds.

use std::collections::BTreeMap;
use std::sync::Arc;

use whelk_build::EventKind;
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::pb::control::{Exporter, SolveResponse};
use whelk_buildkit::pb::gateway::{self, result};
use whelk_dockerfile::convert::Image;
use whelk_image::Reference;

use super::Door;
use super::builds::Build;

/// An image of the engine to make of a result.
#[derive(Debug)]
pub(super) struct Export {
    names: Vec<Reference>,
}

/// Reads the exporters of a request.
///
/// # Errors
/// Returns an error for one that is not supported, and for an invalid name.
pub(super) fn parse(exporters: &[Exporter]) -> Result<Vec<Export>> {
    exporters.iter().map(export).collect()
}

fn export(exporter: &Exporter) -> Result<Export> {
    let unsupported = |what: &str| {
        let text = format!("{what}: not available in this version of whelk");
        Err(Status::unimplemented(text))
    };
    if !matches!(exporter.kind.as_str(), "moby" | "image") {
        return unsupported(&format!("the output {}", exporter.kind));
    }
    let get = |name: &str| exporter.attrs.get(name).map_or("", String::as_str);
    let is_set = |name: &str| !matches!(get(name), "" | "false" | "0");
    // Clients push by themselves when the image is here.
    if is_set("push") || is_set("push-by-digest") {
        return unsupported("an output that is pushed");
    }
    if is_set("rewrite-timestamp") {
        return unsupported("rewritten times of files (rewrite-timestamp)");
    }
    let annotation = exporter
        .attrs
        .keys()
        .find(|name| name.starts_with("annotation"));
    if let Some(name) = annotation {
        return unsupported(&format!("annotations of images ({name})"));
    }
    let names = get("name").split(',').filter(|name| !name.is_empty());
    let names = names.map(|name| {
        let reference: Reference = name.parse()?;
        reference.into_tag()
    });
    let names: std::result::Result<_, whelk_image::Error> = names.collect();
    let names = names.map_err(|error| Status::invalid(error.to_string()))?;
    Ok(Export { names })
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
        for export in exports {
            let work = build.request.progress.begin("exporting to image");
            let part = |name: String, is_done| work.add(EventKind::Part { name, is_done });
            part("exporting layers".into(), false);
            let exported = self
                .builder
                .export(&solved, image.clone(), epoch, export.names.clone())
                .await;
            let id = match exported {
                Ok(id) => id,
                Err(error) => {
                    let status = super::result::status(&error, None);
                    let _ = work.end(Err::<(), _>(error));
                    return Err(status);
                }
            };
            part("exporting layers".into(), true);
            part(format!("writing image {id}"), true);
            for name in &export.names {
                part(format!("naming to {name}"), true);
            }
            if let Err(error) = self.engine.durability.wait().await {
                let status = Status::unknown(error.to_string());
                let _ = work.end(Err::<(), _>(error.into()));
                return Err(status);
            }
            let _ = work.end(Ok(()));
            for name in ["containerimage.digest", "containerimage.config.digest"] {
                answer.insert(name.into(), id.to_string());
            }
            if !export.names.is_empty() {
                let names: Vec<String> = export.names.iter().map(Reference::to_string).collect();
                answer.insert("image.name".into(), names.join(","));
            }
        }
        Ok(SolveResponse {
            exporter_response: answer,
        })
    }
}
