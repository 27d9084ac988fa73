//! The form of a build cache that is kept elsewhere: that of BuildKit, in which a list of layers and a list of records refer to
//! each other by their positions.
//!
//! ```text
//! layers   [{blob, parent, annotations}]      parent: the layer below, -1 for none
//! records  [{digest, layers | chains, inputs}]
//! ```
//! A record's digest is one of our keys ([`whelk_llb::key`]), which a cache of another builder cannot have. The record of a
//! key that was known before its step was executed has one input: the record of the canonical key, with the selector
//! [`CANONICAL`].
//!
//! All of it comes from others: lists and texts are bounded, and positions are checked when they are followed.

use serde::{Deserialize, Serialize};
use whelk_image::bounded;
use whelk_image::descriptor::Descriptor;

use crate::error::{Error, Result};

/// The media type of the list of records.
pub(super) const CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";

/// The selector of the input that leads from a record to that of the canonical key.
pub(super) const CANONICAL: &str = "canonical";

/// Maximum size of the lists in bytes.
pub(super) const MAX_CONFIG: u64 = 8 << 20;

/// Maximum number of records, and of layers.
const MAX_RECORDS: usize = 50_000;

/// Maximum number of blobs that a manifest lists.
const MAX_BLOBS: usize = 50_000;

/// Maximum number of inputs, of records to choose from for each, and of results.
const MAX_PARTS: usize = 500;

/// What a cache consists of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Config {
    #[serde(
        default,
        deserialize_with = "bounded::list::<_, _, MAX_RECORDS>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub layers: Vec<Layer>,
    #[serde(
        default,
        deserialize_with = "bounded::list::<_, _, MAX_RECORDS>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub records: Vec<Record>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Layer {
    #[serde(default)]
    pub blob: String,
    /// Position of the layer below; -1 for none. Go leaves out a zero.
    #[serde(default)]
    pub parent: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Annotations>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Annotations {
    #[serde(default, rename = "mediaType")]
    pub media_type: String,
    #[serde(default, rename = "diffID")]
    pub diff_id: String,
    /// In bytes.
    #[serde(default)]
    pub size: u64,
    /// When the layer was made; not that of a base image.
    #[serde(default, rename = "createdAt", skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
}

/// The result of a step, by one of its keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(
        default,
        rename = "layers",
        deserialize_with = "bounded::list::<_, _, MAX_PARTS>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub results: Vec<Top>,
    #[serde(
        default,
        deserialize_with = "bounded::list::<_, _, MAX_PARTS>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub chains: Vec<Chain>,
    #[serde(default)]
    pub digest: String,
    #[serde(
        default,
        deserialize_with = "bounded::list::<_, _, MAX_PARTS>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub inputs: Vec<Input>,
}

/// A result that is a layer with all that are below it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Top {
    #[serde(default)]
    pub layer: i64,
    #[serde(default, rename = "createdAt", skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
}

/// A result that is a list of layers, the lowest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Chain {
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_PARTS>")]
    pub layers: Vec<i64>,
    #[serde(default, rename = "createdAt", skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
}

/// The records that an input of a step may be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Input(
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_PARTS>")] pub Vec<Link>,
);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Link {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// Position of a record.
    #[serde(default)]
    pub link: i64,
}

impl Config {
    /// Reads a cache.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(invalid)
    }

    /// Reads the records of an inline cache, which is a list of them alone.
    pub fn parse_inline(bytes: &[u8]) -> Result<Vec<Record>> {
        #[derive(Deserialize)]
        #[serde(transparent)]
        struct Records(
            #[serde(deserialize_with = "bounded::list::<_, _, MAX_RECORDS>")] Vec<Record>,
        );
        let records: Records = serde_json::from_slice(bytes).map_err(invalid)?;
        Ok(records.0)
    }
}

fn invalid(error: serde_json::Error) -> Error {
    Error::invalid(format!("invalid build cache: {error}"))
}

/// What a manifest or an index lists: of a cache, or of an image with an inline cache.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Document {
    pub config: Option<Descriptor>,
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_BLOBS>")]
    pub layers: Vec<Descriptor>,
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_BLOBS>")]
    pub manifests: Vec<Descriptor>,
}

impl Document {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes)
            .map_err(|error| Error::invalid(format!("invalid manifest of a build cache: {error}")))
    }

    /// Returns what refers to the records of a cache, and the blobs beside them; `None` for an image.
    pub fn cache(&self) -> Option<(&Descriptor, Vec<&Descriptor>)> {
        let is_config = |one: &&Descriptor| one.media_type == CACHE_CONFIG;
        if let Some(config) = self.config.as_ref().filter(is_config) {
            return Some((config, self.layers.iter().collect()));
        }
        let config = self.manifests.iter().find(is_config)?;
        let others = self.manifests.iter().filter(|one| !is_config(one));
        Some((config, others.collect()))
    }
}

/// Parses a time; 0 if there is none, or not after 1970.
pub(super) fn nanoseconds(text: Option<&str>) -> i64 {
    let time: Option<jiff::Timestamp> = text.and_then(|text| text.parse().ok());
    let nanoseconds = time.map_or(0, jiff::Timestamp::as_nanosecond);
    i64::try_from(nanoseconds).unwrap_or(0).max(0)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_buildkit_writes() {
        // The forms of its caches; the digests are made up.
        let text = r#"{"layers":[{"blob":"sha256:aa","parent":-1},{"blob":"sha256:bb","annotations":
            {"mediaType":"m","diffID":"sha256:cc","size":3,"createdAt":"2026-01-02T03:04:05.000000006Z"}}],
            "records":[{"digest":"sha256:1","layers":[{"layer":1,"createdAt":"0001-01-01T00:00:00Z"}]},
            {"digest":"sha256:2","chains":[{"layers":[1,0]}],"inputs":[[{"selector":"sha256:s","link":0}],[{"link":0}]]}]}"#;
        let config = Config::parse(text.as_bytes()).unwrap();
        assert_eq!((config.layers[0].parent, config.layers[1].parent), (-1, 0));
        let annotations = config.layers[1].annotations.as_ref().unwrap();
        let created = nanoseconds(annotations.created.as_deref());
        assert_eq!(created % 1_000_000_000, 6);
        assert_eq!(nanoseconds(Some("0001-01-01T00:00:00Z")), 0);
        assert_eq!(config.records[1].chains[0].layers, [1, 0]);
        let again = serde_json::to_vec(&config).unwrap();
        assert_eq!(Config::parse(&again).unwrap(), config);
    }

    #[test]
    fn lists_are_bounded() {
        let records = vec!["{}"; MAX_RECORDS + 1].join(",");
        let links = vec!["{}"; MAX_PARTS + 1].join(",");
        for text in [
            format!(r#"{{"records":[{records}]}}"#),
            format!(r#"{{"layers":[{records}]}}"#),
            format!(r#"{{"records":[{{"inputs":[[{links}]]}}]}}"#),
            format!(r#"{{"records":[{{"layers":[{links}]}}]}}"#),
            r#"{"records":[{"layers":[{"layer":1e99}]}]}"#.into(),
            "[".repeat(100_000),
        ] {
            assert!(Config::parse(text.as_bytes()).is_err());
        }
        assert!(Config::parse_inline(format!("[{records}]").as_bytes()).is_err());
        assert!(Config::parse_inline(b"[{}]").is_ok());
    }
}
