//! Files of URLs: `ADD https://…`, and contexts that are URLs.
//!
//! A file is kept with the tag (`ETag`) that its server has given it, and is not sent again as long as it has that
//! tag; one whose checksum is known is not asked for at all.

mod gunzip;
mod headers;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid};
use whelk_image::Algorithm;
use whelk_llb::Digest;
use whelk_llb::pb::SourceOp;
use whelk_registry::{Pace, WebRequest, WebResponse};
use whelk_sys::sync::IgnorePoison as _;
use whelk_sys::{Scratch, fs};
use whelk_text::url::unescape;

use super::fetched::{FetchedDirectories, Info};
use crate::client::{Client, Pieces};
use crate::directory::Directory;
use crate::error::{Error, Result, os};
use crate::layers::Workspace;
use crate::progress::{EventKind, Work};
use crate::spool::Spool;
use crate::{Builder, blocking};
use gunzip::Gunzip;
use headers::{disposition_name, time};

/// The host of URLs whose files the client has (`http://buildkit-session/ID`).
const SESSION: &str = "http://buildkit-session/";

/// Maximum size of a file in bytes.
const MAX_FILE: u64 = 64 << 30;

/// The time in which the minimum of bytes of a file must come.
const WINDOW: Duration = Duration::from_secs(300);

/// Permissions of a file without others.
const MODE: u32 = 0o600;

/// The time between two reports of a transfer's progress.
const INTERVAL: Duration = Duration::from_millis(100);

/// The files of URLs.
#[derive(Debug)]
pub(crate) struct WebFiles {
    pub fetched: FetchedDirectories,
    /// Files of clients, which give each only once.
    uploads: Mutex<HashMap<Upload, Weak<Workspace>>>,
}

/// The session of a client, and the key of what is wanted of its file.
type Upload = (String, Digest);

/// What a source wants of a file.
#[derive(Debug)]
struct HttpSource {
    url: String,
    name: String,
    checksum: Option<Digest>,
    mode: u32,
    owner: (u32, u32),
    /// The name of the secret that is the header `Authorization`.
    secret: Option<String>,
    headers: Vec<(&'static str, String)>,
}

/// Where the bytes of a file come from.
enum Origin {
    Web(Box<Body>),
    /// As fast as the client is: it may pass on what a program of its user writes.
    Client(Pieces),
}

impl Origin {
    async fn piece(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Web(body) => body.piece().await,
            Self::Client(pieces) => pieces.next().await.transpose(),
        }
    }
}

/// What a server sends.
struct Body {
    response: WebResponse,
    pace: Pace,
    /// Decompresses what the server has compressed for the transfer; `None` if it has not.
    gunzip: Option<Gunzip>,
    is_over: bool,
}

impl Body {
    fn new(response: WebResponse) -> Self {
        let encoding = response.header("content-encoding").unwrap_or_default();
        let gunzip = encoding.eq_ignore_ascii_case("gzip").then(Gunzip::new);
        Self {
            response,
            pace: Pace::new(WINDOW),
            gunzip,
            is_over: false,
        }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>> {
        loop {
            let unpacked = self.gunzip.as_mut().map(Gunzip::next).transpose();
            if let Some(bytes) = unpacked.map_err(|error| self.malformed(&error))?.flatten() {
                return Ok(Some(bytes));
            }
            if self.is_over {
                return Ok(None);
            }
            let size = |piece: &whelk_registry::Result<Option<Bytes>>| {
                Some(piece.as_ref().ok()?.as_ref()?.len())
            };
            let piece = self.pace.wait(self.response.piece(), size).await;
            let piece = piece.map_err(|slow| {
                let url = redacted(&self.response.url());
                Error::invalid(format!("{url}: too slow: {slow}"))
            })?;
            let piece = piece.map_err(failed)?;
            let Some(piece) = piece else {
                self.is_over = true;
                let rest = self.gunzip.as_mut().map(Gunzip::finish).transpose();
                return rest.map_err(|error| self.malformed(&error));
            };
            match &mut self.gunzip {
                None => return Ok(Some(piece)),
                Some(gunzip) => gunzip.add(piece),
            }
        }
    }

    fn malformed(&self, error: &std::io::Error) -> Error {
        let url = redacted(&self.response.url());
        Error::invalid(format!("{url}: decompress the body: {error}"))
    }
}

fn failed(error: whelk_registry::Error) -> Error {
    Error::invalid(error.to_string())
}

impl HttpSource {
    fn of(source: &SourceOp) -> Result<Self> {
        let mut wanted = Self {
            url: source.identifier.clone(),
            name: String::new(),
            checksum: None,
            mode: MODE,
            owner: (0, 0),
            secret: None,
            headers: Vec::new(),
        };
        for (name, value) in &source.attrs {
            let number = || {
                let invalid = || Error::invalid(format!("attribute {name} of a source: {value:?}"));
                match value.strip_prefix('0').filter(|rest| !rest.is_empty()) {
                    Some(octal) => u32::from_str_radix(octal.trim_start_matches('o'), 8),
                    None => value.parse(),
                }
                .map_err(|_| invalid())
            };
            match name.as_str() {
                "http.checksum" => {
                    let digest = Digest::parse(value);
                    let digest = digest
                        .ok_or_else(|| Error::invalid(format!("invalid checksum {value:?}")))?;
                    wanted.checksum = Some(digest);
                }
                "http.filename" => wanted.name.clone_from(value),
                "http.perm" => wanted.mode = number()? & 0o7777,
                "http.uid" => wanted.owner.0 = number()?,
                "http.gid" => wanted.owner.1 = number()?,
                "http.authheadersecret" => wanted.secret = Some(value.clone()),
                "http.header.accept" => wanted.headers.push(("accept", value.clone())),
                "http.header.user-agent" => wanted.headers.push(("user-agent", value.clone())),
                // As in BuildKit, no others are sent.
                name if name.starts_with("http.header.") => {}
                _ => return Err(Error::Unsupported(format!("the attribute {name} of a URL"))),
            }
        }
        Ok(wanted)
    }

    fn key(&self) -> Digest {
        let numbers = format!("{:o} {:?}", self.mode, self.owner);
        let secret = self.secret.as_deref().unwrap_or_default();
        let headers = format!("{:?}", self.headers);
        let parts = [&self.url, &self.name, &numbers, secret, &headers];
        Digest::of_parts(parts.map(str::as_bytes))
    }

    /// Returns the request, with what the client has for the host.
    async fn request(&self, client: &dyn Client) -> Result<WebRequest> {
        let mut request = WebRequest::new(&self.url).map_err(failed)?;
        request = request.header("accept-encoding", "gzip");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(name) = &self.secret {
            let value = client.secret(name).await?;
            let value = value.ok_or_else(|| Error::invalid(format!("secret {name}: not found")))?;
            return Ok(request.header("authorization", &header(name, value)?));
        }
        if request.is_authorized() {
            return Ok(request);
        }
        let host = request.host().to_owned();
        for (prefix, scheme) in [("HTTP_AUTH_HEADER_", ""), ("HTTP_AUTH_TOKEN_", "Bearer ")] {
            let name = format!("{prefix}{host}");
            if let Some(value) = client.secret(&name).await? {
                let value = format!("{scheme}{}", header(&name, value)?);
                return Ok(request.header("authorization", &value));
            }
        }
        Ok(request)
    }

    /// Returns the name of the file.
    fn file_name(&self, response: Option<&WebResponse>) -> String {
        let disposition = response.and_then(|response| response.header("content-disposition"));
        let disposition = disposition.and_then(disposition_name);
        let path = self.url.split_once("://").map_or("", |(_, rest)| rest);
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let path = path.split_once('/').map_or("", |(_, path)| path);
        let path = unescape(path).unwrap_or_else(|_| path.to_owned());
        let candidates = [
            Some(self.name.as_str()),
            disposition.as_deref().filter(|name| !name.ends_with('/')),
            Some(path.as_str()),
        ];
        // Of each only the last component counts.
        let mut names = candidates.into_iter().flatten();
        let name = names.find_map(|name| {
            let name = name.trim_end_matches('/').rsplit('/').next();
            name.filter(|name| is_name(name))
        });
        name.unwrap_or("download").to_owned()
    }
}

/// Returns the value of a secret as that of a header.
pub(crate) fn header(name: &str, value: Vec<u8>) -> Result<String> {
    let value = String::from_utf8(value).ok();
    let value = value.map(|value| value.trim_end_matches(['\r', '\n']).to_owned());
    let value = value.filter(|value| value.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    value.ok_or_else(|| Error::invalid(format!("secret {name}: not the value of a header")))
}

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\0'])
}

/// Returns whether a source is a URL's file.
pub(crate) fn is_url(source: &SourceOp) -> bool {
    let url = &source.identifier;
    url.starts_with("http://") || url.starts_with("https://")
}

impl WebFiles {
    pub fn new(fetched: FetchedDirectories) -> Self {
        Self {
            fetched,
            uploads: Mutex::default(),
        }
    }

    fn upload(&self, upload: &Upload) -> Option<Directory> {
        let uploads = self.uploads.lock().ignore_poison();
        uploads.get(upload)?.upgrade().map(Directory::of)
    }
}

impl Builder {
    /// Fetches a file, unless it is known to be the one that is here. Returns the directory that it is in, and its
    /// time.
    pub(crate) async fn web_file(
        self: &Arc<Self>,
        client: &dyn Client,
        source: &SourceOp,
        work: &Work,
    ) -> Result<(Directory, Option<i64>)> {
        let wanted = HttpSource::of(source)?;
        if let Some(path) = wanted.url.strip_prefix(SESSION) {
            let directory = self.uploaded(client, &wanted, path, work).await?;
            return Ok((directory, None));
        }
        let key = wanted.key();
        let files = &self.web;
        let find = || {
            let builder = self.clone();
            blocking(move || builder.web.fetched.find(&key))
        };
        let of_checksum = |known: &[(Directory, Info)]| {
            let checksum = wanted.checksum.as_ref()?.to_string();
            let found = known.iter().find(|(_, info)| info.content == checksum);
            found.map(|(directory, info)| (directory.clone(), info.time))
        };
        if let Some(found) = of_checksum(&find().await?) {
            work.add(EventKind::Cached);
            return Ok(found);
        }
        // Before the file is locked: a client may take its time for an answer.
        let mut request = wanted.request(client).await?;
        let _lock = files.fetched.lock(key).await;
        let known = find().await?;
        if let Some(found) = of_checksum(&known) {
            work.add(EventKind::Cached);
            return Ok(found);
        }
        let tags: Vec<&str> = known
            .iter()
            .map(|(_, info)| info.tag.as_str())
            .filter(|tag| !tag.is_empty())
            .collect();
        if !tags.is_empty() {
            request = request.header("if-none-match", &tags.join(", "));
        }
        let response = self.engine.images.web().web(&request).await;
        let response = response.map_err(|error| match error {
            // The other texts have the URL.
            whelk_registry::Error::Unreachable { .. } => {
                Error::invalid(format!("{}: {error}", request.operation()))
            }
            error => failed(error),
        })?;
        let tag = response.header("etag").unwrap_or_default().to_owned();
        let is_same = |info: &Info| match response.status() {
            // Some servers leave the tag out when there was only one.
            304 if tag.is_empty() => tags.len() == 1 && info.tag == tags[0],
            // Others do not compare it.
            200 | 304 => !info.tag.is_empty() && weak(&info.tag) == weak(&tag),
            _ => false,
        };
        if let Some((directory, info)) = known.iter().find(|(_, info)| is_same(info)) {
            verify(&wanted, &info.content)?;
            work.add(EventKind::Cached);
            return Ok((directory.clone(), info.time));
        }
        if !(200..300).contains(&response.status()) {
            return Err(Error::invalid(format!(
                "{}: invalid response status {}",
                request.operation(),
                response.status_text()
            )));
        }
        let info = Info {
            boot: files.fetched.boot.clone(),
            tag,
            time: response.header("last-modified").and_then(time),
            description: format!("http url {}", redacted(&wanted.url)),
            ..Info::default()
        };
        let name = wanted.file_name(Some(&response));
        let origin = Origin::Web(Box::new(Body::new(response)));
        let (scratch, info) = self.save(&wanted, name, origin, info, work).await?;
        let time = info.time;
        let builder = self.clone();
        let directory = blocking(move || builder.web.fetched.add(&key, &scratch, &info)).await?;
        Ok((directory, time))
    }

    /// Receives a file that the client gives under a URL, unless this was done before.
    async fn uploaded(
        self: &Arc<Self>,
        client: &dyn Client,
        wanted: &HttpSource,
        path: &str,
        work: &Work,
    ) -> Result<Directory> {
        let upload = (client.session().to_owned(), wanted.key());
        let _lock = self.web.fetched.lock(upload.1).await;
        if let Some(directory) = self.web.upload(&upload) {
            return Ok(directory);
        }
        let origin = Origin::Client(client.upload(path).await?);
        let name = wanted.file_name(None);
        let (scratch, _) = self
            .save(wanted, name, origin, Info::default(), work)
            .await?;
        let directory = Directory::of(Workspace::of(scratch, self.store()));
        let mut uploads = self.web.uploads.lock().ignore_poison();
        uploads.retain(|_, file| file.strong_count() > 0);
        uploads.insert(upload, Arc::downgrade(&directory.workspace()));
        Ok(directory)
    }

    /// Writes a file below `fs` of a new directory.
    async fn save(
        self: &Arc<Self>,
        wanted: &HttpSource,
        name: String,
        mut origin: Origin,
        info: Info,
        work: &Work,
    ) -> Result<(Scratch, Info)> {
        let builder = self.clone();
        let at = name.clone();
        let (scratch, file) = blocking(move || {
            let scratch = builder.store().staging.scratch()?;
            let directory = scratch.path().join("fs");
            fs::create_dir(&directory, 0o755)?;
            let file = fs::create(directory.join(at), 0o600)?;
            Ok((scratch, file))
        })
        .await?;
        let mut spool = Spool::new(file, Algorithm::Sha256, &name);
        let mut last = Instant::now();
        let report = |bytes, is_done| {
            let name = name.clone();
            work.add(EventKind::Transfer {
                name,
                bytes,
                is_done,
            });
        };
        while let Some(piece) = origin.piece().await? {
            spool.add(piece).await?;
            if spool.size() > MAX_FILE {
                let url = redacted(&wanted.url);
                return Err(Error::invalid(format!(
                    "{url}: larger than {MAX_FILE} bytes"
                )));
            }
            if last.elapsed() >= INTERVAL {
                last = Instant::now();
                report(spool.size(), false);
            }
        }
        let size = spool.size();
        let (digest, file) = spool.finish().await?;
        let info = Info {
            content: digest.to_string(),
            size,
            ..info
        };
        verify(wanted, &info.content)?;
        let (mode, owner, shown) = (wanted.mode, wanted.owner, name.clone());
        // Without a time that the server tells, the same as in BuildKit.
        let time = info.time.unwrap_or(0);
        let scratch = blocking(move || {
            set_attributes(&file, &shown, mode, owner, time)?;
            set_time(&scratch.path().join("fs"), &shown, time)?;
            Ok(scratch)
        })
        .await?;
        report(size, true);
        Ok((scratch, info))
    }
}

/// Gives a file its owner, its permissions, and its time in seconds since 1970.
fn set_attributes(
    file: &File,
    name: &str,
    mode: u32,
    (uid, gid): (u32, u32),
    time: i64,
) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::fchown(file, Some(uid), Some(gid))
        .map_err(os(format!("set the owner of {name}")))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
        .map_err(os(format!("set the mode of {name}")))?;
    rustix::fs::futimens(file, &times(time)).map_err(os(format!("set the time of {name}")))
}

fn set_time(path: &Path, name: &str, time: i64) -> Result<()> {
    rustix::fs::utimensat(CWD, path, &times(time), AtFlags::empty())
        .map_err(os(format!("set the time of {name}")))
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Refuses a file with another checksum.
fn verify(wanted: &HttpSource, found: &str) -> Result<()> {
    match &wanted.checksum {
        Some(checksum) if checksum.to_string() != found => Err(Error::invalid(format!(
            "{}: digest mismatch {found}: {checksum}",
            redacted(&wanted.url)
        ))),
        _ => Ok(()),
    }
}

/// Returns a URL without the credentials and the query in it.
pub(crate) fn redacted(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    match plain.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => plain.to_owned(),
    }
}

/// Returns a tag without the mark that it is a weak one.
fn weak(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn wanted(url: &str, attributes: &[(&str, &str)]) -> Result<HttpSource> {
        let attrs: BTreeMap<String, String> = attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        HttpSource::of(&SourceOp {
            identifier: url.into(),
            attrs,
        })
    }

    #[test]
    fn attributes_are_read() {
        let found = wanted("http://h/x", &[("http.perm", "0755"), ("http.uid", "7")]).unwrap();
        assert_eq!((found.mode, found.owner), (0o755, (7, 0)));
        for (name, value, error) in [
            ("http.uid", "-1", "attribute http.uid of a source: \"-1\""),
            ("http.checksum", "md5:1", "invalid checksum \"md5:1\""),
            (
                "http.signatureverify",
                "x",
                "the attribute http.signatureverify of a URL: not available in this version of whelk",
            ),
        ] {
            let found = wanted("http://h/x", &[(name, value)]).unwrap_err();
            assert_eq!(found.to_string(), error);
        }
    }

    #[test]
    fn file_names_are_single_components() {
        for (url, name, expected) in [
            ("https://h/a/b.tar?x=/y", "", "b.tar"),
            ("https://h/a/b%20c", "", "b c"),
            ("https://h/a/b%2fc", "", "c"),
            ("https://h/a/..", "", "download"),
            ("https://h", "", "download"),
            ("https://h/a", "../../etc/passwd", "passwd"),
            ("https://h/a", "context", "context"),
        ] {
            let wanted = wanted(url, &[("http.filename", name)]).unwrap();
            assert_eq!(wanted.file_name(None), expected, "{url} {name}");
        }
    }

    #[test]
    fn credentials_are_in_no_text() {
        let url = "https://user:secret@host:8/path?token=secret#secret";
        assert_eq!(redacted(url), "https://host:8/path");
        assert_eq!(redacted("git@host:path"), "git@host:path");
    }
}
