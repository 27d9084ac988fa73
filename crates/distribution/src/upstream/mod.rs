//! A cache of another registry, which is called upstream here: what the registry does not have is
//! fetched from there when a client asks for it, and kept.
//!
//! What has a digest cannot change, so it is served without asking upstream. What a tag names is asked
//! for each time, with `HEAD`; if upstream does not answer, or refuses because there were too many
//! requests, the tag names what it named last, and lists are those of the cache. Whoever may use the cache gets what the credentials for
//! upstream give access to.

mod download;
mod link;

use std::fmt;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use whelk_image::{Digest, Reference};
use whelk_registry::{Client, Credentials, Insecure, Listing, Settings};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::manifests::Stored;
use crate::names::{ManifestKey, RepositoryName};
use crate::records::Registry;

pub(crate) use download::Downloads;
#[cfg(test)]
pub(crate) use download::Limits;

/// How long upstream may take for an answer that the cache could give too.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long upstream is not asked for such answers after it has failed.
const BACKOFF: Duration = Duration::from_secs(10);
/// Maximum size of the file with credentials in bytes.
const MAX_FILE: u64 = 64 << 10;
/// How many times in a row a transfer may fail.
const ATTEMPTS: u32 = 3;
/// Maximum wait before another attempt: a client waits meanwhile, and gets an error if upstream asks for more.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Maximum number of manifests that are fetched in parallel, because they are held in memory.
const MAX_FETCHES: usize = 16;
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
    fetches: Semaphore,
    /// Until when upstream is not asked for what the cache knows.
    retry_at: Mutex<Option<Instant>>,
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
            max_wait: MAX_WAIT,
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
            fetches: Semaphore::new(MAX_FETCHES),
            retry_at: Mutex::default(),
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

    fn remote(&self, repository: &RepositoryName) -> Result<whelk_registry::Repository> {
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

    /// Brings a manifest into the cache, unless it is there and current, and returns its digest.
    pub(crate) async fn manifest(
        &self,
        registry: &Arc<Registry>,
        repository: &RepositoryName,
        version: &ManifestKey,
    ) -> Result<Digest> {
        let cached = cached(registry, repository, version).await?;
        let (tag, cached) = match (version, cached) {
            (ManifestKey::Digest(_), Some(cached)) => return Ok(cached),
            (ManifestKey::Digest(digest), None) => {
                let wanted = whelk_registry::Version::Digest(digest.clone());
                return self.fetch(registry, repository, None, &wanted).await;
            }
            (ManifestKey::Tag(tag), None) => {
                return self.current(registry, repository, tag, None).await;
            }
            (ManifestKey::Tag(tag), Some(cached)) => (tag, cached),
        };
        if self.is_backing_off() {
            return Ok(cached);
        }
        let current = self.current(registry, repository, tag, Some(&cached));
        match in_time(current).await {
            // A proxy in between, or a failing server, may answer anything.
            Err(error) if error.kind == Kind::BadUpstream => {
                tracing::warn!("{repository}:{tag} is served from the cache: {error}");
                Ok(cached)
            }
            Err(error) if error.is_outage() => {
                tracing::warn!("{repository}:{tag} is served from the cache: {error}");
                self.back_off();
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
            current => current,
        }
    }

    /// Sends requests that the cache could answer to upstream again from now on.
    #[cfg(test)]
    pub(crate) fn clear_backoff(&self) {
        *self.retry_at.lock().ignore_poison() = None;
    }

    fn back_off(&self) {
        *self.retry_at.lock().ignore_poison() = Some(Instant::now() + BACKOFF);
    }

    fn is_backing_off(&self) -> bool {
        let retry_at = *self.retry_at.lock().ignore_poison();
        retry_at.is_some_and(|retry_at| Instant::now() < retry_at)
    }

    /// Asks upstream what a tag names, fetches that unless the cache has it, and returns its digest.
    /// `known` is what the tag names in the cache.
    async fn current(
        &self,
        registry: &Arc<Registry>,
        repository: &RepositoryName,
        tag: &str,
        known: Option<&Digest>,
    ) -> Result<Digest> {
        let by_tag = whelk_registry::Version::Tag(tag.to_owned());
        let digest = self.remote(repository)?.digest(&by_tag).await;
        let digest = digest.map_err(|error| from_upstream(error, Kind::ManifestUnknown))?;
        if let Some(digest) = &digest {
            if Some(digest) == known {
                return Ok(digest.clone());
            }
            let found = cached(registry, repository, &ManifestKey::Digest(digest.clone())).await?;
            if let Some(found) = found {
                let (registry, name, tag) = (registry.clone(), repository.clone(), tag.to_owned());
                let digest = found.clone();
                blocking(move || registry.tag_manifest(&name, &tag, &digest)).await?;
                return Ok(found);
            }
        }
        let wanted = digest.map_or(by_tag, whelk_registry::Version::Digest);
        self.fetch(registry, repository, Some(tag), &wanted).await
    }

    /// Fetches and stores a manifest, also under a tag, and returns its digest.
    async fn fetch(
        &self,
        registry: &Arc<Registry>,
        repository: &RepositoryName,
        tag: Option<&str>,
        wanted: &whelk_registry::Version,
    ) -> Result<Digest> {
        let _turn = self.fetches.acquire().await;
        let document = self.remote(repository)?.manifest(wanted).await;
        let document = document.map_err(|error| from_upstream(error, Kind::ManifestUnknown))?;
        let stored = Stored {
            digest: document.digest,
            media_type: document.media_type,
            content: document.bytes,
        };
        let (registry, name) = (registry.clone(), repository.clone());
        let tag = tag.map(str::to_owned);
        let cached = blocking(move || registry.cache_manifest(&name, tag.as_deref(), stored)).await;
        // The client's request was valid.
        cached.map_err(|error| match error.kind {
            Kind::ManifestInvalid => Kind::BadUpstream.error(format!("upstream: {error}")),
            _ => error,
        })
    }

    /// Returns the size of a blob.
    pub(crate) async fn blob_size(
        &self,
        registry: &Arc<Registry>,
        repository: &RepositoryName,
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

    /// Finds a blob in the cache or upstream, and returns its size.
    pub(crate) async fn find_blob(
        &self,
        registry: &Arc<Registry>,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(u64, Source)> {
        let (own, name, wanted) = (registry.clone(), repository.clone(), digest.clone());
        let opened = blocking(move || {
            own.claim_blob(&name, &wanted)?;
            own.open_blob(&name, &wanted)
        });
        match opened.await {
            Ok((file, size)) => return Ok((size, Source::Stored(file))),
            Err(error) if error.kind == Kind::BlobUnknown => {}
            Err(error) => return Err(error),
        }
        // Also if another repository has it here: who may not see it upstream must not see it here.
        let remote = self.remote(repository)?;
        let size = remote_size(&remote, digest).await?;
        Ok((size, Source::Upstream(self.downloads.clone(), remote)))
    }

    /// Gets a list, such as of tags, as upstream has it. `None` if upstream does not answer and the cache
    /// knows something of the list.
    pub(crate) async fn listing(
        &self,
        repository: &RepositoryName,
        path: &str,
        unknown: Kind,
        is_known: bool,
    ) -> Result<Option<Listing>> {
        let ask = async {
            let listing = self.remote(repository)?.listing(path).await;
            listing.map_err(|error| from_upstream(error, unknown))
        };
        let listing = match is_known {
            false => ask.await,
            true if self.is_backing_off() => return Ok(None),
            true => in_time(ask).await,
        };
        let mut listing = match listing {
            Err(error) if is_known && error.is_outage() => {
                tracing::warn!("{path} of {repository} is that of the cache: {error}");
                self.back_off();
                return Ok(None);
            }
            listing => listing?,
        };
        if let Some(link) = &listing.link {
            let path = path.split('?').next().unwrap_or_default();
            let resolved = link::resolve(link, &format!("/v2/{repository}/{path}"));
            let refuse = || Kind::BadUpstream.error("upstream: the list's next page is elsewhere");
            listing.link = Some(resolved.ok_or_else(refuse)?);
        }
        Ok(Some(listing))
    }
}

/// Where a blob is.
pub(crate) enum Source {
    Stored(File),
    Upstream(Downloads, whelk_registry::Repository),
}

/// Waits for upstream as long as is reasonable if the cache could answer.
async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    answer.unwrap_or_else(|_| Err(Kind::Unavailable.error("upstream: no answer in time")))
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
    let size = size.map_err(|error| from_upstream(error, Kind::BlobUnknown))?;
    size.ok_or_else(|| Kind::BlobUnknown.error(format!("blob {digest} is not in the repository")))
}

/// Returns the digest of a manifest that the cache has intact, and updates its access time.
async fn cached(
    registry: &Arc<Registry>,
    repository: &RepositoryName,
    version: &ManifestKey,
) -> Result<Option<Digest>> {
    let (registry, repository, version) = (registry.clone(), repository.clone(), version.clone());
    blocking(
        move || match registry.open_manifest(&repository, &version) {
            Ok(found) => {
                registry.touch_manifest(&repository, &found.digest)?;
                Ok(Some(found.digest))
            }
            Err(error) if error.kind == Kind::ManifestUnknown => Ok(None),
            // It can be fetched again.
            Err(error) => {
                tracing::warn!("manifest of {repository}: {error}");
                Ok(None)
            }
        },
    )
    .await
}

/// Returns an error of upstream as one of this registry. `unknown` is that of what does not exist.
fn from_upstream(error: whelk_registry::Error, unknown: Kind) -> Error {
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
