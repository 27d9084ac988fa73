//! The tags of a repository.

use hyper::Method;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::exchange::{Query, Repository};
use crate::response::read;
use crate::target::encoded;

/// Tags that are asked for at once.
const PAGE: usize = 1000;
/// Maximum number of tags.
const MAX_TAGS: usize = 100_000;
/// Maximum size of a page in bytes: registries may send more tags than were asked for.
const MAX_PAGE: usize = 8 << 20;

impl Repository {
    /// Returns the tags of the repository, in the order of the registry.
    ///
    /// # Errors
    /// Returns an error if the registry does not have the repository, or cannot be asked.
    pub async fn tags(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            // Go encodes an empty list as null.
            tags: Option<Vec<String>>,
        }
        let mut tags: Vec<String> = Vec::new();
        loop {
            let mut path = format!("tags/list?n={PAGE}");
            if let Some(last) = tags.last() {
                path += &format!("&last={}", encoded(last));
            }
            let (response, operation) = self.ask(&Query::new(Method::GET, path)).await?;
            let is_last = !response.headers().contains_key(hyper::header::LINK);
            let body = read(response, MAX_PAGE, &operation).await?;
            let page: Page = serde_json::from_slice(&body)
                .map_err(|error| Error::invalid(&operation, format!("invalid list: {error}")))?;
            let page = page.tags.unwrap_or_default();
            let is_empty = page.is_empty();
            // A registry that ignores where a page is to begin would send the first one again and again.
            if page.iter().any(|tag| Some(tag) == tags.last()) {
                return Err(Error::invalid(
                    &operation,
                    "a page with tags of the one before",
                ));
            }
            tags.extend(page);
            if tags.len() > MAX_TAGS {
                let problem = format!("more than {MAX_TAGS} tags");
                return Err(Error::invalid(&operation, problem));
            }
            if is_last || is_empty {
                return Ok(tags);
            }
        }
    }
}
