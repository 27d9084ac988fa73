//! Gets manifests from registries, and opens repositories to push lists to.

use std::path::{Path, PathBuf};

use whelk_image::descriptor::{Index, Manifest};
use whelk_image::{Digest, Reference};
use whelk_registry::{Client, Credentials, Document, Kind, Proxies, Repository, Settings, Version};

use super::list::{ImageManifest, ListedPlatform};
use crate::{Failure, Outcome, credentials};

/// Maximum size of an image's configuration in bytes.
const MAX_CONFIG: u64 = 8 << 20;
/// Maximum number of a list's manifests, and of the bytes that they have together: all are in memory.
const MAX_LISTED: usize = 500;
const MAX_LIST: usize = 64 << 20;

/// Access to registries with the user's credentials.
#[derive(Debug)]
pub(crate) struct Remote {
    config: PathBuf,
    /// Registries may be used without TLS, and with any certificate.
    is_insecure: bool,
}

/// A manifest or the manifests of a list, from a registry.
pub(super) enum Found {
    Manifest(Box<ImageManifest>),
    List(Vec<ImageManifest>),
}

impl Remote {
    pub(crate) fn new(config: &Path, is_insecure: bool) -> Self {
        Self {
            config: config.to_owned(),
            is_insecure,
        }
    }

    /// Returns a client with the settings for a registry. Certificates are those of Docker's client.
    fn client(&self, name: &Reference) -> Outcome<(std::sync::Arc<Client>, Credentials)> {
        let mut settings = Settings {
            proxies: Proxies::from_environment(|name| std::env::var(name).ok()),
            user_agent: concat!("whelk/", env!("CARGO_PKG_VERSION")).into(),
            ..Settings::default()
        };
        if self.is_insecure {
            let insecure = name.domain.parse().map_err(Failure::new)?;
            settings.insecure.push(insecure);
        }
        settings.check().map_err(failed)?;
        let header = credentials::header(Some(&self.config), &name.name())?;
        let credentials = Credentials::from_header(&header).map_err(|problem| {
            Failure::new(format!("credentials for {}: {problem}", name.domain))
        })?;
        Ok((Client::new(settings).map_err(failed)?, credentials))
    }

    /// Returns the repository of a name, to read from it.
    ///
    /// # Errors
    /// Returns an error if the user's credentials cannot be read.
    pub(crate) fn to_read(&self, name: &Reference) -> Outcome<Repository> {
        let (client, credentials) = self.client(name)?;
        client.pull(name, credentials).map_err(failed)
    }

    /// Returns the repository of a name, to write to it.
    ///
    /// # Errors
    /// Returns an error if the user's credentials cannot be read.
    pub(crate) fn to_write(&self, name: &Reference) -> Outcome<Repository> {
        let (client, credentials) = self.client(name)?;
        Ok(client.push(name, credentials))
    }

    /// Gets the manifest, or the manifests of the list, of a name.
    ///
    /// # Errors
    /// Returns an error if there is none, or if it cannot be read.
    pub(super) async fn get(&self, name: &Reference) -> Outcome<Found> {
        let repository = self.to_read(name)?;
        let named = document(&repository, name).await?;
        if !named.is_index() {
            let manifest = image(&repository, name, named, None).await?;
            return Ok(Found::Manifest(Box::new(manifest)));
        }
        let invalid = |problem: String| Failure::new(format!("{name}: {problem}"));
        let index = Index::parse(&named.bytes).map_err(|error| invalid(error.to_string()))?;
        let platforms = platforms(&named.bytes)?;
        if platforms.len() > MAX_LISTED {
            let count = platforms.len();
            return Err(invalid(format!(
                "a list of {count} manifests, more than {MAX_LISTED}"
            )));
        }
        let mut size = 0;
        let mut manifests = Vec::with_capacity(index.manifests.len());
        for (entry, platform) in index.manifests.into_iter().zip(platforms) {
            let listed = Reference {
                digest: Some(entry.digest),
                ..name.clone()
            };
            let manifest = document(&repository, &listed).await?;
            size += manifest.bytes.len();
            if size > MAX_LIST {
                let text = format!("its manifests have more than {MAX_LIST} bytes");
                return Err(invalid(text));
            }
            if manifest.is_index() {
                return Err(Failure::new(format!(
                    "unsupported manifest type: {listed} is another list"
                )));
            }
            manifests.push(image(&repository, &listed, manifest, Some(platform)).await?);
        }
        Ok(Found::List(manifests))
    }

    /// Gets the manifest of a name.
    ///
    /// # Errors
    /// Returns an error if it is a list, or if there is none.
    pub(super) async fn manifest(&self, name: &Reference) -> Outcome<ImageManifest> {
        match self.get(name).await? {
            Found::Manifest(manifest) => Ok(*manifest),
            Found::List(_) => Err(Failure::new(format!("{name} is a manifest list"))),
        }
    }
}

/// Returns the platforms of an index's entries, with the fields that only lists have.
fn platforms(index: &[u8]) -> Outcome<Vec<ListedPlatform>> {
    #[derive(serde::Deserialize)]
    struct Platforms {
        manifests: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        platform: Option<ListedPlatform>,
    }
    let Platforms { manifests } = serde_json::from_slice(index)
        .map_err(|error| Failure::new(format!("invalid index: {error}")))?;
    let platforms = manifests.into_iter();
    Ok(platforms
        .map(|entry| entry.platform.unwrap_or_default())
        .collect())
}

/// Returns what a name stands for in its repository.
pub(crate) fn version(name: &Reference) -> Version {
    match (&name.digest, &name.tag) {
        (Some(digest), _) => Version::Digest(digest.clone()),
        (None, tag) => Version::Tag(tag.clone().unwrap_or_default()),
    }
}

async fn document(repository: &Repository, name: &Reference) -> Outcome<Document> {
    repository.manifest(&version(name)).await.map_err(|error| {
        // Registries may say the same of a repository that the user may not read as of one that does
        // not exist.
        match error.kind() {
            Kind::NotFound => Failure::new(format!("no such manifest: {name}")),
            Kind::Unauthorized | Kind::Denied => {
                Failure::new(format!("no such manifest: {name}: {error}"))
            }
            _ => Failure::new(format!("{name}: {error}")),
        }
    })
}

/// Gets an image's manifest. Without `platform`, the platform is read from the configuration.
async fn image(
    repository: &Repository,
    name: &Reference,
    document: Document,
    platform: Option<ListedPlatform>,
) -> Outcome<ImageManifest> {
    let platform = match platform {
        Some(platform) => platform,
        None => configured(repository, name, &document.bytes).await?,
    };
    ImageManifest::new(name, document, Some(platform))
}

/// Returns the platform in an image's configuration.
async fn configured(
    repository: &Repository,
    name: &Reference,
    manifest: &[u8],
) -> Outcome<ListedPlatform> {
    let invalid = |problem: String| Failure::new(format!("{name}: {problem}"));
    let manifest = Manifest::parse(manifest).map_err(|error| invalid(error.to_string()))?;
    let config = manifest.config;
    if config.size > MAX_CONFIG {
        return Err(invalid(format!(
            "a configuration of {} bytes is larger than {MAX_CONFIG}",
            config.size
        )));
    }
    let content = blob(repository, &config.digest, config.size).await?;
    let content = content.ok_or_else(|| {
        Failure::new(format!(
            "image config verification failed for digest {}",
            config.digest
        ))
    })?;
    serde_json::from_slice(&content)
        .map_err(|error| invalid(format!("invalid configuration: {error}")))
}

/// Gets a small blob; `None` if its content has another digest.
pub(crate) async fn blob(
    repository: &Repository,
    digest: &Digest,
    size: u64,
) -> Outcome<Option<Vec<u8>>> {
    let mut blob = repository.blob(digest, size, 0);
    let mut content = Vec::new();
    while let Some(piece) = blob.next(|_| {}).await.map_err(failed)? {
        content.extend_from_slice(&piece);
    }
    Ok(digest.is_of(&content).then_some(content))
}

/// Returns the failure of a request to a registry.
pub(crate) fn failed(error: whelk_registry::Error) -> Failure {
    Failure::new(error.to_string())
}
