//! Verifies credentials for registries.

use whelk_registry::{Credentials, Kind};

use super::Images;
use crate::error::{Error, Result};

impl Images {
    /// Asks a registry whether it accepts credentials. Returns the identity token that it has issued for
    /// them, if it did.
    ///
    /// # Errors
    /// Returns [`Error::Unauthorized`] if it does not, and other errors if it cannot be asked.
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
