//! A cache of another registry, whose connection can be bad.

use std::sync::Mutex;

use tokio::sync::watch;
use whelk_registry::Settings;
use whelk_sys::sync::IgnorePoison as _;

use super::*;
use crate::garbage::Keep;
use crate::upstream::{Downloads, Limits, Upstream};

/// What happens to the responses of upstream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Line {
    Good,
    /// Connections are closed.
    Down,
    /// There were too many requests, and the next one is to come in a minute.
    Limited,
    /// The last byte of each response's content is another one.
    Wrong,
    /// A page of HTML instead of what was asked for.
    Portal,
    /// The credentials are not valid any more.
    Denied,
    /// Responses come in pieces of 64 KiB, with pauses.
    Slow,
    /// Responses stop after this many bytes until the line is another one.
    Stalled(usize),
}

/// Stands between a cache and its upstream.
pub(super) struct Gate {
    address: SocketAddr,
    line: watch::Sender<Line>,
    /// Method, path and range of the requests so far.
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Gate {
    async fn new(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (line, state) = watch::channel(Line::Good);
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = requests.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(relay(stream, upstream, state.clone(), log.clone()));
            }
        });
        Self {
            address,
            line,
            requests,
            task,
        }
    }

    /// Returns the requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().ignore_poison())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(
    mut client: TcpStream,
    upstream: SocketAddr,
    mut line: watch::Receiver<Line>,
    log: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = client.read_u8().await.ok()?;
        // A TLS handshake: the server speaks HTTP only.
        if head.is_empty() && byte == 22 {
            client
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .ok()?;
            return None;
        }
        head.push(byte);
    }
    let head = String::from_utf8(head).ok()?;
    let (first, rest) = head.split_once("\r\n")?;
    let mut entry = first.trim_end_matches(" HTTP/1.1").to_owned();
    for line in rest.to_ascii_lowercase().lines() {
        if let Some(range) = line.strip_prefix("range: ") {
            entry += &format!(" {range}");
        }
    }
    log.lock().ignore_poison().push(entry);
    let state = *line.borrow();
    match state {
        Line::Down => return None,
        Line::Limited => {
            let refusal = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 60\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            return client.write_all(refusal.as_bytes()).await.ok();
        }
        Line::Portal => {
            let page = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\nconnection: close\r\n\r\n";
            let body = if first.starts_with("HEAD ") {
                ""
            } else {
                "<html>"
            };
            let page = format!("{page}{body}");
            return client.write_all(page.as_bytes()).await.ok();
        }
        Line::Denied => {
            let refusal =
                "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            return client.write_all(refusal.as_bytes()).await.ok();
        }
        _ => {}
    }
    let mut server = TcpStream::connect(upstream).await.ok()?;
    let request = format!("{first}\r\nconnection: close\r\n{rest}");
    server.write_all(request.as_bytes()).await.ok()?;
    let mut response = Vec::new();
    server.read_to_end(&mut response).await.ok()?;
    if state == Line::Wrong
        && first.starts_with("GET ")
        && let Some(last) = response.last_mut()
    {
        *last ^= 1;
    }
    if state == Line::Slow {
        for piece in response.chunks(64 << 10) {
            client.write_all(piece).await.ok()?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        return Some(());
    }
    if let Line::Stalled(bytes) = state
        && bytes < response.len()
    {
        client.write_all(&response[..bytes]).await.ok()?;
        line.wait_for(|line| *line != state).await.ok()?;
        response.drain(..bytes);
        if *line.borrow() == Line::Down {
            return None;
        }
    }
    client.write_all(&response).await.ok()
}

/// A registry, and a cache of it.
pub(super) struct Pair {
    pub origin: Served,
    pub gate: Gate,
    pub upstream: Arc<Upstream>,
    pub cache: Served,
}

impl Pair {
    pub(super) async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub(super) async fn with(limits: Limits) -> Self {
        let origin = Served::new().await;
        let gate = Gate::new(origin.address).await;
        let url = format!("http://{}", gate.address);
        let mut upstream = Upstream::new(&url, None, Settings::default()).unwrap();
        upstream.downloads = Downloads::new(limits);
        let upstream = Arc::new(upstream);
        let options = Options {
            upstream: Some(upstream.clone()),
            ..Options::default()
        };
        let cache = Served::with(options).await;
        Self {
            origin,
            gate,
            upstream,
            cache,
        }
    }

    pub fn line(&self, line: Line) {
        self.gate.line.send_replace(line);
        self.upstream.clear_backoff();
    }

    pub fn keep(&self, time: Duration, size: Option<u64>) {
        let registry = self.cache.registry.as_ref().unwrap();
        let keep = Keep { time, size };
        registry
            .collect_cache(keep, Duration::from_secs(3600))
            .unwrap();
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.cache.get(path).await
    }
}

#[tokio::test]
async fn what_was_pulled_once_is_served_from_the_cache() {
    let pair = Pair::new().await;
    let image = pair.origin.image("team/app", "1", json!({})).await;
    let digest = image["digest"].as_str().unwrap();
    let layer = Digest::of(b"layer of 1");
    let (tag, by_digest, blob) = (
        "/v2/team/app/manifests/1".to_owned(),
        format!("/v2/team/app/manifests/{digest}"),
        format!("/v2/team/app/blobs/{layer}"),
    );
    for round in 0..2 {
        let found = pair.get(&tag).await;
        assert_eq!(
            (found.status, found.header("content-type")),
            (200, MANIFEST)
        );
        assert_eq!(found.header("docker-content-digest"), digest);
        assert_eq!(pair.get(&by_digest).await.body, found.body);
        assert_eq!(pair.get(&blob).await.body, b"layer of 1");
        let head = pair.cache.send("HEAD", &blob, &[], b"").await;
        assert_eq!((head.status, head.header("content-length")), (200, "10"));
        let requests = pair.gate.requests();
        match round {
            0 => assert!(requests.contains(&format!("GET {blob}")), "{requests:?}"),
            _ => assert_eq!(requests, [format!("HEAD {tag}")]),
        }
    }
    // Also while upstream does not answer, or refuses.
    for (line, status, code) in [
        (Line::Down, 503, "UNAVAILABLE"),
        (Line::Limited, 429, "TOOMANYREQUESTS"),
    ] {
        pair.line(line);
        for path in [&tag, &by_digest, &blob] {
            assert_eq!(pair.get(path).await.status, 200, "{path} {line:?}");
        }
        let tags = pair.get("/v2/team/app/tags/list").await.json();
        assert_eq!(tags["tags"], json!(["1"]), "{line:?}");
        let other = format!("/v2/team/app/blobs/{}", Digest::of(b"{}"));
        for path in [&other, "/v2/team/app/manifests/2"] {
            let begun = std::time::Instant::now();
            let refused = pair.get(path).await;
            refused.is(status, code);
            assert_eq!(refused.header("retry-after"), "10");
            assert!(begun.elapsed() < Duration::from_secs(30), "{line:?}");
        }
    }
    // Something in between answers: the tag is as it was. Refused access is not.
    pair.line(Line::Portal);
    assert_eq!(pair.get(&tag).await.status, 200);
    pair.get("/v2/team/app/manifests/2")
        .await
        .is(502, "UNKNOWN");
    pair.line(Line::Denied);
    pair.get(&tag).await.is(403, "DENIED");
    assert_eq!(pair.get(&by_digest).await.status, 200);
    // A tag names what it names upstream.
    pair.line(Line::Good);
    let newer = pair.origin.image("team/app", "2", json!({})).await;
    let content = pair.get("/v2/team/app/manifests/2").await.body;
    let moved = pair.origin.put("team/app", "1", MANIFEST, &content).await;
    assert_eq!(moved.status, 201);
    let found = pair.get(&tag).await;
    assert_eq!(found.header("docker-content-digest"), newer["digest"]);
    assert_eq!(pair.origin.delete(&tag).await, 202);
    pair.get(&tag).await.is(404, "MANIFEST_UNKNOWN");
    pair.line(Line::Down);
    pair.get(&tag).await.is(503, "UNAVAILABLE");
}

#[tokio::test]
async fn lists_are_those_of_upstream_and_nothing_can_be_changed() {
    let pair = Pair::new().await;
    let subject = pair.origin.image("a", "1", json!({})).await;
    let more = json!({"subject": subject, "artifactType": "text/x+y"});
    pair.origin.image("a", "signature", more).await;
    let page = pair.get("/v2/a/tags/list?n=1").await;
    assert_eq!(page.json()["tags"], json!(["1"]));
    let link = "</v2/a/tags/list?n=1&last=1>; rel=\"next\"";
    assert_eq!(page.header("link"), link);
    let digest = subject["digest"].as_str().unwrap();
    let path = format!("/v2/a/referrers/{digest}?artifactType=text%2Fx%2By");
    let found = pair.get(&path).await;
    assert_eq!(found.header("content-type"), INDEX);
    assert_eq!(found.header("oci-filters-applied"), "artifactType");
    assert_eq!(found.json()["manifests"].as_array().unwrap().len(), 1);
    pair.get("/v2/b/tags/list").await.is(404, "NAME_UNKNOWN");
    pair.get("/v2/a/manifests/9")
        .await
        .is(404, "MANIFEST_UNKNOWN");
    let blob = format!("/v2/a/blobs/{}", Digest::of(b"none"));
    pair.get(&blob).await.is(404, "BLOB_UNKNOWN");
    for (method, path) in [
        ("PUT", "/v2/a/manifests/1"),
        ("DELETE", "/v2/a/manifests/1"),
        ("POST", "/v2/a/blobs/uploads/"),
        ("DELETE", &blob),
    ] {
        let refused = pair.cache.send(method, path, &[], b"").await;
        refused.is(405, "UNSUPPORTED");
        let text = String::from_utf8_lossy(&refused.body).into_owned();
        assert!(text.contains("is a cache of http://127.0.0.1"), "{text}");
    }
    // A repository does not show what another one has.
    let layer = Digest::of(b"layer of 1");
    let path = format!("/v2/a/blobs/{layer}");
    assert_eq!(pair.get(&path).await.status, 200);
    let other = format!("/v2/b/blobs/{layer}");
    pair.get(&other).await.is(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn lists_of_what_the_cache_has_are_served_without_upstream() {
    let pair = Pair::new().await;
    let subject = pair.origin.image("a", "1", json!({})).await;
    let signature = json!({"subject": subject, "artifactType": "text/x"});
    let signature = pair.origin.image("a", "signature", signature).await;
    for tag in ["1", "signature"] {
        let path = format!("/v2/a/manifests/{tag}");
        assert_eq!(pair.get(&path).await.status, 200);
    }
    let digest = subject["digest"].as_str().unwrap();
    let referrers = format!("/v2/a/referrers/{digest}");
    pair.line(Line::Down);
    pair.gate.requests();
    for round in 0..2 {
        let found = pair.get(&referrers).await;
        assert_eq!(found.header("content-type"), INDEX);
        let found = found.json();
        assert_eq!(found["manifests"][0]["digest"], signature["digest"]);
        let tags = pair.get("/v2/a/tags/list").await.json();
        assert_eq!(tags["tags"], json!(["1", "signature"]));
        // Upstream is not asked again at once.
        let asked = pair.gate.requests();
        assert_eq!(asked.is_empty(), round == 1, "{asked:?}");
    }
    // What the cache knows nothing of is not an empty list.
    let other = signature["digest"].as_str().unwrap();
    let other = format!("/v2/a/referrers/{other}");
    pair.get(&other).await.is(503, "UNAVAILABLE");
    pair.get("/v2/b/tags/list").await.is(503, "UNAVAILABLE");
}

#[tokio::test]
async fn requests_for_a_blob_share_one_download() {
    let pair = Pair::new().await;
    let content: Vec<u8> = (0..3_000_000u32)
        .map(|number| (number % 251) as u8)
        .collect();
    let digest = Digest::of(&content);
    for repository in ["a", "b"] {
        pair.origin.blob(repository, &content).await;
    }
    // What has arrived is sent on at once.
    pair.line(Line::Stalled(1_000_000));
    let mut early = TcpStream::connect(pair.cache.address).await.unwrap();
    let request = head("GET", &format!("/v2/a/blobs/{digest}"), &[], 0);
    early.write_all(request.as_bytes()).await.unwrap();
    let mut start = vec![0; 500_000];
    early.read_exact(&mut start).await.unwrap();
    let requests = (0..8).map(|number| {
        let path = format!("/v2/{}/blobs/{digest}", ["a", "b"][number % 2]);
        let pair = &pair;
        async move {
            let range = [("range", "bytes=2000000-")];
            let headers = if number == 0 { &range[..] } else { &[] };
            pair.cache.send("GET", &path, headers, b"").await
        }
    });
    let all = futures_util::future::join_all(requests);
    let release = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        pair.line(Line::Good);
    };
    let (answers, ()) = tokio::join!(all, release);
    for (number, answer) in answers.iter().enumerate() {
        match number {
            0 => assert!(answer.status == 206 && answer.body == content[2_000_000..]),
            _ => assert!(answer.status == 200 && answer.body == content),
        }
    }
    let mut rest = Vec::new();
    early.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(&content[content.len() - 1000..]));
    let requests = pair.gate.requests();
    let gets = requests.iter().filter(|line| line.starts_with("GET "));
    assert_eq!(gets.count(), 1, "{requests:?}");
}

#[tokio::test]
async fn a_download_is_continued_and_wrong_content_is_not_kept() {
    let pair = Pair::new().await;
    let content: Vec<u8> = (0..3_000_000u32)
        .map(|number| (number % 253) as u8)
        .collect();
    let digest = Digest::of(&content);
    pair.origin.blob("a", &content).await;
    let path = format!("/v2/a/blobs/{digest}");
    let registry = pair.cache.registry.clone().unwrap();
    let stored = || registry.store.content.list().unwrap();
    // The last byte is not sent before the digest is known.
    pair.line(Line::Wrong);
    let answer = pair.get(&path).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.len() < content.len(), "{}", answer.body.len());
    assert_eq!(stored(), []);
    pair.line(Line::Stalled(1_000_000));
    let mut client = TcpStream::connect(pair.cache.address).await.unwrap();
    let request = head("GET", &path, &[], 0);
    client.write_all(request.as_bytes()).await.unwrap();
    let mut start = vec![0; 500_000];
    client.read_exact(&mut start).await.unwrap();
    pair.line(Line::Down);
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert!(start.len() + rest.len() < content.len());
    assert_eq!(stored(), []);
    pair.line(Line::Good);
    pair.gate.requests();
    assert!(pair.get(&path).await.body == content);
    assert_eq!(stored(), [digest]);
    // Only the rest was requested.
    let requests = pair.gate.requests();
    let begin = requests[1].strip_prefix(&format!("GET {path} bytes="));
    let begin = begin.and_then(|range| range.split('-').next()?.parse::<usize>().ok());
    assert!(begin.is_some_and(|begin| begin > 400_000), "{requests:?}");
    assert_eq!(requests.len(), 2, "{requests:?}");
}

#[tokio::test]
async fn a_cache_keeps_what_is_asked_for() {
    let pair = Pair::new().await;
    let image = pair.origin.image("a", "1", json!({})).await;
    let digest = image["digest"].as_str().unwrap();
    let blobs: Vec<String> = [b"{}".as_slice(), b"layer of 1"]
        .map(|content| format!("/v2/a/blobs/{}", Digest::of(content)))
        .into();
    let size = image["size"].as_u64().unwrap();
    let registry = pair.cache.registry.clone().unwrap();
    let kept = || registry.store.content.list().unwrap().len();
    let hour = Duration::from_secs(3600);
    for path in [&blobs[0], &blobs[1], &"/v2/a/manifests/1".to_owned()] {
        assert_eq!(pair.get(path).await.status, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    pair.keep(hour, Some(size + 12));
    assert_eq!(kept(), 3);
    // The configuration was asked for longest ago until now.
    assert_eq!(pair.get(&blobs[0]).await.status, 200);
    pair.keep(hour, Some(size + 2));
    assert_eq!(kept(), 2);
    pair.gate.requests();
    assert_eq!(pair.get(&blobs[0]).await.status, 200);
    assert_eq!(pair.gate.requests(), [""; 0]);
    assert_eq!(pair.get(&blobs[1]).await.body, b"layer of 1");
    pair.keep(Duration::ZERO, None);
    assert_eq!(kept(), 0);
    let by_digest = format!("/v2/a/manifests/{digest}");
    assert_eq!(pair.get(&by_digest).await.status, 200);
    assert_eq!(
        pair.get("/v2/_catalog").await.json()["repositories"],
        json!(["a"])
    );
}

#[test]
fn upstream_is_a_registry_with_credentials_in_a_private_file() {
    let scratch = whelk_sys::Scratch::temporary("upstream").unwrap();
    let file = scratch.path().join("credentials");
    let make = |url: &str, file: Option<PathBuf>| Upstream::new(url, file, Settings::default());
    for url in [
        "",
        "x",
        "ftp://x",
        "https://",
        "https://x/y",
        "https://u:secret@x",
        "u:secret@x",
    ] {
        let error = make(url, None).unwrap_err();
        assert!(error.contains("want https://HOST[:PORT]"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    use std::os::unix::fs::PermissionsExt as _;
    let chmod = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode));
    std::fs::write(&file, "ann:secret\n").unwrap();
    chmod(0o644).unwrap();
    let error = make("https://x", Some(file.clone())).unwrap_err();
    assert!(error.contains("other users may read it"), "{error}");
    chmod(0o600).unwrap();
    let upstream = make("https://docker.io/", Some(file.clone())).unwrap();
    assert!(!format!("{upstream:?}").contains("secret"));
    assert_eq!(upstream.url(), "https://docker.io");
    for host in ["x", "10.0.0.1:80", "localhost.x", "127.0.0.1.x"] {
        let error = make(&format!("http://{host}"), Some(file.clone())).unwrap_err();
        assert!(error.contains("would be sent unencrypted"), "{error}");
    }
    for host in ["localhost:5000", "127.0.0.1", "[::1]:5000", "[::1]"] {
        assert!(make(&format!("http://{host}"), Some(file.clone())).is_ok());
    }
    std::fs::write(&file, "secret\n").unwrap();
    let error = upstream.reload().unwrap_err();
    assert!(error.ends_with("want one line USER:PASSWORD"), "{error}");
}
