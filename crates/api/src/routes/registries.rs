//! Routes that ask registries.

use axum::extract::State;
use whelk_api_types::{AuthConfig, AuthResponse};
use whelk_engine::images::Images;
use whelk_registry::Credentials;

use super::{Service, ok};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, RequestBody};

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
