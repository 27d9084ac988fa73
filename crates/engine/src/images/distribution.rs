//! Inspects an image in a registry without pulling it (`GET /distribution/{name}/json`).

use whelk_image::content::MAX_CONFIG_SIZE;
use whelk_image::descriptor::{Index, Manifest};
use whelk_image::{Digest, Platform, Reference};
use whelk_registry::{Credentials, Repository};

use super::pull::version;
use super::{Images, refusals};
use crate::error::Result;

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Of the manifest or index that the reference names.
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    pub platforms: Vec<Platform>,
}

impl Images {
    /// Gets the descriptor and the platforms of an image from its registry.
    ///
    /// # Errors
    /// Returns an error if the registry does not have it, or if the request fails.
    pub async fn distribution(
        &self,
        reference: &Reference,
        credentials: Credentials,
    ) -> Result<Distribution> {
        let client = self.downloads.client();
        let repository = client
            .pull(reference, credentials)
            .map_err(refusals::of_request)?;
        let document = repository
            .manifest(&version(reference)?)
            .await
            .map_err(refusals::of_request)?;
        let platforms = if document.is_index() {
            let index = Index::parse(&document.bytes)?;
            let entries = index.manifests.into_iter();
            entries.filter_map(|entry| entry.platform).collect()
        } else {
            let manifest = Manifest::parse(&document.bytes)?;
            Vec::from_iter(platform_of(&repository, &manifest).await)
        };
        Ok(Distribution {
            media_type: document.media_type,
            digest: document.digest,
            size: document.bytes.len() as u64,
            platforms,
        })
    }
}

/// Returns the platform in an image's configuration; `None` if the configuration cannot be read, or if
/// it is not that of an image.
async fn platform_of(repository: &Repository, manifest: &Manifest) -> Option<Platform> {
    let config = &manifest.config;
    if config.size > MAX_CONFIG_SIZE {
        return None;
    }
    let mut blob = repository.blob(&config.digest, config.size, 0);
    let mut content = Vec::new();
    loop {
        match blob.next(|_| {}).await {
            Ok(Some(piece)) => content.extend_from_slice(&piece),
            Ok(None) => break,
            Err(error) => {
                tracing::debug!("configuration {}: {error}", config.digest);
                return None;
            }
        }
    }
    if !config.digest.is_of(&content) {
        return None;
    }
    let platform: Platform = serde_json::from_slice(&content).ok()?;
    Some(platform).filter(|found| !found.os.is_empty() || !found.architecture.is_empty())
}
