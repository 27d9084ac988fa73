//! `/volumes/…`

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use whelk_engine::Error;
use whelk_engine::volumes::{CreateVolume, FILTERS, PRUNE_FILTERS};

use super::{App, blocking, json as json_response, no_content, ok};
use crate::error::ApiResult;
use crate::extract::{Params, json as read_json};
use crate::version::ApiVersion;
use crate::wire;

pub(super) async fn list(State(engine): App, params: Params) -> ApiResult {
    let found = engine.volumes.list(&params.filters(FILTERS)?)?;
    let shown: Vec<Value> = found.iter().map(|record| wire::volume(record, &engine.volumes.path(&record.name))).collect();
    Ok(ok(&json!({"Volumes": shown, "Warnings": null})))
}

pub(super) async fn inspect(State(engine): App, Path(name): Path<String>) -> ApiResult {
    let record = engine.volumes.find(&name)?;
    Ok(ok(&wire::volume(&record, &engine.volumes.path(&record.name))))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreateBody {
    name: String,
    driver: String,
    driver_opts: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
    cluster_volume_spec: Option<Value>,
}

pub(super) async fn create(State(engine): App, body: Bytes) -> ApiResult {
    let body: CreateBody = read_json(&body)?;
    if body.cluster_volume_spec.is_some() {
        return Err(Error::Unsupported("cluster volumes: not available in this version of whelk".into()).into());
    }
    let request = CreateVolume {
        name: body.name,
        driver: body.driver,
        options: body.driver_opts.unwrap_or_default(),
        labels: body.labels.unwrap_or_default(),
    };
    let volumes = engine.volumes.clone();
    let record = blocking(move || volumes.create(request)).await?;
    Ok(json_response(StatusCode::CREATED, &wire::volume(&record, &engine.volumes.path(&record.name))))
}

pub(super) async fn delete(State(engine): App, Path(name): Path<String>, params: Params) -> ApiResult {
    let (volumes, force) = (engine.volumes.clone(), params.flag("force"));
    blocking(move || volumes.remove(&name, force)).await?;
    Ok(no_content())
}

/// Only cluster volumes can be changed.
pub(super) async fn update(State(engine): App, Path(name): Path<String>) -> ApiResult {
    engine.volumes.find(&name)?;
    Err(Error::Unsupported("volume update: only cluster volumes can be updated, which are not available in this version of whelk".into())
        .into())
}

pub(super) async fn prune(State(engine): App, Extension(version): Extension<ApiVersion>, params: Params) -> ApiResult {
    let filters = params.filters(PRUNE_FILTERS)?;
    // All of them until 1.41; since then only those without a name, unless it is asked for.
    let all = filters.flag("all")?.unwrap_or(version < ApiVersion(1, 42));
    let volumes = engine.volumes.clone();
    let (removed, reclaimed) = blocking(move || volumes.prune(&filters, all)).await?;
    Ok(ok(&json!({"VolumesDeleted": removed, "SpaceReclaimed": reclaimed})))
}
