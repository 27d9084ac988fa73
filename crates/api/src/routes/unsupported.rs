//! Routes of Docker's API that are not supported: they return an error that names the feature, or
//! Docker's response for an empty state.

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{any, delete, get, post};
use whelk_engine::Error;

use super::{Services, not_found, ok};
use crate::error::{ApiError, ApiResult, message};
use crate::extract::Params;

pub(super) fn routes() -> Router<Services> {
    Router::new()
        .route(
            "/containers/{id}/checkpoints",
            get(checkpoints).post(checkpoints),
        )
        .route(
            "/containers/{id}/checkpoints/{checkpoint}",
            delete(checkpoints),
        )
        .route("/plugins", get(plugins))
        .route("/plugins/privileges", get(plugin_install))
        .route("/plugins/pull", post(plugin_install))
        .route("/plugins/create", post(plugin_install))
        .route("/plugins/{*rest}", any(plugin))
        .route("/debug/{*rest}", any(debug))
        .merge(swarm_routes())
}

/// Routes that need a swarm. Clients use them to check whether there is one.
fn swarm_routes() -> Router<Services> {
    let mut routes = Router::new()
        .route("/swarm", get(no_swarm))
        .route("/swarm/init", post(swarm))
        .route("/swarm/join", post(swarm))
        .route("/swarm/leave", post(no_swarm_to_leave))
        .route("/swarm/update", post(update_swarm))
        .route("/swarm/unlockkey", get(no_swarm))
        .route("/swarm/unlock", post(no_swarm));
    for kind in ["nodes", "services", "tasks", "secrets", "configs"] {
        routes = routes
            .route(&format!("/{kind}"), get(no_swarm))
            .route(&format!("/{kind}/{{id}}"), get(no_swarm).delete(no_swarm));
    }
    for kind in ["services", "secrets", "configs"] {
        routes = routes.route(&format!("/{kind}/create"), post(no_swarm));
    }
    for kind in ["node", "service", "secret", "config"] {
        let refuse = async move |params: Params| {
            check_version(kind, &params)?;
            ApiResult::Ok(no_swarm().await)
        };
        routes = routes.route(&format!("/{kind}s/{{id}}/update"), post(refuse));
    }
    routes
        .route("/services/{id}/logs", get(swarm_logs))
        .route("/tasks/{id}/logs", get(swarm_logs))
}

/// Checks the version of the object that is to be updated.
fn check_version(kind: &str, params: &Params) -> ApiResult<()> {
    let given = params.text("version");
    let is_number = !given.is_empty() && given.bytes().all(|byte| byte.is_ascii_digit());
    let problem = match kind {
        _ if is_number => return Ok(()),
        "secret" | "config" => String::new(),
        _ => format!(" '{given}': strconv.ParseUint: parsing {given:?}: invalid syntax"),
    };
    Err(ApiError::invalid(format!(
        "invalid {kind} version{problem}"
    )))
}

async fn update_swarm(params: Params) -> ApiResult {
    check_version("swarm", &params)?;
    Ok(no_swarm().await)
}

async fn swarm_logs(params: Params) -> ApiResult {
    if !params.flag("stdout") && !params.flag("stderr") {
        return Err(ApiError::invalid(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    Ok(no_swarm().await)
}

fn unsupported(what: &str) -> ApiResult<Response> {
    Err(Error::unsupported(what).into())
}

/// The response of an engine without experimental features, which this one does not have.
async fn checkpoints() -> Response {
    let text = "This experimental feature is disabled by default. Start the Docker daemon in experimental mode in order to enable it.";
    message(StatusCode::NOT_IMPLEMENTED, text)
}

/// The engine manages no plugins: volume plugins run independently.
async fn plugins(params: Params) -> ApiResult {
    params.filters(&["capability", "enabled"])?;
    Ok(ok(&[(); 0]))
}

/// The Go runtime's profiles and variables, which Docker serves in debug mode.
async fn debug() -> ApiResult {
    unsupported("profiles and variables of the Go runtime")
}

async fn plugin_install() -> ApiResult {
    unsupported("installing plugins")
}

async fn plugin(Path(rest): Path<String>, method: axum::http::Method) -> Response {
    let (name, operation) = rest.rsplit_once('/').unwrap_or((&rest, ""));
    // With the tag that Docker adds to the new name.
    let latest = format!("{name}:latest");
    let name = match operation {
        "upgrade" if !name.contains([':', '@']) => &latest,
        _ => name,
    };
    let known = match method.as_str() {
        "GET" => operation == "json",
        "POST" => matches!(operation, "enable" | "disable" | "upgrade" | "push" | "set"),
        "DELETE" => true,
        _ => false,
    };
    let name = if method == axum::http::Method::DELETE {
        rest.as_str()
    } else {
        name
    };
    if known {
        message(StatusCode::NOT_FOUND, &format!("plugin {name:?} not found"))
    } else {
        not_found().await
    }
}

async fn swarm() -> ApiResult {
    unsupported("swarm mode")
}

async fn no_swarm() -> Response {
    let text = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";
    message(StatusCode::SERVICE_UNAVAILABLE, text)
}

async fn no_swarm_to_leave() -> Response {
    message(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not part of a swarm",
    )
}
