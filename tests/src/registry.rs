//! A registry on loopback that can be told to require credentials and to fail in various ways.

mod uploads;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use crate::images::{Archive, gzip, sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The access token and the identity token that the authorization service issues.
const TOKEN: &str = "access";
pub const IDENTITY: &str = "identity";

/// A registry.
#[derive(Clone, Debug)]
pub struct Registry {
    /// `HOST:PORT`
    pub host: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<String, Vec<u8>>,
    /// Media type and content by `REPOSITORY/TAG` and `REPOSITORY/DIGEST`.
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    /// Pairs of a repository and the digest of a blob in it.
    linked: BTreeSet<(String, String)>,
    /// Received bytes of each upload, and how often its location has changed.
    uploads: BTreeMap<usize, (Vec<u8>, usize)>,
    /// Indexes of the manifests that refer to a digest.
    referrers: BTreeMap<String, Value>,
    /// Number of requests with content of an upload now, and the most at once so far.
    receiving: (usize, usize),
    /// First lines of all requests, and the header `Range` or `Content-Range`.
    requests: Vec<String>,
    behaviour: Behaviour,
}

/// Requirements and faults of a registry.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// The header `Authorization` that the registry, or its authorization service, requires.
    pub authorization: Option<String>,
    /// The registry requires a token from its authorization service, which issues [`IDENTITY`] on
    /// request.
    pub tokens: bool,
    /// The header `WWW-Authenticate` of its responses, which all have status 401.
    pub challenge: Option<String>,
    /// Number of bytes of a longer blob after which it closes the connection. Requests with a range are
    /// not cut.
    pub cut_after: Option<usize>,
    /// Time between pieces of 16 KiB of a blob.
    pub pause: Option<Duration>,
    /// Paths that contain this are sent without end.
    pub endless: Option<&'static str>,
    /// Paths that contain this are redirected to themselves.
    pub redirects: Option<&'static str>,
    /// The content of paths that contain this is sent at one byte per second.
    pub trickles: Option<&'static str>,
    /// Half of the content of paths that contain this is sent.
    pub truncates: Option<&'static str>,
    /// It responds to `HEAD` with status 405.
    pub refuses_head: bool,
    /// Status, error code and message of the response to requests for manifests.
    pub refusal: Option<(&'static str, &'static str, &'static str)>,
    /// Number of bytes of each upload after which it closes the connection.
    pub cut_uploads_after: Option<usize>,
    /// It refuses uploads.
    pub is_read_only: bool,
    /// Time before it responds to content of an upload.
    pub upload_pause: Option<Duration>,
    /// Results of searches, in the form of Docker Hub.
    pub search_results: Option<Value>,
    /// Number of tags that it lists at once.
    pub page: Option<usize>,
}

/// An image in a registry.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// `HOST:PORT/NAME:TAG`
    pub name: String,
    /// Of the manifest.
    pub digest: String,
    pub layers: Vec<String>,
}

impl Registry {
    /// Starts a registry. It runs until the test program ends.
    ///
    /// # Panics
    /// Panics if it cannot listen.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let registry = Self {
            host: listener.local_addr().expect("address").to_string(),
            state: Arc::default(),
        };
        let server = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                std::thread::spawn(move || server.serve(stream));
            }
        });
        registry
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test thread has panicked")
    }

    /// Sets the registry's requirements and faults.
    pub fn behave(&self, behaviour: Behaviour) {
        self.state().behaviour = behaviour;
    }

    /// Returns the requests so far whose first line contains `part`.
    #[must_use]
    pub fn requests(&self, part: &str) -> Vec<String> {
        let state = self.state();
        let found = state.requests.iter().filter(|line| line.contains(part));
        found.cloned().collect()
    }

    /// Clears the list of requests.
    pub fn forget_requests(&self) {
        self.state().requests.clear();
    }

    /// Adds a blob and returns its digest.
    pub fn blob(&self, content: &[u8]) -> String {
        let digest = format!("sha256:{}", sha256(content));
        self.state().blobs.insert(digest.clone(), content.to_vec());
        digest
    }

    /// Returns a manifest by `REPOSITORY/TAG` or `REPOSITORY/DIGEST`.
    #[must_use]
    pub fn document(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let found = state.manifests.get(name);
        found.map(|(_, content)| content.clone())
    }

    /// Replaces the content of a blob without changing its digest.
    pub fn corrupt(&self, digest: &str, content: &[u8]) {
        self.state()
            .blobs
            .insert(digest.to_owned(), content.to_vec());
    }

    /// Adds a manifest under its digest, and under `tag` unless that is empty. Returns its digest.
    pub fn manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        content: &Value,
    ) -> String {
        let content = content.to_string().into_bytes();
        let digest = format!("sha256:{}", sha256(&content));
        let mut state = self.state();
        for version in [digest.as_str(), tag]
            .into_iter()
            .filter(|text| !text.is_empty())
        {
            let document = (media_type.to_owned(), content.clone());
            state
                .manifests
                .insert(format!("{repository}/{version}"), document);
        }
        digest
    }

    /// Sets the index of the manifests that refer to a digest.
    pub fn refer(&self, digest: &str, index: Value) {
        self.state().referrers.insert(digest.to_owned(), index);
    }

    /// Adds an image with gzip-compressed layers to a repository, with the tag of its first name.
    pub fn push(&self, repository: &str, image: &Archive) -> Pushed {
        let manifest = self.image(image);
        let name = image.tags.first().map_or("", String::as_str);
        let tag = name.rsplit(':').next().unwrap_or("latest");
        self.pushed(repository, tag, &manifest)
    }

    /// Adds an index of images, each with an architecture.
    pub fn push_index(&self, repository: &str, tag: &str, images: &[(&str, &Archive)]) -> String {
        let entries: Vec<Value> = images
            .iter()
            .map(|(architecture, image)| {
                let manifest = self.image(image);
                let digest = self.manifest(repository, "", MANIFEST, &manifest);
                json!({
                    "mediaType": MANIFEST,
                    "digest": digest,
                    "size": manifest.to_string().len(),
                    "platform": {"architecture": architecture, "os": "linux"},
                })
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        self.manifest(repository, tag, INDEX, &index)
    }

    /// Adds the blobs of an image and returns its manifest.
    pub fn image(&self, image: &Archive) -> Value {
        let parts = image.parts();
        let config = parts
            .iter()
            .find(|(name, _)| name.ends_with(".json") && name != "manifest.json");
        let (_, config) = config.expect("a configuration");
        let descriptor = |media_type: &str, content: &[u8]| json!({"mediaType": media_type, "digest": self.blob(content), "size": content.len()});
        let layers: Vec<Value> = image
            .layers
            .iter()
            .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(layer)))
            .collect();
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": layers,
        })
    }

    /// Adds a manifest that [`Registry::image`] returned, possibly modified.
    pub fn pushed(&self, repository: &str, tag: &str, manifest: &Value) -> Pushed {
        let layers = manifest["layers"].as_array().into_iter().flatten();
        for blob in layers.clone().chain([&manifest["config"]]) {
            let digest = blob["digest"].as_str().unwrap_or_default();
            self.link(repository, digest);
        }
        Pushed {
            name: format!("{}/{repository}:{tag}", self.host),
            digest: self.manifest(repository, tag, MANIFEST, manifest),
            layers: layers
                .filter_map(|layer| Some(layer["digest"].as_str()?.to_owned()))
                .collect(),
        }
    }

    /// Lists the tags of a repository.
    fn send_tags(
        &self,
        stream: &mut TcpStream,
        repository: &str,
        query: &str,
        page: Option<usize>,
    ) -> Option<()> {
        let prefix = format!("{repository}/");
        let mut tags: Vec<String> = {
            let state = self.state();
            let names = state.manifests.keys();
            names
                .filter_map(|name| name.strip_prefix(&prefix))
                .filter(|tag| !tag.starts_with("sha256:"))
                .map(str::to_owned)
                .collect()
        };
        if let Some((_, last)) = query.split_once("last=") {
            tags.retain(|tag| tag.as_str() > last);
        }
        let mut head = "content-type: application/json\r\n".to_owned();
        if let Some(page) = page.filter(|page| tags.len() > *page) {
            tags.truncate(page);
            head += "link: </next>; rel=\"next\"\r\n";
        }
        let body = json!({"name": repository, "tags": tags}).to_string();
        begin(stream, "200 OK", &head, body.len())?;
        stream.write_all(body.as_bytes()).ok()
    }

    /// Returns the challenge for a client that has sent this authorization; `None` if it is sufficient.
    fn challenge(&self, behaviour: &Behaviour, shown: Option<String>) -> Option<String> {
        let (wanted, challenge) = if behaviour.tokens {
            let realm = format!(
                "Bearer realm=\"http://{}/token\",service=\"test\"",
                self.host
            );
            (Some(format!("Bearer {TOKEN}")), realm)
        } else {
            let realm = "Basic realm=\"test\"".to_owned();
            (behaviour.authorization.clone(), realm)
        };
        (wanted.is_some() && shown != wanted).then_some(challenge)
    }

    /// Answers one request. Returns `None` if the connection breaks.
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            // 22 is the first byte of a TLS handshake, which this registry does not support.
            if stream.read(&mut byte).ok()? == 0 || (head.is_empty() && byte[0] == 22) {
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok()?;
                return None;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).ok()?;
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let mut words = head.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        let range = header("range").or_else(|| header("content-range"));
        let behaviour = {
            let mut state = self.state();
            let line = format!("{method} {path} {}", range.clone().unwrap_or_default());
            state.requests.push(line.trim().to_owned());
            state.behaviour.clone()
        };
        let shown = header("authorization");
        if let Some(query) = path.strip_prefix("/token?") {
            return issue(&mut stream, query, shown == behaviour.authorization);
        }
        if let Some(challenge) = self.challenge(&behaviour, shown) {
            let challenge = format!("www-authenticate: {challenge}\r\n");
            return begin(&mut stream, "401 Unauthorized", &challenge, 0);
        }
        if let Some(outcome) = self.misbehave(&mut stream, method, path, &behaviour) {
            return outcome;
        }
        if let Some(results) = behaviour
            .search_results
            .as_ref()
            .filter(|_| path.starts_with("/v1/search?"))
        {
            let body = json!({"num_results": 1, "results": results});
            return send_json(&mut stream, &body);
        }
        let Some(path) = path.strip_prefix("/v2/") else {
            return begin(&mut stream, "404 Not Found", "", 0);
        };
        let is_asked_for = path.contains("/manifests/") && method == "HEAD";
        let is_upload = path.contains("/blobs/uploads/");
        if is_upload || !matches!(method, "GET" | "HEAD") || (method == "HEAD" && !is_asked_for) {
            return self.change(&mut stream, method, path, &header, &behaviour);
        }
        if path.is_empty() {
            begin(&mut stream, "200 OK", "", 0)
        } else if let Some((_, rest)) = path.split_once("/referrers/") {
            let digest = rest.split('?').next()?;
            let found = self.state().referrers.get(digest).cloned();
            match found {
                Some(index) => send_json(&mut stream, &index),
                None => begin(&mut stream, "404 Not Found", "", 0),
            }
        } else if let Some((repository, query)) = path.split_once("/tags/list") {
            self.send_tags(&mut stream, repository, query, behaviour.page)
        } else if let Some((_, digest)) = path.split_once("/blobs/") {
            let found = self.state().blobs.get(digest).cloned();
            match found {
                Some(content) => send_blob(&mut stream, &content, range.as_deref(), &behaviour),
                None => begin(&mut stream, "404 Not Found", "", 0),
            }
        } else if let Some((repository, version)) = path.split_once("/manifests/") {
            self.send_manifest(&mut stream, method, repository, version, &behaviour)
        } else {
            begin(&mut stream, "404 Not Found", "", 0)
        }
    }

    /// Responds in a way that only a faulty or hostile registry does; `None` if it is to be a good one.
    fn misbehave(
        &self,
        stream: &mut TcpStream,
        method: &str,
        path: &str,
        behaviour: &Behaviour,
    ) -> Option<Option<()>> {
        if let Some(challenge) = &behaviour.challenge {
            let challenge = format!("www-authenticate: {challenge}\r\n");
            return Some(begin(stream, "401 Unauthorized", &challenge, 0));
        }
        let is_at = |part: Option<&str>| part.is_some_and(|part| path.contains(part));
        if behaviour.refuses_head && method == "HEAD" {
            return Some(begin(stream, "405 Method Not Allowed", "", 0));
        }
        if is_at(behaviour.redirects) {
            let location = format!("location: {path}\r\n");
            return Some(begin(stream, "307 Temporary Redirect", &location, 0));
        }
        if method != "GET" {
            return None;
        }
        if is_at(behaviour.endless) {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
            let mut sent = stream.write_all(head.as_bytes());
            while sent.is_ok() {
                sent = stream.write_all(chunk.as_bytes());
            }
            return Some(None);
        }
        if !is_at(behaviour.trickles.or(behaviour.truncates)) {
            return None;
        }
        let digest = path.rsplit('/').next().unwrap_or_default();
        let length = self.state().blobs.get(digest).map_or(1000, Vec::len);
        begin(stream, "200 OK", "", length);
        Some(if behaviour.trickles.is_some() {
            stall(stream, length)
        } else {
            stream.write_all(&vec![b' '; length / 2]).ok()
        })
    }

    fn send_manifest(
        &self,
        stream: &mut TcpStream,
        method: &str,
        repository: &str,
        version: &str,
        behaviour: &Behaviour,
    ) -> Option<()> {
        let name = format!("{repository}/{version}");
        let found = self.state().manifests.get(&name).cloned();
        let unknown = ("404 Not Found", "MANIFEST_UNKNOWN", "manifest unknown");
        let refusal = behaviour.refusal.or(found.is_none().then_some(unknown));
        let (status, headers, content) = match (refusal, found) {
            (None, Some((media_type, content))) => {
                let digest = sha256(&content);
                let headers = format!(
                    "content-type: {media_type}\r\ndocker-content-digest: sha256:{digest}\r\n"
                );
                ("200 OK", headers, content)
            }
            (refusal, _) => {
                let (status, code, message) = refusal?;
                let body = json!({"errors": [{"code": code, "message": message}]}).to_string();
                let headers = "content-type: application/json\r\n".to_owned();
                (status, headers, body.into_bytes())
            }
        };
        begin(stream, status, &headers, content.len())?;
        if method == "HEAD" {
            return Some(());
        }
        stream.write_all(&content).ok()
    }
}

fn send_json(stream: &mut TcpStream, body: &Value) -> Option<()> {
    let body = body.to_string();
    begin(stream, "200 OK", "", body.len())?;
    stream.write_all(body.as_bytes()).ok()
}

/// Sends a byte per second, at most `length`, until the client leaves or has waited for minutes.
fn stall(stream: &mut TcpStream, length: usize) -> Option<()> {
    const MAX: usize = 200;
    for second in 0..MAX {
        if second < length {
            stream.write_all(b" ").ok()?;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    None
}

/// Answers a request for a blob or for the range from a byte to its end.
fn send_blob(
    stream: &mut TcpStream,
    content: &[u8],
    range: Option<&str>,
    behaviour: &Behaviour,
) -> Option<()> {
    let first: usize = range
        .and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        })
        .unwrap_or(0);
    let (status, headers) = if first == 0 {
        ("200 OK", String::new())
    } else {
        let last = content.len() - 1;
        let total = content.len();
        (
            "206 Partial Content",
            format!("content-range: bytes {first}-{last}/{total}\r\n"),
        )
    };
    begin(stream, status, &headers, content.len() - first)?;
    let is_cut = first == 0 && behaviour.cut_after.is_some_and(|cut| cut < content.len());
    let end = behaviour
        .cut_after
        .filter(|_| is_cut)
        .unwrap_or(content.len());
    for piece in content[first..end].chunks(16 << 10) {
        std::thread::sleep(behaviour.pause.unwrap_or_default());
        stream.write_all(piece).ok()?;
    }
    Some(())
}

/// Answers a request for a token.
fn issue(stream: &mut TcpStream, query: &str, is_known: bool) -> Option<()> {
    let (status, body) = if is_known {
        let mut body = json!({"token": TOKEN, "expires_in": 300});
        if query.contains("offline_token=true") {
            body["refresh_token"] = json!(IDENTITY);
        }
        ("200 OK", body)
    } else {
        let body = json!({"details": "incorrect username or password"});
        ("401 Unauthorized", body)
    };
    let body = body.to_string();
    begin(stream, status, "", body.len())?;
    stream.write_all(body.as_bytes()).ok()
}

/// Sends the head of a response.
fn begin(stream: &mut TcpStream, status: &str, headers: &str, length: usize) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).ok()
}
