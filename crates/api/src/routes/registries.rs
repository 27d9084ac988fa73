//! Routes that send requests to registries: `/auth` and `/distribution/…`.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use whelk_api_types::{
    AuthConfig, AuthResponse, DistributionInspect, ManifestDescriptor, SearchResult,
};
use whelk_engine::Error;
use whelk_engine::images::{Distribution, Images, SEARCH_FILTERS};
use whelk_image::Reference;
use whelk_registry::Credentials;

use super::images::credentials;
use super::{Service, ok};
use crate::error::{ApiError, ApiResult, message};
use crate::extract::{Json, Params, RequestBody};

impl RequestBody for AuthConfig {
    const GO_TYPE: &'static str = "registry.AuthConfig";
}

/// Verifies a user's credentials (`POST /auth`).
pub(super) async fn auth(
    State(images): Service<Images>,
    Json(body): Json<AuthConfig>,
) -> ApiResult {
    let given = whelk_registry::AuthConfig {
        username: Some(body.username),
        password: Some(body.password),
        auth: Some(body.auth),
        identitytoken: Some(body.identitytoken),
        registrytoken: Some(body.registrytoken),
    };
    let credentials: Credentials = Credentials::try_from(given).map_err(ApiError::invalid)?;
    let token = images.log_in(&body.serveraddress, credentials).await?;
    Ok(ok(&AuthResponse {
        identity_token: token.unwrap_or_default(),
        status: "Login Succeeded".into(),
    }))
}

/// Returns the descriptor and the platforms of an image in a registry
/// (`GET /distribution/{name}/json`).
pub(super) async fn distribution(
    State(images): Service<Images>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> ApiResult {
    let Some(name) = rest.strip_suffix("/json") else {
        return Ok(message(StatusCode::NOT_FOUND, "page not found"));
    };
    let is_id = |name: &str| {
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    if is_id(name) {
        return Err(ApiError::invalid("no manifest found for full image ID"));
    }
    let reference: Reference = name.parse().map_err(Error::from)?;
    let reference = reference.with_default_tag();
    let found = images.distribution(&reference, credentials(&headers));
    let Distribution {
        media_type,
        digest,
        size,
        platforms,
    } = found.await?;
    let platforms = platforms.iter().map(crate::wire::platform);
    Ok(ok(&DistributionInspect {
        descriptor: ManifestDescriptor {
            media_type,
            digest: digest.to_string(),
            size,
            ..ManifestDescriptor::default()
        },
        platforms: crate::wire::null_if_empty(platforms.collect()),
    }))
}

/// Searches a registry (`GET /images/search`).
pub(super) async fn search(
    State(images): Service<Images>,
    params: Params,
    headers: HeaderMap,
) -> ApiResult {
    let filters = params.filters(SEARCH_FILTERS)?;
    let limit = params.number::<i64>("limit")?.unwrap_or_default();
    let term = params.text("term");
    let found = images.search(term, limit, &filters, credentials(&headers));
    let results = found.await?.into_iter().map(|found| SearchResult {
        star_count: found.star_count,
        is_official: found.is_official,
        name: found.name,
        is_automated: false,
        description: found.description,
    });
    Ok(ok(&results.collect::<Vec<_>>()))
}
