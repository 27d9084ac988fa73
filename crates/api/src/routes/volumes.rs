//! Routes of `/volumes/…`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use whelk_api_types::{
    VolumeCopyRequest, VolumeCreateRequest, VolumeListResponse, VolumePruneResponse,
};
use whelk_engine::Error;
use whelk_engine::containers::{Containers, CopyVolume};
use whelk_engine::model::volume::{CreateVolume, VolumeDriverName};
use whelk_engine::volumes::{FILTERS, PRUNE_FILTERS, Volumes};

use super::{Service, blocking, json as json_response, no_content, ok};
use crate::error::{ApiError, ApiResult, message};
use crate::extract::{Json, Params, RequestBody};
use crate::version::{self, ApiVersion};
use crate::{stream, wire};

pub(super) async fn list(State(volumes): Service<Volumes>, params: Params) -> ApiResult {
    let filters = params.filters(FILTERS)?;
    let (found, warnings) = blocking(move || volumes.show_all(&filters)).await?;
    Ok(ok(&VolumeListResponse {
        volumes: found.into_iter().map(wire::volume).collect(),
        warnings: wire::null_if_empty(warnings),
    }))
}

pub(super) async fn inspect(
    State(volumes): Service<Volumes>,
    Path(name): Path<String>,
) -> ApiResult {
    Ok(ok(&wire::volume(
        blocking(move || volumes.show(&name)).await?,
    )))
}

impl RequestBody for VolumeCreateRequest {
    const GO_TYPE: &'static str = "volume.CreateOptions";
}

pub(super) async fn create(
    State(volumes): Service<Volumes>,
    Json(body): Json<VolumeCreateRequest>,
) -> ApiResult {
    if body.cluster_volume_spec.is_some() {
        return Err(Error::unsupported("cluster volumes").into());
    }
    let request = CreateVolume {
        name: body.name,
        driver: VolumeDriverName::given(&body.driver),
        options: body.driver_opts.unwrap_or_default(),
        labels: body.labels.unwrap_or_default(),
        ephemeral: false,
    };
    let made = blocking(move || {
        volumes
            .create(request)
            .and_then(|record| volumes.show_record(record))
    })
    .await?;
    Ok(json_response(StatusCode::CREATED, &wire::volume(made)))
}

pub(super) async fn delete(
    State(volumes): Service<Volumes>,
    Path(name): Path<String>,
    params: Params,
) -> ApiResult {
    let force = params.flag("force");
    blocking(move || volumes.remove(&name, force)).await?;
    Ok(no_content())
}

/// Returns a volume's content as a tar archive. Not part of Docker's API.
pub(super) async fn export(
    State(volumes): Service<Volumes>,
    Path(name): Path<String>,
) -> ApiResult {
    let turn = stream::begin().await?;
    let held = blocking(move || volumes.hold(&name)).await?;
    let body = stream::written(turn, move |output| held.export(output));
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], body).into_response())
}

/// Unpacks a plain or compressed tar archive into a volume, which is created if it does not exist.
/// Not part of Docker's API.
pub(super) async fn import(
    State(volumes): Service<Volumes>,
    Path(name): Path<String>,
    body: Body,
) -> ApiResult {
    let reader = stream::reader(stream::begin().await?, body);
    let filled = blocking(move || {
        volumes
            .import(&name, reader)
            .and_then(|record| volumes.show_record(record))
    })
    .await?;
    Ok(ok(&wire::volume(filled)))
}

impl RequestBody for VolumeCopyRequest {
    const GO_TYPE: &'static str = "volume.CopyOptions";
}

/// Creates a volume with another volume's content. Not part of Docker's API.
pub(super) async fn copy(
    State(containers): Service<Containers>,
    State(volumes): Service<Volumes>,
    Path(source): Path<String>,
    Json(body): Json<VolumeCopyRequest>,
) -> ApiResult {
    make_copy(&containers, volumes, source, body, false).await
}

/// Creates a read-only volume with another volume's current content. Not part of Docker's API.
pub(super) async fn snapshot(
    State(containers): Service<Containers>,
    State(volumes): Service<Volumes>,
    Path(source): Path<String>,
    Json(body): Json<VolumeCopyRequest>,
) -> ApiResult {
    make_copy(&containers, volumes, source, body, true).await
}

async fn make_copy(
    containers: &Arc<Containers>,
    volumes: Arc<Volumes>,
    source: String,
    body: VolumeCopyRequest,
    snapshot: bool,
) -> ApiResult {
    let VolumeCopyRequest {
        name,
        labels,
        pause,
    } = body;
    if name.is_empty() {
        return Err(ApiError::invalid("the name of the new volume is empty"));
    }
    let record = containers
        .copy_volume(CopyVolume {
            source,
            name,
            labels,
            snapshot,
            pause,
        })
        .await?;
    let made = blocking(move || volumes.show_record(record)).await?;
    Ok(json_response(StatusCode::CREATED, &wire::volume(made)))
}

/// Only cluster volumes can be updated, and there are none.
pub(super) async fn update() -> Response {
    let text = "volume update only valid for cluster volumes, but swarm is unavailable";
    message(StatusCode::SERVICE_UNAVAILABLE, text)
}

pub(super) async fn prune(
    State(volumes): Service<Volumes>,
    Extension(version): Extension<ApiVersion>,
    params: Params,
) -> ApiResult {
    let filters = params.filters(PRUNE_FILTERS)?;
    let all = filters
        .flag("all")?
        .unwrap_or(version::prune_takes_named_volumes(version));
    let (removed, reclaimed) = blocking(move || volumes.prune(&filters, all)).await?;
    Ok(ok(&VolumePruneResponse {
        volumes_deleted: removed,
        space_reclaimed: reclaimed,
    }))
}
