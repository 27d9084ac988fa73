//! `GET /v2/_catalog` and `GET /v2/NAME/tags/list`, in pages.

use hyper::http::response::Builder;
use hyper::{Response, header};
use serde::Serialize;

use super::answers::{JSON, encode};
use super::{Answer, Call};
use crate::blocking::blocking;
use crate::error::{Kind, Result};
use crate::names::RepositoryName;
use crate::rights::Action;

/// Default and maximum number of names in a response.
const PAGE: usize = 1000;

impl Call {
    pub(super) async fn catalog(self) -> Answer {
        #[derive(Serialize)]
        struct Catalog {
            repositories: Vec<String>,
        }
        let (registry, last) = (self.registry.clone(), self.last());
        let mut found = blocking(move || registry.catalog(&last)).await?;
        found.retain(|name| {
            let name = RepositoryName::parse(name);
            name.is_ok_and(|name| self.permission.has(Action::Pull, &name))
        });
        let (repositories, builder) = self.page("/v2/_catalog", found)?;
        self.list(builder, encode(&Catalog { repositories })?).await
    }

    pub(super) async fn tags(self, repository: RepositoryName) -> Answer {
        #[derive(Serialize)]
        struct Tags<'a> {
            name: &'a str,
            tags: Vec<String>,
        }
        if let Some(upstream) = &self.upstream {
            let path = self.with_query("tags/list");
            let (registry, name) = (self.registry.clone(), repository.clone());
            let is_known = blocking(move || Ok(registry.is_known(&name))).await?;
            let listing = upstream.listing(&repository, &path, Kind::NameUnknown, is_known);
            if let Some(listing) = listing.await? {
                return self.forward_listing(listing).await;
            }
        }
        let (registry, last, name) = (self.registry.clone(), self.last(), repository.clone());
        let found = blocking(move || registry.tags(&name, &last)).await?;
        let (tags, builder) = self.page(&format!("/v2/{repository}/tags/list"), found)?;
        let name = repository.as_str();
        self.list(builder, encode(&Tags { name, tags })?).await
    }

    /// Returns the requested number of names, and a response with a link to the rest.
    fn page(&self, path: &str, mut names: Vec<String>) -> Result<(Vec<String>, Builder)> {
        let wanted = self.parameter("n").map(str::parse::<usize>).transpose();
        let wanted = wanted.map_err(|_| Kind::PageInvalid.error("n: want a number"))?;
        let count = wanted.unwrap_or(PAGE).min(PAGE);
        let has_more = names.len() > count;
        names.truncate(count);
        let builder = Response::builder().header(header::CONTENT_TYPE, JSON);
        Ok(match names.last().filter(|_| has_more) {
            Some(last) => {
                let link = format!("<{path}?n={count}&last={last}>; rel=\"next\"");
                (names, builder.header(header::LINK, link))
            }
            None => (names, builder),
        })
    }
}
