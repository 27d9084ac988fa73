//! Routes of `/networks/…`.

use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use whelk_api_types::{
    NetworkConnectRequest, NetworkCreateRequest, NetworkCreateResponse, NetworkDisconnectRequest,
    NetworkInspect, NetworkPruneResponse,
};
use whelk_engine::Error;
use whelk_engine::containers::Containers;
use whelk_engine::networks::{ConnectRequest, CreateNetwork, NETWORK_FILTERS, Networks};
use whelk_engine::usage::Usage;

use super::{Service, blocking, json as json_response, no_content, ok};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, Params, RequestBody};
use crate::version::{self, ApiVersion};
use crate::wire::{self, Convert};

pub(super) async fn list(
    State(networks): Service<Networks>,
    Extension(version): Extension<ApiVersion>,
    params: Params,
) -> ApiResult {
    let found = networks.list(&params.filters(NETWORK_FILTERS)?)?;
    let shown: Vec<NetworkInspect> = found
        .into_iter()
        .map(|record| {
            let members =
                version::network_list_has_containers(version).then(|| networks.members(&record.id));
            let mut shown = wire::network(record, members);
            version::downgrade_listed_network(version, &mut shown);
            shown
        })
        .collect();
    Ok(ok(&shown))
}

pub(super) async fn inspect(
    State(networks): Service<Networks>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    if !matches!(params.text("scope"), "" | "local") {
        return Err(Error::no_such_network(&id).into());
    }
    let record = networks.find(&id)?;
    let members = networks.members(&record.id);
    let usage = networks.subnet_usage(&record.id);
    let mut shown = wire::network(record, Some(members));
    shown.status = Some(wire::network_status(usage));
    version::downgrade_network(version, &mut shown);
    Ok(ok(&shown))
}

impl RequestBody for NetworkCreateRequest {
    const GO_TYPE: &'static str = "network.CreateRequest";
}

pub(super) async fn create(
    State(networks): Service<Networks>,
    Extension(version): Extension<ApiVersion>,
    Json(body): Json<NetworkCreateRequest>,
) -> ApiResult {
    let from = body.config_from.as_ref();
    let from = from.is_some_and(|from| !from.network.is_empty());
    for (asked, what) in [
        (body.ingress, "ingress networks"),
        (
            body.config_only || from,
            "configuration networks (ConfigOnly, ConfigFrom)",
        ),
        (
            !matches!(body.scope.as_str(), "" | "local"),
            "networks of other scopes than local",
        ),
    ] {
        if asked {
            return Err(Error::unsupported(what).into());
        }
    }
    let (enable_ipv4, enable_ipv6) =
        version::upgrade_address_kinds(version, body.enable_ipv4, body.enable_ipv6);
    let request = CreateNetwork {
        name: body.name,
        driver: body.driver,
        enable_ipv4,
        enable_ipv6,
        ipam: body.ipam.convert(),
        internal: body.internal,
        attachable: body.attachable,
        options: body.options,
        labels: body.labels,
    };
    let record = blocking(move || networks.create(request)).await?;
    Ok(json_response(
        StatusCode::CREATED,
        &NetworkCreateResponse {
            id: record.id,
            warning: String::new(),
        },
    ))
}

pub(super) async fn delete(
    State(networks): Service<Networks>,
    Path(id): Path<String>,
) -> ApiResult {
    let record = networks.find(&id)?;
    blocking(move || networks.remove(&record.id)).await?;
    Ok(no_content())
}

impl RequestBody for NetworkConnectRequest {
    const GO_TYPE: &'static str = "network.ConnectOptions";
}

impl RequestBody for NetworkDisconnectRequest {
    const GO_TYPE: &'static str = "network.DisconnectOptions";
}

fn check_named(container: &str) -> ApiResult<()> {
    if container.is_empty() {
        Err(ApiError::invalid(format!(
            "invalid name or ID supplied: {container:?}"
        )))
    } else {
        Ok(())
    }
}

pub(super) async fn connect(
    State(containers): Service<Containers>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    Json(body): Json<NetworkConnectRequest>,
) -> ApiResult {
    check_named(&body.container)?;
    let mut request = ConnectRequest {
        container: body.container,
        endpoint: body.endpoint_config.convert(),
    };
    version::upgrade_connect(version, &mut request);
    containers.connect(&id, request).await?;
    Ok(StatusCode::OK.into_response())
}

pub(super) async fn disconnect(
    State(containers): Service<Containers>,
    Path(id): Path<String>,
    Json(body): Json<NetworkDisconnectRequest>,
) -> ApiResult {
    check_named(&body.container)?;
    match containers
        .disconnect(&id, &body.container, body.force)
        .await
    {
        // In Docker, force removes endpoints of containers that no longer exist. Here, endpoints
        // are removed with their container.
        Err(Error::NotFound(_)) if body.force && containers.find(&body.container).is_err() => {
            return Err(Error::NotFound(format!("endpoint {} not found", body.container)).into());
        }
        outcome => outcome?,
    }
    Ok(StatusCode::OK.into_response())
}

pub(super) async fn prune(State(usage): Service<Usage>, params: Params) -> ApiResult {
    let filters = params.filters(&["label", "label!", "until"])?;
    let until = filters.until()?.unwrap_or(i64::MAX);
    let removed = blocking(move || {
        Ok(usage
            .prune_networks(|record| filters.labels(&record.labels) && record.created_at < until))
    })
    .await?;
    Ok(ok(&NetworkPruneResponse {
        networks_deleted: wire::null_if_empty(removed),
    }))
}
