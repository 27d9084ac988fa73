//! Searches registries for images.

use whelk_registry::{Credentials, Found};

use super::{Images, refusals};
use crate::error::{Error, Result};
use crate::filters::Filters;

/// The filters of a search.
pub const SEARCH_FILTERS: &[&str] = &["is-automated", "is-official", "stars"];

/// Number of results unless the request says otherwise, and the maximum.
const DEFAULT_LIMIT: usize = 25;
const MAX_LIMIT: i64 = 100;

impl Images {
    /// Searches a registry for a term: `HOST/TERM`, or Docker Hub for a term without a host. A limit of
    /// 0 is the default.
    ///
    /// # Errors
    /// Returns an error if a parameter is invalid, or if the registry cannot be asked.
    pub async fn search(
        &self,
        term: &str,
        limit: i64,
        filters: &Filters,
        credentials: Credentials,
    ) -> Result<Vec<Found>> {
        let limit = match limit {
            0 => DEFAULT_LIMIT,
            limit => usize::try_from(limit)
                .ok()
                .filter(|_| limit <= MAX_LIMIT)
                .ok_or_else(|| {
                    Error::invalid(format!(
                        "limit {limit} is outside the range of [1, {MAX_LIMIT}]"
                    ))
                })?,
        };
        let wanted = Wanted::new(filters)?;
        if term.contains("://") {
            return Err(Error::invalid(format!(
                "invalid repository name: repository name ({term}) should not have a scheme"
            )));
        }
        let (domain, rest) = split(term);
        if wanted.is_automated {
            return Ok(Vec::new());
        }
        let client = self.downloads.client();
        let found = client.search(domain, rest, limit, credentials).await;
        let mut found = found
            .map_err(|error| refusals::of_blob(error).prefixed(&format!("search {term:?}")))?;
        found.retain(|found| wanted.matches(found));
        Ok(found)
    }
}

/// What filters select.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// Nothing is: registries no longer build images, and what they still say of it is not reliable.
    is_automated: bool,
    is_official: Option<bool>,
    stars: i64,
}

impl Wanted {
    fn new(filters: &Filters) -> Result<Self> {
        let mut stars = 0;
        for text in filters.get("stars").into_iter().flatten() {
            let least: i64 = text.parse().map_err(|_| {
                Error::invalid(format!(
                    "invalid filter 'stars={text}': strconv.Atoi: parsing {text:?}: invalid syntax"
                ))
            })?;
            stars = least.max(stars);
        }
        Ok(Self {
            is_automated: filters.flag("is-automated")? == Some(true),
            is_official: filters.flag("is-official")?,
            stars,
        })
    }

    fn matches(&self, found: &Found) -> bool {
        let is_wanted = |official| official == found.is_official;
        self.is_official.is_none_or(is_wanted) && found.star_count >= self.stars
    }
}

/// Splits a term into the registry, as it is named in references, and what it is searched for.
fn split(term: &str) -> (&str, &str) {
    const HUB: &str = "docker.io";
    let (domain, rest) = match term.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => (HUB, term),
    };
    match domain {
        HUB | "index.docker.io" => (HUB, rest.strip_prefix("library/").unwrap_or(rest)),
        domain => (domain, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_may_name_a_registry() {
        for (term, expected) in [
            ("alpine", ("docker.io", "alpine")),
            ("library/alpine", ("docker.io", "alpine")),
            ("team/app", ("docker.io", "team/app")),
            ("index.docker.io/library/a", ("docker.io", "a")),
            ("localhost/a", ("localhost", "a")),
            ("r.corp:5000/team/app", ("r.corp:5000", "team/app")),
        ] {
            assert_eq!(split(term), expected, "{term}");
        }
    }

    #[test]
    fn filters_select_results() {
        let wanted = |text: &str| Wanted::new(&Filters::parse(text, SEARCH_FILTERS)?);
        let found = Found {
            star_count: 5,
            is_official: true,
            ..Found::default()
        };
        for (text, expected) in [
            ("{}", true),
            (r#"{"stars":["3","5"]}"#, true),
            (r#"{"stars":["3","6"]}"#, false),
            (r#"{"is-official":["1"]}"#, true),
            (r#"{"is-official":["false"]}"#, false),
        ] {
            assert_eq!(wanted(text).unwrap().matches(&found), expected, "{text}");
        }
        for (text, expected) in [
            (
                r#"{"stars":["a"]}"#,
                "invalid filter 'stars=a': strconv.Atoi: parsing \"a\": invalid syntax",
            ),
            (
                r#"{"is-official":["a"]}"#,
                "invalid filter 'is-official=[a]'",
            ),
            (r#"{"foo":["1"]}"#, "invalid filter 'foo'"),
        ] {
            assert_eq!(wanted(text).unwrap_err().to_string(), expected);
        }
    }
}
