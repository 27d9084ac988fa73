//! A cache of another registry, which is called upstream here: what the registry does not have is
//! fetched from there when a client asks for it, and kept.
//!
//! What has a digest cannot change, so it is served without asking upstream. What a tag names is asked
//! for each time, with `HEAD`; if upstream does not answer, or refuses because there were too many
//! requests, the tag names what it named last. Whoever may use the cache gets what the credentials for
//! upstream give access to.

mod download;
mod link;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use whelk_image::{Digest, Reference};
use whelk_registry::{Client, Credentials, Insecure, Listing, Settings};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::manifests::Stored;
use crate::names::{Repository, Version};
use crate::records::Registry;

use download::Downloads;
pub(crate) use download::Fetched;

/// How long upstream may take to say what a tag names that the cache knows.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long upstream is not asked for such tags after it has failed.
const REST: Duration = Duration::from_secs(10);
/// Maximum size of the file with credentials in bytes.
const MAX_FILE: u64 = 64 << 10;
/// How many times in a row a transfer may fail.
const ATTEMPTS: u32 = 3;
/// The names of Docker Hub's servers, and the one in references.
const HUB: [&str; 3] = ["registry-1.docker.io", "index.docker.io", "docker.io"];

/// Another registry, of which this one is a cache.
pub struct Upstream {
    /// With the name in references.
    url: String,
    /// The registry as it is named in references.
    domain: String,
    client: Arc<Client>,
    credentials: Mutex<Credentials>,
    credentials_file: Option<PathBuf>,
    pub(crate) downloads: Downloads,
    /// Until when upstream is not asked for tags that the cache knows.
    rests_until: Mutex<Option<Instant>>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstream({})", self.url)
    }
}

impl Upstream {
    /// Returns the registry at `url` (`https://HOST[:PORT]`, or `http://`), used with the user and the
    /// password in a file, if there is one.
    ///
    /// # Errors
    /// Returns an error if the URL or the file is not valid.
    pub fn new(
        url: &str,
        credentials_file: Option<PathBuf>,
        settings: Settings,
    ) -> std::result::Result<Self, String> {
        let shown = without_credentials(url);
        let want = || format!("{shown:?}: want https://HOST[:PORT] or http://HOST[:PORT]");
        let (scheme, host) = url.split_once("://").ok_or_else(want)?;
        let host = host.trim_end_matches('/').to_ascii_lowercase();
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_host) {
            return Err(want());
        }
        let mut settings = Settings {
            attempts: ATTEMPTS,
            ..settings
        };
        match scheme {
            "https" => {}
            "http" if credentials_file.is_some() && !is_loopback(&host) => {
                return Err(format!(
                    "{shown}: the password would be sent unencrypted; use https://"
                ));
            }
            "http" => settings.insecure.push(Insecure::Host(host.clone())),
            _ => return Err(want()),
        }
        let domain = match HUB.contains(&host.as_str()) {
            true => "docker.io".to_owned(),
            false => host,
        };
        let credentials = credentials_file.as_deref().map(read_credentials);
        Ok(Self {
            url: format!("{scheme}://{domain}"),
            domain,
            client: Client::new(settings).map_err(|error| error.to_string())?,
            credentials: Mutex::new(credentials.transpose()?.unwrap_or_default()),
            credentials_file,
            downloads: Downloads::default(),
            rests_until: Mutex::default(),
        })
    }

    /// Returns the registry's URL. It is the same for all names of Docker Hub.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Reads the file with credentials again.
    ///
    /// # Errors
    /// Returns an error if it is not valid; what was read before stays in use.
    pub fn reload(&self) -> std::result::Result<(), String> {
        if let Some(file) = &self.credentials_file {
            *self.credentials.lock().ignore_poison() = read_credentials(file)?;
        }
        Ok(())
    }

    /// Returns the error of a request that would change the cache.
    pub(crate) fn read_only(&self) -> Error {
        let text = format!("this registry is a cache of {}; push there", self.url);
        Kind::UnsupportedMethod.error(text)
    }

    fn remote(&self, repository: &Repository) -> Result<whelk_registry::Repository> {
        let reference = Reference {
            domain: self.domain.clone(),
            path: repository.as_str().to_owned(),
            tag: None,
            digest: None,
        };
        let credentials = self.credentials.lock().ignore_poison().clone();
        let remote = self.client.pull(&reference, credentials);
        remote.map_err(|error| Kind::Internal.error(error.to_string()))
    }

    /// Returns a manifest, from the cache if it is there and current.
    pub(crate) async fn manifest(
        &self,
        registry: &Arc<Registry>,
        repository: &Repository,
        version: &Version,
    ) -> Result<Stored> {
        let cached = cached(registry, repository, version).await?;
        let (tag, cached) = match (version, cached) {
            (Version::Digest(_), Some(cached)) => return Ok(cached),
            (Version::Digest(digest), None) => {
                let wanted = whelk_registry::Version::Digest(digest.clone());
                return self.fetch(registry, repository, None, &wanted).await;
            }
            (Version::Tag(tag), None) => {
                let current = self.current(registry, repository, tag, None).await?;
                return current.ok_or_else(|| Kind::ManifestUnknown.error("no such tag"));
            }
            (Version::Tag(tag), Some(cached)) => (tag, cached),
        };
        if self.rests() {
            return Ok(cached);
        }
        let current = self.current(registry, repository, tag, Some(&cached.digest));
        let current = tokio::time::timeout(PATIENCE, current).await;
        let late = || Err(Kind::Unavailable.error("no answer in time"));
        match current.unwrap_or_else(|_| late()) {
            Ok(newer) => Ok(newer.unwrap_or(cached)),
            // A proxy in between, or a failing server, may answer anything.
            Err(error) if error.kind == Kind::BadUpstream => {
                tracing::warn!("{repository}:{tag} is served from the cache: {error}");
                Ok(cached)
            }
            Err(error) if error.is_outage() => {
                tracing::warn!("{repository}:{tag} is served from the cache: {error}");
                *self.rests_until.lock().ignore_poison() = Some(Instant::now() + REST);
                Ok(cached)
            }
            Err(error) if error.kind == Kind::ManifestUnknown => {
                let (registry, name) = (registry.clone(), repository.clone());
                let version = version.clone();
                match blocking(move || registry.delete_manifest(&name, &version)).await {
                    Err(failure) if failure.kind != Kind::ManifestUnknown => Err(failure),
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Asks upstream again from now on.
    #[cfg(test)]
    pub(crate) fn wake(&self) {
        *self.rests_until.lock().ignore_poison() = None;
    }

    fn rests(&self) -> bool {
        let until = *self.rests_until.lock().ignore_poison();
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Asks upstream what a tag names, and brings that into the cache. `None` if it is `known`.
    async fn current(
        &self,
        registry: &Arc<Registry>,
        repository: &Repository,
        tag: &str,
        known: Option<&Digest>,
    ) -> Result<Option<Stored>> {
        let by_tag = whelk_registry::Version::Tag(tag.to_owned());
        let digest = self.remote(repository)?.digest(&by_tag).await;
        let digest = digest.map_err(|error| failed(error, Kind::ManifestUnknown))?;
        if digest.is_some() && digest.as_ref() == known {
            return Ok(None);
        }
        if let Some(digest) = &digest {
            let found = cached(registry, repository, &Version::Digest(digest.clone())).await?;
            if let Some(found) = found {
                let (registry, name, tag) = (registry.clone(), repository.clone(), tag.to_owned());
                return blocking(move || registry.keep_manifest(&name, Some(&tag), found))
                    .await
                    .map(Some);
            }
        }
        let wanted = digest.map_or(by_tag, whelk_registry::Version::Digest);
        self.fetch(registry, repository, Some(tag), &wanted)
            .await
            .map(Some)
    }

    /// Brings a manifest into the cache, also under a tag.
    async fn fetch(
        &self,
        registry: &Arc<Registry>,
        repository: &Repository,
        tag: Option<&str>,
        wanted: &whelk_registry::Version,
    ) -> Result<Stored> {
        let document = self.remote(repository)?.manifest(wanted).await;
        let document = document.map_err(|error| failed(error, Kind::ManifestUnknown))?;
        let stored = Stored {
            digest: document.digest,
            media_type: document.media_type,
            content: document.bytes,
        };
        let (registry, name) = (registry.clone(), repository.clone());
        let tag = tag.map(str::to_owned);
        let kept = blocking(move || registry.keep_manifest(&name, tag.as_deref(), stored)).await;
        // The client's request was valid.
        kept.map_err(|error| match error.kind {
            Kind::ManifestInvalid => Kind::BadUpstream.error(format!("upstream: {error}")),
            _ => error,
        })
    }

    /// Returns the size of a blob.
    pub(crate) async fn blob_size(
        &self,
        registry: &Arc<Registry>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<u64> {
        let (own, name, wanted) = (registry.clone(), repository.clone(), digest.clone());
        match blocking(move || own.claim_blob(&name, &wanted)).await {
            Err(error) if error.kind == Kind::BlobUnknown => {
                let remote = self.remote(repository)?;
                remote_size(&remote, digest).await
            }
            size => size,
        }
    }

    /// Returns a blob of the cache, or one that is being brought there.
    pub(crate) async fn blob(
        &self,
        registry: &Arc<Registry>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Fetched> {
        let (own, name, wanted) = (registry.clone(), repository.clone(), digest.clone());
        let opened = blocking(move || {
            own.claim_blob(&name, &wanted)?;
            own.open_blob(&name, &wanted)
        });
        match opened.await {
            Ok((file, size)) => return Ok(Fetched::Stored(file, size)),
            Err(error) if error.kind == Kind::BlobUnknown => {}
            Err(error) => return Err(error),
        }
        // Also if another repository has it here: who may not see it upstream must not see it here.
        let remote = self.remote(repository)?;
        let size = remote_size(&remote, digest).await?;
        self.downloads
            .join(registry, repository, digest, size, &remote)
            .await
    }

    /// Gets a list, such as of tags, as upstream has it.
    pub(crate) async fn listing(
        &self,
        repository: &Repository,
        path: &str,
        unknown: Kind,
    ) -> Result<Listing> {
        let listing = self.remote(repository)?.listing(path).await;
        let mut listing = listing.map_err(|error| failed(error, unknown))?;
        if let Some(link) = &listing.link {
            let path = path.split('?').next().unwrap_or_default();
            let resolved = link::resolve(link, &format!("/v2/{repository}/{path}"));
            let refuse = || Kind::BadUpstream.error("upstream: the list's next page is elsewhere");
            listing.link = Some(resolved.ok_or_else(refuse)?);
        }
        Ok(listing)
    }
}

/// Returns a URL as it may be printed.
fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://xxxxx@{rest}"),
        (None, Some((_, rest))) => format!("xxxxx@{rest}"),
        (_, None) => url.to_owned(),
    }
}

/// Returns whether `HOST[:PORT]` is on this host.
fn is_loopback(host: &str) -> bool {
    let address = host.parse().map(|address: SocketAddr| address.ip());
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match address.or_else(|_| bare.parse::<IpAddr>()) {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host == "localhost" || host.starts_with("localhost:"),
    }
}

async fn remote_size(remote: &whelk_registry::Repository, digest: &Digest) -> Result<u64> {
    let size = remote.blob_size(digest).await;
    let size = size.map_err(|error| failed(error, Kind::BlobUnknown))?;
    size.ok_or_else(|| Kind::BlobUnknown.error(format!("blob {digest} is not in the repository")))
}

/// Returns a manifest that the cache has, and notes that it was asked for.
async fn cached(
    registry: &Arc<Registry>,
    repository: &Repository,
    version: &Version,
) -> Result<Option<Stored>> {
    let (registry, repository, version) = (registry.clone(), repository.clone(), version.clone());
    blocking(move || match registry.get_manifest(&repository, &version) {
        Ok(found) => {
            registry.touch_manifest(&repository, &found.digest)?;
            Ok(Some(found))
        }
        Err(error) if error.kind == Kind::ManifestUnknown => Ok(None),
        // It can be fetched again.
        Err(error) => {
            tracing::warn!("manifest of {repository}: {error}");
            Ok(None)
        }
    })
    .await
}

/// Returns an error of upstream as one of this registry. `unknown` is that of what does not exist.
fn failed(error: whelk_registry::Error, unknown: Kind) -> Error {
    let kind = match error.kind() {
        whelk_registry::Kind::NotFound => unknown,
        whelk_registry::Kind::Unauthorized | whelk_registry::Kind::Denied => Kind::Denied,
        whelk_registry::Kind::TooManyRequests => Kind::TooManyRequests,
        whelk_registry::Kind::Unavailable => Kind::Unavailable,
        whelk_registry::Kind::Invalid => Kind::BadUpstream,
    };
    kind.error(format!("upstream: {error}"))
}

/// Reads a file with `USER:PASSWORD`, which only its owner may read.
fn read_credentials(file: &Path) -> std::result::Result<Credentials, String> {
    use std::os::unix::fs::PermissionsExt as _;
    let shown = file.display();
    let metadata = fs::metadata(file).map_err(|error| error.to_string())?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(format!(
            "{shown}: other users may read it; use `chmod 600 {shown}`"
        ));
    }
    let content = fs::read_at_most(file, MAX_FILE).map_err(|error| error.to_string())?;
    let text = String::from_utf8(content).map_err(|_| format!("{shown}: not UTF-8"))?;
    match text.trim_end_matches(['\r', '\n']).split_once(':') {
        Some((user, password)) if !user.is_empty() && !password.contains('\n') => {
            Ok(Credentials::Password {
                user: user.to_owned(),
                password: password.to_owned(),
            })
        }
        _ => Err(format!("{shown}: want one line USER:PASSWORD")),
    }
}
