//! Routes of `/containers/{id}/exec` and `/exec/…`.

use axum::body::Bytes;
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use whelk_api_types::{ExecConfig, ExecStartConfig, IdResponse};
use whelk_engine::containers::{Containers, ExecStart};
use whelk_shim::protocol::output_header;

use super::{Service, json as json_response, ok};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, Params, RequestBody, detach_keys, json};
use crate::hijack::{self, Source};
use crate::version::{self, ApiVersion};
use crate::wire::{self, Convert};

impl RequestBody for ExecConfig {
    const GO_TYPE: &'static str = "container.ExecOptions";
}

pub(super) async fn create(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    Json(mut config): Json<ExecConfig>,
) -> ApiResult {
    if config.cmd.as_ref().is_none_or(Vec::is_empty) {
        return Err(ApiError::invalid("No exec command specified"));
    }
    version::upgrade_exec(version, &mut config);
    detach_keys(&config.detach_keys).map_err(|_| {
        ApiError::invalid(format!(
            "Invalid escape keys ({}) provided",
            config.detach_keys
        ))
    })?;
    let id = containers.exec_create(&id, config.convert()).await?;
    Ok(json_response(StatusCode::CREATED, &IdResponse { id }))
}

impl RequestBody for ExecStartConfig {
    const GO_TYPE: &'static str = "container.ExecStartOptions";
}

/// Starts an exec. If its process cannot be started, the error is written to the stream and
/// reflected in the exit code: with `Upgrade`, the response head has already been sent.
pub(super) async fn start(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    request: Request,
) -> ApiResult {
    let (parts, body) = request.into_parts();
    let start: ExecStartConfig = json(&parts.headers, body).await?;
    let keys = detach_keys(&containers.exec(&id)?.config.detach_keys)?;
    let exec = containers.exec_claim(&id)?;
    let request = Request::from_parts(parts, axum::body::Body::empty());
    let ExecStartConfig {
        detach,
        tty,
        console_size,
    } = start;
    let start = ExecStart {
        detach,
        tty,
        console_size,
        detach_keys: keys,
    };
    if detach {
        containers.exec_start(&exec, start).await?;
        return Ok(StatusCode::OK.into_response());
    }
    let running = exec.clone();
    let source = async move {
        match containers.exec_start(&running, start).await {
            Ok(stream) => Source {
                prelude: None,
                stream,
            },
            Err(error) => {
                let text = format!("{error}\r\n");
                let mut frame = if tty {
                    Vec::new()
                } else {
                    output_header(1, text.len()).to_vec()
                };
                frame.extend(text.as_bytes());
                let said = futures_util::stream::once(std::future::ready(Ok(Bytes::from(frame))));
                Source {
                    prelude: Some(Box::pin(said)),
                    stream: None,
                }
            }
        }
    };
    let stream_type = if tty {
        version::RAW_STREAM
    } else {
        version::multiplexed_type(version)
    };
    let last = async move {
        // As in Docker, the response for an exec without streams does not wait for its end.
        if exec.config.attaches() {
            exec.ended().await;
        }
    };
    Ok(hijack::connect(request, stream_type, source, last))
}

pub(super) async fn resize(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    let (height, width) = params.terminal_size()?;
    containers.exec_resize(&id, height, width).await?;
    Ok(StatusCode::OK.into_response())
}

pub(super) async fn inspect(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
) -> ApiResult {
    Ok(ok(&wire::exec(&*containers.exec(&id)?)))
}
