//! Routes that attach a client to a container's streams: `/containers/{id}/attach` and
//! `/containers/{id}/attach/ws`.

use axum::extract::{Extension, Path, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use whelk_engine::containers::{AttachRequest, Containers, LogsRequest};

use super::Service;
use super::containers::encode_logs;
use crate::error::ApiResult;
use crate::extract::{Params, detach_keys};
use crate::hijack::{self, Prelude, Source};
use crate::version::{self, ApiVersion};
use crate::websocket::Handshake;

/// Errors are plain text here, since the response would be the stream itself.
pub(super) async fn attach(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    params: Params,
    request: Request,
) -> Response {
    attach_stream(&containers, version, &id, &params, request)
        .await
        .unwrap_or_else(|error| {
            let headers = [
                (header::CONTENT_TYPE, version::RAW_STREAM),
                (header::CONNECTION, "close"),
            ];
            (error.status(), headers, format!("{}\r\n", error.0)).into_response()
        })
}

async fn attach_stream(
    containers: &Containers,
    version: ApiVersion,
    id: &str,
    params: &Params,
    request: Request,
) -> ApiResult {
    let wanted = AttachRequest {
        stdin: params.flag("stdin"),
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
        detach_keys: detach_keys(params.text("detachKeys"))?,
        raw: None,
    };
    let (tty, source) = open(containers, id, params, wanted).await?;
    let stream_type = if tty {
        version::RAW_STREAM
    } else {
        version::multiplexed_type(version)
    };
    let source = async { source };
    Ok(hijack::connect(request, stream_type, source, async {}))
}

/// Attaches a client over a WebSocket. Its output is never framed: that of both streams is mixed.
pub(super) async fn attach_websocket(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    params: Params,
    request: Request,
) -> ApiResult {
    let detach_keys = detach_keys(params.text("detachKeys"))?;
    containers.find(&id)?;
    let handshake = Handshake::new(request.headers())?;
    let wanted = |stream| !version::websocket_selects_streams(version) || params.flag(stream);
    let wanted = AttachRequest {
        stdin: wanted("stdin"),
        stdout: wanted("stdout"),
        stderr: wanted("stderr"),
        detach_keys,
        raw: Some(true),
    };
    let (_, source) = open(&containers, &id, &params, wanted).await?;
    let is_binary = version::websocket_is_binary(version);
    let source = async { source };
    Ok(hijack::connect_websocket(
        request, handshake, is_binary, source,
    ))
}

/// Opens the requested streams, and returns whether the container has a terminal.
async fn open(
    containers: &Containers,
    id: &str,
    params: &Params,
    wanted: AttachRequest,
) -> ApiResult<(bool, Source)> {
    let is_raw = wanted.raw;
    let prelude: Prelude = if params.flag("logs") {
        let request = LogsRequest {
            stdout: wanted.stdout,
            stderr: wanted.stderr,
            ..LogsRequest::default()
        };
        let (tty, records) = containers.logs(id, request).await?;
        let is_raw = is_raw.unwrap_or(tty);
        Some(Box::pin(encode_logs(records, is_raw, false, false)))
    } else {
        None
    };
    if !params.flag("stream") {
        let tty = containers.find(id)?.record().config.tty;
        let stream = None;
        return Ok((tty, Source { prelude, stream }));
    }
    let attached = containers.attach(id, wanted).await?;
    let stream = Some(attached.stream);
    Ok((attached.tty, Source { prelude, stream }))
}
