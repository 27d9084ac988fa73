//! `/networks/…`

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};
use whelk_engine::Error;
use whelk_engine::networks::model::Ipam;
use whelk_engine::networks::{ConnectRequest, CreateNetwork, Endpoint, NETWORK_FILTERS};

use super::{App, blocking, json as json_response, no_content, ok};
use crate::error::ApiResult;
use crate::extract::{Params, json as read_json};
use crate::version::ApiVersion;
use crate::wire;

pub(super) async fn list(State(engine): App, Extension(version): Extension<ApiVersion>, params: Params) -> ApiResult {
    let found = engine.networks.list(&params.filters(NETWORK_FILTERS)?)?;
    let shown: Vec<Value> = found
        .iter()
        // Lists have no containers since 1.28.
        .map(|record| {
            if version < ApiVersion(1, 28) {
                wire::network(record, &engine.networks.members(&record.id))
            } else {
                wire::network(record, &BTreeMap::new())
            }
        })
        .collect();
    Ok(ok(&shown))
}

pub(super) async fn inspect(State(engine): App, Path(id): Path<String>, params: Params) -> ApiResult {
    if !matches!(params.text("scope"), "" | "local") {
        return Err(Error::no_such_network(&id).into());
    }
    let record = engine.networks.find(&id)?;
    Ok(ok(&wire::network(&record, &engine.networks.members(&record.id))))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreateBody {
    name: String,
    driver: String,
    scope: String,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: Option<bool>,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_only: bool,
    config_from: Option<Value>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

pub(super) async fn create(State(engine): App, Extension(version): Extension<ApiVersion>, body: Bytes) -> ApiResult {
    let body: CreateBody = read_json(&body)?;
    let from = body.config_from.as_ref().is_some_and(|from| from["Network"].as_str().is_some_and(|name| !name.is_empty()));
    for (asked, what) in [
        (body.ingress, "ingress networks"),
        (body.config_only || from, "configuration networks (ConfigOnly, ConfigFrom)"),
        (!matches!(body.scope.as_str(), "" | "local"), "networks of other scopes than local"),
    ] {
        if asked {
            return Err(Error::Unsupported(format!("{what}: not available in this version of whelk")).into());
        }
    }
    // Clients before 1.47 send "false" where nobody said anything.
    let enable_ipv6 = if version < ApiVersion(1, 47) { body.enable_ipv6.filter(|enabled| *enabled) } else { body.enable_ipv6 };
    let request = CreateNetwork {
        name: body.name,
        driver: body.driver,
        enable_ipv4: body.enable_ipv4,
        enable_ipv6,
        ipam: body.ipam,
        internal: body.internal,
        attachable: body.attachable,
        options: body.options,
        labels: body.labels,
    };
    let networks = engine.networks.clone();
    let record = blocking(move || networks.create(request)).await?;
    Ok(json_response(StatusCode::CREATED, &json!({"Id": record.id, "Warning": ""})))
}

pub(super) async fn delete(State(engine): App, Path(id): Path<String>) -> ApiResult {
    let record = engine.networks.find(&id)?;
    let networks = engine.networks.clone();
    blocking(move || networks.remove(&record.id)).await?;
    Ok(no_content())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConnectBody {
    container: String,
    endpoint_config: Endpoint,
    force: bool,
}

pub(super) async fn connect(State(engine): App, Path(id): Path<String>, body: Bytes) -> ApiResult {
    let body: ConnectBody = read_json(&body)?;
    let request = ConnectRequest { container: body.container, endpoint: body.endpoint_config };
    engine.containers.connect(&id, request).await?;
    Ok(StatusCode::OK.into_response())
}

pub(super) async fn disconnect(State(engine): App, Path(id): Path<String>, body: Bytes) -> ApiResult {
    let body: ConnectBody = read_json(&body)?;
    match engine.containers.disconnect(&id, &body.container, body.force).await {
        // Force is for places of containers that are gone. Here they go with their containers.
        Err(Error::NotFound(_)) if body.force && engine.containers.find(&body.container).is_err() => {
            return Err(Error::NotFound(format!("endpoint {} not found", body.container)).into());
        }
        outcome => outcome?,
    }
    Ok(StatusCode::OK.into_response())
}

pub(super) async fn prune(State(engine): App, params: Params) -> ApiResult {
    let filters = params.filters(&["label", "label!", "until"])?;
    let until = filters.until()?.unwrap_or(i64::MAX);
    let (networks, containers) = (engine.networks.clone(), engine.containers.clone());
    let removed = blocking(move || {
        let in_use = containers.networks_in_use();
        Ok(networks.prune(|record| filters.labels(&record.labels) && record.created_at < until, |record| in_use.contains(&record.name)))
    })
    .await?;
    Ok(ok(&json!({"NetworksDeleted": if removed.is_empty() { Value::Null } else { json!(removed) }})))
}
