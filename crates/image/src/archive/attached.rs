//! Attestations as BuildKit stores them: a manifest beside that of the image in an index, whose layers are in-toto
//! statements about the image.

use std::collections::BTreeMap;

use serde::Serialize;

use super::save::encode;
use crate::descriptor::{CONFIG, Descriptor, Index, MANIFEST, Manifest};
use crate::digest::Digest;
use crate::error::Result;
use crate::platform::Platform;

/// The media type of an in-toto statement.
const STATEMENT: &str = "application/vnd.in-toto+json";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// Of a manifest that is an artifact of OCI.
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// `{}`.
const EMPTY_DATA: &str = "e30=";
const UNKNOWN: &str = "unknown";

/// The manifest of attestations, with its blobs.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The entry of the index.
    pub manifest: Descriptor,
    /// What the manifest refers to, and then the manifest.
    pub blobs: Vec<(Descriptor, Vec<u8>)>,
}

#[derive(Serialize)]
struct Config {
    architecture: &'static str,
    os: &'static str,
    config: BTreeMap<String, String>,
    rootfs: RootFs,
}

#[derive(Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: Vec<Digest>,
}

/// A manifest that says what it is about.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Artifact<'a> {
    schema_version: u32,
    media_type: &'a str,
    artifact_type: &'static str,
    config: Empty<'a>,
    layers: &'a [Descriptor],
    subject: Descriptor,
}

/// The configuration of an artifact, with its content, as OCI's specification has it.
#[derive(Serialize)]
struct Empty<'a> {
    #[serde(flatten)]
    descriptor: &'a Descriptor,
    /// In base64.
    data: &'static str,
}

/// Makes the manifest of statements about the image that `target` refers to. Each has the type of its predicate before it. With
/// `is_artifact` the manifest is an artifact of OCI that refers to the image.
///
/// # Errors
/// Returns an error if it cannot be encoded.
pub fn attach(
    target: &Descriptor,
    statements: Vec<(String, Vec<u8>)>,
    is_artifact: bool,
) -> Result<Attached> {
    let mut blobs: Vec<(Descriptor, Vec<u8>)> = Vec::new();
    for (kind, bytes) in statements {
        let digest = Digest::of(&bytes);
        let mut descriptor = Descriptor::new(STATEMENT, digest, bytes.len() as u64);
        descriptor.annotations.insert(PREDICATE_TYPE.into(), kind);
        blobs.push((descriptor, bytes));
    }
    let layers: Vec<Descriptor> = blobs.iter().map(|(layer, _)| layer.clone()).collect();
    let (kind, config) = match is_artifact {
        true => (EMPTY, b"{}".to_vec()),
        false => {
            let config = Config {
                architecture: UNKNOWN,
                os: UNKNOWN,
                config: BTreeMap::new(),
                rootfs: RootFs {
                    kind: "layers",
                    diff_ids: layers.iter().map(|layer| layer.digest.clone()).collect(),
                },
            };
            (CONFIG, encode(&config)?)
        }
    };
    let descriptor = Descriptor::new(kind, Digest::of(&config), config.len() as u64);
    let manifest = Manifest::new(descriptor.clone(), layers);
    blobs.push((descriptor, config));
    let bytes = match is_artifact {
        true => encode(&Artifact {
            schema_version: 2,
            media_type: manifest.kind(),
            artifact_type: ARTIFACT,
            config: Empty {
                descriptor: &manifest.config,
                data: EMPTY_DATA,
            },
            layers: &manifest.layers,
            subject: Descriptor::new(&target.media_type, target.digest.clone(), target.size),
        })?,
        false => encode(&manifest)?,
    };
    let mut entry = Descriptor::new(MANIFEST, Digest::of(&bytes), bytes.len() as u64);
    blobs.push((entry.clone(), bytes));
    entry.annotations = BTreeMap::from([
        (REFERENCE_TYPE.to_owned(), "attestation-manifest".to_owned()),
        (REFERENCE_DIGEST.into(), target.digest.to_string()),
    ]);
    entry.platform = Some(Platform {
        architecture: UNKNOWN.into(),
        os: UNKNOWN.into(),
        variant: String::new(),
    });
    Ok(Attached {
        manifest: entry,
        blobs,
    })
}

/// An index with annotations.
#[derive(Serialize)]
struct Annotated<'a> {
    #[serde(flatten)]
    index: &'a Index,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

/// Returns the bytes of an index with these entries.
///
/// # Errors
/// Returns an error if it cannot be encoded.
pub fn index(
    entries: Vec<Descriptor>,
    annotations: &BTreeMap<String, String>,
    media_type: &str,
) -> Result<Vec<u8>> {
    let mut index = Index::new(entries);
    index.media_type = media_type.to_owned();
    encode(&Annotated {
        index: &index,
        annotations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Descriptor {
        Descriptor::new(MANIFEST, Digest::of(b"image"), 5)
    }

    #[test]
    fn statements_are_layers_of_a_manifest_about_the_image() {
        let statement = ("https://slsa.dev/provenance/v1".to_owned(), b"{}".to_vec());
        let attached = attach(&target(), vec![statement], false).unwrap();
        let about = &attached.manifest.annotations[REFERENCE_DIGEST];
        assert_eq!(*about, target().digest.to_string());
        let platform = attached.manifest.platform.clone().unwrap_or_default();
        assert_eq!(platform.to_string(), "unknown/unknown");
        let (own, bytes) = attached.blobs.last().unwrap();
        assert_eq!(own.digest, attached.manifest.digest);
        let manifest = Manifest::parse(bytes).unwrap();
        assert_eq!(manifest.layers[0].digest, Digest::of(b"{}"));
        assert_eq!(manifest.config.digest, attached.blobs[1].0.digest);
        let config: serde_json::Value = serde_json::from_slice(&attached.blobs[1].1).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], Digest::of(b"{}").as_str());
    }

    #[test]
    fn artifacts_refer_to_the_image() {
        let attached = attach(&target(), Vec::new(), true).unwrap();
        let (_, bytes) = attached.blobs.last().unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        assert_eq!(manifest["subject"]["digest"], target().digest.as_str());
        assert_eq!(manifest["artifactType"], ARTIFACT);
        assert_eq!(manifest["config"]["mediaType"], EMPTY);
        assert_eq!(manifest["config"]["data"], EMPTY_DATA);
        assert_eq!(manifest["mediaType"], MANIFEST);
        assert!(Manifest::parse(bytes).is_ok());
    }
}
