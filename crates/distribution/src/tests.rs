//! The protocol, over a server in this process.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a panic with its place is all the error handling that a test needs"
)]

mod access;
mod damage;
mod downloads;
mod upstream;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use whelk_image::descriptor::{INDEX, MANIFEST};
use whelk_image::{Algorithm, Digest};

use crate::Registry;
use crate::auth::Passwords;
use crate::body::Pace;
use crate::rights::Rights;
use crate::routes::{MAX_LISTS, MAX_MANIFESTS, Server};
use crate::tokens::Tokens;
use crate::upstream::Upstream;

/// A served registry, whose directory is removed on drop.
struct Served {
    root: PathBuf,
    address: SocketAddr,
    registry: Option<Arc<Registry>>,
    server: JoinHandle<()>,
}

/// How a registry is served.
#[derive(Default)]
struct Options {
    pace: Pace,
    upstream: Option<Arc<Upstream>>,
    passwords: Option<Arc<Passwords>>,
    rights: Option<Arc<Rights>>,
}

impl Served {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let root = std::env::temp_dir().join(format!("whelk-registry-{}", crate::names::random()));
        let (address, registry, server) = serve(&root, options).await;
        Self {
            root,
            address,
            registry: Some(registry),
            server,
        }
    }

    /// Ends the server as if it were killed, and serves the directory again.
    async fn restart(&mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
        self.registry = None;
        (self.address, self.registry, self.server) = {
            let (address, registry, server) = serve(&self.root, Options::default()).await;
            (address, Some(registry), server)
        };
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        Answer::parse(self.exchange(method, path, headers, body).await)
    }

    /// Sends a request and returns what the server sends until it closes the connection.
    async fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = head(method, path, headers, body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server may answer, and close, before it has read the whole body.
        let _ = stream.write_all(body).await;
        read_all(&mut stream).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    /// Asserts that a download breaks off: with a part of the body, or before the head has been sent.
    async fn assert_breaks_off(&self, path: &str) {
        let all = self.exchange("GET", path, &[], b"").await;
        if all.is_empty() {
            return;
        }
        let answer = Answer::parse(all);
        let length: usize = answer.header("content-length").parse().unwrap();
        assert!(
            answer.status == 200 && answer.body.len() < length,
            "{answer:?}"
        );
    }

    async fn delete(&self, path: &str) -> u16 {
        self.send("DELETE", path, &[], b"").await.status
    }

    /// Pushes a blob in one request and returns its descriptor.
    async fn blob(&self, repository: &str, content: &[u8]) -> Value {
        let digest = Digest::of(content);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let answer = self.send("POST", &path, &[], content).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        json!({"mediaType": "application/x", "digest": digest, "size": content.len()})
    }

    async fn put(&self, repository: &str, version: &str, kind: &str, content: &[u8]) -> Answer {
        let path = format!("/v2/{repository}/manifests/{version}");
        self.send("PUT", &path, &[("content-type", kind)], content)
            .await
    }

    /// Pushes an image of one layer and returns its manifest's descriptor.
    async fn image(&self, repository: &str, tag: &str, more: Value) -> Value {
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(repository, b"{}").await,
            "layers": [self.blob(repository, format!("layer of {tag}").as_bytes()).await],
        });
        manifest
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let content = manifest.to_string();
        let answer = self
            .put(repository, tag, MANIFEST, content.as_bytes())
            .await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let digest = Digest::of(content.as_bytes());
        assert_eq!(answer.header("docker-content-digest"), digest.as_str());
        json!({"mediaType": MANIFEST, "digest": digest, "size": content.len()})
    }

    async fn begin(&self, repository: &str) -> String {
        let answer = self
            .send(
                "POST",
                &format!("/v2/{repository}/blobs/uploads/"),
                &[],
                b"",
            )
            .await;
        assert_eq!((answer.status, answer.header("range")), (202, "0-0"));
        answer.header("location").to_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

async fn serve(root: &Path, options: Options) -> (SocketAddr, Arc<Registry>, JoinHandle<()>) {
    // Connections of a server that has just ended may hold the directory for a moment.
    let registry = loop {
        let url = options.upstream.as_ref().map(|upstream| upstream.url());
        match Registry::open(root, url) {
            Ok(registry) => break registry,
            Err(error) => assert!(error.contains("in use"), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let server = Server {
        registry: registry.clone(),
        passwords: options.passwords,
        rights: options.rights,
        tokens: Tokens::default(),
        is_tls: false,
        upstream: options.upstream,
        pace: options.pace,
        manifests: Semaphore::new(MAX_MANIFESTS),
        lists: Semaphore::new(MAX_LISTS),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(crate::server::accept(server.into(), listener, None));
    (address, registry, server)
}

fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head + &format!("content-length: {length}\r\n\r\n")
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    // A connection may be reset after the response.
    let _ = stream.read_to_end(&mut all).await;
    all
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    async fn read(stream: &mut TcpStream) -> Self {
        Self::parse(read_all(stream).await)
    }

    fn parse(mut all: Vec<u8>) -> Self {
        let end = all.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no response: {}", all.escape_ascii()));
        let head = String::from_utf8(all[..end].to_vec()).unwrap();
        Self {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            body: all.split_off(end + 4),
            head,
        }
    }

    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| *key == name)
            .map_or("", |(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn code(&self) -> String {
        self.json()["errors"][0]["code"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn is(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status, self.code().as_str()),
            (status, code),
            "{self:?}"
        );
    }
}

#[tokio::test]
async fn blobs_are_pushed_and_pulled() {
    let served = Served::new().await;
    let version = served.get("/v2/").await;
    assert_eq!((version.status, version.json()), (200, json!({})));
    let content = b"0123456789";
    let digest = Digest::of(content);
    let blob = format!("/v2/a/b/blobs/{digest}");
    served.get(&blob).await.is(404, "BLOB_UNKNOWN");
    // In chunks, with and without a range.
    let place = served.begin("a/b").await;
    let first = served
        .send("PATCH", &place, &[("content-range", "0-3")], b"0123")
        .await;
    assert_eq!((first.status, first.header("range")), (202, "0-3"));
    for (range, body) in [("0-3", &b"0123"[..]), ("5-6", b"56"), ("4-9", b"45")] {
        let wrong = served
            .send("PATCH", &place, &[("content-range", range)], body)
            .await;
        wrong.is(416, "BLOB_UPLOAD_INVALID");
        assert_eq!(
            (wrong.header("range"), wrong.header("location")),
            ("0-3", place.as_str())
        );
    }
    let second = served.send("PATCH", &place, &[], b"45").await;
    assert_eq!((second.status, second.header("range")), (202, "0-5"));
    let status = served.get(&place).await;
    assert_eq!((status.status, status.header("range")), (204, "0-5"));
    let end = format!("{place}?digest={digest}");
    let end = served
        .send("PUT", &end, &[("content-range", "6-9")], b"6789")
        .await;
    assert_eq!((end.status, end.header("location")), (201, blob.as_str()));
    served.get(&place).await.is(404, "BLOB_UPLOAD_UNKNOWN");
    // Whole, in parts, and not at all.
    let whole = served.get(&blob).await;
    assert_eq!((whole.status, whole.body.as_slice()), (200, &content[..]));
    assert_eq!(whole.header("docker-content-digest"), digest.as_str());
    let head = served.send("HEAD", &blob, &[], b"").await;
    assert_eq!((head.status, head.header("content-length")), (200, "10"));
    let part = served
        .send("GET", &blob, &[("range", "bytes=7-")], b"")
        .await;
    assert_eq!((part.status, part.body.as_slice()), (206, &b"789"[..]));
    assert_eq!(part.header("content-range"), "bytes 7-9/10");
    let none = served
        .send("GET", &blob, &[("range", "bytes=10-")], b"")
        .await;
    assert_eq!(
        (none.status, none.header("content-range")),
        (416, "bytes */10")
    );
    // In another repository only after it was mounted.
    served
        .get(&format!("/v2/c/blobs/{digest}"))
        .await
        .is(404, "BLOB_UNKNOWN");
    for (from, status) in [("nosuch", 202), ("a/b", 201)] {
        let mount = format!("/v2/c/blobs/uploads/?mount={digest}&from={from}");
        assert_eq!(
            served.send("POST", &mount, &[], b"").await.status,
            status,
            "{from}"
        );
    }
    assert_eq!(served.delete(&blob).await, 202);
    assert_eq!(served.delete(&blob).await, 404);
    assert_eq!(
        served.get(&format!("/v2/c/blobs/{digest}")).await.body,
        content
    );
}

#[tokio::test]
async fn a_wrong_digest_leaves_nothing() {
    let served = Served::new().await;
    let digest = Digest::of(b"right");
    let wrong = format!("/v2/a/blobs/uploads/?digest={digest}");
    served
        .send("POST", &wrong, &[], b"wrong")
        .await
        .is(400, "DIGEST_INVALID");
    let place = served.begin("a").await;
    for digest in ["", "sha256:../../../etc/passwd", "sha512:00", "md5:00"] {
        let answer = served
            .send("PUT", &format!("{place}?digest={digest}"), &[], b"")
            .await;
        answer.is(400, "DIGEST_INVALID");
    }
    let end = format!("{place}?digest={digest}");
    served
        .send("PUT", &end, &[], b"wrong")
        .await
        .is(400, "DIGEST_INVALID");
    served.get(&place).await.is(404, "BLOB_UPLOAD_UNKNOWN");
    served
        .get(&format!("/v2/a/blobs/{digest}"))
        .await
        .is(404, "BLOB_UNKNOWN");
    let uploads = served.root.join("repositories/a/_uploads");
    assert_eq!(std::fs::read_dir(uploads).unwrap().count(), 0);
    let place = served.begin("a").await;
    assert_eq!(served.delete(&place).await, 204);
    assert_eq!(served.delete(&place).await, 404);
}

#[tokio::test]
async fn an_upload_is_continued_after_its_client_and_its_server_were_cut_off() {
    let mut served = Served::new().await;
    let content: Vec<u8> = (0..3_000_000u32)
        .map(|number| (number % 251) as u8)
        .collect();
    let place = served.begin("a").await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let head = head("PATCH", &place, &[], content.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&content[..1_000_000]).await.unwrap();
    // Only what was sent has arrived, whatever the client has announced.
    drop(stream);
    let arrived = loop {
        let range = served.get(&place).await.header("range").to_owned();
        let arrived: usize = range.strip_prefix("0-").unwrap().parse().unwrap();
        if arrived > 500_000 {
            break arrived + 1;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(arrived <= 1_000_000);
    served.restart().await;
    // The status after the restart is final: nothing writes to the file.
    let range = served.get(&place).await.header("range").to_owned();
    let arrived: usize = range.strip_prefix("0-").unwrap().parse::<usize>().unwrap() + 1;
    let digest = Digest::of(&content);
    let end = format!("{place}?digest={digest}");
    let end = served.send("PUT", &end, &[], &content[arrived..]).await;
    assert_eq!(end.status, 201, "{end:?}");
    assert_eq!(
        served.get(&format!("/v2/a/blobs/{digest}")).await.body,
        content
    );
}

#[tokio::test]
async fn content_has_sha512_digests_too() {
    let mut served = Served::new().await;
    let of = |content: &[u8]| Algorithm::Sha512.digest(content);
    let wrong = format!("/v2/a/blobs/uploads/?digest={}", of(b"right"));
    served
        .send("POST", &wrong, &[], b"wrong")
        .await
        .is(400, "DIGEST_INVALID");
    let config = of(b"{}");
    let whole = format!("/v2/a/blobs/uploads/?digest={config}");
    let whole = served.send("POST", &whole, &[], b"{}").await;
    assert_eq!(whole.status, 201, "{whole:?}");
    assert_eq!(whole.header("docker-content-digest"), config.as_str());
    // The digest, and so its algorithm, is known only at the end.
    let layer = of(b"0123456789");
    let place = served.begin("a").await;
    assert_eq!(served.send("PATCH", &place, &[], b"0123").await.status, 202);
    assert_eq!(served.send("PATCH", &place, &[], b"45").await.status, 202);
    let end = format!("{place}?digest={layer}");
    let end = served.send("PUT", &end, &[], b"6789").await;
    assert_eq!(end.status, 201, "{end:?}");
    let manifest = |subject: Value| {
        json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/x", "digest": config, "size": 2},
            "layers": [{"mediaType": "application/x", "digest": layer, "size": 10}],
            "subject": subject,
        })
        .to_string()
    };
    let image = manifest(Value::Null);
    let digest = of(image.as_bytes());
    let other = served
        .put("a", of(b"other").as_str(), MANIFEST, image.as_bytes())
        .await;
    other.is(400, "DIGEST_INVALID");
    let pushed = served
        .put("a", digest.as_str(), MANIFEST, image.as_bytes())
        .await;
    assert_eq!(
        (pushed.status, pushed.header("docker-content-digest")),
        (201, digest.as_str())
    );
    let subject = json!({"mediaType": MANIFEST, "digest": digest, "size": image.len()});
    let signature = manifest(subject);
    let pushed = served
        .put("a", "signature", MANIFEST, signature.as_bytes())
        .await;
    assert_eq!(
        (pushed.status, pushed.header("oci-subject")),
        (201, digest.as_str())
    );
    served.restart().await;
    let registry = served.registry.clone().unwrap();
    registry.collect_garbage(Duration::ZERO).unwrap();
    for (path, content) in [
        (format!("blobs/{config}"), &b"{}"[..]),
        (format!("blobs/{layer}"), b"0123456789"),
        (format!("manifests/{digest}"), image.as_bytes()),
        ("manifests/signature".to_owned(), signature.as_bytes()),
    ] {
        let found = served.get(&format!("/v2/a/{path}")).await;
        assert_eq!((found.status, found.body.as_slice()), (200, content));
    }
    let mount = format!("/v2/b/blobs/uploads/?mount={layer}&from=a");
    assert_eq!(served.send("POST", &mount, &[], b"").await.status, 201);
    let found = served.get(&format!("/v2/a/referrers/{digest}")).await;
    assert_eq!(
        found.json()["manifests"][0]["digest"],
        json!(Digest::of(signature.as_bytes()))
    );
    for version in [digest.as_str(), "signature"] {
        let path = format!("/v2/a/manifests/{version}");
        assert_eq!(served.delete(&path).await, 202);
    }
    assert_eq!(served.delete(&format!("/v2/b/blobs/{layer}")).await, 202);
    let signature = Digest::of(signature.as_bytes());
    let path = format!("/v2/a/manifests/{signature}");
    assert_eq!(served.delete(&path).await, 202);
    registry.collect_garbage(Duration::ZERO).unwrap();
    let left = registry.store.content.list().unwrap();
    assert_eq!(left, [], "nothing refers to it");
}

/// BuildKit writes build caches in this form (`image-manifest=false`).
#[tokio::test]
async fn indexes_may_list_blobs() {
    let served = Served::new().await;
    let layer = served.blob("a", b"0123456789").await;
    let config = served.blob("a", b"{}").await;
    let other = json!({"mediaType": "x", "digest": Digest::of(b"other"), "size": 5});
    let mut manifest = layer.clone();
    manifest["mediaType"] = json!(MANIFEST);
    let put = async |layer: &Value| {
        let index = json!({"schemaVersion": 2, "manifests": [layer, &config]}).to_string();
        served.put("a", "1", INDEX, index.as_bytes()).await
    };
    for missing in [&other, &manifest] {
        put(missing).await.is(400, "MANIFEST_BLOB_UNKNOWN");
    }
    assert_eq!(put(&layer).await.status, 201);
    let registry = served.registry.clone().unwrap();
    registry.collect_garbage(Duration::ZERO).unwrap();
    let path = format!("/v2/a/blobs/{}", Digest::of(b"0123456789"));
    assert_eq!(served.get(&path).await.body, b"0123456789");
}

#[tokio::test]
async fn one_blob_is_pushed_by_several_clients_at_once() {
    let served = Served::new().await;
    let content = vec![7; 1 << 20];
    let pushes = (0..8).map(|number| {
        let (served, content) = (&served, &content);
        async move { served.blob(&format!("r{}", number % 4), content).await }
    });
    futures_util::future::join_all(pushes).await;
    let blob = format!("/v2/r3/blobs/{}", Digest::of(&content));
    assert_eq!(served.get(&blob).await.body, content);
}

#[tokio::test]
async fn manifests_are_kept_to_the_byte() {
    let mut served = Served::new().await;
    let config = served.blob("a", b"{}").await;
    let content = format!(r#"{{ "config":{config},  "schemaVersion" : 2, "x": 1.0 }}"#);
    let digest = Digest::of(content.as_bytes());
    let pushed = served.put(
        "a",
        "1",
        "application/vnd.oci.image.manifest.v1+json; x",
        content.as_bytes(),
    );
    let pushed = pushed.await;
    assert_eq!(pushed.status, 201, "{pushed:?}");
    assert_eq!(
        pushed.header("location"),
        format!("/v2/a/manifests/{digest}")
    );
    served.restart().await;
    for version in ["1", digest.as_str(), &digest.as_str().replace(':', "%3A")] {
        let path = format!("/v2/a/manifests/{version}");
        let found = served.get(&path).await;
        assert_eq!(
            (found.status, found.body),
            (200, content.clone().into_bytes())
        );
        let head = served.send("HEAD", &path, &[], b"").await;
        assert_eq!(head.header("content-type"), MANIFEST);
        assert_eq!(head.header("content-length"), content.len().to_string());
        assert_eq!(head.header("docker-content-digest"), digest.as_str());
    }
    let other = Digest::of(b"other");
    served
        .put("a", other.as_str(), MANIFEST, content.as_bytes())
        .await
        .is(400, "DIGEST_INVALID");
    served
        .put("b", "1", MANIFEST, content.as_bytes())
        .await
        .is(400, "MANIFEST_BLOB_UNKNOWN");
    let longer = content.replace(r#""size":2"#, r#""size":3"#);
    served
        .put("a", "1", MANIFEST, longer.as_bytes())
        .await
        .is(400, "MANIFEST_INVALID");
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST, "digest": other, "size": 1}]});
    let index = index.to_string();
    served
        .put("a", "i", INDEX, index.as_bytes())
        .await
        .is(400, "MANIFEST_BLOB_UNKNOWN");
    // Layers that may not be distributed are elsewhere.
    let layer = json!({"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": other, "size": 1});
    let foreign = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    assert_eq!(
        served
            .put("a", "foreign", MANIFEST, foreign.as_bytes())
            .await
            .status,
        201
    );
    // By tag, then by digest with all other tags.
    assert_eq!(
        served
            .put("a", "2", MANIFEST, content.as_bytes())
            .await
            .status,
        201
    );
    assert_eq!(served.delete("/v2/a/manifests/1").await, 202);
    assert_eq!(served.delete("/v2/a/manifests/1").await, 404);
    assert_eq!(served.get("/v2/a/manifests/2").await.status, 200);
    assert_eq!(
        served.delete(&format!("/v2/a/manifests/{digest}")).await,
        202
    );
    served
        .get("/v2/a/manifests/2")
        .await
        .is(404, "MANIFEST_UNKNOWN");
    served
        .get(&format!("/v2/a/manifests/{digest}"))
        .await
        .is(404, "MANIFEST_UNKNOWN");
    let tags = served.get("/v2/a/tags/list").await.json();
    assert_eq!(tags, json!({"name": "a", "tags": ["foreign"]}));
}

#[tokio::test]
async fn names_are_listed_in_pages() {
    let served = Served::new().await;
    served.get("/v2/a/tags/list").await.is(404, "NAME_UNKNOWN");
    for (repository, tag) in [
        ("a", "b"),
        ("a", "C"),
        ("a", "a"),
        ("a/b", "1"),
        ("a-b", "1"),
    ] {
        served.image(repository, tag, json!({})).await;
    }
    served.blob("blobs-only", b"x").await;
    let mut path = "/v2/a/tags/list?n=2".to_owned();
    let first = served.get(&path).await;
    assert_eq!(first.json()["tags"], json!(["a", "b"]));
    path = first
        .header("link")
        .trim_start_matches('<')
        .split('>')
        .next()
        .unwrap()
        .to_owned();
    let second = served.get(&path).await;
    assert_eq!(
        (second.json()["tags"].clone(), second.header("link")),
        (json!(["C"]), "")
    );
    assert_eq!(
        served.get("/v2/a/tags/list?n=0").await.json()["tags"],
        json!([])
    );
    served
        .get("/v2/a/tags/list?n=-1")
        .await
        .is(400, "PAGINATION_NUMBER_INVALID");
    let all = served.get("/v2/_catalog").await.json();
    assert_eq!(all, json!({"repositories": ["a", "a-b", "a/b"]}));
    let rest = served.get("/v2/_catalog?n=1&last=a").await;
    assert_eq!(rest.json()["repositories"], json!(["a-b"]));
    assert_eq!(
        rest.header("link"),
        "</v2/_catalog?n=1&last=a-b>; rel=\"next\""
    );
}

#[tokio::test]
async fn referrers_are_listed_and_filtered() {
    let served = Served::new().await;
    let subject = served.image("a", "1", json!({})).await;
    let digest = subject["digest"].as_str().unwrap();
    let path = format!("/v2/a/referrers/{digest}");
    let none = served.get(&path).await;
    assert_eq!((none.status, none.header("content-type")), (200, INDEX));
    assert_eq!(none.json()["manifests"], json!([]));
    let more = json!({"subject": subject, "artifactType": "text/a+b", "annotations": {"k": "v"}});
    let first = served.image("a", "first", more).await;
    served
        .image("a", "second", json!({"subject": subject}))
        .await;
    let found = served.get(&path).await.json();
    let mut kinds: Vec<&str> = found["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| found["artifactType"].as_str().unwrap())
        .collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["application/x", "text/a+b"]);
    let filtered = served
        .get(&format!("{path}?artifactType=text%2Fa%2Bb"))
        .await;
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    let expected = json!([{"mediaType": MANIFEST, "digest": first["digest"], "size": first["size"], "artifactType": "text/a+b", "annotations": {"k": "v"}}]);
    assert_eq!(filtered.json()["manifests"], expected);
    assert_eq!(
        served
            .delete(&format!(
                "/v2/a/manifests/{}",
                first["digest"].as_str().unwrap()
            ))
            .await,
        202
    );
    assert_eq!(
        served.get(&path).await.json()["manifests"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let missing = json!({"mediaType": MANIFEST, "digest": Digest::of(b"later"), "size": 1});
    served
        .image("a", "early", json!({"subject": missing}))
        .await;
    // The response to a push says that its subject was understood.
    let again = served.get("/v2/a/manifests/second").await;
    let again = served.put("a", "second", MANIFEST, &again.body).await;
    assert_eq!(again.header("oci-subject"), digest);
    // Many large ones are listed in pages.
    for number in 0..3 {
        let annotations = json!({"k": "v".repeat(3 << 20)});
        served
            .image(
                "a",
                &format!("large{number}"),
                json!({"subject": missing, "annotations": annotations}),
            )
            .await;
    }
    let (mut path, mut count) = (format!("/v2/a/referrers/{}", Digest::of(b"later")), 0);
    while !path.is_empty() {
        let page = served.get(&path).await;
        assert!(page.body.len() < 8 << 20);
        count += page.json()["manifests"].as_array().unwrap().len();
        path = page
            .header("link")
            .trim_start_matches('<')
            .split('>')
            .next()
            .unwrap()
            .to_owned();
    }
    assert_eq!(count, 4);
}

#[tokio::test]
async fn hostile_requests_are_refused() {
    let served = Served::new().await;
    let digest = Digest::of(b"");
    for (path, status, code) in [
        ("/v2/../etc/manifests/1".to_owned(), 400, "NAME_INVALID"),
        (
            "/v2/%2e%2e/%2e%2e/manifests/1".to_owned(),
            400,
            "NAME_INVALID",
        ),
        (
            "/v2/a%2f..%2f..%2fb/manifests/1".to_owned(),
            400,
            "NAME_INVALID",
        ),
        ("/v2/a/_tags/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/A/tags/list".to_owned(), 400, "NAME_INVALID"),
        ("/v2//tags/list".to_owned(), 400, "NAME_INVALID"),
        (
            format!("/v2/{}/tags/list", "a/".repeat(200) + "a"),
            400,
            "NAME_INVALID",
        ),
        ("/v2/a/manifests/..%2f1".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/%00".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (
            "/v2/a/blobs/sha256:../../../../etc/passwd".to_owned(),
            404,
            "UNSUPPORTED",
        ),
        (
            "/v2/a/blobs/sha256:..%2f..%2fpasswd".to_owned(),
            400,
            "DIGEST_INVALID",
        ),
        (
            "/v2/a/blobs/uploads/..%2f_tags%2f1".to_owned(),
            404,
            "BLOB_UPLOAD_UNKNOWN",
        ),
        (
            format!("/v2/a/blobs/{}", digest.as_str().to_uppercase()),
            400,
            "DIGEST_INVALID",
        ),
        ("/v2/a/referrers/x".to_owned(), 400, "DIGEST_INVALID"),
        ("/v2/a".to_owned(), 404, "UNSUPPORTED"),
        ("/".to_owned(), 404, "UNSUPPORTED"),
        ("/v1/x".to_owned(), 404, "UNSUPPORTED"),
    ] {
        served.get(&path).await.is(status, code);
    }
    for (method, path) in [
        ("POST", "/v2/".to_owned()),
        ("PUT", "/v2/_catalog".to_owned()),
        ("POST", "/v2/a/manifests/1".to_owned()),
        ("PATCH", format!("/v2/a/blobs/{digest}")),
        ("GET", "/v2/a/blobs/uploads/".to_owned()),
    ] {
        served
            .send(method, &path, &[], b"")
            .await
            .is(405, "UNSUPPORTED");
    }
    let place = served.begin("a").await;
    for range in ["", "x", "1", "-", "9-", "0--1", "99999999999999999999-1"] {
        let answer = served
            .send("PATCH", &place, &[("content-range", range)], b"1")
            .await;
        answer.is(400, "BLOB_UPLOAD_INVALID");
    }
    let range = [("content-range", "0-18446744073709551615")];
    served
        .send("PATCH", &place, &range, b"1")
        .await
        .is(416, "BLOB_UPLOAD_INVALID");
    served
        .put("a", ".a", MANIFEST, b"{}")
        .await
        .is(400, "MANIFEST_INVALID");
    let huge = vec![b' '; (4 << 20) + 1];
    served
        .put("a", "1", MANIFEST, &huge)
        .await
        .is(413, "SIZE_INVALID");
    served
        .put("a", "1", MANIFEST, &huge[..4 << 20])
        .await
        .is(400, "MANIFEST_INVALID");
    let long = "x".repeat(200 << 10);
    let answer = served.send("GET", "/v2/", &[("x", &long)], b"").await;
    assert_eq!(answer.status, 431);
    // Nothing was made of any of it.
    assert_eq!(
        served.get("/v2/_catalog").await.json()["repositories"],
        json!([])
    );
}

#[tokio::test]
async fn slow_clients_are_not_waited_for() {
    let period = Duration::from_millis(300);
    let served = Served::with(Options {
        pace: Pace { period },
        ..Options::default()
    })
    .await;
    let place = served.begin("a").await;
    for path in [place.as_str(), "/v2/a/manifests/1"] {
        let method = if path == place { "PATCH" } else { "PUT" };
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let head = head(method, path, &[("content-type", MANIFEST)], 1 << 20);
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"a").await.unwrap();
        let answer = Answer::read(&mut stream).await;
        answer.is(408, "BLOB_UPLOAD_INVALID");
    }
    // The upload belongs to nobody now.
    assert_eq!(served.send("PATCH", &place, &[], b"b").await.status, 202);
}

#[tokio::test]
async fn what_no_image_needs_is_collected() {
    let served = Served::new().await;
    let image = served.image("a", "1", json!({})).await;
    served.blob("a", b"of no manifest").await;
    served.blob("b", b"deleted").await;
    assert_eq!(
        served
            .delete(&format!("/v2/b/blobs/{}", Digest::of(b"deleted")))
            .await,
        202
    );
    let place = served.begin("a").await;
    let blobs = || {
        std::fs::read_dir(served.root.join("blobs/sha256"))
            .unwrap()
            .count()
    };
    assert_eq!(blobs(), 5);
    let registry = served.registry.as_ref().unwrap();
    registry.collect_garbage(Duration::from_secs(3600)).unwrap();
    assert_eq!(blobs(), 4, "what no repository has");
    assert_eq!(served.get(&place).await.status, 204);
    registry.collect_garbage(Duration::ZERO).unwrap();
    assert_eq!(blobs(), 3, "what no manifest names");
    served.get(&place).await.is(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(served.get("/v2/a/manifests/1").await.status, 200);
    let layer = Digest::of(b"layer of 1");
    assert_eq!(
        served.get(&format!("/v2/a/blobs/{layer}")).await.body,
        b"layer of 1"
    );
    assert_eq!(
        served
            .delete(&format!(
                "/v2/a/manifests/{}",
                image["digest"].as_str().unwrap()
            ))
            .await,
        202
    );
    registry.collect_garbage(Duration::ZERO).unwrap();
    assert_eq!(blobs(), 0);
}

#[tokio::test]
async fn a_cache_and_a_registry_do_not_share_a_directory() {
    let mut served = Served::new().await;
    served.image("app", "1", json!({})).await;
    served.registry = None;
    served.server.abort();
    let _ = (&mut served.server).await;
    let open = async |root: &Path, upstream: Option<&str>| loop {
        match Registry::open(root, upstream) {
            Err(error) if error.contains("in use") => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => break opened,
        }
    };
    let (one, other) = (Some("https://one"), Some("https://other"));
    let error = open(&served.root, one).await.unwrap_err();
    assert!(error.contains("has pushed images, which a cache of https://one would remove"));
    assert!(open(&served.root, None).await.is_ok());
    let cache = served.root.join("inner");
    assert!(open(&cache, one).await.is_ok());
    assert!(open(&cache, one).await.is_ok());
    let error = open(&cache, other).await.unwrap_err();
    assert!(error.ends_with("is a cache of https://one, not of https://other"));
    let error = open(&cache, None).await.unwrap_err();
    assert!(error.ends_with("is a cache of https://one, and no registry to push to"));
}

#[tokio::test]
async fn a_directory_has_one_server() {
    let served = Served::new().await;
    let error = Registry::open(&served.root, None).unwrap_err();
    assert!(error.ends_with("is in use by another registry"), "{error}");
    let engine = served.root.join("engine");
    std::fs::create_dir(&engine).unwrap();
    std::fs::write(engine.join("store.db"), "").unwrap();
    assert!(
        Registry::open(&engine, None)
            .unwrap_err()
            .ends_with("is an engine's data root")
    );
}
