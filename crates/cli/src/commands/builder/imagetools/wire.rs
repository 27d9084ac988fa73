//! The objects of registries that are shown and written here, with all of their fields in Go's order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use whelk_image::descriptor::{DOCKER_MANIFEST_LIST, INDEX};
use whelk_image::{Digest, Platform};

use crate::{Failure, Outcome};

/// Maximum number of an index's entries.
const MAX_ENTRIES: usize = 500;

/// Says of an attestation which manifest it is about.
pub(super) const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

type Annotations = BTreeMap<String, String>;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads `null` as nothing, as Go does.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A platform, with the fields that only indexes have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct FullPlatform {
    pub architecture: String,
    pub os: String,
    #[serde(rename = "os.version", skip_serializing_if = "is_default")]
    pub os_version: String,
    #[serde(
        rename = "os.features",
        deserialize_with = "or_default",
        skip_serializing_if = "is_default"
    )]
    pub os_features: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub variant: String,
}

impl FullPlatform {
    /// Returns what platforms are compared by.
    pub fn plain(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
        }
    }

    pub fn name(&self) -> String {
        self.plain().to_string()
    }
}

/// A descriptor. The media type, digest and size may be unknown as long as it is a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub media_type: String,
    pub digest: Option<Digest>,
    /// In bytes.
    pub size: u64,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub urls: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub annotations: Annotations,
    /// The content itself, in Base64.
    #[serde(skip_serializing_if = "is_default")]
    pub data: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub platform: Option<FullPlatform>,
    #[serde(skip_serializing_if = "is_default")]
    pub artifact_type: String,
}

impl Descriptor {
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), INDEX | DOCKER_MANIFEST_LIST)
    }

    /// Returns the digest.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub fn digest(&self) -> Outcome<&Digest> {
        let digest = self.digest.as_ref();
        digest.ok_or_else(|| Failure::new("a descriptor has no digest"))
    }
}

/// An index or a list of manifests.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Index {
    pub schema_version: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub media_type: String,
    #[serde(skip_serializing_if = "is_default")]
    pub artifact_type: String,
    #[serde(deserialize_with = "or_default")]
    pub manifests: Vec<Descriptor>,
    #[serde(skip_serializing_if = "is_default")]
    pub subject: Option<Descriptor>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub annotations: Annotations,
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    /// Returns an error if it is not one, or has too many entries.
    pub fn parse(bytes: &[u8]) -> Outcome<Self> {
        let index: Self = read(bytes, "index")?;
        let count = index.manifests.len();
        if count > MAX_ENTRIES {
            return Err(Failure::new(format!(
                "an index of {count} manifests, more than {MAX_ENTRIES}"
            )));
        }
        Ok(index)
    }

    /// Encodes the index as it is pushed.
    pub fn encode(&self) -> Outcome<Vec<u8>> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Failure::new(format!("encode an index: {error}")))?;
        // As Go's encoder does, so that the digest is the same.
        let text = text
            .replace('<', "\\u003c")
            .replace('>', "\\u003e")
            .replace('&', "\\u0026");
        Ok(text.into_bytes())
    }
}

/// What is looked into in a manifest of an image.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Manifest {
    pub config: Option<Descriptor>,
    #[serde(deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
}

/// An image's configuration, with the fields that the OCI defines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Image {
    #[serde(skip_serializing_if = "is_default")]
    created: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    author: String,
    #[serde(flatten)]
    pub platform: FullPlatform,
    config: Config,
    rootfs: RootFs,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    history: Vec<History>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    #[serde(skip_serializing_if = "is_default")]
    user: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    exposed_ports: BTreeMap<String, Nothing>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    volumes: BTreeMap<String, Nothing>,
    #[serde(skip_serializing_if = "is_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    labels: Annotations,
    #[serde(skip_serializing_if = "is_default")]
    stop_signal: String,
    #[serde(skip_serializing_if = "is_default")]
    args_escaped: bool,
}

/// The value of a set's member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Nothing {}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct RootFs {
    r#type: String,
    diff_ids: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct History {
    #[serde(skip_serializing_if = "is_default")]
    created: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    created_by: String,
    #[serde(skip_serializing_if = "is_default")]
    author: String,
    #[serde(skip_serializing_if = "is_default")]
    comment: String,
    #[serde(skip_serializing_if = "is_default")]
    empty_layer: bool,
}

/// A statement of in-toto, of which only the predicate is shown.
#[derive(Debug, Deserialize)]
pub(super) struct Statement {
    #[serde(default)]
    pub predicate: Value,
}

/// A signed envelope around a statement.
#[derive(Debug, Deserialize)]
pub(super) struct Envelope {
    pub payload: String,
}

/// Reads an object that a registry has sent.
pub(super) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8], what: &str) -> Outcome<T> {
    serde_json::from_slice(bytes).map_err(|error| Failure::new(format!("invalid {what}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_written_as_by_go() {
        let text = r#"{"manifests":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2,"mediaType":"x",
            "platform":{"os":"windows","architecture":"amd64","os.version":"10"},"annotations":{"b":"<&>","a":"1"}}],"schemaVersion":2}"#;
        let index = Index::parse(text.as_bytes()).unwrap();
        let expected = r#"{
  "schemaVersion": 2,
  "manifests": [
    {
      "mediaType": "x",
      "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
      "size": 2,
      "annotations": {
        "a": "1",
        "b": "\u003c\u0026\u003e"
      },
      "platform": {
        "architecture": "amd64",
        "os": "windows",
        "os.version": "10"
      }
    }
  ]
}"#;
        assert_eq!(
            String::from_utf8(index.encode().unwrap()).unwrap(),
            expected
        );
        assert!(Index::parse(b"1").is_err());
        assert!(Index::parse(br#"{"manifests":null}"#).is_ok());
    }
}
