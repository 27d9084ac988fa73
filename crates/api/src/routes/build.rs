//! `POST /build`: classic builds.

use std::collections::BTreeMap;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse as _;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use whelk_api_types::{BuildCacheImportResponse, BuildPruneResponse, StreamMessage, Ulimit};
use whelk_build::Builder;
use whelk_build::classic::{Message, Prepared, Request};
use whelk_build::gc::{Condition, Operator, Policy};
use whelk_engine::model::{HostConfig, NetworkMode};
use whelk_engine::{Durability, Error};
use whelk_image::{Digest, Platform, Reference};
use whelk_registry::Credentials;

use super::images::stream_line;
use super::{Service, ok};
use crate::error::{ApiError, ApiResult};
use crate::extract::Params;
use crate::grpc::Buildkit;
use crate::wire::Convert;
use crate::{stream, wire};

/// Number of messages that wait for a client. When they are full, its build goes on, and its texts wait.
const WAITING: usize = 64;

pub(super) async fn build(
    State(builder): Service<Builder>,
    State(buildkit): Service<Buildkit>,
    State(durability): State<Durability>,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> ApiResult {
    check(&params)?;
    if params.text("version") == "2" {
        return super::build_traced::build(buildkit, &params, body).await;
    }
    let request = request(&params, &headers)?;
    let (names, quiet) = (request.names.clone(), request.quiet);
    let reader = stream::reader(stream::begin().await?, body);
    let prepared = builder.prepare(request, reader).await;
    let prepared = prepared.map_err(Error::from)?;
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(WAITING);
    tokio::spawn(async move {
        let (messages, texts) = mpsc::channel(WAITING);
        let work =
            async { tokio::join!(work(&builder, prepared, messages), forward(texts, &sender)) };
        // A client that leaves cancels its build.
        let mut built = tokio::select! {
            (built, ()) = work => built,
            () = sender.closed() => return,
        };
        if built.is_ok()
            && let Err(error) = durability.wait().await
        {
            built = Err(error.into());
        }
        let last = match built {
            Ok(id) => wire::built(&id, &names, quiet),
            Err(error) => vec![wire::build_error(&error)],
        };
        for message in last {
            let _ = send(&sender, message).await;
        }
    });
    let body = Body::from_stream(stream::pieces(receiver));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Removes records of the build cache.
pub(super) async fn prune(State(builder): Service<Builder>, params: Params) -> ApiResult {
    let Some(policy) = policy(&params)? else {
        return Ok(ok(&BuildPruneResponse::default()));
    };
    builder.results_recorded().await;
    let pruned = super::blocking(move || Ok(builder.prune(&policy)?)).await?;
    let records = pruned.records.into_iter();
    Ok(ok(&BuildPruneResponse {
        caches_deleted: Some(records.map(|record| record.id).collect()),
        space_reclaimed: pruned.freed,
    }))
}

/// Returns what a cache of steps has as a tar archive. Not part of Docker's API.
pub(super) async fn export_cache(State(builder): Service<Builder>, params: Params) -> ApiResult {
    let turn = stream::begin().await?;
    let id = params.text("id").to_owned();
    let held = super::blocking(move || Ok(builder.hold_cache(&id)?)).await?;
    let body = stream::written(turn, move |output| held.export(output));
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], body).into_response())
}

/// Unpacks a plain or compressed tar archive into a cache of steps, which is created if it does not exist. Not part of
/// Docker's API.
pub(super) async fn import_cache(
    State(builder): Service<Builder>,
    params: Params,
    body: Body,
) -> ApiResult {
    let reader = stream::reader(stream::begin().await?, body);
    let id = params.text("id").to_owned();
    let id = super::blocking(move || Ok(builder.import_cache(&id, reader)?)).await?;
    Ok(ok(&BuildCacheImportResponse { id }))
}

/// Returns what is to be removed; `None` if that is nothing.
fn policy(params: &Params) -> ApiResult<Option<Policy>> {
    // `system prune` sends its filters to all kinds of objects.
    const LABELS: [&str; 2] = ["label", "label!"];
    const TIMES: [&str; 2] = ["until", "unused-for"];
    let known: Vec<&str> = TIMES
        .into_iter()
        .chain(Condition::FIELDS)
        .chain(LABELS)
        .collect();
    let filters = params.filters(&known)?;
    let one = |name: &str| {
        let mut values = filters.get(name).into_iter().flatten();
        let value = values.next();
        match values.next() {
            Some(_) => Err(ApiError::invalid(format!(
                "filters expect only one value for {name:?}"
            ))),
            None => Ok(value),
        }
    };
    // The cache has no labels. Docker ignores the filter, and removes all.
    if filters.get("label").is_some() {
        return Ok(None);
    }
    let mut keep_duration = std::time::Duration::ZERO;
    for name in TIMES {
        if let Some(text) = one(name)? {
            let now = whelk_engine::events::now();
            let time = whelk_text::time::parse(text, now)
                .ok_or_else(|| ApiError::invalid(format!("invalid filter {name}={text}")))?;
            let age = u64::try_from(now.saturating_sub(time)).unwrap_or(0);
            keep_duration = std::time::Duration::from_nanos(age);
        }
    }
    let mut conditions = Vec::new();
    for name in Condition::FIELDS {
        let Some(value) = one(name)? else { continue };
        let operator = match name {
            "id" => Operator::Matches,
            _ => Operator::Is,
        };
        let condition = Condition::new(name, operator, Some(value.to_owned()));
        conditions.push(condition.map_err(ApiError::invalid)?);
    }
    let bytes = |names: [&str; 2]| -> ApiResult<u64> {
        let given = names.into_iter().find(|name| !params.text(name).is_empty());
        let Some(name) = given else { return Ok(0) };
        let bytes: i64 = params.number(name)?.unwrap_or(0);
        u64::try_from(bytes).map_err(|_| ApiError::invalid(format!("invalid {name}: {bytes}")))
    };
    Ok(Some(Policy {
        all: params.flag("all"),
        keep_duration,
        reserved_space: bytes(["reserved-space", "keep-storage"])?,
        max_used_space: bytes(["max-used-space", "max-used-space"])?,
        min_free_space: bytes(["min-free-space", "min-free-space"])?,
        filters: Some(conditions)
            .filter(|all| !all.is_empty())
            .into_iter()
            .collect(),
    }))
}

async fn work(
    builder: &std::sync::Arc<Builder>,
    prepared: Prepared,
    messages: mpsc::Sender<Message>,
) -> whelk_build::Result<Digest> {
    builder.build(prepared, messages).await
}

/// Passes messages on until there are no more.
async fn forward(
    mut texts: mpsc::Receiver<Message>,
    sender: &mpsc::Sender<std::io::Result<Bytes>>,
) {
    while let Some(message) = texts.recv().await {
        let message = match message {
            Message::Text(text) => wire::build_text(text),
            Message::Pull(update) => wire::progress(&update),
        };
        if send(sender, message).await.is_err() {
            return;
        }
    }
}

pub(super) async fn send(
    sender: &mpsc::Sender<std::io::Result<Bytes>>,
    message: StreamMessage,
) -> Result<(), mpsc::error::SendError<std::io::Result<Bytes>>> {
    sender.send(Ok(Bytes::from(stream_line(&message)))).await
}

pub(super) fn unsupported(what: &str) -> ApiResult<()> {
    Err(Error::unsupported(what).into())
}

/// Refuses parameters that have no effect here.
fn check(params: &Params) -> ApiResult<()> {
    match params.text("version") {
        "" | "1" => check_classic(params)?,
        "2" => {}
        other => return Err(ApiError::invalid(format!("invalid version {other:?}"))),
    }
    if !params.text("securityopt").is_empty() && params.text("securityopt") != "null" {
        return Err(ApiError::invalid(
            "The daemon on this platform does not support setting security options on build",
        ));
    }
    match params.text("isolation") {
        "" | "default" => Ok(()),
        other => Err(ApiError::invalid(format!(
            "unsupported isolation: {other:?}"
        ))),
    }
}

/// Refuses parameters that only builds with BuildKit can have, or that those look at themselves.
fn check_classic(params: &Params) -> ApiResult<()> {
    if params.flag("squash") {
        return unsupported("squashing layers (squash)");
    }
    if !matches!(params.text("outputs"), "" | "null" | "[]") {
        return unsupported("other outputs than an image (outputs)");
    }
    Ok(())
}

/// Decodes a parameter that is JSON.
pub(super) fn json<T: DeserializeOwned>(params: &Params, name: &str) -> ApiResult<Option<T>> {
    // Docker's words.
    let shown = match name {
        "buildargs" => "build args",
        "cachefrom" => "cache-from",
        "ulimits" => "ulimit settings",
        name => name,
    };
    match params.text(name) {
        "" => Ok(None),
        text => serde_json::from_str::<Option<T>>(text)
            .map_err(|error| ApiError::invalid(format!("error reading {shown}: {error}"))),
    }
}

fn request(params: &Params, headers: &HeaderMap) -> ApiResult<Request> {
    let names = params.all("t").filter(|name| !name.is_empty());
    let names = names.map(|name| {
        let reference: Reference = name.parse().map_err(Error::from)?;
        if reference.digest.is_some() {
            return Err(ApiError::invalid("build tag cannot contain a digest"));
        }
        Ok(reference.into_tag().map_err(Error::from)?)
    });
    let mut unique: Vec<Reference> = Vec::new();
    for name in names {
        let name = name?;
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    let network: NetworkMode = params.text("networkmode").parse()?;
    let platform = match params.text("platform") {
        "" => None,
        text => Some(text.parse::<Platform>().map_err(Error::from)?),
    };
    let hosts = params.all("extrahosts").filter(|host| !host.is_empty());
    let extra_hosts: Vec<String> = hosts.map(str::to_owned).collect();
    if let Some(host) = extra_hosts.iter().find(|host| !host.contains([':', '='])) {
        return Err(ApiError::invalid(format!(
            "bad format for add-host: {host:?}"
        )));
    }
    let labels: Option<BTreeMap<String, String>> = json(params, "labels")?;
    let build_args: Option<BTreeMap<String, Option<String>>> = json(params, "buildargs")?;
    let cache_from: Option<Vec<String>> = json(params, "cachefrom")?;
    Ok(Request {
        dockerfile: params.text("dockerfile").to_owned(),
        names: unique,
        build_args: build_args.unwrap_or_default(),
        labels: labels.unwrap_or_default(),
        target: params.text("target").to_owned(),
        remote: params.text("remote").to_owned(),
        platform,
        no_cache: params.flag("nocache"),
        pull: params.flag("pull"),
        quiet: params.flag("q"),
        remove: params.text("rm").is_empty() || params.flag("rm") || params.flag("forcerm"),
        network,
        extra_hosts,
        limits: limits(params)?,
        credentials: credentials(headers),
        cache_from: cache_from.unwrap_or_default(),
    })
}

fn limits(params: &Params) -> ApiResult<HostConfig> {
    let number = |name: &str| Ok::<i64, ApiError>(params.number(name)?.unwrap_or(0));
    let ulimits: Option<Vec<Ulimit>> = json(params, "ulimits")?;
    let limits = HostConfig {
        memory: number("memory")?,
        memory_swap: number("memswap")?,
        cpu_shares: number("cpushares")?,
        cpu_period: number("cpuperiod")?,
        cpu_quota: number("cpuquota")?,
        cpuset_cpus: params.text("cpusetcpus").to_owned(),
        cpuset_mems: params.text("cpusetmems").to_owned(),
        shm_size: number("shmsize")?,
        cgroup_parent: params.text("cgroupparent").to_owned(),
        ulimits: ulimits.map(|all| all.into_iter().map(Convert::convert).collect()),
        ..HostConfig::default()
    };
    for (name, value) in [("memory", limits.memory), ("shmsize", limits.shm_size)] {
        if value < 0 {
            return Err(ApiError::invalid(format!("invalid {name}: {value}")));
        }
    }
    Ok(limits)
}

/// Returns the credentials in the header, by the registry's name. As in Docker, a malformed header counts as none.
fn credentials(headers: &HeaderMap) -> BTreeMap<String, Credentials> {
    let value = headers.get("x-registry-config");
    let decoded =
        value.map(|value| Credentials::all_from_header(value.to_str().unwrap_or_default()));
    match decoded {
        None => BTreeMap::new(),
        Some(Ok(credentials)) => credentials,
        Some(Err(error)) => {
            tracing::warn!("header X-Registry-Config ignored: {error}");
            BTreeMap::new()
        }
    }
}
