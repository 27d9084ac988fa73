//! Lists that a registry keeps of a repository: its tags, and what refers to a manifest.

use hyper::Method;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName, LINK};

use crate::error::Result;
use crate::exchange::{Query, Repository};
use crate::response::read;

/// Maximum size of a list, or of a page of it, in bytes.
const MAX_LISTING: usize = 8 << 20;

/// A list, or a page of it, as the registry has sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// May be empty.
    pub media_type: String,
    /// The header `Link`, which leads to the next page.
    pub link: Option<String>,
    /// The header `OCI-Filters-Applied`.
    pub filters: Option<String>,
    pub bytes: Vec<u8>,
}

impl Repository {
    /// Gets a list: `path` is `tags/list` or `referrers/DIGEST`, with its parameters.
    ///
    /// # Errors
    /// Returns an error if the request fails, or if the response is too large.
    pub async fn listing(&self, path: &str) -> Result<Listing> {
        const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");
        let query = Query::new(Method::GET, path.to_owned());
        let (response, operation) = self.ask(&query.header(ACCEPT, "*/*")).await?;
        let header = |name: HeaderName| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        Ok(Listing {
            media_type: header(CONTENT_TYPE).unwrap_or_default(),
            link: header(LINK),
            filters: header(FILTERS),
            bytes: read(response, MAX_LISTING, &operation).await?.to_vec(),
        })
    }
}
