//! `POST /grpc` and `POST /session`: connections of BuildKit's protocol.

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use whelk_buildkit::grpc::Code;

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
        match buildkit.sessions.serve(&headers, stream).await {
            Ok(()) => {}
            // A client that is interrupted leaves without a word.
            Err(error) if error.code == Code::Unavailable => {
                tracing::debug!("session of a build: {error}");
            }
            Err(error) => tracing::warn!("session of a build: {error}"),
        }
    })
}
