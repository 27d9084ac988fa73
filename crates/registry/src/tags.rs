//! The tags of a repository.

use hyper::Method;
use serde::Deserialize;
use whelk_image::bounded;

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

#[derive(Deserialize)]
struct Page {
    // Go encodes an empty list as null.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_TAGS>")]
    tags: Vec<String>,
}

impl Repository {
    /// Returns the tags of the repository, in the order of the registry.
    ///
    /// # Errors
    /// Returns an error if the registry does not have the repository, or cannot be asked.
    pub async fn tags(&self) -> Result<Vec<String>> {
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
            let page = page.tags;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_bounded_while_it_is_read() {
        let read = |text: &str| serde_json::from_str::<Page>(text).map(|page| page.tags.len());
        assert_eq!(read(r#"{"name": "a", "tags": null}"#).unwrap(), 0);
        assert_eq!(read(r#"{"tags": ["1", "2"]}"#).unwrap(), 2);
        // What follows the last tag that is accepted is not even parsed.
        let many = format!("{{\"tags\": [\"1\"{} nonsense", ",\"1\"".repeat(MAX_TAGS));
        let error = read(&many).unwrap_err().to_string();
        assert!(
            error.starts_with("a list of more than 100000 elements"),
            "{error}"
        );
    }
}
