//! Searches registries by the protocol that Docker Hub has for it (`GET /v1/search`).

use std::sync::Arc;

use hyper::Method;
use serde::Deserialize;

use crate::auth::Credentials;
use crate::endpoints::{HUB, registry};
use crate::error::{Error, Result};
use crate::exchange::{Query, Repository};
use crate::response::read;
use crate::target::encoded;
use crate::transport::Client;

/// The host that serves searches on Docker Hub.
const HUB_SEARCH: &str = "index.docker.io";
/// Maximum size of a response in bytes.
const MAX_RESULTS: usize = 4 << 20;
/// The scope of access tokens for searches.
const SCOPE: &str = "registry:catalog:search";

/// A repository that a search has found. Its texts have no control characters besides white space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Found {
    pub name: String,
    #[serde(deserialize_with = "or_default")]
    pub description: String,
    pub star_count: i64,
    pub is_official: bool,
}

/// Docker Hub has `null` for a missing description.
fn or_default<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Client {
    /// Searches a registry, as it is named in references, for repositories. Returns at most `limit`.
    ///
    /// # Errors
    /// Returns an error if the registry cannot be asked, or does not support searches.
    pub async fn search(
        self: &Arc<Self>,
        domain: &str,
        term: &str,
        limit: usize,
        credentials: Credentials,
    ) -> Result<Vec<Found>> {
        #[derive(Deserialize)]
        struct Results {
            #[serde(default)]
            results: Option<Vec<Found>>,
        }
        let mut endpoint = registry(&self.settings, domain);
        if domain == HUB {
            HUB_SEARCH.clone_into(&mut endpoint.host);
        }
        let repository = Repository {
            client: self.clone(),
            endpoints: vec![endpoint],
            path: String::new(),
            scope: SCOPE.into(),
            credentials,
        };
        let path = format!("search?q={}&n={limit}", encoded(term));
        let query = Query::new(Method::GET, path).version_1();
        let (response, operation) = repository.ask(&query).await?;
        let body = read(response, MAX_RESULTS, &operation).await?;
        let results: Results = serde_json::from_slice(&body).map_err(|error| {
            Error::invalid(&operation, format!("not a result of a search: {error}"))
        })?;
        let found = results.results.unwrap_or_default().into_iter();
        Ok(found.take(limit).map(Found::cleaned).collect())
    }
}

impl Found {
    fn cleaned(mut self) -> Self {
        let is_shown = |char: char| !char.is_control() || matches!(char, '\n' | '\r' | '\t');
        self.name.retain(|char| !char.is_control());
        self.description.retain(is_shown);
        self
    }
}
