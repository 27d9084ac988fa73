//! `/images/…`. Names of images contain slashes, so what follows them in the path is found from its end.

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use whelk_engine::containers::ListRequest;
use whelk_engine::images::{FILTERS, Removed};
use whelk_engine::mounts::MountPlan;
use whelk_engine::{Engine, Error};
use whelk_image::archive::Import;
use whelk_image::{Digest, Reference};

use super::{App, ok};
use crate::error::{ApiError, ApiResult};
use crate::extract::Params;
use crate::version::ApiVersion;
use crate::{stream, wire};

pub(super) async fn list(State(engine): App, Extension(version): Extension<ApiVersion>, params: Params) -> ApiResult {
    let mut filters = params.filters(FILTERS)?;
    if !params.text("filter").is_empty() {
        // The filter of API versions before 1.41.
        filters = whelk_engine::filters::Filters::parse(&json!({"reference": [params.text("filter")]}).to_string(), FILTERS)?;
    }
    let containers = engine.containers.list(&ListRequest { all: true, ..ListRequest::default() }).await?;
    let summaries: Vec<Value> = engine
        .images
        .list(&filters)?
        .iter()
        .map(|image| {
            let users = containers.iter().filter(|container| container.record.image == image.id.as_str()).count();
            wire::image_summary(image, &engine.images.names_of(&image.id), users, version)
        })
        .collect();
    Ok(ok(&summaries))
}

pub(super) async fn load(State(engine): App, request: Request) -> ApiResult {
    let reader = stream::reader(request.into_body());
    let images = engine.images.clone();
    let loaded = super::blocking(move || images.load(reader)).await?;
    let mut lines = String::new();
    for image in loaded {
        let text = |name: String| format!("{}\n", json!({"stream": name}));
        if image.names.is_empty() {
            lines += &text(format!("Loaded image ID: {}\n", image.id));
        }
        for name in image.names {
            lines += &text(format!("Loaded image: {}\n", name.familiar()));
        }
    }
    Ok(([(header::CONTENT_TYPE, "application/json")], lines).into_response())
}

fn archive(engine: &Engine, names: &[String]) -> ApiResult {
    let saved = engine.images.to_save(names)?;
    let store = engine.images.clone();
    let body = stream::written(move |output| store.save(&saved, output));
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], body).into_response())
}

pub(super) async fn get_many(State(engine): App, request: Request) -> ApiResult {
    let query = request.uri().query().unwrap_or_default();
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(request.uri())
        .map_err(|error| ApiError::invalid(format!("{query}: {error}")))?;
    let names: Vec<String> = pairs
        .0
        .into_iter()
        .filter(|(key, _)| key == "names")
        .flat_map(|(_, value)| value.split(',').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    archive(&engine, &names)
}

/// Makes an image from an archive (`fromSrc`). Pulling (`fromImage`) needs a registry client.
pub(super) async fn create(State(engine): App, params: Params, body: Body) -> ApiResult {
    let image = params.text("fromImage");
    if !image.is_empty() {
        let tag = params.text("tag");
        let reference: Reference = image.parse().map_err(Error::from)?;
        if !tag.is_empty() && !tag.contains(':') {
            whelk_image::reference::check_tag(tag).map_err(Error::from)?;
        }
        let name = Reference { tag: Some(tag.to_owned()).filter(|tag| !tag.is_empty()), ..reference }.with_default_tag();
        return Err(Error::Unsupported(format!(
            "pull {}: pulling from registries is not available in this version of whelk; use load or import",
            name.familiar()
        ))
        .into());
    }
    if params.text("fromSrc") != "-" {
        return Err(Error::Unsupported(
            "import from a URL: not available in this version of whelk; send the archive itself (fromSrc=-)".into(),
        )
        .into());
    }
    let name = match params.text("repo") {
        "" => None,
        repository => {
            let mut reference: Reference = repository.parse().map_err(Error::from)?;
            if !params.text("tag").is_empty() {
                whelk_image::reference::check_tag(params.text("tag")).map_err(Error::from)?;
                reference.tag = Some(params.text("tag").to_owned());
            }
            Some(reference.with_default_tag())
        }
    };
    let config = whelk_image::changes::apply(params.all("changes").flat_map(str::lines)).map_err(Error::from)?;
    let comment = if params.text("message").is_empty() { "Imported from -".to_owned() } else { params.text("message").to_owned() };
    let (images, reader) = (engine.images.clone(), stream::reader(body));
    let id = tokio::task::spawn_blocking(move || images.import(reader, Import { config, comment, name }))
        .await
        .map_err(|error| Error::Internal(error.to_string()))??;
    Ok(([(header::CONTENT_TYPE, "application/json")], format!("{}\n", json!({"status": id}))).into_response())
}

pub(super) async fn prune(State(engine): App, params: Params) -> ApiResult {
    let filters = params.filters(&["dangling", "label", "label!", "until"])?;
    let all = filters.flag("dangling")? == Some(false);
    let (removed, reclaimed) = super::blocking(move || engine.images.prune(all, &filters, |id| users(&engine, id))).await?;
    Ok(ok(&json!({"ImagesDeleted": if removed.is_empty() { Value::Null } else { removals(&removed) }, "SpaceReclaimed": reclaimed})))
}

/// Nothing is built here, so there is no cache of it. `docker system prune` asks for this too.
pub(super) async fn prune_builds() -> Response {
    ok(&json!({"CachesDeleted": null, "SpaceReclaimed": 0}))
}

/// The containers that use an image: id, and whether it runs.
fn users(engine: &Engine, id: &Digest) -> Vec<(String, bool)> {
    let containers = engine.containers.all();
    containers
        .iter()
        .map(|container| container.record())
        .filter(|record| {
            record.image == id.as_str() || record.mounts.iter().filter_map(MountPlan::image).any(|image| image.id == id.as_str())
        })
        .map(|record| (record.id.clone(), record.state.status.is_running()))
        .collect()
}

fn removals(removed: &[Removed]) -> Value {
    let one = |removed: &Removed| match removed {
        Removed::Untagged(name) => json!({"Untagged": name}),
        Removed::Deleted(id) => json!({"Deleted": id}),
    };
    removed.iter().map(one).collect()
}

pub(super) async fn get_by_name(State(engine): App, Extension(version): Extension<ApiVersion>, Path(rest): Path<String>) -> ApiResult {
    match rest.rsplit_once('/') {
        Some((name, "json")) => {
            let image = engine.images.find(name)?;
            Ok(ok(&wire::image(&image, &engine.images.names_of(&image.id), version)))
        }
        Some((name, "history")) => {
            let image = engine.images.find(name)?;
            let sizes = image
                .config
                .rootfs
                .diff_ids
                .iter()
                .map(|layer| engine.images.store().layer_size(layer))
                .collect::<Result<Vec<_>, _>>()
                .map_err(Error::from)?;
            Ok(ok(&wire::history(&image, &engine.images.names_of(&image.id), &sizes)))
        }
        Some((name, "get")) => archive(&engine, &[name.to_owned()]),
        _ => Ok(not_found()),
    }
}

pub(super) async fn post_by_name(State(engine): App, Path(rest): Path<String>, params: Params, _body: Bytes) -> ApiResult {
    match rest.rsplit_once('/') {
        Some((name, "tag")) => {
            engine.images.tag(name, params.text("repo"), params.text("tag"))?;
            Ok(StatusCode::CREATED.into_response())
        }
        Some((_, "push")) => Err(Error::Unsupported("push: registries are not available in this version of whelk; use save".into()).into()),
        _ => Ok(not_found()),
    }
}

pub(super) async fn delete(State(engine): App, Path(name): Path<String>, params: Params) -> ApiResult {
    let force = params.flag("force");
    let removed = super::blocking(move || engine.images.remove(&name, force, |id| users(&engine, id))).await?;
    Ok(ok(&removals(&removed)))
}

fn not_found() -> Response {
    crate::error::message(StatusCode::NOT_FOUND, "page not found")
}
