//! Verifies credentials for registries.

use whelk_registry::{Credentials, Kind};

use super::Images;
use crate::error::{Error, Result};

impl Images {
    /// Verifies credentials with a registry. Returns the identity token if the registry issues one.
    ///
    /// # Errors
    /// Returns [`Error::Unauthorized`] if the registry does not accept them, and other errors if the
    /// request fails.
    pub async fn log_in(&self, server: &str, credentials: Credentials) -> Result<Option<String>> {
        let client = &self.downloads.client;
        client
            .log_in(server, credentials)
            .await
            .map_err(|error| match error.kind() {
                Kind::Denied => Error::Unauthorized(error.to_string()),
                Kind::Invalid => Error::Invalid(error.to_string()),
                Kind::NotFound => Error::NotFound(error.to_string()),
                Kind::TooManyRequests | Kind::Unavailable => Error::Unavailable(error.to_string()),
            })
    }
}
