//! Checks the signatures of an image before it is downloaded.

use std::collections::BTreeSet;

use whelk_image::descriptor::Manifest;
use whelk_image::reference::check_tag;
use whelk_image::{Digest, Reference};
use whelk_registry::{Error as RegistryError, Kind, Repository, Version};
use whelk_trust::{PAYLOAD, Policy, SIGNATURE, Signature, decode_signature};

use super::Remote;
use crate::error::{Error, Result};
use crate::images::refusals;

/// Maximum number of signatures of an image that are considered.
const MAX_SIGNATURES: usize = 64;
/// Maximum size of a signature's payload in bytes.
const MAX_PAYLOAD: u64 = 64 << 10;
/// Type of the artifacts with signatures that cosign attaches as referrers.
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// Checks that an image meets all policies.
///
/// # Errors
/// Returns [`Error::Denied`] if it does not, or the registry's error.
pub(super) async fn verify<'a>(
    repository: &Repository,
    reference: &Reference,
    remote: &Remote,
    policies: impl IntoIterator<Item = &'a Policy>,
) -> Result<()> {
    let during =
        |error: Error| error.prefixed(&format!("pull {}: signatures", reference.familiar()));
    let digests = remote.digests();
    let mut fetched = None;
    for policy in policies {
        if policy.needs_signatures(reference) && fetched.is_none() {
            fetched = Some(signatures(repository, &digests).await.map_err(during)?);
        }
        policy
            .check(reference, &digests, fetched.as_deref().unwrap_or_default())
            .map_err(|error| Error::Denied(format!("pull {}: {error}", reference.familiar())))?;
    }
    Ok(())
}

impl Remote {
    /// Returns the digests by which the image was found: of its manifest and of its indexes.
    fn digests(&self) -> Vec<Digest> {
        let all = [Some(&self.named), self.index.as_ref(), Some(&self.document)];
        let unique: BTreeSet<_> = all
            .into_iter()
            .flatten()
            .map(|found| &found.digest)
            .collect();
        unique.into_iter().cloned().collect()
    }
}

/// Fetches the signatures of manifests: from the tag `sha256-DIGEST.sig` and from the referrers.
async fn signatures(repository: &Repository, digests: &[Digest]) -> Result<Vec<Signature>> {
    let mut signatures = Vec::new();
    for digest in digests {
        // Too long for a tag with SHA-512, for which there are only referrers.
        let tag = format!("{}.sig", digest.as_str().replace(':', "-"));
        let tag = Some(tag).filter(|tag| check_tag(tag).is_ok());
        let referrers = repository
            .referrers(digest, ARTIFACT, MAX_SIGNATURES)
            .await
            .map_err(refusals::of_blob)?;
        let versions = tag
            .into_iter()
            .map(Version::Tag)
            .chain(referrers.into_iter().map(Version::Digest));
        for version in versions {
            if signatures.len() >= MAX_SIGNATURES {
                break;
            }
            match repository.manifest(&version).await {
                Ok(document) if !document.is_index() => {
                    let manifest = Manifest::parse(&document.bytes)?;
                    collect(repository, &manifest, &mut signatures).await?;
                }
                Ok(_) => {}
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(refusals::of_blob(error)),
            }
        }
    }
    Ok(signatures)
}

/// Adds the signatures in an artifact's manifest.
async fn collect(
    repository: &Repository,
    manifest: &Manifest,
    signatures: &mut Vec<Signature>,
) -> Result<()> {
    for layer in &manifest.layers {
        let signature = layer
            .annotations
            .get(SIGNATURE)
            .and_then(|text| decode_signature(text));
        let Some(signature) = signature else {
            continue;
        };
        if layer.media_type != PAYLOAD
            || layer.size > MAX_PAYLOAD
            || signatures.len() >= MAX_SIGNATURES
        {
            continue;
        }
        let payload = payload(repository, &layer.digest, layer.size)
            .await
            .map_err(refusals::of_blob)?;
        if !layer.digest.is_of(&payload) {
            return Err(Error::invalid(format!(
                "the content of blob {} does not have this digest",
                layer.digest
            )));
        }
        signatures.push(Signature { payload, signature });
    }
    Ok(())
}

async fn payload(
    repository: &Repository,
    digest: &Digest,
    size: u64,
) -> std::result::Result<Vec<u8>, RegistryError> {
    let mut blob = repository.blob(digest, size, 0);
    let mut content = Vec::new();
    while let Some(piece) = blob.next(|_| {}).await? {
        content.extend_from_slice(&piece);
    }
    Ok(content)
}
