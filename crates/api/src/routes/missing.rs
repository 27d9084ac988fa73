//! What Docker's API has and this engine does not: refused by name.

use axum::response::Response;
use whelk_engine::Error;

use crate::error::ApiResult;

fn missing(what: &str) -> ApiResult<Response> {
    Err(Error::Unsupported(format!("{what}: not available in this version of whelk")).into())
}

pub(super) async fn archive() -> ApiResult {
    missing("copying files to and from containers")
}

pub(super) async fn changes() -> ApiResult {
    missing("listing what a container has changed")
}

pub(super) async fn stats() -> ApiResult {
    missing("statistics")
}

pub(super) async fn websocket() -> ApiResult {
    missing("attaching over WebSocket")
}

pub(super) async fn commit() -> ApiResult {
    missing("making images of containers")
}

pub(super) async fn build() -> ApiResult {
    missing("building images")
}

pub(super) async fn search() -> ApiResult {
    missing("searching registries")
}

pub(super) async fn login() -> ApiResult {
    missing("registries")
}

pub(super) async fn plugins() -> ApiResult {
    missing("plugins")
}
