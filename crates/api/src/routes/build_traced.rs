//! `POST /build?version=2`: builds with BuildKit's frontend, whose progress is in the answer. SDKs and older clients ask so.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use whelk_api_types::Ulimit;
use whelk_build::{Error, Pieces};
use whelk_buildkit::grpc::Status;
use whelk_buildkit::pb::control::{
    CacheOptions, CacheOptionsEntry, Exporter, SolveRequest, StatusResponse,
};
use whelk_text::extra_host;

use super::Service;
use super::build::{json, send, unsupported};
use crate::error::{ApiError, ApiResult};
use crate::extract::Params;
use crate::grpc::Buildkit;
use crate::grpc::named::Name;
use crate::{stream, wire};

/// Number of messages that wait for a client. When they are full, its build goes on, and its progress waits.
const WAITING: usize = 64;

/// The context that the client's session has.
const OF_SESSION: &str = "client-session";

/// The context that the client sends in a request of its own, and the beginning of that request's build ID. Clients before version
/// 23 send archives from their standard input so.
const UPLOADED: &str = "upload-request";

/// An output, as clients of BuildKit ask for it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    r#type: String,
    #[serde(default)]
    attrs: Option<BTreeMap<String, String>>,
}

pub(super) async fn build(buildkit: Arc<Buildkit>, params: &Params, body: Body) -> ApiResult {
    let id = params.text("buildid");
    if let Some(id) = id.strip_prefix(&format!("{UPLOADED}:")) {
        return upload(&buildkit, id, pieces(body)).await;
    }
    let request = request(&buildkit, params)?;
    let quiet = params.flag("q");
    let name = match id {
        "" => None,
        id => Some(Name::new(&buildkit, id)?),
    };
    let body = match (params.text("remote"), &name) {
        ("", _) => Some(pieces(body)),
        (UPLOADED, Some(name)) => Some(name.context().await?),
        (UPLOADED, None) => {
            return Err(ApiError::invalid(format!("{UPLOADED} needs a buildid")));
        }
        _ => None,
    };
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(WAITING);
    tokio::spawn(async move {
        let (progress, mut responses) = mpsc::channel::<StatusResponse>(WAITING);
        let sending = async {
            while let Some(response) = responses.recv().await {
                let message = wire::build_trace(&response.to_bytes());
                if !quiet && send(&sender, message).await.is_err() {
                    return;
                }
            }
        };
        let canceled = async {
            match &name {
                Some(name) => name.canceled().await,
                None => std::future::pending().await,
            }
        };
        let work = async { tokio::join!(buildkit.build_traced(request, body, progress), sending) };
        // A client that leaves cancels its build.
        let built = tokio::select! {
            (built, ()) = work => built,
            () = canceled => Err(Status::canceled()),
            () = sender.closed() => return,
        };
        let last = match built {
            Ok(mut response) => {
                let id = response.exporter_response.remove("containerimage.digest");
                id.map(|id| wire::build_image(id, quiet))
            }
            Err(status) => Some(wire::build_failure(0, status.message)),
        };
        if let Some(message) = last {
            let _ = send(&sender, message).await;
        }
    });
    let body = Body::from_stream(stream::pieces(receiver));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Gives a build the context that it waits for. Answers when the build has read it, or has ended.
async fn upload(buildkit: &Buildkit, id: &str, context: Pieces) -> ApiResult {
    let (held, read) = oneshot::channel::<()>();
    let context = context.map(move |piece| {
        let _ = &held;
        piece
    });
    buildkit.named.upload(id, context.boxed()).await?;
    // The sender is dropped, and nothing is sent.
    let _ = read.await;
    Ok([(header::CONTENT_TYPE, "application/json")].into_response())
}

/// Cancels a build that the client has named.
pub(super) async fn cancel(State(buildkit): Service<Buildkit>, params: Params) -> ApiResult {
    match params.text("id") {
        "" => Err(ApiError::invalid("build ID not provided")),
        id => {
            buildkit.named.cancel(id);
            Ok([(header::CONTENT_TYPE, "application/json")].into_response())
        }
    }
}

fn pieces(body: Body) -> Pieces {
    let failed = |error: axum::Error| Error::invalid(format!("read the context: {error}"));
    body.into_data_stream().map_err(failed).boxed()
}

/// Returns the request to BuildKit's service for the parameters.
fn request(buildkit: &Buildkit, params: &Params) -> ApiResult<SolveRequest> {
    if params.flag("squash") {
        unsupported("squashing layers (squash)")?;
    }
    let mut attributes = BTreeMap::new();
    let mut set = |name: &str, value: String| drop(attributes.insert(name.to_owned(), value));
    for (parameter, name) in [
        ("dockerfile", "filename"),
        ("target", "target"),
        ("platform", "platform"),
        ("cgroupparent", "cgroup-parent"),
        ("cpusetcpus", "cpusetcpus"),
        ("cpusetmems", "cpusetmems"),
    ] {
        if !params.text(parameter).is_empty() {
            set(name, params.text(parameter).to_owned());
        }
    }
    for (parameter, name) in [
        ("shmsize", "shm-size"),
        ("memory", "memory"),
        ("memswap", "memswap"),
        ("cpushares", "cpushares"),
        ("cpuperiod", "cpuperiod"),
        ("cpuquota", "cpuquota"),
    ] {
        if let Some(number) = params
            .number::<i64>(parameter)?
            .filter(|number| *number != 0)
        {
            set(name, number.to_string());
        }
    }
    match params.text("remote") {
        "" | OF_SESSION | UPLOADED => {}
        url => set("context", url.to_owned()),
    }
    if params.flag("nocache") {
        set("no-cache", String::new());
    }
    if params.flag("pull") {
        set("image-resolve-mode", "pull".into());
    }
    let arguments: Option<BTreeMap<String, Option<String>>> = json(params, "buildargs")?;
    for (name, value) in arguments.into_iter().flatten() {
        if let Some(value) = value {
            set(&format!("build-arg:{name}"), value);
        }
    }
    let labels: Option<BTreeMap<String, String>> = json(params, "labels")?;
    for (name, value) in labels.into_iter().flatten() {
        set(&format!("label:{name}"), value);
    }
    let limits: Option<Vec<Ulimit>> = json(params, "ulimits")?;
    let limits = limits.into_iter().flatten();
    let limits = limits.map(|limit| format!("{}={}:{}", limit.name, limit.soft, limit.hard));
    let limits: Vec<String> = limits.collect();
    if !limits.is_empty() {
        set("ulimit", limits.join(","));
    }
    let hosts = hosts(buildkit, params)?;
    if !hosts.is_empty() {
        set("add-hosts", hosts.join(","));
    }
    let mut entitlements = Vec::new();
    match params.text("networkmode") {
        "" | "default" | "bridge" => {}
        mode @ ("host" | "none") => {
            set("force-network-mode", mode.into());
            if mode == "host" {
                entitlements.push("network.host".into());
            }
        }
        name => set("whelk.network", name.into()),
    }
    let cache = caches(params, &attributes)?;
    Ok(SolveRequest {
        r#ref: buildkit.new_name(),
        session: params.text("session").to_owned(),
        frontend: "dockerfile.v0".into(),
        frontend_attrs: attributes,
        entitlements,
        exporters: outputs(params)?,
        cache: Some(cache),
        ..SolveRequest::default()
    })
}

/// Returns the caches to import, and an inline cache to export if a build argument asks for it, as buildx understands it.
fn caches(params: &Params, attributes: &BTreeMap<String, String>) -> ApiResult<CacheOptions> {
    let wanted = attributes.get("build-arg:BUILDKIT_INLINE_CACHE");
    let is_wanted = wanted.is_some_and(|value| whelk_text::parse_bool(value) == Some(true));
    let inline = is_wanted.then(|| CacheOptionsEntry {
        kind: "inline".into(),
        ..CacheOptionsEntry::default()
    });
    let images: Option<Vec<String>> = json(params, "cachefrom")?;
    let imports = images.into_iter().flatten().map(|image| CacheOptionsEntry {
        kind: "registry".into(),
        attrs: [("ref".to_owned(), image)].into(),
    });
    Ok(CacheOptions {
        imports: imports.collect(),
        exports: inline.into_iter().collect(),
        ..CacheOptions::default()
    })
}

/// Returns what hosts files of steps have, as `NAME=ADDRESS`.
fn hosts(buildkit: &Buildkit, params: &Params) -> ApiResult<Vec<String>> {
    let mut hosts = Vec::new();
    for host in params.all("extrahosts").filter(|host| !host.is_empty()) {
        let (name, address) = extra_host::split(host)
            .ok_or_else(|| ApiError::invalid(format!("bad format for add-host: {host:?}")))?;
        let addresses = extra_host::addresses(address, || buildkit.host_gateway());
        hosts.extend(addresses.iter().map(|address| format!("{name}={address}")));
    }
    Ok(hosts)
}

/// Returns the outputs: an image of the engine, unless others are asked for.
fn outputs(params: &Params) -> ApiResult<Vec<Exporter>> {
    let given: Option<Vec<Output>> = json(params, "outputs")?;
    let mut given = given.unwrap_or_default();
    if given.is_empty() {
        given.push(Output {
            r#type: "moby".into(),
            attrs: None,
        });
    }
    let names: Vec<&str> = params.all("t").filter(|name| !name.is_empty()).collect();
    let exporters = given.into_iter().map(|output| {
        let mut attrs = output.attrs.unwrap_or_default();
        let has_names = matches!(output.r#type.as_str(), "moby" | "image" | "docker" | "oci");
        if has_names && !names.is_empty() && !attrs.contains_key("name") {
            attrs.insert("name".into(), names.join(","));
        }
        Exporter {
            kind: output.r#type,
            attrs,
        }
    });
    Ok(exporters.collect())
}
