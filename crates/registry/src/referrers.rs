//! What refers to a manifest: signatures, attestations and other artifacts.

use hyper::Method;
use hyper::header::ACCEPT;
use serde::Deserialize;
use whelk_image::Digest;
use whelk_image::descriptor::{INDEX, MANIFEST};

use crate::error::{Error, Kind, Result};
use crate::exchange::{Query, Repository};
use crate::manifest::{MAX_DOCUMENT, Version};
use crate::response::read;

/// An index, of which only the entries' kinds and digests are used.
#[derive(Deserialize)]
struct Referrers {
    manifests: Option<Vec<Referrer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    media_type: String,
    digest: Digest,
    artifact_type: Option<String>,
}

impl Repository {
    /// Returns the manifests of artifacts of a type that refer to a manifest, at most `limit`. From a
    /// registry that has no list of referrers, the list under the tag `ALGORITHM-DIGEST` is used, as
    /// the OCI distribution specification says.
    ///
    /// # Errors
    /// Returns an error if the registry does not respond, or if the list is invalid.
    pub async fn referrers(
        &self,
        subject: &Digest,
        artifact_type: &str,
        limit: usize,
    ) -> Result<Vec<Digest>> {
        let query = Query::new(Method::GET, format!("referrers/{subject}")).header(ACCEPT, INDEX);
        let (bytes, operation) = match self.ask(&query).await {
            Ok((response, operation)) => {
                let bytes = read(response, MAX_DOCUMENT, &operation).await?;
                (bytes.to_vec(), operation)
            }
            Err(error) if is_missing(&error) => {
                // At most 64 digits, as the specification says.
                let digits = subject.hex();
                let digits = digits.get(..64).unwrap_or(digits);
                let tag = format!("{}-{digits}", subject.algorithm().name());
                match self.manifest(&Version::Tag(tag.clone())).await {
                    Ok(list) if list.is_index() => (list.bytes, format!("referrers in tag {tag}")),
                    Ok(_) => return Ok(Vec::new()),
                    Err(error) if is_missing(&error) => return Ok(Vec::new()),
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        let list: Referrers = serde_json::from_slice(&bytes).map_err(|error| {
            Error::invalid(&operation, format!("invalid list of referrers: {error}"))
        })?;
        // Registries need not filter by type.
        let fits = |entry: &Referrer| {
            entry.media_type == MANIFEST
                && entry
                    .artifact_type
                    .as_deref()
                    .is_none_or(|kind| kind == artifact_type)
        };
        let entries = list.manifests.unwrap_or_default().into_iter();
        Ok(entries
            .filter(fits)
            .map(|entry| entry.digest)
            .take(limit)
            .collect())
    }
}

/// Returns whether the registry lacks an object, or does not know this kind of request.
fn is_missing(error: &Error) -> bool {
    match error {
        Error::Refused { status, .. } => {
            error.kind() == Kind::NotFound || matches!(status.as_u16(), 400 | 405 | 501)
        }
        _ => false,
    }
}
