//! Cosign's signatures: a payload in the "simple signing" format, and a signature of its bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use whelk_image::{Digest, Reference};

/// Media type of the blobs with payloads.
pub const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation of a payload's descriptor with the signature in base64.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// Values of `critical.type` that cosign has used.
const TYPES: [&str; 2] = [
    "cosign container image signature",
    "https://sigstore.dev/cosign/sign/v1",
];

/// A signature as stored beside an image. Nothing of it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The signed bytes.
    pub payload: Vec<u8>,
    /// In the key's own format: DER for ECDSA.
    pub signature: Vec<u8>,
}

/// Decodes the value of the annotation [`SIGNATURE`].
pub fn decode_signature(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text.trim()).ok()
}

/// What a payload claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) digest: Digest,
    /// The name that was signed: a repository, or with a tag.
    pub(crate) reference: Reference,
}

impl Claim {
    /// Parses a payload. Called only after its signature has been verified.
    ///
    /// # Errors
    /// Returns the problem.
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Payload {
            critical: Critical,
        }
        #[derive(Deserialize)]
        struct Critical {
            #[serde(rename = "type")]
            kind: String,
            image: Image,
            identity: Named,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Image {
            docker_manifest_digest: Digest,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Named {
            docker_reference: String,
        }
        let Payload { critical } = serde_json::from_slice(payload)
            .map_err(|error| format!("its payload is invalid: {error}"))?;
        if !TYPES.contains(&critical.kind.as_str()) {
            return Err(format!(
                "its payload is a {:?}, not an image's signature",
                critical.kind
            ));
        }
        let name = critical.identity.docker_reference;
        Ok(Self {
            digest: critical.image.docker_manifest_digest,
            reference: name
                .parse()
                .map_err(|error| format!("it is for {name:?}: {error}"))?,
        })
    }
}
