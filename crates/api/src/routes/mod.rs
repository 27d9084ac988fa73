//! The API's routes. One file per group, one function per operation, named as in the API
//! definition.

mod archive;
mod attach;
mod build;
mod build_traced;
mod buildkit;
pub(crate) mod containers;
mod exec;
mod images;
mod networks;
mod registries;
mod stats;
mod system;
mod unsupported;
mod volumes;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRef, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use whelk_build::Builder;
use whelk_engine::containers::Containers;
use whelk_engine::events::Events;
use whelk_engine::images::Images;
use whelk_engine::networks::Networks;
use whelk_engine::usage::Usage;
use whelk_engine::volumes::Volumes;
use whelk_engine::{Durability, Engine};

use crate::error::message;
use crate::extract::{MAX_BODY_SIZE, hold_bodies};
use crate::grpc::Buildkit;
use crate::version;

/// A service of the engine, as a handler takes it.
pub(crate) type Service<T> = State<Arc<T>>;

/// The router's state. Handlers extract one service of the engine, or the engine itself if they report
/// on all of it.
#[derive(Clone)]
pub(crate) struct Services(Arc<Engine>, Arc<Builder>, Arc<Buildkit>);

macro_rules! services {
    ($($field:ident: $type:ty),* $(,)?) => {$(
        impl FromRef<Services> for $type {
            fn from_ref(services: &Services) -> Self {
                services.0.$field.clone()
            }
        }
    )*};
}

services! {
    containers: Arc<Containers>,
    images: Arc<Images>,
    networks: Arc<Networks>,
    volumes: Arc<Volumes>,
    events: Arc<Events>,
    usage: Arc<Usage>,
    durability: Durability,
}

impl FromRef<Services> for Arc<Builder> {
    fn from_ref(services: &Services) -> Self {
        services.1.clone()
    }
}

impl FromRef<Services> for Arc<Buildkit> {
    fn from_ref(services: &Services) -> Self {
        services.2.clone()
    }
}

impl FromRef<Services> for Arc<Engine> {
    fn from_ref(services: &Services) -> Self {
        services.0.clone()
    }
}

/// Returns the router. The middleware that removes the version prefix must run before routing.
pub(crate) fn router(
    engine: Arc<Engine>,
    builder: Arc<Builder>,
    buildkit: Arc<Buildkit>,
) -> Router {
    let oldest = engine.instance.oldest_api.unwrap_or(crate::OLDEST);
    let routes = Router::new()
        .route("/containers/json", get(containers::list))
        .route("/containers/create", post(containers::create))
        .route("/containers/prune", post(containers::prune))
        .route("/containers/{id}/json", get(containers::inspect))
        .route("/containers/{id}/top", get(containers::top))
        .route("/containers/{id}/stats", get(stats::stats))
        .route("/containers/{id}/logs", get(containers::logs))
        .route("/containers/{id}/export", get(containers::export))
        .route("/containers/{id}/changes", get(archive::changes))
        .route(
            "/containers/{id}/archive",
            get(archive::get).head(archive::stat).put(archive::put),
        )
        .route("/containers/{id}/start", post(containers::start))
        .route("/containers/{id}/stop", post(containers::stop))
        .route("/containers/{id}/restart", post(containers::restart))
        .route("/containers/{id}/kill", post(containers::kill))
        .route("/containers/{id}/pause", post(containers::pause))
        .route("/containers/{id}/unpause", post(containers::unpause))
        .route("/containers/{id}/rename", post(containers::rename))
        .route("/containers/{id}/update", post(containers::update))
        .route("/containers/{id}/resize", post(containers::resize))
        .route("/containers/{id}/wait", post(containers::wait))
        .route("/containers/{id}/attach", post(attach::attach))
        .route("/containers/{id}/attach/ws", get(attach::attach_websocket))
        .route("/containers/{id}", delete(containers::delete))
        .route("/commit", post(containers::commit))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/exec/{id}/json", get(exec::inspect))
        .route("/images/json", get(images::list))
        .route("/images/load", post(images::load))
        .route("/images/get", get(images::get_many))
        .route("/images/create", post(images::create))
        .route("/images/prune", post(images::prune))
        .route("/images/search", get(registries::search))
        .route("/images/verified", post(images::create_verified))
        .route(
            "/images/{*rest}",
            get(images::get_by_name)
                .post(images::post_by_name)
                .delete(images::delete),
        )
        .route("/networks", get(networks::list))
        .route("/networks/", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/prune", post(networks::prune))
        .route(
            "/networks/{id}",
            get(networks::inspect).delete(networks::delete),
        )
        .route("/networks/{id}/connect", post(networks::connect))
        .route("/networks/{id}/disconnect", post(networks::disconnect))
        .route("/volumes", get(volumes::list))
        .route("/volumes/create", post(volumes::create))
        .route("/volumes/prune", post(volumes::prune))
        .route("/volumes/{name}/export", get(volumes::export))
        .route("/volumes/{name}/import", post(volumes::import))
        .route("/volumes/{name}/clone", post(volumes::copy))
        .route("/volumes/{name}/snapshot", post(volumes::snapshot))
        .route(
            "/volumes/{name}",
            get(volumes::inspect)
                .delete(volumes::delete)
                .put(volumes::update),
        )
        .route("/auth", post(registries::auth))
        .route("/distribution/{*rest}", get(registries::distribution))
        .route("/build", post(build::build))
        .route("/build/cancel", post(build_traced::cancel))
        .route("/build/prune", post(build::prune))
        .route("/build/cache/export", get(build::export_cache))
        .route("/build/cache/import", post(build::import_cache))
        .merge(buildkit::routes())
        .merge(system_routes())
        .merge(unsupported::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(not_found)
        .layer(DefaultBodyLimit::max(MAX_BODY_SIZE))
        .layer(from_fn(refuse_head))
        .layer(from_fn_with_state(engine.durability.clone(), wait_durable))
        .with_state(Services(engine, builder, buildkit));
    Router::new()
        .fallback_service(routes)
        .layer(from_fn_with_state(oldest, version::negotiate))
}

/// Routes about the engine as a whole.
fn system_routes() -> Router<Services> {
    Router::new()
        .route("/_ping", get(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/events", get(system::events))
        .route("/system/df", get(system::disk_usage))
        .route("/system/check", post(system::check))
        .route("/system/stop-containers", post(system::stop_containers))
}

/// Delays the response to a request that may have changed something until the change is on disk.
async fn wait_durable(
    State(durability): State<Durability>,
    request: Request,
    next: Next,
) -> Response {
    let only_reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let response = hold_bodies(next.run(request)).await;
    if only_reads {
        return response;
    }
    match durability.wait().await {
        Ok(()) => response,
        Err(error) => crate::error::ApiError::from(error).into_response(),
    }
}

async fn not_found() -> Response {
    message(StatusCode::NOT_FOUND, "page not found")
}

/// Rejects HEAD requests except where Docker's API has them. axum answers HEAD wherever GET is
/// routed.
async fn refuse_head(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if request.method() == Method::HEAD && path != "/_ping" && !path.ends_with("/archive") {
        return not_found().await;
    }
    next.run(request).await
}

/// Runs blocking work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> whelk_engine::Result<T> + Send + 'static,
) -> whelk_engine::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| whelk_engine::Error::internal(error.to_string()))?
}

/// Returns a JSON response followed by a newline, as Docker does.
pub(crate) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        json_line(value),
    )
        .into_response()
}

/// Encodes a value as a line of JSON.
pub(crate) fn json_line(value: &impl serde::Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

pub(crate) fn ok(value: &impl serde::Serialize) -> Response {
    json(StatusCode::OK, value)
}

pub(crate) fn no_content() -> Response {
    StatusCode::NO_CONTENT.into_response()
}
