//! Descriptors, manifests and indexes in the formats of the OCI image specification and of Docker.
//!
//! The types have the fields that are used; others are ignored when reading. The digest of a
//! manifest or index is that of its original bytes, which are stored beside what is parsed from
//! them. Lists may be `null`, as Go encodes empty ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bounded::{self, MAX_LAYERS, MAX_NAMES};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::platform::Platform;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's media type for [`MANIFEST`].
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's media type for [`INDEX`].
pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The schema version of manifests and indexes. There is no other in the OCI specification.
pub const SCHEMA_VERSION: u32 = 2;

/// Refers to a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Where the blob is, if registries need not have it.
    #[serde(
        default,
        deserialize_with = "bounded::list::<_, _, MAX_NAMES>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub urls: Vec<String>,
    /// Sorted, so that the same descriptor is always encoded to the same bytes.
    #[serde(
        default,
        deserialize_with = "bounded::null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    /// Returns whether it refers to an index, and not to a manifest.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), INDEX | DOCKER_MANIFEST_LIST)
    }
}

/// The manifest of an image for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    /// The lowest first.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_LAYERS>")]
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            media_type: MANIFEST.into(),
            config,
            layers,
        }
    }

    /// Parses a manifest.
    ///
    /// # Errors
    /// Returns [`Error::Invalid`] if the JSON is malformed, a digest is not valid, or there are more
    /// layers than an image can have.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse(bytes, "manifest")
    }

    /// Returns its media type, which OCI manifests may leave out.
    pub fn kind(&self) -> &str {
        or(&self.media_type, MANIFEST)
    }
}

/// A list of manifests for several platforms, or of further indexes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_NAMES>")]
    pub manifests: Vec<Descriptor>,
}

impl Index {
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            media_type: INDEX.into(),
            manifests,
        }
    }

    /// Parses an index.
    ///
    /// # Errors
    /// Returns [`Error::Invalid`] if the JSON is malformed, a digest is not valid, or there are more
    /// than 10,000 entries.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse(bytes, "index")
    }

    /// Returns its media type, which OCI indexes may leave out.
    pub fn kind(&self) -> &str {
        or(&self.media_type, INDEX)
    }
}

fn or<'a>(media_type: &'a str, default: &'a str) -> &'a str {
    if media_type.is_empty() {
        default
    } else {
        media_type
    }
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid(format!("invalid {what}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn entry(rest: &str) -> String {
        format!(r#"{{"mediaType":"{MANIFEST}","digest":"{DIGEST}","size":2{rest}}}"#)
    }

    #[test]
    fn reads_what_registries_write() {
        let platform = r#","platform":{"architecture":"arm","os":"linux","variant":"v7","os.version":"1"},"annotations":null,"urls":[]"#;
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST_LIST}","manifests":[{}],"subject":null}}"#,
            entry(platform)
        );
        let index = Index::parse(text.as_bytes()).unwrap();
        let platform = index.manifests[0].platform.as_ref().unwrap();
        assert_eq!(platform.to_string(), "linux/arm/v7");
        assert!(!index.manifests[0].is_index());
        let text = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":null}}"#,
            entry("")
        );
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!((manifest.layers.len(), manifest.config.size), (0, 2));
    }

    #[test]
    fn writes_the_same_bytes_each_time() {
        let mut descriptor = Descriptor::new(MANIFEST, Digest::of(b""), 2);
        let annotations = [("b", "2"), ("a", "1")].map(|(key, value)| (key.into(), value.into()));
        descriptor.annotations = annotations.into();
        descriptor.platform = Some(Platform {
            os: "linux".into(),
            architecture: "amd64".into(),
            ..Platform::default()
        });
        let rest =
            r#","annotations":{"a":"1","b":"2"},"platform":{"architecture":"amd64","os":"linux"}"#;
        assert_eq!(serde_json::to_string(&descriptor).unwrap(), entry(rest));
    }

    #[test]
    fn refuses_hostile_documents() {
        let many = vec![entry(""); MAX_LAYERS + 1].join(",");
        for (layers, expected) in [
            (many.as_str(), "a list of more than 500 elements"),
            (
                r#"{"mediaType":"a","digest":"sha256:../../x","size":1}"#,
                "invalid checksum digest",
            ),
            (
                r#"{"mediaType":"a","digest":"sha384:00","size":1}"#,
                "unsupported digest algorithm",
            ),
            (&entry("").replace(":2", ":-2"), "invalid value"),
        ] {
            let text = format!(
                r#"{{"schemaVersion":2,"config":{},"layers":[{layers}]}}"#,
                entry("")
            );
            let error = Manifest::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for text in ["", "[]", "{}", r#"{"schemaVersion":2,"manifests":{}}"#] {
            let manifest = Manifest::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(manifest.starts_with("invalid manifest: "), "{manifest}");
            let index = Index::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(index.starts_with("invalid index: "), "{index}");
        }
    }
}
