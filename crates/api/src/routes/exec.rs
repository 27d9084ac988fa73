//! `/containers/{id}/exec` and `/exec/…`

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::json;
use whelk_engine::containers::{ExecConfig, ExecStart};
use whelk_shim::protocol::output_header;

use super::{App, json as json_response, ok};
use crate::error::{ApiError, ApiResult};
use crate::extract::{LARGEST_BODY, Params, detach_keys, json, json_or_default};
use crate::hijack::{self, Source};
use crate::wire;

pub(super) async fn create(State(engine): App, Path(id): Path<String>, body: Bytes) -> ApiResult {
    let config: ExecConfig = json(&body)?;
    detach_keys(&config.detach_keys).map_err(|_| ApiError::invalid(format!("Invalid escape keys ({}) provided", config.detach_keys)))?;
    let id = engine.containers.exec_create(&id, config).await?;
    Ok(json_response(StatusCode::CREATED, &json!({"Id": id})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StartBody {
    detach: bool,
    tty: bool,
    console_size: Option<[u16; 2]>,
}

/// Starts an exec. One that cannot run tells so in its own stream, and by its exit code: the answer's head is out by
/// then, as far as clients are concerned.
pub(super) async fn start(State(engine): App, Path(id): Path<String>, request: Request) -> ApiResult {
    let (parts, body) = request.into_parts();
    let body = http_body_util::Limited::new(body, LARGEST_BODY)
        .collect()
        .await
        .map_err(|error| ApiError::invalid(format!("read body: {error}")))?
        .to_bytes();
    let start: StartBody = json_or_default(&body)?;
    let keys = detach_keys(&engine.containers.exec(&id)?.config.detach_keys)?;
    let exec = engine.containers.exec_claim(&id)?;
    let request = Request::from_parts(parts, axum::body::Body::empty());
    let StartBody { detach, tty, console_size } = start;
    let start = ExecStart { detach, tty, console_size, detach_keys: keys };
    if detach {
        engine.containers.exec_start(&exec, start).await?;
        return Ok(StatusCode::OK.into_response());
    }
    let running = exec.clone();
    let source = async move {
        match engine.containers.exec_start(&running, start).await {
            Ok(stream) => Source { prelude: None, stream },
            Err(error) => {
                let text = format!("{error}\r\n");
                let mut frame = if tty { Vec::new() } else { output_header(1, text.len()).to_vec() };
                frame.extend(text.as_bytes());
                let said = futures_util::stream::once(std::future::ready(Ok(Bytes::from(frame))));
                Source { prelude: Some(Box::pin(said)), stream: None }
            }
        }
    };
    Ok(hijack::connect(request, !tty, source, async move { exec.ended().await }))
}

pub(super) async fn resize(State(engine): App, Path(id): Path<String>, params: Params) -> ApiResult {
    engine.containers.exec_resize(&id, params.number("h")?.unwrap_or(0), params.number("w")?.unwrap_or(0)).await?;
    Ok(StatusCode::OK.into_response())
}

pub(super) async fn inspect(State(engine): App, Path(id): Path<String>) -> ApiResult {
    Ok(ok(&wire::exec(&*engine.containers.exec(&id)?)))
}
