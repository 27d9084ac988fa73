//! Verifies credentials for registries.

use whelk_registry::Credentials;

use super::{Images, refusals};
use crate::error::Result;

impl Images {
    /// Verifies credentials with a registry. Returns the identity token if the registry issues one.
    ///
    /// # Errors
    /// Returns [`Error::Unauthorized`](crate::Error::Unauthorized) if the registry does not accept them, and other errors if the
    /// request fails.
    pub async fn log_in(&self, server: &str, credentials: Credentials) -> Result<Option<String>> {
        let client = self.downloads.client();
        let logged_in = client.log_in(server, credentials).await;
        logged_in.map_err(refusals::of_blob)
    }
}
