//! `POST /grpc` and `POST /session`: connections of BuildKit's protocol.

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;

use super::{Service, Services};
use crate::grpc::Buildkit;
use crate::hijack::connect_h2c;

pub(super) fn routes() -> Router<Services> {
    Router::new()
        .route("/grpc", post(grpc))
        .route("/session", post(session))
}

/// Serves the calls of BuildKit's protocol on the connection.
async fn grpc(State(buildkit): Service<Buildkit>, request: Request) -> Response {
    connect_h2c(request, |stream, _| buildkit.serve(stream))
}

/// Opens a session, on whose connection the client serves the engine.
async fn session(State(buildkit): Service<Buildkit>, request: Request) -> Response {
    connect_h2c(request, |stream, headers| async move {
        if let Err(error) = buildkit.sessions.serve(&headers, stream).await {
            tracing::warn!("session of a build: {error}");
        }
    })
}
