//! Manifests of images in the format of Docker's client, and manifest lists.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use whelk_image::descriptor::{
    DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, INDEX, MANIFEST, SCHEMA_VERSION,
};
use whelk_image::{Digest, Reference};
use whelk_registry::Document;

use crate::{Failure, Outcome};

/// A manifest of an image, in the format of the files of local lists and of `inspect --verbose`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ImageManifest {
    /// The image's full name.
    #[serde(rename = "Ref")]
    pub(super) reference: String,
    pub(super) descriptor: Descriptor,
    /// The manifest as the registry has it.
    #[serde(
        default,
        serialize_with = "to_base64",
        deserialize_with = "from_base64",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(super) raw: Vec<u8>,
    /// The manifest, if it is one of Docker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schema_v2_manifest: Option<Value>,
    /// The manifest, if it is one of the OCI's.
    #[serde(
        rename = "OCIManifest",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    oci_manifest: Option<Value>,
}

/// A manifest's descriptor in a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    /// In bytes.
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<ListedPlatform>,
}

/// A platform, with the fields that only lists have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ListedPlatform {
    pub(super) architecture: String,
    pub(super) os: String,
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub(super) os_version: String,
    #[serde(rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub(super) os_features: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) variant: String,
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    STANDARD.encode(bytes).serialize(serializer)
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

impl ImageManifest {
    /// Returns the manifest that a registry has sent.
    ///
    /// # Errors
    /// Returns an error if it is not JSON.
    pub(super) fn new(
        reference: &Reference,
        document: Document,
        platform: Option<ListedPlatform>,
    ) -> Outcome<Self> {
        let Document {
            digest,
            media_type,
            bytes: raw,
        } = document;
        let content: Value = serde_json::from_slice(&raw)
            .map_err(|error| Failure::new(format!("{reference}: invalid manifest: {error}")))?;
        let is_docker = media_type == DOCKER_MANIFEST;
        let (schema_v2_manifest, oci_manifest) = if is_docker {
            (Some(content), None)
        } else {
            (None, Some(content))
        };
        Ok(Self {
            reference: reference.to_string(),
            descriptor: Descriptor {
                media_type,
                digest,
                size: raw.len() as u64,
                platform,
            },
            raw,
            schema_v2_manifest,
            oci_manifest,
        })
    }

    /// Returns the manifest's JSON.
    ///
    /// # Errors
    /// Returns an error if the file that it was read from lacks it.
    pub(super) fn content(&self) -> Outcome<&Value> {
        let content = self
            .schema_v2_manifest
            .as_ref()
            .or(self.oci_manifest.as_ref());
        content.ok_or_else(|| Failure::new(format!("{} has no payload", self.reference)))
    }

    /// Returns the manifest's original bytes, whose digest is in the descriptor.
    ///
    /// # Errors
    /// Returns an error if they were changed, or if they are missing: very old clients did not store them.
    pub(super) fn bytes(&self) -> Outcome<&[u8]> {
        let expected = &self.descriptor.digest;
        if expected.is_of(&self.raw) {
            Ok(&self.raw)
        } else {
            let found = expected.algorithm().digest(&self.raw);
            Err(Failure::new(format!(
                "internal digest mismatch for {}: expected {expected}, got {found}",
                self.reference
            )))
        }
    }

    /// Returns the image's name.
    ///
    /// # Errors
    /// Returns an error if it is not valid.
    pub(super) fn source(&self) -> Outcome<Reference> {
        super::reference(&self.reference)
    }
}

/// A manifest list or an index, in the format that Docker's client pushes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    schema_version: u32,
    media_type: &'a str,
    manifests: Vec<Entry<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    media_type: &'a str,
    size: u64,
    digest: &'a Digest,
    platform: ListedPlatform,
}

/// Returns the media type and the bytes of the list of these manifests for the repository of `target`.
/// It is an index if the first manifest is one of the OCI's, and else Docker's list.
///
/// # Errors
/// Returns an error if a manifest is that of another registry.
pub(super) fn list(
    manifests: &[ImageManifest],
    target: &Reference,
) -> Outcome<(&'static str, String)> {
    let mut entries = Vec::with_capacity(manifests.len());
    for manifest in manifests {
        let domain = manifest.source()?.domain;
        if domain != target.domain {
            return Err(Failure::new(format!(
                "failed to assemble ManifestDescriptor: cannot use source images from a different registry than the target image: {domain} != {}",
                target.domain
            )));
        }
        let descriptor = &manifest.descriptor;
        entries.push(Entry {
            media_type: &descriptor.media_type,
            size: descriptor.size,
            digest: &descriptor.digest,
            platform: descriptor.platform.clone().unwrap_or_default(),
        });
    }
    let is_oci = entries
        .first()
        .is_some_and(|entry| entry.media_type == MANIFEST);
    let media_type = if is_oci { INDEX } else { DOCKER_MANIFEST_LIST };
    let list = List {
        schema_version: SCHEMA_VERSION,
        media_type,
        manifests: entries,
    };
    Ok((media_type, indented(&list, "   ")?))
}

/// Encodes a value as indented JSON.
pub(crate) fn indented<T: Serialize + ?Sized>(value: &T, indent: &str) -> Outcome<String> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value
        .serialize(&mut serializer)
        .map_err(|error| Failure::new(format!("encode JSON: {error}")))?;
    String::from_utf8(out).map_err(|error| Failure::new(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest of Docker's for linux/amd64.
    fn manifest(name: &str, media_type: &str) -> ImageManifest {
        let raw = br#"{"schemaVersion": 2, "config": {"size": 1520}, "layers": []}"#;
        let platform = ListedPlatform {
            architecture: "amd64".into(),
            os: "linux".into(),
            ..ListedPlatform::default()
        };
        let reference = name.parse().unwrap();
        let document = Document {
            digest: Digest::of(raw),
            media_type: media_type.into(),
            bytes: raw.to_vec(),
        };
        ImageManifest::new(&reference, document, Some(platform)).unwrap()
    }

    #[test]
    fn a_list_is_encoded_as_dockers() {
        let target: Reference = "example.com/list:1".parse().unwrap();
        let one = manifest("example.com/app:1", DOCKER_MANIFEST);
        let (media_type, text) = list(std::slice::from_ref(&one), &target).unwrap();
        assert_eq!(media_type, DOCKER_MANIFEST_LIST);
        let expected = format!(
            "{{
   \"schemaVersion\": 2,
   \"mediaType\": \"{DOCKER_MANIFEST_LIST}\",
   \"manifests\": [
      {{
         \"mediaType\": \"{DOCKER_MANIFEST}\",
         \"size\": 60,
         \"digest\": \"{}\",
         \"platform\": {{
            \"architecture\": \"amd64\",
            \"os\": \"linux\"
         }}
      }}
   ]
}}",
            one.descriptor.digest
        );
        assert_eq!(text, expected);
        let oci = manifest("example.com/app:2", MANIFEST);
        assert_eq!(list(&[oci, one.clone()], &target).unwrap().0, INDEX);
        let other = "example.org/list:1".parse().unwrap();
        let error = list(&[one], &other).unwrap_err().text;
        assert!(error.ends_with("example.com != example.org"), "{error}");
    }

    #[test]
    fn a_manifest_is_kept_with_its_bytes() {
        let one = manifest("app:1", DOCKER_MANIFEST);
        let text = serde_json::to_string(&one).unwrap();
        assert!(
            text.starts_with(r#"{"Ref":"docker.io/library/app:1","Descriptor":{"mediaType":"#)
                && text.contains(r#""SchemaV2Manifest":{"schemaVersion":2"#),
            "{text}"
        );
        let mut read: ImageManifest = serde_json::from_str(&text).unwrap();
        assert_eq!(read.bytes().unwrap(), one.raw);
        read.raw.push(b' ');
        assert!(
            read.bytes()
                .unwrap_err()
                .text
                .starts_with("internal digest mismatch")
        );
    }
}
