//! Decodes requests, runs their operations on blocking threads, and encodes the responses.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::response::Builder;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Serialize;
use tokio::sync::Semaphore;
use whelk_image::Digest;
use whelk_image::descriptor::{INDEX, SCHEMA_VERSION};

use crate::auth::Passwords;
use crate::body::{self, Outgoing, Pace, Received};
use crate::error::{Entry, Error, Errors, Kind, Result};
use crate::manifests::{MAX_MANIFEST, Referrer};
use crate::names::{self, Repository, Version};
use crate::records::Registry;
use crate::uploads::Upload;

/// Number of manifests that are received at a time: they are in memory.
pub(crate) const MAX_MANIFESTS: usize = 16;
/// Default and maximum number of names in a response.
const PAGE: usize = 1000;

/// What requests use.
#[derive(Debug)]
pub(crate) struct Server {
    pub registry: Arc<Registry>,
    pub passwords: Option<Arc<Passwords>>,
    pub pace: Pace,
    pub manifests: Semaphore,
}

/// A decoded request.
struct Call {
    registry: Arc<Registry>,
    method: Method,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Received,
}

type Answer = Result<Response<Outgoing>>;

/// Answers a request.
pub(crate) async fn respond(
    server: Arc<Server>,
    request: Request<Incoming>,
) -> std::result::Result<Response<Outgoing>, Infallible> {
    let (head, body) = request.into_parts();
    let awaits_request = head.headers.contains_key(header::EXPECT);
    let call = Call {
        registry: server.registry.clone(),
        method: head.method.clone(),
        query: query(head.uri.query().unwrap_or_default()),
        body: Received::new(body, server.pace, awaits_request),
        headers: head.headers,
    };
    let (method, path) = (head.method, head.uri.path());
    let mut response = route(&server, call, path).await.unwrap_or_else(|error| {
        if error.kind == Kind::Internal {
            tracing::error!("{method} {path}: {error}");
        }
        failed(&error)
    });
    tracing::debug!("{method} {path}: {}", response.status());
    let version = HeaderValue::from_static("registry/2.0");
    response
        .headers_mut()
        .insert("docker-distribution-api-version", version);
    Ok(response)
}

fn failed(error: &Error) -> Response<Outgoing> {
    let (status, code) = error.kind.code();
    let message = match error.kind {
        Kind::Internal => "the registry has failed; its log says why",
        _ => &error.text,
    };
    let errors = [Entry { code, message }];
    let mut builder = Response::builder().status(status);
    if error.kind == Kind::Unauthorized {
        builder = builder.header(header::WWW_AUTHENTICATE, "Basic realm=\"whelk registry\"");
    }
    json(builder, &Errors { errors }).unwrap_or_else(|_| {
        let mut response = Response::new(body::full(""));
        *response.status_mut() = status;
        response
    })
}

/// Calls the operation of a path and a method. The last components of a path select it, because a
/// repository's name may contain any of the words.
async fn route(server: &Server, call: Call, path: &str) -> Answer {
    if let Some(passwords) = &server.passwords {
        let header = call.headers.get(header::AUTHORIZATION);
        if !passwords
            .permit(header.and_then(|header| header.to_str().ok()))
            .await
        {
            return Err(Kind::Unauthorized.error("user name and password required"));
        }
    }
    let not_found = || Kind::NotFound.error("no such resource");
    let path = path.strip_prefix("/v2").ok_or_else(not_found)?;
    let components: Vec<_> = path
        .split('/')
        .skip(1)
        .map(|component| percent_decode_str(component).decode_utf8_lossy())
        .collect();
    let components: Vec<&str> = components.iter().map(AsRef::as_ref).collect();
    let repository = |name: &[&str]| Repository::parse(&name.join("/"));
    match components[..] {
        [] | [""] => call.only_get()?.version(),
        ["_catalog"] => call.only_get()?.catalog().await,
        [ref name @ .., "tags", "list"] => call.only_get()?.tags(repository(name)?).await,
        [ref name @ .., "referrers", subject] => {
            let (repository, subject) = (repository(name)?, names::digest(subject)?);
            call.only_get()?.referrers(repository, subject).await
        }
        [ref name @ .., "manifests", version] => {
            let (repository, version) = (repository(name)?, Version::parse(version));
            let is_push = call.method == Method::PUT;
            // A manifest with an invalid tag cannot exist.
            let version = version.map_err(|error| match error.kind {
                Kind::ManifestInvalid if !is_push => Kind::ManifestUnknown.error(error.text),
                _ => error,
            })?;
            if !is_push {
                return call.manifest(repository, version).await;
            }
            let _turn = server.manifests.acquire().await;
            call.put_manifest(repository, version).await
        }
        [ref name @ .., "blobs", "uploads", ""] | [ref name @ .., "blobs", "uploads"] => {
            call.begin_upload(repository(name)?).await
        }
        [ref name @ .., "blobs", "uploads", id] => {
            call.upload(repository(name)?, names::upload(id)?).await
        }
        [ref name @ .., "blobs", digest] => {
            call.blob(repository(name)?, names::digest(digest)?).await
        }
        _ => Err(not_found()),
    }
}

/// Runs blocking code.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| Err(Kind::Internal.error(error.to_string())))
}

impl Call {
    fn only_get(self) -> Result<Self> {
        match self.method {
            Method::GET | Method::HEAD => Ok(self),
            _ => Err(unsupported()),
        }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn version(&self) -> Answer {
        json(Response::builder(), &serde_json::Map::new())
    }

    async fn catalog(self) -> Answer {
        #[derive(Serialize)]
        struct Catalog {
            repositories: Vec<String>,
        }
        let (registry, last) = (self.registry.clone(), self.last());
        let found = blocking(move || registry.catalog(&last)).await?;
        let (repositories, builder) = self.page("/v2/_catalog", found)?;
        json(builder, &Catalog { repositories })
    }

    async fn tags(self, repository: Repository) -> Answer {
        #[derive(Serialize)]
        struct Tags<'a> {
            name: &'a str,
            tags: Vec<String>,
        }
        let (registry, last, name) = (self.registry.clone(), self.last(), repository.clone());
        let found = blocking(move || registry.tags(&name, &last)).await?;
        let (tags, builder) = self.page(&format!("/v2/{repository}/tags/list"), found)?;
        let name = repository.as_str();
        json(builder, &Tags { name, tags })
    }

    fn last(&self) -> String {
        self.parameter("last").unwrap_or_default().to_owned()
    }

    /// Returns the requested number of names, and a response with a link to the rest.
    fn page(&self, path: &str, mut names: Vec<String>) -> Result<(Vec<String>, Builder)> {
        let wanted = self.parameter("n").map(str::parse::<usize>).transpose();
        let wanted = wanted.map_err(|_| Kind::PageInvalid.error("n: want a number"))?;
        let count = wanted.unwrap_or(PAGE).min(PAGE);
        let has_more = names.len() > count;
        names.truncate(count);
        let builder = Response::builder();
        Ok(match names.last().filter(|_| has_more) {
            Some(last) => {
                let link = format!("<{path}?n={count}&last={last}>; rel=\"next\"");
                (names, builder.header(header::LINK, link))
            }
            None => (names, builder),
        })
    }

    async fn referrers(self, repository: Repository, subject: Digest) -> Answer {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Referrers {
            schema_version: u32,
            media_type: &'static str,
            manifests: Vec<Referrer>,
        }
        let kind = self
            .parameter("artifactType")
            .filter(|kind| !kind.is_empty());
        let (kind, last) = (kind.map(str::to_owned), self.last());
        let mut builder = Response::builder().header(header::CONTENT_TYPE, INDEX);
        let mut link = format!("/v2/{repository}/referrers/{subject}?");
        if let Some(kind) = &kind {
            builder = builder.header("oci-filters-applied", "artifactType");
            let kind = utf8_percent_encode(kind, NON_ALPHANUMERIC);
            let _ = write!(link, "artifactType={kind}&");
        }
        let find = move || {
            self.registry
                .referrers(&repository, &subject, kind.as_deref(), &last)
        };
        let (manifests, has_more) = blocking(find).await?;
        if let Some(last) = manifests.last().filter(|_| has_more) {
            let link = format!("<{link}last={}>; rel=\"next\"", last.digest.hex());
            builder = builder.header(header::LINK, link);
        }
        let index = Referrers {
            schema_version: SCHEMA_VERSION,
            media_type: INDEX,
            manifests,
        };
        json(builder, &index)
    }

    async fn manifest(self, repository: Repository, version: Version) -> Answer {
        let registry = self.registry.clone();
        match self.method {
            Method::GET | Method::HEAD => {
                let read = move || registry.get_manifest(&repository, &version);
                let manifest = blocking(read).await?;
                let builder = Response::builder()
                    .header(header::CONTENT_TYPE, &manifest.media_type)
                    .header(header::CONTENT_LENGTH, manifest.content.len());
                let is_head = self.method == Method::HEAD;
                let content = if is_head {
                    Vec::new()
                } else {
                    manifest.content
                };
                answer(named(builder, &manifest.digest), body::full(content))
            }
            Method::DELETE => {
                blocking(move || registry.delete_manifest(&repository, &version)).await?;
                empty(StatusCode::ACCEPTED)
            }
            _ => Err(unsupported()),
        }
    }

    async fn put_manifest(mut self, repository: Repository, version: Version) -> Answer {
        let media_type = self.header(header::CONTENT_TYPE).unwrap_or_default();
        let media_type = media_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        let content = self.body.all(MAX_MANIFEST).await?;
        let location = format!("/v2/{repository}/manifests/");
        let store = move || {
            self.registry
                .put_manifest(&repository, &version, &media_type, &content)
        };
        let (digest, subject) = blocking(store).await?;
        let location = format!("{location}{digest}");
        let mut builder = created(&location, &digest);
        if let Some(subject) = subject {
            builder = builder.header("oci-subject", subject.as_str());
        }
        answer(builder, body::full(""))
    }

    async fn blob(self, repository: Repository, digest: Digest) -> Answer {
        let (registry, wanted) = (self.registry.clone(), digest.clone());
        let builder = |status| {
            let builder = Response::builder()
                .status(status)
                .header(header::ACCEPT_RANGES, "bytes")
                .header(header::CONTENT_TYPE, "application/octet-stream");
            named(builder, &digest)
        };
        match self.method {
            Method::HEAD => {
                let size = blocking(move || registry.claim_blob(&repository, &wanted)).await?;
                let builder = builder(StatusCode::OK).header(header::CONTENT_LENGTH, size);
                answer(builder, body::full(""))
            }
            Method::GET => {
                let (file, size) =
                    blocking(move || registry.open_blob(&repository, &wanted)).await?;
                let range = self
                    .header(header::RANGE)
                    .and_then(|range| parse_range(range, size));
                let (builder, first, length) = match range {
                    None => (builder(StatusCode::OK), 0, size),
                    Some(None) => {
                        let error = Kind::RangeNotSatisfiable.error("the blob has no such part");
                        let mut response = failed(&error);
                        let range = HeaderValue::from_str(&format!("bytes */{size}"));
                        response
                            .headers_mut()
                            .extend(range.map(|range| (header::CONTENT_RANGE, range)));
                        return Ok(response);
                    }
                    Some(Some((first, last))) => {
                        let range = format!("bytes {first}-{last}/{size}");
                        let builder = builder(StatusCode::PARTIAL_CONTENT);
                        (
                            builder.header(header::CONTENT_RANGE, range),
                            first,
                            last - first + 1,
                        )
                    }
                };
                let builder = builder.header(header::CONTENT_LENGTH, length);
                answer(builder, body::file(file, first, length))
            }
            Method::DELETE => {
                blocking(move || registry.delete_blob(&repository, &wanted)).await?;
                empty(StatusCode::ACCEPTED)
            }
            _ => Err(unsupported()),
        }
    }

    /// Mounts a blob of another repository, receives one in this request, or begins an upload.
    async fn begin_upload(mut self, repository: Repository) -> Answer {
        if self.method != Method::POST {
            return Err(unsupported());
        }
        let registry = self.registry.clone();
        if let (Some(digest), Some(from)) = (self.parameter("mount"), self.parameter("from")) {
            let (digest, from) = (names::digest(digest)?, Repository::parse(from)?);
            let (to, wanted) = (repository.clone(), digest.clone());
            let mount = move || registry.mount_blob(&to, &wanted, &from);
            if blocking(mount).await? {
                return uploaded(&repository, &digest);
            }
        }
        let digest = self.parameter("digest").map(names::digest).transpose()?;
        let (registry, name) = (self.registry.clone(), repository.clone());
        let id = blocking(move || registry.begin_upload(&name)).await?;
        let Some(digest) = digest else {
            return progress(StatusCode::ACCEPTED, &repository, &id, 0);
        };
        let algorithm = digest.algorithm();
        let upload = Upload::claim(&self.registry, repository.clone(), &id, algorithm).await?;
        // The client does not learn the identifier, so it cannot continue the upload.
        match self.receive(upload).await {
            Ok((upload, _)) => finish(upload, &repository, digest).await,
            Err(error) => {
                let upload = Upload::claim(&self.registry, repository, &id, algorithm).await?;
                blocking(move || upload.cancel()).await?;
                Err(error)
            }
        }
    }

    /// Continues, completes, describes or cancels an upload.
    async fn upload(mut self, repository: Repository, id: String) -> Answer {
        if self.method == Method::GET || self.method == Method::HEAD {
            let (registry, name, key) = (self.registry.clone(), repository.clone(), id.clone());
            let length = blocking(move || registry.uploaded(&name, &key)).await?;
            return progress(StatusCode::NO_CONTENT, &repository, &id, length);
        }
        let digest = match self.method {
            Method::PUT => {
                let digest = self.parameter("digest").unwrap_or_default();
                Some(names::digest(digest)?)
            }
            Method::PATCH | Method::DELETE => None,
            _ => return Err(unsupported()),
        };
        let algorithm = digest.as_ref().map(Digest::algorithm).unwrap_or_default();
        let upload = Upload::claim(&self.registry, repository.clone(), &id, algorithm).await?;
        if self.method == Method::DELETE {
            blocking(move || upload.cancel()).await?;
            return empty(StatusCode::NO_CONTENT);
        }
        let (upload, length) = open(upload).await?;
        if let Err(error) = self.check_order(length) {
            drop(upload);
            let mut response = failed(&error);
            let place = progress(StatusCode::ACCEPTED, &repository, &id, length)?;
            let headers = [header::LOCATION, header::RANGE];
            let headers = headers.map(|name| {
                place
                    .headers()
                    .get(&name)
                    .map(|value| (name, value.clone()))
            });
            response.headers_mut().extend(headers.into_iter().flatten());
            return Ok(response);
        }
        let (upload, length) = self.receive(upload).await?;
        match digest {
            Some(digest) => finish(upload, &repository, digest).await,
            None => progress(StatusCode::ACCEPTED, &repository, &id, length),
        }
    }

    /// Checks that a chunk begins at the upload's end, and that its range is as long as its body. A
    /// request without `Content-Range` continues the upload.
    fn check_order(&self, length: u64) -> Result<()> {
        let Some(range) = self.header(header::CONTENT_RANGE) else {
            return Ok(());
        };
        let parsed = range.trim_start_matches("bytes ").split_once('-');
        let parsed = parsed.and_then(|(first, last)| {
            let last = last.split('/').next()?;
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
        });
        let Some((first, last)) = parsed else {
            return Err(Kind::UploadInvalid.error(format!("invalid range {range:?}")));
        };
        if first != length {
            let text = format!("the chunk begins at {first}, but {length} bytes have arrived");
            return Err(Kind::UploadOutOfOrder.error(text));
        }
        let size = self
            .header(header::CONTENT_LENGTH)
            .and_then(|size| size.parse::<u64>().ok());
        let is_long = last.checked_sub(first).and_then(|size| size.checked_add(1));
        if size.is_some_and(|size| is_long != Some(size)) {
            return Err(Kind::UploadOutOfOrder.error("the chunk is not as long as its range"));
        }
        Ok(())
    }

    /// Appends the request's body to an upload.
    async fn receive(&mut self, upload: Upload) -> Result<(Upload, u64)> {
        let mut upload = upload;
        loop {
            let pieces = self.body.pieces().await?;
            if pieces.is_empty() {
                return open(upload).await;
            }
            let append = move || upload.append(&pieces).map(|()| upload);
            upload = blocking(append).await?;
        }
    }
}

async fn open(mut upload: Upload) -> Result<(Upload, u64)> {
    blocking(move || upload.open().map(|length| (upload, length))).await
}

async fn finish(upload: Upload, repository: &Repository, digest: Digest) -> Answer {
    let expected = digest.clone();
    blocking(move || upload.finish(&expected)).await?;
    uploaded(repository, &digest)
}

fn unsupported() -> Error {
    Kind::UnsupportedMethod.error("the resource does not have this method")
}

/// Returns the parameters of a query. As in Go, `+` is a space.
fn query(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

/// Returns the first and the last byte of a range (RFC 9110, section 14.2): the inner `None` if the
/// content has none of it. Several ranges, and what is not valid, are ignored.
fn parse_range(range: &str, size: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = range.strip_prefix("bytes=")?.trim().split_once('-')?;
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        // A number that is too large is past every end.
        is_number.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let end = size.checked_sub(1);
    if first.is_empty() {
        let count = number(last)?;
        return Some(
            end.filter(|_| count > 0)
                .map(|end| (size.saturating_sub(count), end)),
        );
    }
    let first = number(first)?;
    let last = if last.is_empty() {
        u64::MAX
    } else {
        number(last)?
    };
    if last < first {
        return None;
    }
    Some(
        end.filter(|end| first <= *end)
            .map(|end| (first, last.min(end))),
    )
}

fn answer(builder: Builder, body: Outgoing) -> Answer {
    builder
        .body(body)
        .map_err(|error| Kind::Internal.error(error.to_string()))
}

fn empty(status: StatusCode) -> Answer {
    answer(Response::builder().status(status), body::full(""))
}

fn json(builder: Builder, content: &impl Serialize) -> Answer {
    let text =
        serde_json::to_vec(content).map_err(|error| Kind::Internal.error(error.to_string()))?;
    let has_type = builder
        .headers_ref()
        .is_some_and(|headers| headers.contains_key(header::CONTENT_TYPE));
    let builder = match has_type {
        true => builder,
        false => builder.header(header::CONTENT_TYPE, "application/json"),
    };
    answer(
        builder.header(header::CONTENT_LENGTH, text.len()),
        body::full(text),
    )
}

fn named(builder: Builder, digest: &Digest) -> Builder {
    builder.header("docker-content-digest", digest.as_str())
}

fn created(location: &str, digest: &Digest) -> Builder {
    let builder = Response::builder().status(StatusCode::CREATED);
    named(builder.header(header::LOCATION, location), digest)
}

fn uploaded(repository: &Repository, digest: &Digest) -> Answer {
    let location = format!("/v2/{repository}/blobs/{digest}");
    answer(created(&location, digest), body::full(""))
}

/// Returns a response with the length and the location of an upload.
fn progress(status: StatusCode, repository: &Repository, id: &str, length: u64) -> Answer {
    let builder = Response::builder()
        .status(status)
        .header(
            header::LOCATION,
            format!("/v2/{repository}/blobs/uploads/{id}"),
        )
        .header(header::RANGE, format!("0-{}", length.saturating_sub(1)))
        .header("docker-upload-uuid", id);
    answer(builder, body::full(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (range, size, expected) in [
            ("bytes=0-0", 5, Some(Some((0, 0)))),
            ("bytes=1-", 5, Some(Some((1, 4)))),
            ("bytes=3-99", 5, Some(Some((3, 4)))),
            ("bytes=-2", 5, Some(Some((3, 4)))),
            ("bytes=-9", 5, Some(Some((0, 4)))),
            ("bytes=5-", 5, Some(None)),
            ("bytes=99999999999999999999-", 5, Some(None)),
            ("bytes=-0", 5, Some(None)),
            ("bytes=0-", 0, Some(None)),
            ("bytes=-1", 0, Some(None)),
            ("bytes=2-1", 5, None),
            ("bytes=0-1,3-4", 5, None),
            ("bytes=+1-2", 5, None),
            ("bytes=", 5, None),
            ("bytes=-", 5, None),
            ("lines=1-2", 5, None),
        ] {
            assert_eq!(parse_range(range, size), expected, "{range} of {size}");
        }
    }

    #[test]
    fn queries() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let parsed = query("a=b%2Bc&&d=e+f&g&a=%FF");
        let expected = [
            pair("a", "b+c"),
            pair("d", "e f"),
            pair("g", ""),
            pair("a", "\u{fffd}"),
        ];
        assert_eq!(parsed, expected);
    }
}
