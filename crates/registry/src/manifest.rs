//! Downloads of manifests and indexes by tag or digest, with verification.

use std::time::Duration;

use hyper::Method;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName};
use serde::Deserialize;
use serde::de::IgnoredAny;
use whelk_image::Digest;
use whelk_image::descriptor::{DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, INDEX, MANIFEST};

use crate::attempts::Attempts;
use crate::endpoints::Endpoint;
use crate::error::{Error, Result};
use crate::exchange::{Query, Repository};
use crate::response::read;

/// Maximum size of a manifest or index in bytes. Registries have the same limit.
pub(crate) const MAX_DOCUMENT: usize = 4 << 20;
/// The header with the digest of the manifest that a response is about.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Selects a manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    Tag(String),
    Digest(Digest),
}

impl Version {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Tag(tag) => tag,
            Self::Digest(digest) => digest.as_str(),
        }
    }
}

/// A manifest or an index, as the bytes that the registry sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Of `bytes`.
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

impl Document {
    /// Returns a document from the engine's store; `None` if it is invalid.
    pub fn kept(digest: &Digest, bytes: Vec<u8>) -> Option<Self> {
        Some(Self {
            digest: digest.clone(),
            media_type: checked("", &bytes).ok()?,
            bytes,
        })
    }

    /// Returns whether it is an index, and not a manifest.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), INDEX | DOCKER_MANIFEST_LIST)
    }
}

impl Repository {
    /// Gets a manifest or an index.
    ///
    /// # Errors
    /// Returns an error if it does not exist, does not match its digest, or has an unsupported format.
    pub async fn manifest(&self, version: &Version) -> Result<Document> {
        let mut attempts = Attempts::default();
        loop {
            let server = self.server(&attempts)?;
            match self.document(&server, version).await {
                Ok(document) => return Ok(document),
                Err(failure) => self.after(&mut attempts, failure, |_| {}).await?,
            }
        }
    }

    async fn document(
        &self,
        server: &Endpoint,
        version: &Version,
    ) -> std::result::Result<Document, (Error, Option<Duration>)> {
        let (response, operation) = self
            .ask_endpoint(server, &query(Method::GET, version))
            .await?;
        let at_once = |error| (error, None);
        let invalid = |problem: String| at_once(Error::invalid(&operation, problem));
        let media_type = media_type(response.headers());
        let promised = promised(response.headers());
        let bytes = read(response, MAX_DOCUMENT, &operation)
            .await
            .map_err(at_once)?
            .to_vec();
        let wanted = match version {
            Version::Digest(digest) => Some(digest),
            Version::Tag(_) => promised.as_ref(),
        };
        let algorithm = wanted.map(Digest::algorithm).unwrap_or_default();
        let digest = algorithm.digest(&bytes);
        if let Some(wanted) = wanted.filter(|wanted| **wanted != digest) {
            return Err(invalid(format!(
                "the manifest has the digest {digest}, not {wanted}"
            )));
        }
        let media_type = checked(&media_type, &bytes).map_err(invalid)?;
        Ok(Document {
            digest,
            media_type,
            bytes,
        })
    }

    /// Gets the digest of a manifest or an index by a `HEAD` request. Returns `None` if the response
    /// does not have it, or is an error; then [`Repository::manifest`] has to be called.
    ///
    /// # Errors
    /// Returns an error if the registry does not respond.
    pub async fn digest(&self, version: &Version) -> Result<Option<Digest>> {
        let query = query(Method::HEAD, version);
        let mut attempts = Attempts::default();
        loop {
            let server = self.server(&attempts)?;
            match self.ask_endpoint(&server, &query).await {
                Ok((response, _)) => return Ok(promised(response.headers())),
                // The reason is in the body of the response to the same request with GET.
                Err((Error::Refused { .. }, _)) if !server.is_mirror => return Ok(None),
                Err(failure) => self.after(&mut attempts, failure, |_| {}).await?,
            }
        }
    }
}

fn query(method: Method, version: &Version) -> Query {
    let accept = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST].join(", ");
    Query::new(method, format!("manifests/{}", version.text())).header(ACCEPT, &accept)
}

/// Returns the digest in a response's header, if it is valid.
fn promised(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let value = value
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default();
    value.trim().to_lowercase()
}

/// Checks a document's format and returns its media type. `sent` is the response's media type.
///
/// # Errors
/// Returns an error if the document can be read both as a manifest and as an index, which clients
/// could interpret differently (CVE-2021-41190), or if it is neither.
pub(crate) fn checked(sent: &str, bytes: &[u8]) -> std::result::Result<String, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Form {
        schema_version: u64,
        media_type: Option<String>,
        config: Option<IgnoredAny>,
        layers: Option<IgnoredAny>,
        manifests: Option<IgnoredAny>,
    }
    let invalid = |error: &dyn std::error::Error| format!("invalid manifest: {error}");
    // serde_json does not check the strings that it ignores.
    let text = std::str::from_utf8(bytes).map_err(|error| invalid(&error))?;
    let form: Form = serde_json::from_str(text).map_err(|error| invalid(&error))?;
    if form.schema_version == 1 {
        return Err("manifests of schema version 1 are not supported".into());
    }
    let own = form.media_type.filter(|own| !own.is_empty());
    let media_type = match &own {
        Some(own) => own.as_str(),
        // Only OCI documents may lack a media type.
        None if form.manifests.is_some() => INDEX,
        None => MANIFEST,
    };
    // Servers may send any document with a general media type, such as application/json.
    let is_known = matches!(
        sent,
        MANIFEST | INDEX | DOCKER_MANIFEST | DOCKER_MANIFEST_LIST
    );
    if is_known && sent != media_type {
        return Err(format!(
            "the manifest is of type {media_type:?}, and was sent as {sent:?}"
        ));
    }
    let has_image = form.config.is_some() || form.layers.is_some();
    let is_consistent = match media_type {
        MANIFEST | DOCKER_MANIFEST => form.config.is_some() && form.manifests.is_none(),
        INDEX | DOCKER_MANIFEST_LIST => form.manifests.is_some() && !has_image,
        other => return Err(format!("manifests of type {other:?} are not supported")),
    };
    if is_consistent {
        Ok(media_type.to_owned())
    } else {
        Err(format!("the content is not that of type {media_type:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_must_be_utf8_in_ignored_fields_too() {
        let (before, after) = (br#"{"schemaVersion":2,"x":""#, br#"","config":{}}"#);
        let document = [&before[..], b"\xff", &after[..]].concat();
        let error = checked("", &document).unwrap_err();
        assert!(
            error.starts_with("invalid manifest: invalid utf-8"),
            "{error}"
        );
        assert!(checked("", &[&before[..], &after[..]].concat()).is_ok());
    }

    #[test]
    fn ambiguous_manifests_are_rejected() {
        let manifest = |media_type: &str, rest: &str| {
            format!(r#"{{"schemaVersion":2,"mediaType":{media_type:?},{rest}}}"#)
        };
        let (image, index) = (r#""config":{},"layers":[]"#, r#""manifests":[]"#);
        for (sent, document, expected) in [
            (MANIFEST, manifest(MANIFEST, image), Ok(MANIFEST)),
            ("", manifest("", image), Ok(MANIFEST)),
            ("application/json", manifest("", index), Ok(INDEX)),
            (
                DOCKER_MANIFEST_LIST,
                manifest(DOCKER_MANIFEST_LIST, index),
                Ok(DOCKER_MANIFEST_LIST),
            ),
            (INDEX, manifest(MANIFEST, image), Err("was sent as")),
            (MANIFEST, manifest("", index), Err("was sent as")),
            (
                MANIFEST,
                manifest(MANIFEST, &format!("{image},{index}")),
                Err("the content is not that of type"),
            ),
            (
                INDEX,
                manifest(INDEX, &format!("{image},{index}")),
                Err("the content is not that of type"),
            ),
            (
                MANIFEST,
                manifest(MANIFEST, index),
                Err("the content is not"),
            ),
            ("", manifest("text/plain", image), Err("are not supported")),
            (
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                r#"{"schemaVersion":1,"fsLayers":[]}"#.into(),
                Err("schema version 1"),
            ),
            ("", "<html>".into(), Err("invalid manifest")),
        ] {
            let found = checked(sent, document.as_bytes());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                (found, expected) => panic!("{document}: {found:?}, not {expected:?}"),
            }
        }
    }
}
