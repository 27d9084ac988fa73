//! Routes of `/containers/…` for files: archives of paths, and changes.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use whelk_api_types::FilesystemChange;
use whelk_engine::containers::{Containers, ExtractRequest, PathStat};

use super::{Service, blocking, ok};
use crate::error::{ApiError, ApiResult};
use crate::extract::Params;
use crate::{stream, wire};

/// The header with what the path refers to, in Base64.
const STAT: &str = "x-docker-container-path-stat";

fn encoded(stat: PathStat) -> String {
    let json = serde_json::to_vec(&wire::path_stat(stat)).unwrap_or_default();
    STANDARD.encode(json)
}

/// Returns the parameter `path`. The text of the error is Docker's.
fn path_of(params: &Params) -> ApiResult<&str> {
    match params.text("path") {
        "" => Err(ApiError::invalid("bad parameter: pathcannot be empty")),
        path => Ok(path),
    }
}

pub(super) async fn stat(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    let stat = containers.path_stat(&id, path_of(&params)?).await?;
    Ok([(STAT, encoded(stat))].into_response())
}

pub(super) async fn get(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    let turn = stream::begin().await?;
    let archived = containers.archived_path(&id, path_of(&params)?).await?;
    let headers = [
        (STAT, encoded(archived.stat.clone())),
        (header::CONTENT_TYPE.as_str(), "application/x-tar".into()),
    ];
    let ended = archived.ended();
    let body = stream::written_in_pieces(turn, move |send| archived.write(send), ended);
    Ok((headers, body).into_response())
}

pub(super) async fn put(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
    params: Params,
    body: Body,
) -> ApiResult<Response> {
    let request = ExtractRequest {
        path: path_of(&params)?.to_owned(),
        keep_kinds: params.flag("noOverwriteDirNonDir"),
        own: params.flag("copyUIDGID"),
    };
    let turn = stream::begin().await?;
    let target = containers.extract_target(&id, request).await?;
    let reader = stream::reader_until(turn, body, target.ended());
    blocking(move || target.extract(reader)).await?;
    Ok(StatusCode::OK.into_response())
}

pub(super) async fn changes(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
) -> ApiResult {
    let changes = containers.changes(&id).await?;
    let changes: Vec<FilesystemChange> = changes.iter().map(wire::change).collect();
    Ok(ok(&wire::null_if_empty(changes)))
}
