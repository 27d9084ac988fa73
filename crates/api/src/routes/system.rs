//! Routes about the whole engine: ping, version, info, disk usage, events.

use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use whelk_api_types::{
    ImageSummary, SystemContainersStopped, SystemDataUsageResponse, Volume, VolumeUsageData,
};
use whelk_build::Builder;
use whelk_engine::containers::{Containers, ListRequest};
use whelk_engine::events::{Event, Events, now};
use whelk_engine::filters::Filters;
use whelk_engine::images::Images;
use whelk_engine::usage::Usage;
use whelk_engine::volumes::Volumes;
use whelk_engine::{CheckRequest, Engine, Error, Problem};

use super::{Service, blocking, json_line, ok};
use crate::error::ApiResult;
use crate::extract::Params;
use crate::version::{self, ApiVersion};
use crate::{OLDEST, stream, wire};

pub(super) async fn ping(State(engine): Service<Engine>) -> Response {
    // Which builder clients are to use that have no preference: 1 is the classic one.
    let settings = engine.instance.live.get();
    let builder = match settings.features.get("buildkit") {
        Some(false) => "1",
        _ => "2",
    };
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache, no-store, must-revalidate"),
        (header::PRAGMA, "no-cache"),
    ];
    // Clients check these headers before they use a builder or a swarm.
    (
        headers,
        [("builder-version", builder), ("swarm", "inactive")],
        "OK",
    )
        .into_response()
}

pub(super) async fn version(State(engine): Service<Engine>) -> Response {
    let oldest = engine.instance.oldest_api.unwrap_or(OLDEST);
    ok(&wire::version(&engine.info(), oldest))
}

/// What was removed, but is not deleted yet; as an object type.
const TRASH: &str = "trash";
/// The logs of containers, as an object type.
const LOGS: &str = "logs";

/// How long a check waits for a client that does not read its problems.
const CHECK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Verifies the instance. Each line of the response is a problem, the last one the result.
pub(super) async fn check(State(engine): Service<Engine>, params: Params) -> ApiResult {
    let request = CheckRequest {
        repair: params.flag("repair"),
        layers: params.flag("layers"),
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    let (problems, client) = (sender.clone(), sender.clone());
    let runtime = tokio::runtime::Handle::current();
    let tell = move |problem: Problem| {
        let line = json_line(&wire::check_problem(problem));
        // One that does not read counts as one that has left: the next repair must not be that of a look of
        // long ago, and meanwhile nobody else can check.
        let sent = tokio::time::timeout(CHECK_PATIENCE, problems.send(Ok(line)));
        matches!(runtime.block_on(sent), Ok(Ok(())))
    };
    tokio::spawn(async move {
        let result = engine
            .check(request, tell, move || !client.is_closed())
            .await;
        // A client that has left does not need it.
        let _ = sender
            .send(Ok(json_line(&wire::check_result(result))))
            .await;
    });
    Ok((
        [(header::CONTENT_TYPE, "application/json")],
        stream::from_channel(receiver),
    )
        .into_response())
}

/// Stops all containers because the host shuts down.
pub(super) async fn stop_containers(State(containers): Service<Containers>) -> ApiResult {
    let mut response = SystemContainersStopped::default();
    for (name, outcome) in containers.stop_for_shutdown().await? {
        match outcome {
            Ok(()) => response.stopped.push(name),
            Err(error) => response.errors.push(error.to_string()),
        }
    }
    Ok(ok(&response))
}

/// Returns the disk usage of the object types in `type`, or of all types.
pub(super) async fn disk_usage(
    State(containers): Service<Containers>,
    State(images): Service<Images>,
    State(volumes): Service<Volumes>,
    State(usage): Service<Usage>,
    State(builder): Service<Builder>,
    Extension(version): Extension<ApiVersion>,
    params: Params,
) -> ApiResult {
    let kinds: Vec<&str> = params.all("type").collect();
    if let Some(wrong) = kinds.iter().find(|kind| {
        !matches!(
            **kind,
            "container" | "image" | "volume" | "build-cache" | TRASH | LOGS
        )
    }) {
        return Err(Error::invalid(format!("unknown object type: {wrong}")).into());
    }
    let wanted = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let mut response = SystemDataUsageResponse::default();
    let all = containers.clone();
    let containers = containers
        .list(&ListRequest {
            all: true,
            size: wanted("container"),
            ..ListRequest::default()
        })
        .await?;
    if wanted("image") {
        let layers = images.clone();
        let (total, shared) = super::blocking(move || layers.layer_usage()).await?;
        let images = images.list(&Filters::default(), false)?;
        let users = usage.containers_by_image();
        let shown = images.iter().map(|listed| {
            let id = &listed.image.id;
            let shared = shared.get(id).copied().unwrap_or(0);
            let mut summary = wire::image_summary(listed, &users, Some(shared), false);
            let containers = summary.containers;
            version::downgrade_listed_image(version, &mut summary);
            ImageSummary {
                containers,
                ..summary
            }
        });
        response.image_usage = Some(wire::image_usage(shown.collect(), total));
    }
    if wanted("container") {
        let now = now();
        let shown = containers.into_iter().map(|container| {
            let mut shown = wire::container_summary(container, now);
            version::downgrade_listed_container(version, &mut shown);
            shown
        });
        response.container_usage = Some(wire::container_usage(shown.collect()));
    }
    if wanted("volume") {
        let shown = blocking(move || local_volumes(&volumes));
        response.volume_usage = Some(wire::volume_usage(shown.await?));
    }
    if wanted("build-cache") {
        builder.results_recorded().await;
        let records = blocking(move || Ok(builder.usage()?)).await?;
        response.build_cache_usage = Some(wire::build_cache_usage(records));
    }
    version::downgrade_disk_usage(version, params.flag("verbose"), &mut response);
    // Only on request, because Docker's API does not have it.
    if kinds.contains(&TRASH) {
        let size = move || Ok(images.store().staging.trash_size());
        response.trash_size = Some(blocking(size).await?);
    }
    if kinds.contains(&LOGS) {
        let usage = blocking(move || Ok(all.log_usage())).await?;
        response.log_usage = Some(wire::log_usage(usage));
    }
    Ok(ok(&response))
}

/// Returns the volumes with their usage of the disk, without those of plugins, which do not use
/// this disk.
fn local_volumes(volumes: &Volumes) -> whelk_engine::Result<Vec<Volume>> {
    let found = volumes.list(&Filters::default())?;
    let local = found.into_iter().filter(|record| record.is_local());
    let shown = local.map(|record| {
        let name = record.name.clone();
        let usage = VolumeUsageData {
            ref_count: i64::try_from(volumes.users(&name)).unwrap_or(i64::MAX),
            size: i64::try_from(volumes.size(&name)).unwrap_or(i64::MAX),
        };
        Ok(Volume {
            usage_data: Some(usage),
            ..wire::volume(volumes.show_record(record)?)
        })
    });
    shown.collect()
}

pub(super) async fn info(
    State(engine): Service<Engine>,
    Extension(version): Extension<ApiVersion>,
) -> ApiResult {
    let about = engine.clone();
    let (info, cdi) = blocking(move || Ok((about.info(), about.cdi_devices()))).await?;
    let bridge_filter = info.bridge_filter;
    let mut shown = wire::info(&engine, info, cdi);
    version::downgrade_info(version, bridge_filter, &mut shown);
    Ok(ok(&shown))
}

/// Precedes each text of a JSON sequence (RFC 7464).
const RECORD_SEPARATOR: &[u8] = b"\x1e";

pub(super) async fn events(
    State(events): Service<Events>,
    Extension(version): Extension<ApiVersion>,
    headers: HeaderMap,
    params: Params,
) -> ApiResult {
    let content_type = version::events_type(version, &headers);
    let (since, until) = (params.time("since")?, params.time("until")?);
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(crate::error::ApiError::invalid(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            params.text("since"),
            params.text("until")
        )));
    }
    let filters = Filters::parse_any(params.text("filters"))?;
    let (past, mut live) = events.subscribe();
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        let in_time = |event: &Event| {
            since.is_none_or(|since| event.time >= since)
                && until.is_none_or(|until| event.time <= until)
        };
        let line = |event: &Event| {
            let mut shown = wire::event(event);
            version::downgrade_event(version, &mut shown);
            if content_type == version::JSON_SEQUENCE {
                Bytes::from([RECORD_SEPARATOR, &json_line(&shown)].concat())
            } else {
                json_line(&shown)
            }
        };
        if since.is_some() || until.is_some() {
            for event in past
                .iter()
                .filter(|event| in_time(event) && matches(&filters, event))
            {
                if sender.send(Ok(line(event))).await.is_err() {
                    return;
                }
            }
        }
        let end = async {
            match until {
                Some(until) => {
                    tokio::time::sleep(std::time::Duration::from_nanos(
                        u64::try_from(until.saturating_sub(now())).unwrap_or(0),
                    ))
                    .await
                }
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        loop {
            let event = tokio::select! {
                event = live.recv() => event,
                () = &mut end => return,
                () = sender.closed() => return,
            };
            match event {
                Ok(event) if matches(&filters, &event) => {
                    if sender.send(Ok(line(&event))).await.is_err() {
                        return;
                    }
                }
                // A subscriber that is too slow misses events and continues.
                Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            }
        }
    });
    Ok((
        [(header::CONTENT_TYPE, content_type)],
        stream::from_channel(receiver),
    )
        .into_response())
}

fn matches(filters: &Filters, event: &Event) -> bool {
    let name = event.attributes.get("name").map_or("", String::as_str);
    let is = |kind: &str, value: &str| {
        event.kind == kind
            && (event.id == value
                || event.id.starts_with(value)
                || name.starts_with(value.trim_start_matches('/')))
    };
    // The filter "exec_create" also matches "exec_create: sh".
    let action =
        |wanted: &str| event.action == wanted || event.action.split(':').next() == Some(wanted);
    filters.any("type", |kind| event.kind == kind)
        && filters.any("event", action)
        && filters.any("container", |value| is("container", value))
        && filters.any("image", |value| {
            let image = if event.kind == "image" {
                name
            } else {
                event.attributes.get("image").map_or("", String::as_str)
            };
            image == value
                || image.split(':').next() == Some(value)
                || (event.kind == "image" && event.id == value)
        })
        && filters.labels(&event.attributes)
        && filters.any("scope", |scope| scope == "local")
        && filters.any("network", |value| is("network", value))
        && filters.any("volume", |value| is("volume", value))
        && filters.any("daemon", |value| is("daemon", value))
        // There are no events of these.
        && ["plugin", "node", "service", "secret", "config"]
            .iter()
            .all(|kind| filters.any(kind, |_| false))
}
