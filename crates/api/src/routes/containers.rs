//! Routes of `/containers/…`.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Extension, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use futures_util::{Stream, StreamExt};
use whelk_api_types::{
    ContainerConfig, ContainerCreateResponse, ContainerPruneResponse, ContainerSummary,
    ContainerTopResponse, ContainerUpdateResponse, ContainerWaitResponse, HostConfig, IdResponse,
    NetworkingConfig, UpdateConfig,
};
use whelk_engine::containers::{
    CommitRequest, Containers, CreateRequest, FILTERS, ListRequest, LogChunk, LogsRequest,
    RemoveRequest, WaitCondition,
};
use whelk_engine::events::now;
use whelk_engine::images::Images;
use whelk_engine::model;
use whelk_engine::{Durability, Error};
use whelk_shim::logs::LogRecord;
use whelk_shim::protocol::output_header;

use super::{Service, json as json_response, json_line, no_content, ok};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, Params, RequestBody, json_with};
use crate::json::{DecodeError, Value, decode, decode_field};
use crate::version::{self, ApiVersion};
use crate::wire::{Convert, Parse};
use crate::{stream, wire};

pub(super) async fn list(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    params: Params,
) -> ApiResult {
    let limit: Option<i64> = params.number("limit")?;
    let request = ListRequest {
        all: params.flag("all"),
        limit: limit
            .filter(|limit| *limit > 0)
            .and_then(|limit| usize::try_from(limit).ok()),
        size: params.flag("size"),
        filters: params.filters(FILTERS)?,
    };
    let listed = containers.list(&request).await?;
    let now = now();
    let shown = listed.into_iter().map(|container| {
        let mut shown = wire::container_summary(container, now);
        version::downgrade_listed_container(version, &mut shown);
        shown
    });
    Ok(ok(&shown.collect::<Vec<ContainerSummary>>()))
}

/// The maximum number of endpoints of a new container, which is that of ports of a Linux bridge. A
/// decoded endpoint takes about a hundred times the memory of its JSON.
const MAX_ENDPOINTS: usize = 1024;

/// Decodes the body of a request to create a container, whose settings are on three levels. Those of
/// the first are `None` if it has no key, as in Docker.
pub(crate) fn decode_create(
    body: Value<'_>,
) -> Result<(Option<ContainerConfig>, HostConfig, NetworkingConfig), DecodeError> {
    let host: Option<HostConfig> = body
        .member("HostConfig")
        .map(|field| decode_field(field, "container.HostConfig"))
        .transpose()?;
    let networking = body.member("NetworkingConfig");
    if networking
        .as_ref()
        .is_some_and(|(_, networking)| has_too_many_endpoints(*networking))
    {
        return Err(serde::de::Error::custom(format!(
            "more than {MAX_ENDPOINTS} endpoints"
        )));
    }
    let networking: Option<NetworkingConfig> = networking
        .map(|field| decode_field(field, "network.NetworkingConfig"))
        .transpose()?;
    let config = decode(body, "container.CreateRequest")?;
    let is_level = |key: &str| {
        ["HostConfig", "NetworkingConfig"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(key))
    };
    let has_config =
        matches!(body, Value::Object(object) if object.members().any(|(key, _)| !is_level(&key)));
    Ok((
        has_config.then_some(config),
        host.unwrap_or_default(),
        networking.unwrap_or_default(),
    ))
}

pub(super) async fn create(
    State(containers): Service<Containers>,
    State(images): Service<Images>,
    Extension(version): Extension<ApiVersion>,
    params: Params,
    request: Request,
) -> ApiResult {
    let (parts, body) = request.into_parts();
    let (config, mut host, NetworkingConfig { endpoints_config }) =
        json_with(&parts.headers, body, decode_create)
            .await?
            .ok_or_else(ApiError::empty_body)?;
    let config = config.ok_or_else(|| {
        ApiError::invalid("config cannot be empty in order to create a container")
    })?;
    let log: Result<model::LogConfig, Error> = std::mem::take(&mut host.log_config).parse();
    let mut request = CreateRequest {
        name: params.text("name").to_owned(),
        platform: params.text("platform").to_owned(),
        config: config.parse()?,
        host: host.parse()?,
        networks: endpoints_config.convert(),
    };
    request.host.log_config = match log {
        Ok(log) => log,
        // As with Docker, a missing image is reported first: clients pull it then.
        Err(error) if !request.config.image.is_empty() => {
            images.find(&request.config.image)?;
            return Err(error.into());
        }
        Err(error) => return Err(error.into()),
    };
    let cgroup_v2 = containers.host_has_cgroup_v2();
    let mut warnings = version::upgrade_container(version, cgroup_v2, &mut request)?;
    let created = containers.create(request).await?;
    warnings.extend(created.warnings);
    Ok(json_response(
        StatusCode::CREATED,
        &ContainerCreateResponse {
            id: created.id,
            warnings,
        },
    ))
}

/// Checks the number of endpoints before they are decoded.
fn has_too_many_endpoints(networking: Value<'_>) -> bool {
    let count = |value| {
        if let Value::Object(object) = value {
            object.members().take(MAX_ENDPOINTS + 1).count()
        } else {
            0
        }
    };
    matches!(networking, Value::Object(object) if object.members().any(|(_, value)| count(value) > MAX_ENDPOINTS))
}

pub(super) async fn inspect(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    let inspected = containers.inspect(&id, params.flag("size")).await?;
    let mac_address = wire::requested_mac(&inspected.record);
    let mut shown = wire::container(inspected);
    version::downgrade_container(version, mac_address, &mut shown);
    Ok(ok(&shown))
}

pub(super) async fn top(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    let top = containers.top(&id, params.text("ps_args")).await?;
    Ok(ok(&ContainerTopResponse {
        processes: top.processes,
        titles: top.titles,
    }))
}

pub(super) async fn start(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
    params: Params,
    request: Request,
) -> ApiResult {
    // Older API versions had settings in this body. Short bodies are accepted, because clients send
    // `{}` or `null`.
    const MAX_EMPTY_BODY: u64 = 7;
    if request
        .body()
        .size_hint()
        .exact()
        .is_none_or(|length| length > MAX_EMPTY_BODY)
    {
        return Err(ApiError::invalid(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        ));
    }
    if !params.text("checkpoint").is_empty() {
        return Err(ApiError::invalid(
            "checkpoint is only supported in experimental mode",
        ));
    }
    containers.start(&id).await?;
    Ok(no_content())
}

fn signal(version: ApiVersion, params: &Params) -> Option<&str> {
    Some(params.text("signal"))
        .filter(|signal| !signal.is_empty() && version::stop_takes_signal(version))
}

pub(super) async fn stop(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    containers
        .stop(&id, signal(version, &params), params.number("t")?)
        .await?;
    Ok(no_content())
}

pub(super) async fn restart(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    containers
        .restart(&id, signal(version, &params), params.number("t")?)
        .await?;
    Ok(no_content())
}

pub(super) async fn kill(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    containers.kill(&id, params.text("signal")).await?;
    Ok(no_content())
}

pub(super) async fn pause(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
) -> ApiResult {
    containers.pause(&id).await?;
    Ok(no_content())
}

pub(super) async fn unpause(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
) -> ApiResult {
    containers.unpause(&id).await?;
    Ok(no_content())
}

pub(super) async fn rename(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    containers.rename(&id, params.text("name")).await?;
    Ok(no_content())
}

impl RequestBody for UpdateConfig {
    const GO_TYPE: &'static str = "container.UpdateConfig";
}

pub(super) async fn update(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    Json(mut update): Json<UpdateConfig>,
) -> ApiResult {
    version::upgrade_update(version, &mut update);
    let warnings = containers.update(&id, update.parse()?).await?;
    Ok(ok(&ContainerUpdateResponse {
        warnings: wire::null_if_empty(warnings),
    }))
}

pub(super) async fn resize(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    let (height, width) = params.terminal_size()?;
    containers.resize(&id, height, width).await?;
    Ok(StatusCode::OK.into_response())
}

/// Sends the response head at once, which shows the client that the wait is registered and no exit will
/// be missed.
pub(super) async fn wait(
    State(containers): Service<Containers>,
    State(durability): State<Durability>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    let condition: WaitCondition = params.text("condition").parse()?;
    let waited = containers.wait(&id, condition)?;
    // A part of the connection, and no task of its own: if the engine stops, the connection is closed
    // within the response, instead of ending it without an exit code.
    let body = futures_util::stream::once(async move {
        let waited = waited.await;
        // An exit code must be on disk before it is reported.
        if let Err(error) = durability.wait().await {
            tracing::warn!("{error}");
        }
        Ok::<_, std::convert::Infallible>(json_line(&ContainerWaitResponse {
            status_code: waited.exit_code.into(),
        }))
    });
    Ok((
        [(header::CONTENT_TYPE, "application/json")],
        Body::from_stream(body),
    )
        .into_response())
}

pub(super) async fn logs(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    // "all" and invalid numbers mean all lines.
    let tail = params.text("tail").parse::<u64>().ok();
    let request = LogsRequest {
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
        follow: params.flag("follow"),
        since: params.time("since")?,
        until: params.time("until")?,
        tail,
    };
    // Before the container is looked up, as in Docker; an attach looks it up first.
    if !request.stdout && !request.stderr {
        return Err(ApiError::invalid(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    let (tty, records) = containers.logs(&id, request).await?;
    let body = encode_logs(
        records,
        tty,
        params.flag("timestamps"),
        params.flag("details"),
    );
    let content_type = if tty {
        version::RAW_STREAM
    } else {
        version::multiplexed_type(version)
    };
    Ok((
        [(header::CONTENT_TYPE, content_type)],
        Body::from_stream(body),
    )
        .into_response())
}

/// Encodes log records for clients: with frame headers unless the container has a terminal, and
/// with the requested prefixes.
pub(super) fn encode_logs(
    records: tokio::sync::mpsc::Receiver<LogChunk>,
    tty: bool,
    timestamps: bool,
    details: bool,
) -> impl Stream<Item = std::io::Result<Bytes>> {
    stream::pieces(records).map(move |chunk: LogChunk| {
        let records = chunk.map_err(|error| std::io::Error::other(error.to_string()))?;
        let mut bytes = Vec::new();
        records
            .iter()
            .for_each(|record| encode_record(record, tty, timestamps, details, &mut bytes));
        Ok(Bytes::from(bytes))
    })
}

fn encode_record(
    record: &LogRecord,
    tty: bool,
    timestamps: bool,
    details: bool,
    out: &mut Vec<u8>,
) {
    let mut prefix = String::new();
    if timestamps {
        // Always nine digits, so that columns are aligned.
        let time = jiff::Timestamp::from_nanosecond(record.time.into()).unwrap_or_default();
        prefix = format!("{time:.9} ");
    }
    if details {
        // As Go escapes them in queries.
        let escape = |text: &str| whelk_text::url::escape(text).replace("%20", "+");
        let list: Vec<String> = record
            .attributes
            .iter()
            .map(|(key, value)| format!("{}={}", escape(key), escape(value)))
            .collect();
        prefix = format!("{prefix}{} ", list.join(","));
    }
    if !tty {
        out.extend(output_header(
            record.stream as u8,
            prefix.len() + record.data.len(),
        ));
    }
    out.extend(prefix.as_bytes());
    out.extend(&record.data);
}

pub(super) async fn export(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
) -> ApiResult {
    let turn = stream::begin().await?;
    let exported = containers.exported(&id).await?;
    let ended = exported.ended();
    let body = stream::written_in_pieces(turn, move |send| exported.write(send), ended);
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

impl RequestBody for ContainerConfig {
    const GO_TYPE: &'static str = "container.CreateRequest";
}

/// Creates an image from a container.
pub(super) async fn commit(
    State(containers): Service<Containers>,
    params: Params,
    Json(config): Json<ContainerConfig>,
) -> ApiResult {
    let container = params.text("container");
    if container.is_empty() {
        return Err(ApiError::invalid("invalid name or ID supplied: \"\""));
    }
    let request = CommitRequest {
        name: super::images::new_tag(&params)?,
        author: params.text("author").to_owned(),
        comment: params.text("comment").to_owned(),
        changes: params.all("changes").map(str::to_owned).collect(),
        pause: params.flag_or("pause", true),
        config: (config != ContainerConfig::default())
            .then(|| config.parse())
            .transpose()?,
    };
    let id = containers.commit(container, request).await?;
    Ok(json_response(
        StatusCode::CREATED,
        &IdResponse { id: id.to_string() },
    ))
}

pub(super) async fn delete(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    if params.flag("link") {
        containers.remove_link(&id).await?;
        return Ok(no_content());
    }
    containers
        .remove(
            &id,
            RemoveRequest {
                force: params.flag("force"),
                volumes: params.flag("v"),
            },
        )
        .await?;
    Ok(no_content())
}

pub(super) async fn prune(State(containers): Service<Containers>, params: Params) -> ApiResult {
    let filters = params.filters(&["label", "label!", "until"])?;
    let until = filters.until()?.unwrap_or(i64::MAX);
    let matches = |record: &model::ContainerRecord| {
        filters.labels(&record.config.labels) && record.created_at < until
    };
    let (removed, reclaimed) = containers.prune(matches).await?;
    Ok(ok(&ContainerPruneResponse {
        containers_deleted: wire::null_if_empty(removed),
        space_reclaimed: reclaimed,
    }))
}
